"""The page of the benchmarks: what it advises from which figures, what it reads, and that nothing read is markup."""

from __future__ import annotations

import copy
import html
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest

from lazycast.tools import cli
from lazycast.tools.bench import report
from lazycast.tools.bench.page import charts, files, render, requests, scaling, times
from lazycast.tools.bench.page.advice import apart, listed
from lazycast.tools.bench.page.records import TimesRun, Workload

KIB, MIB = 1 << 10, 1 << 20
ROOT = Path(__file__).resolve().parents[2]
ABOUT = {
    "format": 1,
    "command": "lazycast bench --report there",
    "date": "2026-01-02T03:04:05+00:00",
    "machine": {"cpu": "Some <b>CPU</b>", "cores": 2, "memory_gib": 8.0, "kernel": "6.1", "load_before": 0.5},
    "versions": {"lazycast": "0.1.0", "python": "3.11.7"},
}


def times_run(cells: dict[tuple[str, int, str], tuple[float, float, float]], ranks: int = 4) -> dict[str, Any]:
    """A run of broadcasts, from (way, size, column) to the 10th percentile, median and 90th (ms)."""
    results = [
        {
            "kind": "array",
            "nbytes": nbytes,
            "way": way,
            "column": column,
            "count": 9,
            **{name: ms / 1e3 for name, ms in zip(("p10_s", "median_s", "p90_s"), spread, strict=True)},
        }
        for (way, nbytes, column), spread in cells.items()
    ]
    return {**ABOUT, "plan": {"backend": "torch", "ranks": ranks}, "results": results, "memory": [], "figures": {}}


