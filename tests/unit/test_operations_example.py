"""The dashboard, the alerts and the compose file of `examples/operations`: they name what the exporter exports.

Expressions are taken apart by Prometheus's grammar (promql-parser), the dashboard by Grafana's own models, and the
rules run in promtool, where there is one.
"""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

from lazycast import LazyBroadcast
from lazycast.backends.local import LocalBackend

for needed in ("prometheus_client", "promql_parser", "yaml", "grafana_foundation_sdk"):
    pytest.importorskip(needed, reason=f"{needed} is not installed")

import promql_parser as promql  # noqa: E402
import yaml  # noqa: E402
from grafana_foundation_sdk.cog.encoder import JSONEncoder  # noqa: E402
from grafana_foundation_sdk.models.dashboard import Dashboard  # noqa: E402

from lazycast.watch.prometheus import Collector  # noqa: E402

FOLDER = Path(__file__).parents[2] / "examples" / "operations"
RULES = FOLDER / "prometheus" / "alerts.yml"
#: What Prometheus adds to all that it scrapes.
SCRAPED = {"job", "instance"}
#: What Grafana defines by itself.
BUILTIN = {"__rate_interval": "1m", "__interval": "30s", "__range": "1h"}


@pytest.fixture(scope="module")
def exported() -> dict[str, set[str]]:
    """The labels of every series that the exporter has, by name: of a group in which calls succeed and fail."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(2) as pool:
        made = [pool.submit(LazyBroadcast, int, backend=b, name="n") for b in LocalBackend.threads(2)]
        objects = [one.result(20) for one in made]
        try:
            collector = Collector(objects[0], group=True)
            for payload in ("1", "2"):
                for future in [objects[0].broadcast_async(payload), objects[1].broadcast_async()]:
                    future.result(20)
            found: dict[str, set[str]] = {}
            for family in collector.collect():
                for sample in family.samples:
                    found.setdefault(sample.name, set()).update(sample.labels)
        finally:
            for closing in [pool.submit(one.close) for one in objects]:
                closing.result(30)
    return found


def parts(node: Any) -> Iterator[Any]:
    """An expression and all that it consists of."""
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "vs", "param"):
        child = getattr(node, name, None)
        if child is not None and type(child).__module__ == "promql_parser":
            yield from parts(child)
    for child in getattr(node, "args", None) or ():
        yield from parts(child)


def selectors(expression: str) -> list[Any]:
    return [part for part in parts(promql.parse(expression)) if isinstance(part, promql.VectorSelector)]


def labels_named(expression: str) -> set[str]:
    """What `by`, `without`, `on` and `ignoring` name. The parser has checked the grammar around it."""
    found = re.findall(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)", expression)
    return {label.strip() for group in found for label in group.split(",") if label.strip()}


def check(expression: str, exported: dict[str, set[str]]) -> None:
    """Raise unless an expression names only what there is."""
    used = selectors(expression)
    assert used, f"{expression} selects nothing"
    for selector in used:
        assert selector.name in exported, f"{expression} names {selector.name}"
        for matcher in selector.matchers.matchers:
            assert matcher.name in exported[selector.name] | SCRAPED, f"{expression}: no label {matcher.name}"
    for label in labels_named(expression):
        assert any(label in exported[s.name] | SCRAPED for s in used), f"{expression}: no label {label}"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("rate(lazycast_nonsense_total[5m])", "names lazycast_nonsense_total"),
        ("lazycast_calls", "names lazycast_calls"),  # the series ends in _total
        ('lazycast_calls_total{outcome="value"}', "no label outcome"),
        ("sum by (phase) (lazycast_calls_total)", "no label phase"),
        ("1 + vector(2)", "selects nothing"),
        ("histogram_quantile(0.5, sum by (le) (rate(lazycast_phase_seconds_buckets[5m])))", "names lazycast_phase"),
        ("lazycast_pending_calls > 0 and on (placement) lazycast_calls_total", "no label placement"),
    ],
)
def test_the_check_finds_what_is_wrong(wrong: str, said: str, exported: dict[str, set[str]]) -> None:
    with pytest.raises(AssertionError, match=re.escape(said)):
        check(wrong, exported)


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(RULES.read_text())["groups"]
    found: list[dict[str, Any]] = group["rules"]
    return found


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_an_alert_names_what_is_exported(rule: dict[str, Any], exported: dict[str, set[str]]) -> None:
    assert rule.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"critical", "warning", "info"}
    assert rule["annotations"].keys() == {"summary", "description"}
    check(rule["expr"], exported)
    kept = set().union(*re.findall(r"\bby \(([^)]*)\)", rule["expr"]))
    named = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
    assert named <= labels_named(rule["expr"]), f"{named} is lost on the way: {kept}"


def promtool(*words: str) -> str:
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run([found, *words], cwd=RULES.parent, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_rules_and_configuration() -> None:
    assert f"{len(rules())} rules found" in promtool("check", "rules", "alerts.yml")
    promtool("check", "config", "prometheus.yml")


def test_every_alert_fires_when_it_should_and_not_when_all_is_well() -> None:
    cases = yaml.safe_load((RULES.parent / "alerts_test.yml").read_text())["tests"]
    quiet = {one["alertname"] for one in cases[0]["alert_rule_test"] if not one["exp_alerts"]}
    fired = set(re.findall(r'alertname="(\w+)", alertstate="firing"', str(cases)))
    assert quiet == fired == {rule["alert"] for rule in rules()}
    promtool("test", "rules", "alerts_test.yml")


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((FOLDER / "grafana" / "dashboards" / "lazycast.json").read_text())
    return found


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def variables() -> dict[str, dict[str, Any]]:
    return {variable["name"]: variable for variable in dashboard()["templating"]["list"]}


def filled(expression: str) -> str:
    """An expression as Grafana sends it."""
    return re.sub(r"\$(\w+)", lambda found: BUILTIN.get(found[1]) or variables()[found[1]]["allValue"], expression)


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_names_what_is_exported(panel: dict[str, Any], exported: dict[str, set[str]]) -> None:
    assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0
    for target in panel["targets"]:
        expression = filled(target["expr"])
        check(expression, exported)
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        assert shown <= labels_named(expression), f"{panel['title']}: {shown} is lost on the way"
        for selector in selectors(expression):
            chosen = {matcher.name for matcher in selector.matchers.matchers}
            assert {"job", "name", "rank"} <= chosen, f"{panel['title']} does not heed what is chosen above"


def test_variables_ask_for_what_is_exported(exported: dict[str, set[str]]) -> None:
    asked = {name: v["query"]["query"] for name, v in variables().items() if v["type"] == "query"}
    assert asked.keys() == {"job", "name", "rank"}
    for name, query in asked.items():
        selector, label = re.fullmatch(r"label_values\((.*), (\w+)\)", query).groups()  # type: ignore[union-attr]
        assert label == name
        check(filled(selector), exported)
        assert label in exported[selectors(filled(selector))[0].name] | SCRAPED


def same_in(mine: Any, theirs: Any, where: str) -> None:
    """Raise unless all that one has is in the other."""
    if isinstance(mine, dict):
        for key, value in mine.items():
            assert key in theirs, f"Grafana knows no {where}.{key}"
            same_in(value, theirs[key], f"{where}.{key}")
    elif isinstance(mine, list):
        assert len(mine) == len(theirs), where
        for index, (one, other) in enumerate(zip(mine, theirs, strict=True)):
            same_in(one, other, f"{where}[{index}]")
    else:
        assert mine == theirs, where


def test_grafana_knows_every_field() -> None:
    read = Dashboard.from_json(dashboard())
    again = json.loads(json.dumps(read, cls=JSONEncoder))
    # Queries and options of panels belong to plug-ins and are kept as they are; else what is not known is dropped.
    same_in(dashboard(), again, "dashboard")


def test_grafana_is_not_asked_for_fields_that_it_lacks() -> None:
    """The check above finds something."""
    wrong = dashboard() | {"tittle": "x"}
    with pytest.raises(AssertionError, match=r"Grafana knows no dashboard\.tittle"):
        same_in(wrong, json.loads(json.dumps(Dashboard.from_json(wrong), cls=JSONEncoder)), "dashboard")


def test_panels_have_what_the_schema_asks_for_and_do_not_overlap() -> None:
    page = dashboard()
    for needed in ("uid", "title", "schemaVersion", "version", "panels", "templating", "time", "refresh"):
        assert page[needed], needed
    assert len({panel["id"] for panel in page["panels"]}) == len(page["panels"])
    taken: set[tuple[int, int]] = set()
    for panel in page["panels"]:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, f"{panel['title']} lies on another one"
        taken |= cells
    for panel in panels():
        assert panel["datasource"] == {"type": "prometheus", "uid": "${source}"}
        assert panel["fieldConfig"]["defaults"]["unit"]


def test_every_metric_is_on_the_dashboard(exported: dict[str, set[str]]) -> None:
    shown = {s.name for panel in panels() for t in panel["targets"] for s in selectors(filled(t["expr"]))}
    missing = {name for name in exported if not name.endswith(("_bucket", "_count", "_sum"))} - shown
    assert missing == {"lazycast_calls_total"}, "it is what the variables are asked of"


def test_the_compose_file_mounts_what_is_here() -> None:
    services = yaml.safe_load((FOLDER / "compose.yml").read_text())["services"]
    assert services.keys() == {"prometheus", "grafana"}
    mounts = {
        container: FOLDER / here
        for service in services.values()
        for here, container, mode in (volume.split(":") for volume in service["volumes"])
        if mode == "ro"
    }
    assert (mounts["/etc/prometheus"] / "prometheus.yml").exists()
    configuration = yaml.safe_load((mounts["/etc/prometheus"] / "prometheus.yml").read_text())
    assert [(mounts["/etc/prometheus"] / name).exists() for name in configuration["rule_files"]] == [True]
    assert (mounts["/etc/prometheus"] / "prometheus.yml").parent == RULES.parent
    (provider,) = yaml.safe_load((mounts["/etc/grafana/provisioning"] / "dashboards" / "lazycast.yml").read_text())[
        "providers"
    ]
    assert (mounts[provider["options"]["path"]] / "lazycast.json").exists()
    (source,) = yaml.safe_load((mounts["/etc/grafana/provisioning"] / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    host, port = re.fullmatch(r"http://(\w+):(\d+)", source["url"]).groups()  # type: ignore[union-attr]
    assert services[host]["ports"] == [f"127.0.0.1:{port}:{port}"], "nobody but this machine reaches it"
    assert source["type"] == "prometheus"


def test_the_program_shows_figures_of_all_ranks(run_python: Callable[..., str]) -> None:
    code = f"""
