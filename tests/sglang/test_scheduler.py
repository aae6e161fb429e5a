"""In the scheduler's place: installed and taken away, as a plugin, on groups of some ranks, and with the flag off."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch.distributed as dist
from kit import BINDING, Ranks, Scheduler, alone, environment, failing, hashes, process, same

from lazycast.adapters.sglang import SGLangBroadcast, UnsupportedReleaseError, install, uninstall
from lazycast.adapters.sglang.binding import caught_error
from lazycast.adapters.sglang.scheduler import broadcast_of
from lazycast.errors import ConfigMismatchError, LazycastError
from lazycast.tools.bench.sglang import inputs
from lazycast.tools.bench.sglang.scheduler import FLAG, without_model

METHOD = "_process_and_broadcast_mm_inputs"
HOOKED = (METHOD, "__init__", "_poll_timeout_aborts", "process_input_requests", "is_fully_idle")


def image(seed: int) -> Any:
    return inputs.images(1, seed, patches=50)


def set_flag(monkeypatch: pytest.MonkeyPatch, scheduler: Any, on: bool) -> None:
    """The server's own option, where this release keeps it."""
    if inputs.bundles():
        setattr(scheduler.server_args, FLAG, on)
        return
    from sglang.srt import runtime_context
    from sglang.srt.managers import scheduler as module

    settings = SimpleNamespace(**{FLAG: on})
    monkeypatch.setattr(runtime_context, "get_mm", lambda: settings)
    monkeypatch.setattr(module, "get_mm", lambda: settings)