def requests_way(name: str, qps: list[float], p99_s: float = 0.2, **more: Any) -> dict[str, Any]:
    middle = sorted(qps)[len(qps) // 2]
    return {
        "way": name,
        "known": not name.startswith("lazycast-"),
        "unavailable": None,
        "qps": middle,
        "of_ideal": middle / 100,
        "p50_s": 0.1,
        "p99_s": p99_s,
        "alone_s": 0.02,
        "broadcast_s": 0.001,
        "blocked_s": [1e-4, 2e-4],
        "cpu_s": [0.01, 0.01],
        "cpu_in_materializations": 1.0,
        "materialize_s": [0.02, 0.0],
        "materialized": [1.0, 0.0],
        "chosen": [],
        "qps_against": {},
        "rounds": [{"qps": each, "p50_s": 0.1, "p99_s": p99_s} for each in qps],
        **more,
    }


def requests_run(ways: list[dict[str, Any]], ranks: int = 2) -> dict[str, Any]:
    workload = {
        "workload": "photo",
        "about": "a JPEG -> pixels",
        "window": 8,
        "yardstick_s": 0.02,
        "yardstick_cpu_s": 0.02,
        "ideal_qps": 100.0,
        "slowdown_rate": 0.0,
        "ways": ways,
    }
    plan = {"backend": "torch", "ranks": ranks, "seconds": 1.0, "rounds": 3, "concurrency": 8, "slowdown_s": 0.0}
    return {**ABOUT, "benchmark": "qps", "plan": {**plan, "rate": None}, "workloads": [workload]}


def advised(ways: list[dict[str, Any]]) -> list[str]:
    raw = requests_run(ways)
    run = msgspec.convert(raw, files.RequestsRun)
    return [piece.choose for piece in requests.advise(run, {"photo": Workload.of(raw["workloads"][0])})]


FIXED = [requests_way(f"lazycast-{name}", [qps, qps + 1]) for name, qps in (("shard", 60), ("root", 30), ("every", 10))]


def test_auto_is_advised_only_where_it_keeps_up() -> None:
    good, bad = requests_way("lazycast-auto", [60.5, 62]), requests_way("lazycast-auto", [40, 41])
    assert advised([*FIXED, good])[0] == 'placement="auto", the default'
    assert advised([*FIXED, bad])[0] == 'placement="shard"'
    others = [requests_way(f"lazycast-{name}", [qps, qps + 1]) for name, qps in (("shard", 30), ("root", 90))]
    assert advised([*others, bad])[0] == 'placement="root"'
    assert advised(FIXED)[0] == 'placement="shard"'  # nobody measured the choice


def test_another_way_is_advised_where_it_is_better() -> None:
    (lost,) = [text for text in advised([*FIXED, requests_way("raw-pool", [90, 95])]) if "raw-pool" in text]
    (won,) = [text for text in advised([*FIXED, requests_way("raw-pool", [9, 12])]) if "raw-pool" in text]
    (even,) = [text for text in advised([*FIXED, requests_way("raw-pool", [55, 63])]) if "raw-pool" in text]
    assert lost == "raw-pool rather than lazycast"
    assert won == "lazycast rather than raw-pool, the best of the other ways"
    assert even == "lazycast or raw-pool: speed does not decide"


def test_a_calmer_placement_is_named() -> None:
    ways = [requests_way("lazycast-shard", [60, 61], p99_s=0.4), requests_way("lazycast-root", [30, 31], p99_s=0.1)]
    assert 'placement="root" where the slowest requests matter more than their number' in advised(ways)
    ways[1] = requests_way("lazycast-root", [30, 31], p99_s=0.4)
    assert not [text for text in advised(ways) if "slowest" in text]


def test_the_scheduler_has_a_say_if_it_was_watched() -> None:
    def slowed(name: str, lost: float) -> dict[str, Any]:
        found = dict.fromkeys(("steps_per_s_without", "steps_per_s", "cpu_cores", "cpu_share", "beyond"), 1.0)
        return requests_way(name, [60, 61], slowdown={**found, "lost": lost})

    assert not [text for text in advised(FIXED) if "scheduler" in text]
    assert advised([slowed("lazycast-shard", 0.1), slowed("itself", 0.4)])[-1] == (
        'placement="shard" for the scheduler\'s sake'
    )
    assert advised([slowed("lazycast-shard", 0.4), slowed("itself", 0.1)])[-1] == "itself for the scheduler's sake"
    assert advised([slowed("lazycast-shard", 0.12), slowed("itself", 0.1)])[-1] == (
        "whichever: the scheduler feels no difference"
    )


def chosen(cells: dict[tuple[str, int, str], tuple[float, float, float]]) -> list[str]:
    return [piece.choose for piece in times.advise(msgspec.convert(times_run(cells), TimesRun))]


def test_sizes_where_each_way_is_better() -> None:
    sizes = (KIB, MIB, 64 * MIB)
    ours = {("lazycast", size, "holds"): (0.9, 1.0, 1.1) for size in sizes}
    spreads = ((0.1, 0.2, 0.3), (0.8, 1.0, 1.2), (8, 9, 10))
    peer = {("peer", size, "holds"): spread for size, spread in zip(sizes, spreads, strict=True)}
    assert chosen({**ours, **peer}) == ["lazycast for 64 MiB; peer for 1 KiB"]
    slow = dict.fromkeys(peer, (8.0, 9.0, 10.0))
    assert chosen({**ours, **slow}) == ["lazycast rather than peer"]
    assert chosen({**slow, **{("lazycast", size, "holds"): (80, 90, 99) for size in sizes}}) == [
        "peer rather than lazycast"
    ]
    (piece,) = times.advise(msgspec.convert(times_run({**ours, **peer}), TimesRun))
    assert piece.why == (
        "peer takes 9.0 times as long at 64 MiB (9.00 ms against 1.00 ms); lazycast takes 5.0 times as long at 1 KiB "
        "(1.00 ms against 200 µs); no difference beyond the spread at 1 MiB."
    )


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ((MIB, 16 * MIB), "a whole broadcast of 1 MiB, 8.0 times fewer bytes, took 1.00 ms, 20 times as long"),
        ((MIB, 8 * MIB), "a whole broadcast of 8 MiB took 8.00 ms, 160 times as long"),
        ((16 * MIB,), None),
    ],
)
def test_a_call_is_compared_with_no_larger_broadcast(sizes: tuple[int, ...], said: str | None) -> None:
    run = times_run({("lazycast", size, "holds"): (size / MIB,) * 3 for size in sizes})  # type: ignore[misc]
    spread = {"p10_s": 4e-5, "median_s": 5e-5, "p90_s": 6e-5}
    run["figures"] = {"async_blocked": {"nbytes": 8 * MIB, "count": 9, **spread}}
    found = [piece.why for piece in times.advise(msgspec.convert(run, TimesRun))]
    assert found == ([] if said is None else [f"Its call returns after 50.0 µs for 8 MiB; {said}."])


def test_what_agreement_costs() -> None:
    ours = {("lazycast", size, "holds"): (0.9, 1.0, 1.1) for size in (KIB, MIB)}
    cheap = {("lazycast agree=False", size, "holds"): (0.9, 0.99, 1.1) for size in (KIB, MIB)}
    dear = {**cheap, ("lazycast agree=False", KIB, "holds"): (0.4, 0.5, 0.6)}
    assert chosen({**ours, **cheap}) == ["leave agree=True"]
    assert chosen({**ours, **dear}) == ["agree=False only where casts of 1 KiB must be fast"]


