"""Drivers of the decoder graphs on ONNX Runtime: slots do not know of each other, and a cache grows in any steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foveate.engines import (
    BackendError,
    Bundle,
    Decoder,
    DecoderEntry,
    KVCache,
    NextTokens,
    SessionOptions,
    open_decoder,
    open_session,
)
from foveate.engines.backends.decoders.arrays import ArrayCache

SIZES = {
    "vocab_size": 480,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
LOWERINGS = {
    "decoder": ("decoder",),
    "decoder_prefill": ("decoder", "decoder_prefill"),
    "decoder_standard": ("decoder_standard",),
}
CAPACITY = 40


@dataclass(frozen=True)
class Driven:
    """A driver, and random tokens for it."""

    decoder: Decoder
    entry: DecoderEntry

    def cache(self, slots: int) -> KVCache:
        return self.decoder.new_cache(slots, CAPACITY)

    def embeds(self, *shape: int, seed: int = 0) -> np.ndarray:
        found = np.random.default_rng(seed).normal(size=(*shape, self.entry.hidden_size))
        return found.astype(np.float32)

    def prefill(self, cache: KVCache, embeds: np.ndarray, lengths: Sequence[int] | None = None) -> np.ndarray:
        """Logits after tokens that follow what the slots hold."""
        known = None if lengths is None else np.array(lengths, np.int32)
        return self.decoder.prefill(cache, embeds, self._positions(cache, embeds.shape[1]), known).logits.copy()

    def step(self, cache: KVCache, embeds: np.ndarray, moving: Sequence[int] | None = None) -> np.ndarray:
        return self.decoder.step(cache, embeds, self._positions(cache, 1), moving).logits.copy()

    def _positions(self, cache: KVCache, sequence: int) -> np.ndarray:
        rows = cache.lengths[:, None] + np.arange(sequence)
        return np.tile(rows, (self.entry.position_axes, 1, 1))


def held(cache: KVCache, slot: int) -> list[np.ndarray]:
    """Keys and values of the tokens that a slot holds."""
    assert isinstance(cache, ArrayCache)
    return [np.asarray(array)[slot, :, : cache.lengths[slot]].copy() for array in cache.past.values()]


def rows(cache: KVCache, slots: slice) -> list[np.ndarray]:
    """Everything in the memory of slots."""
    assert isinstance(cache, ArrayCache)
    return [np.array(array[slots]) for array in cache.past.values()]


def assert_equal(found: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())), rtol=0)


@pytest.fixture(scope="module")
def text_bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A random Llama with `decoder_prefill` in fp32, so that its numbers are those of `decoder`."""
    transformers = pytest.importorskip("transformers")
    from models.scenes.checkpoint import build_tokenizer
    from tests.exporter.text_only import export_text

    folder = tmp_path_factory.mktemp("text")
    config = transformers.LlamaConfig(**SIZES, max_position_embeddings=512)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder / "checkpoint")
    build_tokenizer().save(str(folder / "checkpoint" / "tokenizer.json"))
    return export_text(folder / "checkpoint", folder / "text.bundle", LOWERINGS["decoder_prefill"])


@pytest.fixture(
    scope="module",
    params=[
        ("tiny_bundle", "decoder"),
        ("tiny_bundle", "decoder_standard"),
        ("text_bundle", "decoder"),
        ("text_bundle", "decoder_prefill"),
    ],
    ids=" ".join,
)
def driven(request: pytest.FixtureRequest) -> Driven:
    fixture, lowering = request.param
    bundle: Bundle = request.getfixturevalue(fixture)
    sessions = [open_session(bundle, name, options=SessionOptions(threads=1)) for name in LOWERINGS[lowering]]
    entry = bundle.manifest.decoder
    return Driven(open_decoder(sessions, entry), entry)


def test_a_slot_among_filled_ones_is_as_if_alone(driven: Driven) -> None:
    cache, alone = driven.cache(4), driven.cache(1)
    driven.prefill(cache, driven.embeds(4, 9), [9, 4, 7, 1])
    cache[1:2].clear()
    before = [*rows(cache, slice(0, 1)), *rows(cache, slice(2, 4))]
    prompt = driven.embeds(1, 12, seed=1)
    assert_equal([driven.prefill(cache[1:2], prompt)], [driven.prefill(alone, prompt)])
    assert_equal([*rows(cache, slice(0, 1)), *rows(cache, slice(2, 4))], before)
    assert_equal(held(cache, 1), held(alone, 0))
    assert cache.lengths.tolist() == [9, 12, 7, 1]


