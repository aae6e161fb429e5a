"""What a request becomes with lazycast is what it becomes without, on every rank, and hashed once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from kit import Ranks, Scheduler, alone, environment, hashes, installed, process, same

from lazycast.tools.bench.sglang import inputs
from lazycast.tools.bench.sglang.scheduler import without_model

REQUESTS: dict[str, Callable[[int], Any]] = {
    "image": lambda seed: inputs.images(1, seed),
    "images": lambda seed: inputs.images(3, seed, patches=400),
    "video": lambda seed: inputs.raw([inputs.video_item(6, seed)]),
    "audio": lambda seed: inputs.raw([inputs.audio_item(seed)], audio_token_id=7),
    "several": lambda seed: inputs.raw(
        [*inputs.image_items(2, seed, patches=100), inputs.video_item(2, seed), inputs.audio_item(seed)], 2000
    ),
    "list": lambda seed: inputs.raw([inputs.item("IMAGE", feature=[inputs.tensor(seed, 5, 7), inputs.tensor(1, 3)])]),
    "embeddings": lambda seed: inputs.raw(inputs.image_items(2, seed, patches=100, key="precomputed_embeddings")),
    "preset hash": lambda seed: inputs.raw(inputs.image_items(2, seed, patches=100, hash=seed + 5)),
    "preset pad": lambda seed: inputs.raw(inputs.image_items(2, seed, patches=100, hash=seed + 5, pad_value=17)),
    "large": lambda seed: large(seed),
    "large half": lambda seed: large(seed, lambda feature: feature.half()),
    "large bfloat16": lambda seed: large(seed, lambda feature: feature.bfloat16()),
    "large integers": lambda seed: large(seed, lambda feature: (1000 * feature).int()),
    "large and strided": lambda seed: large(seed, lambda feature: feature[:, ::2]),
    "large with a gradient": lambda seed: large(seed, lambda feature: feature.requires_grad_()),
    "large arrays": lambda seed: large(seed, lambda feature: feature.numpy()),
    "large and preset": lambda seed: inputs.raw(inputs.image_items(2, seed, patches=1000, hash=seed + 5)),
    "empty": lambda seed: inputs.raw([]),
    "no positions": lambda seed: inputs.raw(
        inputs.image_items(1, seed, patches=100), mrope_positions=None, mrope_position_delta=None
    ),
}


def large(seed: int, change: Callable[[Any], Any] = lambda feature: feature) -> Any:
    """Return a request with tensors that are worth hashing beforehand."""
    items = inputs.image_items(2, seed, patches=1000)
    for item in items:
        item.feature = change(item.feature)
    return inputs.raw(items)


def count_hashing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Count what is hashed on this rank from now on, by SGLang or in its place."""
    from sglang.srt.managers import mm_utils

    from lazycast.adapters.sglang import hashing

    counted = [0]
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.int32):
        hashing._is_sha256(dtype)  # once per process: hashes a sample both ways
    for module, name in ((mm_utils, "hash_feature"), (hashing, "_sha256")):
        monkeypatch.setattr(module, name, counting(getattr(module, name), counted))
    return counted


def counting(original: Callable[[Any], Any], counted: list[int]) -> Callable[[Any], Any]:
    def count(feature: Any) -> Any:
        counted[0] += 1
        return original(feature)

    return count


@pytest.mark.parametrize("splitting", ["0", "1"])
@pytest.mark.parametrize("name", REQUESTS)
def test_every_kind_of_input(ranks: Ranks, monkeypatch: pytest.MonkeyPatch, name: str, splitting: str) -> None:
    with environment(SGLANG_ENABLE_MM_SPLITTING=splitting), installed() as scheduler:
        for seed in range(ranks.size + 1):
            raw = REQUESTS[name](seed)
            with monkeypatch.context() as patch:
                counted = count_hashing(patch)
                expected = alone(raw)
                needed = counted[0]
            given, features = inputs_of(raw), [item.feature for item in inputs_of(raw)]
            with monkeypatch.context() as patch:
                counted = count_hashing(patch)
                found = process(scheduler, raw)
            same(found, expected)
            ranks.agree(hashes(found))
            told = sorted(ranks.tell(counted[0]))
            assert told == [*[0] * (ranks.size - 1), needed], "not one rank for all"
            if len(found.mm_items) == len(given) and splitting == "0":
                for item, own, feature in zip(found.mm_items, given, features, strict=True):
                    assert item is own, "not this rank's own item"
                    assert item.feature is feature, "not this rank's own tensor"