@pytest.mark.parametrize(
    ("copy_ms", "said"),
    [
        (4.0, 'values="copy" for 16 MiB that every rank has overwritten whole'),
        (30.0, 'leave values="private" for values that are overwritten'),
        (10.5, 'values="private" or "copy" for values that are overwritten: no difference beyond the spread'),
    ],
)
def test_which_values_to_overwrite(copy_ms: float, said: str) -> None:
    cells = {("lazycast", 16 * MIB, "overwritten"): (9.0, 10.0, 11.0)}
    cells["lazycast values=copy", 16 * MIB, "overwritten"] = (copy_ms - 0.5, copy_ms, copy_ms + 0.5)
    assert chosen(cells) == [said]


def test_when_figures_differ() -> None:
    assert apart([1, 2], [3, 4])
    assert apart([3, 4], [1, 2])
    assert not apart([1, 3], [2, 4])
    assert not apart([1.0], [1.04])  # a trifle
    assert [listed(names) for names in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == ["", "a", "a and b", "a, b and c"]


@pytest.fixture(scope="module", autouse=True)
def fonts() -> None:
    """Let matplotlib open its fonts, which it keeps open, before a test counts what it leaves behind."""
    charts.time_over_size(msgspec.convert(times_run(HELD), TimesRun), "array", "NumPy array")


@pytest.fixture
def bare_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """No plot is drawn, which takes most of the time of a page: for tests of what stands beside them."""

    def bare(width: float, height: float, fill: object, label: str) -> str:
        return f'<svg viewBox="0 0 {width} {height}"><title>{html.escape(label)}</title></svg>'

    monkeypatch.setattr(charts, "_svg", bare)


def put(folder: Path, **runs: Any) -> Path:
    for name, run in runs.items():
        content = run if isinstance(run, (str, bytes)) else json.dumps(run)
        (folder / f"{name}.json").write_bytes(content.encode() if isinstance(content, str) else content)
    return folder


HELD = {("lazycast", MIB, "holds"): (0.9, 1.0, 1.1), ("peer", MIB, "holds"): (8.0, 9.0, 10.0)}


def test_runs_of_several_numbers_of_ranks_are_put_together(tmp_path: Path) -> None:
    slower = {key: tuple(2 * ms for ms in spread) for key, spread in HELD.items()}
    put(tmp_path, a=times_run(HELD, ranks=2), b=times_run(slower, ranks=4), c=times_run(HELD, ranks=8))
    put(tmp_path, d=requests_run([requests_way("itself", [10, 11]), *FIXED], ranks=2))
    (scale,) = scaling.scalings(files.read(tmp_path))  # one number of ranks for requests: nothing to compare
    assert scale.ranks == [2, 4, 8]
    assert scale.lines["peer"] == [(2, 0.009), (4, 0.018), (8, 0.009)]
    assert (scale.cell("peer", 4), scale.cell("peer", 3)) == ("18.0 ms", "-")
    (piece,) = scaling.advise(scale)
    assert piece.choose == "lazycast with 8 ranks"
    assert "9.0 times as fast with 2 ranks, 9.0 times with 8" in piece.why


def test_of_two_runs_with_as_many_ranks_the_newer_one_counts(tmp_path: Path) -> None:
    old = {**times_run(dict.fromkeys(HELD, (80.0, 90.0, 99.0)), ranks=2), "date": "2025-01-01T00:00:00+00:00"}
    put(tmp_path, a=times_run(HELD, ranks=2), b=old, c=times_run(HELD, ranks=4))
    (scale,) = scaling.scalings(files.read(tmp_path))
    assert scale.lines["lazycast"] == [(2, 0.001), (4, 0.001)]


BROKEN = {
    "empty": ("", "the file is empty"),
    "text": ("no JSON", "not a run of this benchmark: JSON is malformed: invalid character (byte 4)"),
    "bytes": (b'{"benchmark": "\xff"}', "not a run of this benchmark: "),  # what else, msgspec says in its own words
    "list": ("[]", "not a run of this benchmark: Expected `object`, got `array`"),
    "cut": (json.dumps(times_run(HELD))[:-40], "not a run of this benchmark: Input data was truncated"),
    "other": ('{"benchmark": "chess"}', "a benchmark that this version does not know: 'chess'"),
    "bare": ('{"benchmark": "bench"}', "not a run of this benchmark: Object missing required field `format`"),
    "nothing": (json.dumps(times_run({})), "the run has no results"),
    "zero": (
        json.dumps(times_run({("lazycast", KIB, "holds"): (0.0, 1.0, 1.0)})),
        "not a run of this benchmark: Expected `float` > 0.0 - at `$.results[0].p10_s`",
    ),
    "absent": (
        json.dumps(requests_run([{"way": "raw-all", "known": True, "unavailable": "not here"}])),
        "the run has no results",
    ),
    "part": (
        json.dumps(requests_run([{"way": "itself", "known": True, "unavailable": None}])),
        "not a run of this benchmark: Object missing required field `qps`",
    ),
}


@pytest.mark.usefixtures("bare_plots")
def test_what_cannot_be_read_is_told_of_and_stops_nothing(tmp_path: Path) -> None:
    put(tmp_path, good=times_run(HELD), **{name: content for name, (content, _) in BROKEN.items()})
    (tmp_path / "folder.json").mkdir()
    found = files.read(tmp_path)
    assert [one.name for one in found.all()] == ["good.json"]
    said = {f"{name}.json": reason for name, (_, reason) in BROKEN.items()} | {"folder.json": "Is a directory"}
    assert found.unread.keys() == said.keys()
    for name, reason in said.items():
        assert found.unread[name].startswith(reason)
    page = Page(render.html(found))
    for name, reason in said.items():
        assert name in page.text
        assert reason.replace("  ", " ") in page.text


class Page(HTMLParser):
    """What a page holds, seen as a browser's parser sees it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page)
        self.text = " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            assert not name.startswith("on"), f"<{tag} {name}> runs something"
            if name == "id":
                self.ids[value or ""] += 1
            if name in ("href", "src", "xlink:href", "action", "data"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def hostile(raw: dict[str, Any], word: str) -> dict[str, Any]:
    """A run whose every text is something that a page must not believe."""
    raw = copy.deepcopy(raw)
    raw["machine"]["cpu"] = raw["machine"]["kernel"] = raw["command"] = raw["date"] = raw["plan"]["backend"] = word
    raw["versions"] = {"lazycast": word, word: word}
    for result in raw.get("results", ()):
        result["way"], result["kind"] = (word if result["way"] == "peer" else result["way"]), word
    for workload in raw.get("workloads", ()):
        workload["workload"] = workload["about"] = word
        workload["ways"].append({"way": word, "known": True, "unavailable": word})
    return raw


def test_nothing_in_a_file_is_markup(tmp_path: Path) -> None:
    word = """</svg></style><script>alert("1")</script><img src=x onerror='y'> $\\frac{a}{b}$ & {{ 7*7 }} ]]> #0a0b00"""
    put(tmp_path, a=hostile(times_run(HELD), word), b=hostile(times_run(HELD, ranks=8), word))
    put(tmp_path, c=hostile(requests_run([requests_way("itself", [10, 11]), *FIXED]), word))
    (tmp_path / "<i>x.json").write_text("")
    clean = Page(render.html(files.read(clean_folder(tmp_path))))
    page = Page(render.html(files.read(tmp_path)))
    assert not {"script", "img", "i", "b", "frac", "iframe"} & set(page.tags)
    assert page.tags["svg"] == clean.tags["svg"] == 5
    assert page.tags["style"] == 1 + page.tags["svg"]  # a plot has one of its own
    assert page.text.count('<script>alert("1")</script>') > 10
    assert "$\\frac{a}{b}$ & {{ 7*7 }}" in page.text
    assert "<i>x.json" in page.text