import runpy, sys, threading, time, urllib.request
sys.argv = ["program.py", "--seconds", "6", "--host", "127.0.0.1", "--port", "0"]
program = runpy.run_path({str(FOLDER / "program.py")!r}, run_name="program")
import lazycast.watch.prometheus as exporter
from prometheus_client import start_http_server

pages = []
def serve(port, addr):
    server, thread = start_http_server(port, addr=addr)
    def scrape():
        text = urllib.request.urlopen(f"http://{{addr}}:{{server.server_port}}/metrics").read().decode()
        pages.append(text)
    timer = threading.Timer(4.0, scrape)
    timer.start()
    return server, thread
program["rank"].__globals__["start_http_server"] = serve
from lazycast import launch
results = launch(program["rank"], ranks=3, backend="threads", args=(6.0, "127.0.0.1", 0), timeout_s=200)
assert len({{values for values in results}}) == 1, results
values, failures = results[0]
assert values > 10, results
(page,) = pages
for rank in range(3):
    assert f'lazycast_calls_total{{{{name="photos",rank="{{rank}}"}}}}' in page, page
print("ok")
"""
    assert run_python(code).splitlines()[-1] == "ok"


@contextlib.contextmanager
def started(command: list[str], log: IO[str]) -> Iterator[None]:
    """Run a program, with its processes, as long as this lasts."""
    process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
    return port


def ask(address: str, what: str, **words: object) -> Any:
    """What Prometheus answers."""
    with urllib.request.urlopen(f"{address}/api/v1/{what}?{urllib.parse.urlencode(words)}", timeout=60) as reply:
        said = json.loads(reply.read())
    assert said["status"] == "success", said
    return said["data"]


@pytest.mark.timeout(400)
def test_prometheus_itself_has_data_for_every_panel_and_variable(tmp_path: Path) -> None:
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("prometheus is not installed")
    figures, served = free_port(), free_port()
    for rules_file in RULES.parent.glob("*.yml"):
        text = rules_file.read_text().replace("host.docker.internal:9400", f"127.0.0.1:{figures}")
        (tmp_path / rules_file.name).write_text(text.replace("_interval: 5s", "_interval: 1s"))
    program = [sys.executable, str(FOLDER / "program.py"), "--seconds", "120", "--host", "127.0.0.1"]
    server = [found, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    address = f"http://127.0.0.1:{served}"
    wanted = {
        f"{panel['title']} {target['refId']}": filled(target["expr"]).replace("[1m]", "[5s]")
        for panel in panels()
        for target in panel["targets"]
    }
    with (
        open(tmp_path / "log", "w") as log,
        started([*program, "--port", str(figures)], log),
        started([*server, f"--web.listen-address=127.0.0.1:{served}"], log),
    ):
        until_s = time.monotonic() + 100
        while wanted and time.monotonic() < until_s:
            time.sleep(1)
            with contextlib.suppress(OSError):  # it does not listen yet
                for title, expression in list(wanted.items()):
                    values = [float(one["value"][1]) for one in ask(address, "query", query=expression)["result"]]
                    if any(not math.isnan(value) for value in values):
                        del wanted[title]
        assert wanted == {}, (tmp_path / "log").read_text()[-3000:]
        for name, variable in variables().items():
            if variable["type"] == "query":
                selector = re.fullmatch(r"label_values\((.*), \w+\)", variable["query"]["query"])[1]  # type: ignore[index]
                assert ask(address, f"label/{name}/values", **{"match[]": filled(selector)}), name
        health = {rule["name"]: rule["health"] for group in ask(address, "rules")["groups"] for rule in group["rules"]}
        assert health == {rule["alert"]: "ok" for rule in rules()}