def test_through_the_method_that_calls_it(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    scheduler = without_model(Scheduler)
    install(scheduler)
    try:
        set_flag(monkeypatch, scheduler, True)
        same(scheduler._get_multimodal_inputs(image(1)), alone(image(1)))
        failing(lambda: scheduler._get_multimodal_inputs(inputs.raw([inputs.item("AUDIO")])), "raised on rank")
        casts = scheduler._lazycast_broadcast.stats().casts
        set_flag(monkeypatch, scheduler, False)
        same(scheduler._get_multimodal_inputs(image(2)), alone(image(2)))
        assert scheduler._lazycast_broadcast.stats().casts == casts
        ranks.meet()
    finally:
        uninstall(scheduler)
    assert METHOD not in vars(scheduler)
    set_flag(monkeypatch, scheduler, True)
    same(scheduler._get_multimodal_inputs(image(3)), alone(image(3)))
    assert "_lazycast_broadcast" not in vars(scheduler)


def test_on_the_class(ranks: Ranks) -> None:
    before = dict(vars(Scheduler))
    install(Scheduler)
    install(Scheduler)
    try:
        scheduler = without_model(Scheduler)
        same(process(scheduler, image(1)), alone(image(1)))
        assert isinstance(scheduler._lazycast_broadcast, SGLangBroadcast)
        ranks.meet()
    finally:
        uninstall()
    assert dict(vars(Scheduler)) == before
    same(process(scheduler, image(2)), alone(image(2)))


def test_taking_it_from_one_class_leaves_others_alone(ranks: Ranks) -> None:
    class Another(Scheduler):  # type: ignore[misc]
        pass

    class Third(Scheduler):  # type: ignore[misc]
        pass

    install(Another)
    install(Third)
    try:
        one, other = without_model(Another), without_model(Third)
        for scheduler in (one, other):
            same(process(scheduler, image(1)), alone(image(1)))
        ranks.meet()
        uninstall(Another)
        assert "_lazycast_broadcast" not in vars(one)
        same(process(other, image(2)), alone(image(2)))
        assert other._lazycast_broadcast.stats().casts == 2
        ranks.meet()
    finally:
        uninstall()


def test_a_broken_setting_is_not_taken_for_one_that_is_off(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    from lazycast.adapters.sglang.scheduler import meet

    def broken() -> Any:
        raise RuntimeError("no such thing")

    module = SimpleNamespace(get_mm=broken)
    monkeypatch.setitem(sys.modules, "sglang.srt.runtime_context", module)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="no such thing"):
        meet(without_model(Scheduler))


@pytest.mark.parametrize("on", [True, False])
def test_ranks_meet_when_schedulers_are_made(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, on: bool) -> None:
    def init(self: Any) -> None:
        vars(self).update(vars(without_model(Scheduler)))
        set_flag(monkeypatch, self, on)

    monkeypatch.setattr(Scheduler, "__init__", init)
    install(Scheduler)
    try:
        made = Scheduler()
        assert ("_lazycast_broadcast" in vars(made)) is on
        ranks.meet()
    finally:
        uninstall()


def test_groups_of_some_ranks(ranks: Ranks) -> None:
    """Each half of the ranks has requests of its own, as with data parallel attention."""
    halves = [list(range(ranks.size // 2)), list(range(ranks.size // 2, ranks.size))]
    groups = [dist.new_group(half) for half in halves]
    mine = next(n for n, half in enumerate(halves) if ranks.rank in half)
    scheduler = without_model(Scheduler, groups[mine])
    install(scheduler)
    try:
        made = [process(scheduler, image(seed + 10 * mine)) for seed in range(3)]
        for seed, one in enumerate(made):
            same(one, alone(image(seed + 10 * mine)))
        alike = ranks.tell([hashes(one) for one in made])
        assert alike[0] == alike[halves[0][-1]] != alike[-1] == alike[halves[1][0]]
        if ranks.size > 2:
            assert scheduler._lazycast_broadcast.stats().casts == 3
        else:  # a scheduler that is alone goes SGLang's own way
            assert "_lazycast_broadcast" not in vars(scheduler)
        ranks.meet()
    finally:
        uninstall(scheduler)


def test_without_a_group(ranks: Ranks) -> None:
    scheduler = without_model(Scheduler)
    scheduler.dp_tp_cpu_group = None
    scheduler.dp_tp_group.rank_in_group = 0
    install(scheduler)
    try:
        same(process(scheduler, image(ranks.rank)), alone(image(ranks.rank)))
    finally:
        uninstall(scheduler)


@pytest.mark.release("0.5.23")
@pytest.mark.parametrize("chosen", ["", "lazycast", "another"])
def test_as_a_plugin(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    from sglang.srt import plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    monkeypatch.setattr(plugins, "_plugins_loaded", False)
    for name in HOOKED:
        monkeypatch.setattr(Scheduler, name, getattr(Scheduler, name))
    with environment(**({"SGLANG_PLUGINS": chosen} if chosen else {})):
        plugins.load_plugins()
    try:
        scheduler = without_model(Scheduler)
        same(process(scheduler, image(1)), alone(image(1)))
        assert ("_lazycast_broadcast" in vars(scheduler)) is (chosen != "another")
        ranks.meet()
    finally:
        HookRegistry.reset()
        uninstall()


@pytest.mark.release("0.5.23")
@pytest.mark.parametrize("chosen", ["", "deferred", "blocking", "defered", "incapable", "changed"])
def test_whether_the_plugin_defers(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    """It does unless it is told not to; a scheduler that lacks something is not half hooked."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    from lazycast.adapters.sglang.plugin import ADMISSION, plugin

    monkeypatch.setenv(ADMISSION, "" if chosen in ("incapable", "changed") else chosen)
    if chosen == "incapable":
        monkeypatch.delattr(Scheduler, "_poll_timeout_aborts")
    if chosen == "changed":
        monkeypatch.setattr(Scheduler, "_poll_timeout_aborts", lambda self, now: [])
    try:
        if chosen == "defered":
            with pytest.raises(ValueError, match=f"{ADMISSION} is 'deferred' or 'blocking', not 'defered'"):
                plugin()
            assert not HookRegistry._hooks
            return
        plugin()
        hooked = {target.rpartition(".")[2] for target in HookRegistry._hooks}
        assert hooked == set(HOOKED if chosen in ("", "deferred") else HOOKED[:2])
    finally:
        HookRegistry.reset()


def test_a_scheduler_that_defers_does_not_meet_one_that_waits(ranks: Ranks) -> None:
    scheduler = without_model(Scheduler)
    with pytest.raises(ConfigMismatchError, match="name"):
        broadcast_of(scheduler, "sglang, deferred" if ranks.rank == 0 else "sglang")


@pytest.mark.parametrize("odd", [{"cast_from_nbytes": 0}, {"cast_from_nbytes": 7}, {"SGLANG_MM_BUFFER_SIZE_MB": "64"}])
def test_ranks_that_would_decide_differently_do_not_meet(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch, odd: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"cast_from_nbytes": None}
    if ranks.rank == 1:
        for name, given in odd.items():
            if name == "cast_from_nbytes":
                options[name] = given
            else:
                monkeypatch.setenv(name, given)
    with pytest.raises(ConfigMismatchError, match="name"):
        SGLangBroadcast(dist.group.WORLD, **options)


@pytest.mark.parametrize("given", ["2 MB", "-1", "1e6"])
def test_a_number_of_bytes_that_is_none(ranks: Ranks, given: str) -> None:
    with environment(LAZYCAST_SGLANG_CAST_FROM_NBYTES=given), pytest.raises(ValueError, match="a number of bytes, got"):
        broadcast_of(without_model(Scheduler))


def test_small_inputs_and_those_with_hashes_are_made_on_each_rank(ranks: Ranks) -> None:
    """By what the entry rank has measured, if nothing is given."""
    with environment(LAZYCAST_SGLANG_CAST_FROM_NBYTES=""):
        scheduler = without_model(Scheduler)
        install(scheduler)
    try:
        broadcast = scheduler._lazycast_broadcast
        ranks.agree(broadcast.cast_from_nbytes)
        assert 256 << 10 <= broadcast.cast_from_nbytes <= 64 << 20
        casts = broadcast.stats().casts
        small, hashed = inputs.images(1, 1, patches=3), inputs.raw(inputs.image_items(1, 2, hash=5))
        for raw in (small, hashed):
            assert not broadcast.is_worth_waiting(raw)
            expected = alone(raw)
            same(broadcast.process_async(raw, rid="x").result(0), expected)
        damaged = inputs.raw([inputs.item("AUDIO")])
        with pytest.raises(caught_error() or TypeError) as caught:  # as SGLang by itself, on every rank
            process(scheduler, damaged)
        assert not isinstance(caught.value.__cause__, LazycastError)
        assert broadcast.stats().casts == casts
        large = inputs.images(10, 3)
        assert broadcast.is_worth_waiting(large)
        same(process(scheduler, large), alone(large))
        assert broadcast.stats().casts == casts + 1
        ranks.meet()
    finally:
        uninstall(scheduler)


@pytest.mark.release("0.5.23")
def test_the_plugin_leaves_other_processes_alone(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that run neither a scheduler nor a tokenizer."""
    from sglang.srt.plugins.hook_registry import HookRegistry

    from lazycast.adapters.sglang.plugin import plugin
    from lazycast.adapters.sglang.processors import TOKENIZER

    monkeypatch.delitem(sys.modules, "sglang.srt.managers.scheduler")
    monkeypatch.delitem(sys.modules, TOKENIZER, raising=False)
    monkeypatch.setitem(sys.modules, "sglang.srt.managers.detokenizer_manager", ModuleType("detokenizer_manager"))
    plugin()
    assert not HookRegistry._hooks
    assert "sglang.srt.managers.scheduler" not in sys.modules


def test_releases_that_are_not_known(ranks: Ranks) -> None:
    class MultimodalInputs:
        pass

    with pytest.raises(UnsupportedReleaseError, match=r"neither from_processor_output nor from_dict.*0\.5\.9 and 0\.5"):
        type(BINDING).of(MultimodalInputs)
    with pytest.raises(UnsupportedReleaseError, match="has no _process_and_broadcast_mm_inputs"):
        install(MultimodalInputs)


@pytest.mark.parametrize("asks", [True, False])
def test_releases_between(ranks: Ranks, asks: bool) -> None:
    """0.5.10 and 0.5.11 have the newer function and not yet its option."""

    class MultimodalInputs:
        if asks:

            @staticmethod
            def from_processor_output(obj: Any, *, requires_mm_token_modalities: bool = False) -> Any:
                return obj, requires_mm_token_modalities

        else:

            @staticmethod
            def from_processor_output(obj: Any) -> Any:
                return obj

    binding = type(BINDING).of(MultimodalInputs, requires_mm_token_modalities=True)
    assert binding(3) == ((3, True) if asks else 3)