def clean_folder(beside: Path) -> Path:
    """The same runs as `test_nothing_in_a_file_is_markup` has, without the words."""
    folder = beside / "clean"
    folder.mkdir()
    put(folder, a=times_run(HELD), b=times_run(HELD, ranks=8))
    return put(folder, c=requests_run([requests_way("itself", [10, 11]), *FIXED]))


def test_the_page_asks_for_nothing_and_its_plots_share_nothing(tmp_path: Path) -> None:
    put(tmp_path, a=times_run(HELD, ranks=2), b=times_run(HELD, ranks=4))
    put(tmp_path, c=requests_run([requests_way("itself", [10, 11]), *FIXED], ranks=2))
    put(tmp_path, d=requests_run([requests_way("itself", [10, 11]), *FIXED], ranks=4))
    whole = render.html(files.read(tmp_path))
    page = Page(whole)
    assert page.tags["svg"] == 1 + 2 + 2 + 2
    assert [name for name, count in page.ids.items() if count > 1] == []
    for link in page.links:
        assert link == "data:," or (link.startswith("#") and page.ids[link[1:]] == 1), link
    for target in re.findall(r"url\((.*?)\)", whole):
        assert target.startswith("#")
        assert page.ids[target[1:]] == 1
    assert "#0a0b" not in whole  # no colour that the style sheet does not know
    assert set(re.findall(r"var\((--\w+)\)", whole)) <= set(re.findall(r"(--\w+):", whole))