def inputs_of(raw: Any) -> list[Any]:
    return list(raw["mm_items"] if isinstance(raw, dict) else raw.mm_items)


def test_as_sglang_broadcasts(ranks: Ranks) -> None:
    raw = inputs.images(2, 5, patches=100)
    theirs = process(without_model(Scheduler), copy.deepcopy(raw))
    with installed() as scheduler:
        same(process(scheduler, raw), theirs)


def test_ranks_take_turns(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = count_hashing(monkeypatch)
    with installed() as scheduler:
        for seed in range(2 * ranks.size):
            process(scheduler, inputs.images(1, seed, patches=100))
        assert ranks.tell(counted[0]) == [2] * ranks.size


def test_values_are_private(ranks: Ranks) -> None:
    with installed() as scheduler:
        raw = inputs.images(2, 0, patches=400)
        made = [process(scheduler, copy.deepcopy(raw)) for _ in range(2)]
        for n, one in enumerate(made):
            for item in one.mm_items:
                item.feature.fill_(10 * n + ranks.rank)
                item.offsets = [(ranks.rank, n)]
        ranks.meet()
        for n, one in enumerate(made):
            for item in one.mm_items:
                assert bool((item.feature == 10 * n + ranks.rank).all())
                assert item.offsets == [(ranks.rank, n)]


@pytest.mark.parametrize("apart", [False, True])
def test_ranks_agree_on_hashes_that_are_made_up(ranks: Ranks, apart: bool) -> None:
    """Also those that share no memory, where one rank of each host would make up others."""
    host = f"host of {ranks.rank}" if apart else "one host"
    with environment(SGLANG_MM_SKIP_COMPUTE_HASH="1", LAZYCAST_HOST=host), installed() as scheduler:
        assert len(scheduler._lazycast_broadcast.stats().hosts) == (ranks.size if apart else 1)
        raw = inputs.images(3, 1, patches=300)
        made = [process(scheduler, copy.deepcopy(raw)) for _ in range(2)]
        ranks.agree([hashes(one) for one in made])
        assert hashes(made[0]) != hashes(made[1])


def test_each_host_hashes_once(ranks: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts that share no memory."""
    host = ranks.rank // (ranks.size // 2)
    with environment(LAZYCAST_HOST=f"host {host}"), installed() as scheduler:
        assert len(scheduler._lazycast_broadcast.stats().hosts) == 2
        for seed in range(ranks.size + 1):
            raw = inputs.images(2, seed, patches=100)
            expected = alone(raw)
            with monkeypatch.context() as patch:
                counted = count_hashing(patch)
                found = process(scheduler, raw)
            same(found, expected)
            hashed = {where for where, count in ranks.tell((host, counted[0])) if count}
            assert hashed == {0, 1}
            assert len([count for _, count in ranks.tell((host, counted[0])) if count]) == 2


@pytest.mark.release("0.5.9")
def test_split_items_share_no_copies_of_their_bundle(ranks: Ranks) -> None:
    with environment(SGLANG_ENABLE_MM_SPLITTING="1"), installed() as scheduler:
        raw = inputs.images(3, 1, patches=50)
        made = process(scheduler, raw)
        assert [item.offsets for item in made.mm_items] == [[place] for place in raw["mm_items"][0].offsets]
        assert len({item.hash for item in made.mm_items}) == 3
        assert all("__deepcopy__" not in vars(item) for item in [*made.mm_items, *raw["mm_items"]])
        bundle = raw["mm_items"][0]
        assert (bundle.hash, bundle.pad_value) == (None, None), "SGLang leaves a bundle that it splits as it was"


@pytest.mark.release("0.5.23")
def test_token_modalities(ranks: Ranks) -> None:
    with installed(asks_modalities=True) as scheduler:
        raw = inputs.images(2, 3, patches=50)
        expected = alone(raw, requires_mm_token_modalities=True)
        assert expected.token_modalities is not None
        same(process(scheduler, raw), expected)


def test_the_image_data_can_be_on_torch_views(ranks: Ranks) -> None:
    whole = inputs.tensor(0, 400, inputs.WIDTH)
    with installed() as scheduler:
        raw = inputs.raw([inputs.item("IMAGE", feature=whole[::2]), inputs.item("IMAGE", feature=whole[:7].T)])
        expected = alone(raw)
        found = process(scheduler, raw)
        same(found, expected)
        assert torch.equal(found.mm_items[0].feature, whole[::2])