@pytest.mark.parametrize("lengths", [(6, 2), (4, 5)])
def test_some_slots_are_filled_in_one_padded_run(lengths: tuple[int, int], driven: Driven) -> None:
    cache = driven.cache(3)
    prompts = driven.embeds(2, 6)
    found = driven.prefill(cache[1:3], prompts, lengths)
    assert cache.lengths.tolist() == [0, *lengths]
    for row, length in enumerate(lengths):
        assert_close(found[row], driven.prefill(driven.cache(1), prompts[row : row + 1, :length])[0])


@pytest.mark.parametrize("chunks", [(1, 11), (11, 1), (4, 5, 3), (1, 1, 2, 8)])
def test_chunks_are_as_the_whole(chunks: tuple[int, ...], driven: Driven) -> None:
    cache, whole, prompt = driven.cache(1), driven.cache(1), driven.embeds(1, 12)
    expected, start = driven.prefill(whole, prompt), 0
    for chunk in chunks:
        found = driven.prefill(cache, prompt[:, start : start + chunk])
        start += chunk
    assert_close(found, expected)
    for one, other in zip(held(cache, 0), held(whole, 0), strict=True):
        assert_close(one, other)


def test_a_prompt_behind_an_answer(driven: Driven) -> None:
    """A second turn: prefill, steps, prefill."""
    cache, tokens = driven.cache(2), driven.embeds(1, 14)
    driven.prefill(cache[1:2], tokens[:, :6])
    for step in (6, 7):
        driven.step(cache[1:2], tokens[:, step : step + 1])
    assert_close(driven.prefill(cache[1:2], tokens[:, 8:]), driven.prefill(driven.cache(1), tokens))


def test_a_cleared_slot_is_as_a_new_one(driven: Driven) -> None:
    cache, prompt, token = driven.cache(1), driven.embeds(1, 5, seed=1), driven.embeds(1, 1, seed=2)
    driven.prefill(cache, driven.embeds(1, 30))
    cache.clear()
    assert cache.lengths.tolist() == [0]
    fresh = driven.cache(1)
    assert_equal([driven.prefill(cache, prompt)], [driven.prefill(fresh, prompt)])
    assert_equal([driven.step(cache, token)], [driven.step(fresh, token)])


def test_nan_does_not_outlive_its_sequence(driven: Driven) -> None:
    cache, prompt, token = driven.cache(2), driven.embeds(1, 5), driven.embeds(1, 1, seed=2)
    driven.prefill(cache[:1], prompt)
    following = driven.decoder.prefill(cache[1:], np.full_like(driven.embeds(1, 9), np.nan), driven._positions(cache[1:], 9))
    assert following.likeliest.tolist() == [-1]
    with pytest.raises(BackendError, match="the decoder gave NaN logits"):
        following.likeliest_token(0)
    before = rows(cache, slice(0, 1))
    cache[1:].clear()
    assert_equal(rows(cache, slice(0, 1)), before)
    driven.prefill(cache[1:], prompt)
    assert_close(driven.step(cache[1:], token), driven.step(cache[:1], token))


def test_standing_slots_keep_what_they_hold(driven: Driven) -> None:
    cache, lengths, alone = driven.cache(3), (5, 9, 3), [driven.cache(1) for _ in range(3)]
    prompts, tokens = driven.embeds(3, 9), driven.embeds(3, 4, seed=1)
    driven.prefill(cache, prompts, lengths)
    for slot, length in enumerate(lengths):
        driven.prefill(alone[slot], prompts[slot : slot + 1, :length])
    for step, moving in enumerate(([0, 2], [2], [1, 2], [0])):
        standing = [slot for slot in range(3) if slot not in moving]
        before = [held(cache, slot) for slot in standing]
        found = driven.step(cache, tokens[:, step : step + 1], moving)
        for slot in moving:
            assert_close(found[slot], driven.step(alone[slot], tokens[slot : slot + 1, step : step + 1])[0])
        for slot, kept in zip(standing, before, strict=True):
            assert_equal(held(cache, slot), kept)
    assert cache.lengths.tolist() == [7, 10, 6]


@settings(max_examples=15)
@given(st.lists(st.tuples(st.sampled_from(["fill", "step", "clear"]), st.integers(1, 7), st.integers(1, 6)), max_size=12))
def test_any_order_of_joining_stepping_and_leaving(driven: Driven, events: list[tuple[str, int, int]]) -> None:
    """`events`: what happens, to which of three slots (as bits), with how many tokens."""
    cache, alone = driven.cache(3), [driven.cache(1) for _ in range(3)]
    for number, (event, bits, count) in enumerate(events):
        slots = [slot for slot in range(3) if bits >> slot & 1]
        if event == "step" and cache.lengths.max() < cache.capacity_tokens:
            tokens = driven.embeds(3, 1, seed=number)
            found = driven.step(cache, tokens, slots)
            for slot in slots:
                assert_close(found[slot], driven.step(alone[slot], tokens[slot : slot + 1])[0])
        for slot in slots:
            if event == "fill" and cache.lengths[slot] + count <= cache.capacity_tokens:
                prompt = driven.embeds(1, count, seed=number)
                assert_close(driven.prefill(cache[slot : slot + 1], prompt), driven.prefill(alone[slot], prompt))
            elif event == "clear":
                cache[slot : slot + 1].clear()
                alone[slot].clear()
        assert cache.lengths.tolist() == [int(one.lengths[0]) for one in alone]