def on_a_machine_with(load: float, run: dict[str, Any]) -> dict[str, Any]:
    return {**run, "machine": {**run["machine"], "load_before": load}}


REQUESTS = requests_run([requests_way("itself", [10, 11]), *FIXED])


@pytest.mark.usefixtures("bare_plots")
def test_nothing_is_concluded_from_runs_on_a_busy_machine(tmp_path: Path) -> None:
    put(tmp_path, quiet=on_a_machine_with(2.0, times_run(HELD)), busy=on_a_machine_with(2.1, REQUESTS))
    page = Page(render.html(files.read(tmp_path)))
    top, _, rest = page.text.partition("The results in short")
    assert "no conclusions are drawn from busy.json" in top
    assert "quiet.json" not in top
    assert "lazycast rather than peer" in rest
    assert "itself, the best of the other ways" not in rest
    put(tmp_path, quiet=on_a_machine_with(3.0, times_run(HELD)))
    page = Page(render.html(files.read(tmp_path)))
    assert "The machine was busy, so there is nothing to conclude." in page.text
    assert "rather than" not in page.text


@pytest.mark.usefixtures("bare_plots")
def test_conclusions_over_numbers_of_ranks_take_no_busy_run(tmp_path: Path) -> None:
    put(tmp_path, a=times_run(HELD, ranks=2), b=times_run(HELD, ranks=4))
    assert "lazycast with 4 ranks" in Page(render.html(files.read(tmp_path))).text
    put(tmp_path, b=on_a_machine_with(9.0, times_run(HELD, ranks=4)))
    assert "lazycast with 4 ranks" not in Page(render.html(files.read(tmp_path))).text


def test_the_page_begins_with_a_picture(tmp_path: Path) -> None:
    put(tmp_path, a=times_run(HELD), c=REQUESTS)
    whole = render.html(files.read(tmp_path))
    before, _, _ = whole.partition("The results in short")
    assert before.count("<svg") == 1
    assert "every rank makes the" in before  # and on its next line: value
    assert ">itself<" not in before  # words of our own


def test_no_line_crosses_the_figures_of_the_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounds differ widely on a busy machine: the line of the spread is then longer than the bar."""
    drawn: list[Any] = []

    def draw(width: float, height: float, fill: Any, label: str) -> str:
        drawn.append(Figure(figsize=(width, height), layout="constrained"))
        fill(drawn[-1])
        drawn[-1].canvas.draw()
        return ""

    from matplotlib.figure import Figure

    monkeypatch.setattr(charts, "_svg", draw)
    raw = requests_run([requests_way("itself", [3, 5, 20]), requests_way("root-value", [4, 6, 9])])
    charts.headline(Workload.of(raw["workloads"][0]), "torch", 2)
    (panel,) = drawn[0].axes
    (spreads,) = panel.collections
    ends = sorted(panel.transData.transform(path.vertices[-1])[0] for path in spreads.get_paths())
    labels = [text.get_window_extent() for text in panel.texts]
    assert len(labels) == 2
    assert all(left > end for left, end in zip(sorted(label.x0 for label in labels), ends, strict=True))
    assert max(label.x1 for label in labels) <= drawn[0].bbox.x1, "cut off"


def test_a_busy_machine_is_told_on_top_of_tables_too() -> None:
    busy = on_a_machine_with(31.25, times_run(HELD))
    said = report.warning(busy)
    assert said is not None
    assert "load 31.25 on 2 cores" in said
    assert report.markdown(busy).splitlines()[2] == f"**{said}**"
    assert report.warning(times_run(HELD)) is None
    assert "busy" not in report.markdown(times_run(HELD))


def test_peers_have_no_colour_of_ours() -> None:
    ours = [name for name in charts._FIXED if name != "one memcpy"]
    names = [*ours, *(f"peer {number}" for number in range(20))]
    palette = charts._palette(names)
    assert {palette[name][0] for name in ours} & {palette[name][0] for name in names if name not in ours} == set()


def test_a_folder_without_runs_says_how_to_make_some(tmp_path: Path) -> None:
    page = Page(render.html(files.read(tmp_path)))
    assert "There is no run in this folder." in page.text
    assert "lazycast bench qps --short --report DIR" in page.text
    assert "lazycast bench --short --report DIR" in page.text
    assert page.tags["svg"] == 0


def test_a_plot_is_the_same_each_time() -> None:
    run = msgspec.convert(times_run(HELD), TimesRun)
    assert charts.time_over_size(run, "array", "NumPy array") == charts.time_over_size(run, "array", "NumPy array")


def test_the_published_runs_can_be_read() -> None:
    found = files.read(ROOT / "docs" / "benchmarks")
    assert found.unread == {}
    assert {one.name for one in found.all()} >= {"bench-torch.json", "bench-mpi.json", "qps-torch.json"}
    page = Page((ROOT / "docs" / "benchmarks" / "report.html").read_text())
    for one in found.all():  # else run: python tools/report_picture.py
        assert one.name in page.text
        assert one.run.date.replace("T", " ") in page.text


@pytest.mark.usefixtures("bare_plots")
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "report", str(tmp_path / "nowhere")]) == 2
    assert "nowhere is not a folder" in capsys.readouterr().err
    assert cli.main(["bench", "report", str(tmp_path)]) == 2
    assert "has no JSON file of a run" in capsys.readouterr().err
    put(tmp_path, good=times_run(HELD))
    assert cli.main(["bench", "report", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
    assert "lazycast bench --report there" in Page((tmp_path / "report.html").read_text()).text
    put(tmp_path, empty="")
    elsewhere = tmp_path / "page.html"
    assert cli.main(["bench", "report", str(tmp_path), "--html", str(elsewhere)]) == 1
    assert f"{tmp_path / 'empty.json'}: the file is empty" in capsys.readouterr().err
    assert "empty.json" in Page(elsewhere.read_text()).text


def test_missing_libraries_are_told_before_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(charts, "find_spec", lambda name: None)
    for arguments in (["bench", "report"], ["bench", "--report"], ["bench", "qps", "--report"]):
        assert cli.main([*arguments, str(tmp_path)]) == 2
        assert "a page needs matplotlib and jinja2: pip install 'lazycast[bench]'" in capsys.readouterr().err
    assert cli.main(["bench", "--ranks", "2,3", "--json", str(tmp_path / "run.json")]) == 2
    assert "take one number of ranks" in capsys.readouterr().err


@pytest.mark.usefixtures("bare_plots")
def test_a_report_measures_requests_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    asked: list[Any] = []

    def times_of(plan: Any, **about: Any) -> dict[str, Any]:
        asked.append((plan.ranks, plan.sizes, about))
        return times_run(HELD, ranks=plan.ranks)

    def requests_of(plan: Any, **about: Any) -> dict[str, Any]:
        asked.append((plan.ranks, plan.workloads, about))
        return requests_run([requests_way("itself", [10, 11]), *FIXED], ranks=plan.ranks)

    monkeypatch.setattr("lazycast.tools.bench.session.run", times_of)
    monkeypatch.setattr("lazycast.tools.bench.qps.session.run", requests_of)
    arguments = ["bench", "--backend", "torch", "--ranks", "2,3", "--short", "--report", str(tmp_path / "new")]
    assert cli.main(arguments) == 0
    command = " ".join(["lazycast", *arguments])
    assert [(ranks, about) for ranks, _, about in asked] == [
        (ranks, {"command": command, "label": f"{ranks} ranks: "}) for ranks in (2, 3, 2, 3)
    ]
    assert asked[0][1][-1] == 64 * MIB  # sizes of --short
    assert asked[2][1] == ("photo",)
    names = [f"{name}-torch-{ranks}.json" for name in ("bench", "qps") for ranks in (2, 3)]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [*names, "report.html"]
    assert Page((tmp_path / "new" / "report.html").read_text()).tags["svg"] == 1 + 2 + 2 + 2
    capsys.readouterr()

    assert cli.main(["bench", "--backend", "torch", "--no-requests", "--report", str(tmp_path / "one")]) == 0
    assert [path.name for path in sorted((tmp_path / "one").iterdir())] == ["bench-torch.json", "report.html"]