def test_what_does_not_fit_is_refused(driven: Driven) -> None:
    cache = driven.cache(2)
    assert cache.capacity_tokens == 48  # whole blocks of 16
    assert cache.nbytes == sum(array.nbytes for array in rows(cache, slice(0, 2)))
    driven.prefill(cache[:1], driven.embeds(1, 45))
    with pytest.raises(BackendError, match="a slot of the KV cache holds 45 tokens, 4 more do not fit into 48"):
        driven.prefill(cache[:1], driven.embeds(1, 4))
    driven.prefill(cache[:1], driven.embeds(1, 3))
    for moving in ([0], [1]):
        with pytest.raises(BackendError, match="holds 48 tokens, 1 more do not fit into 48"):
            driven.step(cache, driven.embeds(2, 1), moving)
    driven.step(cache[1:], driven.embeds(1, 1))
    assert cache.lengths.tolist() == [48, 1]


def test_only_the_decoder_moves_lengths(driven: Driven) -> None:
    with pytest.raises(ValueError, match="read-only"):
        driven.cache(1).lengths[0] = 3
    stranger: Any = SimpleNamespace(lengths=np.zeros(1, np.int32))
    with pytest.raises(BackendError, match="a SimpleNamespace is the cache of another decoder"):
        driven.step(stranger, driven.embeds(1, 1))


def test_chunks_for_several_slots_at_once(driven: Driven, request: pytest.FixtureRequest) -> None:
    cache, prompts = driven.cache(2), driven.embeds(2, 8)
    driven.prefill(cache, prompts[:, :4], [4, 2])
    if request.node.callspec.params["driven"][1] == "decoder_standard":
        found = driven.prefill(cache, prompts[:, 4:], [3, 4])
        for row, tokens in enumerate((range(7), (0, 1, 4, 5, 6, 7))):
            assert_close(found[row], driven.prefill(driven.cache(1), prompts[row : row + 1, list(tokens)])[0])
    else:
        with pytest.raises(BackendError, match=r"got 2 slots with \[3, 4\] tokens\. Prefill them one by one"):
            driven.prefill(cache, prompts[:, 4:], [3, 4])
        with pytest.raises(BackendError, match=r"one slot at a time and without padding, got 1 slots with \[3\] tokens"):
            driven.prefill(cache[:1], prompts[:1, 4:], [3])


def test_graphs_that_do_not_decode(tiny_bundle: Bundle) -> None:
    with pytest.raises(BackendError, match=r"none of the graphs embed decodes\. Open one of decoder, decoder_standard too"):
        open_decoder([open_session(tiny_bundle, "embed")], tiny_bundle.manifest.decoder)


def test_logits_come_to_the_host_once() -> None:
    following = NextTokens(np.zeros((2, 3), np.float32), np.array([1, 2]))
    assert following.logits is following.logits
    assert following.likeliest_token(1) == 2


@settings(max_examples=10)
@given(
    lengths=st.tuples(*[st.integers(1, 9)] * 3),
    pair=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    empty=st.integers(-1, 2),
)
def test_slots_change_places(lengths: tuple[int, ...], pair: tuple[int, int], empty: int, driven: Driven) -> None:
    cache = driven.cache(3)
    driven.prefill(cache, driven.embeds(3, 9), lengths)
    if empty >= 0:
        cache[empty : empty + 1].clear()
    order = [0, 1, 2]
    order[pair[0]], order[pair[1]] = order[pair[1]], order[pair[0]]
    before, known = [held(cache, slot) for slot in range(3)], cache.lengths.copy()
    cache.exchange(*pair)
    assert cache.lengths.tolist() == known[order].tolist()
    for slot, was in enumerate(order):
        assert_equal(held(cache, slot), before[was])


def test_a_shortened_slot_goes_on_from_there(driven: Driven) -> None:
    cache, alone = driven.cache(2), driven.cache(1)
    prompt, other = driven.embeds(1, 12), driven.embeds(1, 5, seed=1)
    for own in (cache[1:2], alone):
        driven.prefill(own, prompt)
    cache.shorten(1, 7)
    cache.shorten(1, 30)
    assert cache.lengths.tolist() == [0, 7]
    again = driven.cache(1)
    driven.prefill(again, prompt[:, :7])
    assert_close(driven.prefill(cache[1:2], other), driven.prefill(again, other))
