"""The gate of an export: every graph through ONNX Runtime against the checkpoint in its own library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch

from foveate.engines import DECODER_PREFILL, Array, Bundle, ParityError, Session, find_neighbours, open_session
from foveate.engines.format.names import PAST
from foveate.exporter.family import Family, Reference, ReferenceOutput
from foveate.exporter.scorer.features import FirstLayer
from foveate.exporter.scorer.network import Scorer

TOLERANCES = {
    "visual_embeds": 1e-4,
    "attention": 1e-5,
    "scores": 1e-5,
    "inputs_embeds": 1e-6,
    "logits": 1e-4,
    "likeliest_tokens": 1e-4,
}
"""Allowed |difference| of each output, for a reference whose largest value is 1 or less; it grows with that value."""
QUANTISED_TOLERANCE = 0.5
"""Allowed relative difference of a quantised graph, root mean square to root mean square. Graphs that compute something else
are at 1 and above; what the precision costs only answers can tell (`foveate evaluate`)."""
_DECODE_STEPS = 3


@dataclass(frozen=True)
class ParityRow:
    """One output of one graph in one case.

    Attributes:
        difference: between graph and reference: the largest, or of a quantised graph the relative one.
        measure: which of the two.
    """

    graph: str
    output: str
    case: str
    difference: float
    tolerance: float
    measure: str

    @property
    def passed(self) -> bool:
        """NaN does not pass."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class ParityReport:
    """What was compared and how close it came."""

    rows: tuple[ParityRow, ...]

    @property
    def passed(self) -> bool:
        return all(row.passed for row in self.rows)

    def worst(self) -> ParityRow:
        """The row that comes closest to its tolerance."""
        return max(self.rows, key=lambda row: row.difference / row.tolerance)


def check_parity(
    bundle: Bundle,
    family: Family,
    scorer: Scorer | None,
    precisions: Mapping[str, str],
    progress: Callable[[str], None],
) -> ParityReport:
    """Compares every graph of a bundle with the checkpoint it was made from, and with the scorer that was put into it.

    Args:
        bundle: to check.
        family: of the checkpoint.
        scorer: of the bundle.
        precisions: of the bundle's graphs.
        progress: told which graph is checked.

    Raises:
        ParityError: an output differs by more than its tolerance, or is not a number.
    """
    progress("loading the reference")
    examples = _Examples(bundle, family, family.reference(), scorer, np.random.default_rng(0))
    rows: list[ParityRow] = []
    for name, precision in precisions.items():
        progress(f"checking the graph '{name}'")
        session = open_session(bundle, name)
        found = list(_COMPARISONS[name](examples, session))
        rows += [_row(name, *one) for one in found] if precision == "fp32" else _quantised_rows(name, found)
        session.close()
    for row in rows:
        if not row.passed:
            raise ParityError(
                f"graph '{row.graph}', output '{row.output}', {row.case}: {row.measure} to the checkpoint is "
                f"{row.difference:.3g}, allowed {row.tolerance:.3g}. Report it, or export without the check.",
                options=("check",),
            )
    return ParityReport(tuple(rows))


_Compared = tuple[str, str, Array, np.ndarray]
"""Output, case, what the graph gave, what the reference gave."""


def _row(graph: str, output: str, case: str, got: Array, expected: np.ndarray) -> ParityRow:
    difference = float(np.abs(np.asarray(got) - expected).max())
    tolerance = TOLERANCES[output] * max(1.0, float(np.abs(expected).max()))
    return ParityRow(graph, output, case, difference, tolerance, "max |difference|")


def _quantised_rows(graph: str, found: Sequence[_Compared]) -> Iterator[ParityRow]:
    """One for each output, over all cases together; rounding may make another token the likeliest, so that output has none."""
    for output in dict.fromkeys(output for output, *_ in found if output != "likeliest_tokens"):
        pairs = [(np.asarray(got), expected) for name, _, got, expected in found if name == output]
        squares = sum(np.square(got - expected).sum() for got, expected in pairs)
        difference = float(np.sqrt(squares / sum(np.square(expected).sum() for _, expected in pairs)))
        yield ParityRow(graph, output, "all cases", difference, QUANTISED_TOLERANCE, "relative difference")


@dataclass(frozen=True)
class _Examples:
    """Random inputs and the reference's answers, all as numpy arrays."""

    bundle: Bundle
    family: Family
    reference: Reference
    scorer: Scorer | None
    random: np.random.Generator

    def embeds(self, *shape: int) -> np.ndarray:
        """Vectors `[*shape, D]` as large as token embeddings."""
        tokens = self.text_embeds(self.token_ids(16))
        noise = self.random.standard_normal((*shape, self.family.decoder.hidden_size)) * tokens.std()
        return noise.astype(np.float32)

    def token_ids(self, *shape: int) -> np.ndarray:
        return self.random.integers(0, self.family.decoder.vocab_size, shape)

    def position_ids(self, *shape: int) -> np.ndarray:
        return self.random.integers(0, 50, (self.family.decoder.position_axes, *shape))

    def text_embeds(self, input_ids: np.ndarray) -> np.ndarray:
        return self.reference.text_embeds(torch.from_numpy(input_ids)).numpy()

    def logits(self, inputs_embeds: np.ndarray, position_ids: np.ndarray) -> np.ndarray:
        return self._forward(inputs_embeds, position_ids).logits.numpy()

    def attention(self, inputs_embeds: np.ndarray, position_ids: np.ndarray) -> np.ndarray:
        return self._forward(inputs_embeds, position_ids).attentions[0][0].numpy()

    @torch.no_grad()
    def scores(
        self, attention: np.ndarray, visual: np.ndarray, text: np.ndarray, feeds: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        if self.scorer is None:
            return attention.mean(axis=(0, 1))
        first = FirstLayer(torch.from_numpy(attention), torch.from_numpy(visual), torch.from_numpy(text))
        neighbours = torch.from_numpy(feeds["neighbour_indices"]) if self.scorer.on_grid else None
        return self.scorer(first, neighbours).numpy()

    @torch.no_grad()
    def _forward(self, inputs_embeds: np.ndarray, position_ids: np.ndarray) -> ReferenceOutput:
        return self.reference.forward(torch.from_numpy(inputs_embeds), torch.from_numpy(position_ids))


def _compare_vision(examples: _Examples, session: Session) -> Iterator[_Compared]:
    for case, feeds in examples.family.vision_cases(examples.random):
        expected = examples.reference.visual_embeds(feeds).numpy()
        yield "visual_embeds", case, session.run(feeds)["visual_embeds"], expected


def _compare_score(examples: _Examples, session: Session) -> Iterator[_Compared]:
    one, two = ((1, 2, 3),), ((1, 2, 2), (1, 1, 5))
    for case, grids, visual, tokens in (
        ("one image", one, range(3, 9), 14),
        ("two images", two, (*range(1, 5), *range(7, 12)), 20),
    ):
        indices, rows = np.array(visual), np.arange(max(visual) + 2, tokens - 1)
        embeds = examples.text_embeds(examples.token_ids(tokens))
        embeds[indices] = examples.embeds(len(indices))
        feeds = {
            "inputs_embeds": embeds,
            "position_ids": examples.position_ids(tokens),
            "visual_indices": indices,
            "instruction_indices": rows,
            "neighbour_indices": find_neighbours(grids),
        }
        attention = examples.attention(embeds, feeds["position_ids"])[:, rows][:, :, indices]
        got = session.run({tensor.name: feeds[tensor.name] for tensor in session.spec.inputs})
        yield "attention", case, got["attention"], attention.mean(axis=(0, 1))
        yield "scores", case, got["scores"], examples.scores(attention, embeds[indices], embeds[rows], feeds)


def _compare_embed(examples: _Examples, session: Session) -> Iterator[_Compared]:
    for case, keep, places in (("text only", [], []), ("pruned prompts", [0, 2, 3, 6], [1, 2, 10, 12])):
        feeds = {
            "input_ids": examples.token_ids(2, 8),
            "visual_embeds": examples.embeds(7 if keep else 0),
            "keep_indices": np.array(keep, dtype=np.int64),
            "placeholder_indices": np.array(places, dtype=np.int64),
        }
        expected = examples.text_embeds(feeds["input_ids"])
        expected.reshape(-1, expected.shape[-1])[places] = feeds["visual_embeds"][keep]
        yield "inputs_embeds", case, session.run(feeds)["inputs_embeds"], expected


def _compare_decoder(
    examples: _Examples, session: Session, make_cache: Callable[[Session, int, int], Cache]
) -> Iterator[_Compared]:
    for lengths in ((7,), (5, 9)):
        total = max(lengths) + _DECODE_STEPS
        embeds, positions = examples.embeds(len(lengths), total), examples.position_ids(len(lengths), total)
        reference = [examples.logits(embeds[row], positions[:, row]) for row in range(len(lengths))]
        cache = make_cache(session, len(lengths), total)
        for step in range(_DECODE_STEPS + 1):
            got = cache.step(*_step_inputs(embeds, positions, np.array(lengths), step))
            expected = np.stack([logits[length - 1 + step] for logits, length in zip(reference, lengths, strict=True)])
            case = f"{f'decode step {step}' if step else 'prefill'} of prompts of {' and '.join(map(str, lengths))} tokens"
            yield "logits", case, got["logits"], expected
            # Another token will do where the reference holds both for equally likely.
            chosen = np.take_along_axis(expected, np.asarray(got["likeliest_tokens"])[:, None], axis=1)[:, 0]
            yield "likeliest_tokens", case, chosen, expected.max(axis=1)


def _compare_prefill(examples: _Examples, session: Session) -> Iterator[_Compared]:
    """By what `decoder` makes of the cache that it filled."""
    decoder = open_session(examples.bundle, "decoder")
    yield from _compare_decoder(examples, decoder, partial(PrefilledCache, session))
    decoder.close()


def _step_inputs(embeds: np.ndarray, positions: np.ndarray, lengths: np.ndarray, step: int) -> tuple[np.ndarray, ...]:
    """Embeddings, positions and which tokens are real: the right-padded prompts for step 0, then one token each."""
    if step == 0:
        longest = lengths.max()
        return embeds[:, :longest], positions[:, :, :longest], np.arange(longest) < lengths[:, None]
    rows, tokens = np.arange(len(lengths)), lengths + step - 1
    return embeds[rows, tokens][:, None], positions[:, rows, tokens][:, :, None], np.ones((len(lengths), 1), dtype=bool)


class Cache(Protocol):
    def step(self, inputs_embeds: np.ndarray, position_ids: np.ndarray, real: np.ndarray) -> Mapping[str, Array]:
        """Runs the decoder once; its outputs are those of the last real token of each row."""
        ...


class SharedCache:
    """For `decoder`: a buffer of `capacity` tokens that is past and present at once."""

    def __init__(self, session: Session, batch: int, capacity: int) -> None:
        self._session = session
        self._past = _empty_past(session, batch, capacity)
        self.lengths = np.zeros(batch, dtype=np.int32)

    def step(self, inputs_embeds: np.ndarray, position_ids: np.ndarray, real: np.ndarray) -> Mapping[str, Array]:
        self.lengths += real.sum(axis=1, dtype=np.int32)
        return self.run(self._session, _decoder_feeds(inputs_embeds, position_ids, real))

    def run(self, session: Session, feeds: Mapping[str, Array]) -> Mapping[str, Array]:
        """Runs a session that leaves `lengths` tokens in the buffer."""
        lengths = {"seqlens_k": self.lengths - 1, "total_sequence_length": np.array(self.lengths.max())}
        return session.run({**feeds, **lengths, **self._past}, _presents(self._past))


class PrefilledCache:
    """For `decoder_prefill` and `decoder`: the one takes the prompts but for the last token of the longest, the other the last
    tokens and what follows; see `SharedCache`."""

    def __init__(self, prefill: Session, decoder: Session, batch: int, capacity: int) -> None:
        self._prefill = prefill
        self._decoder = SharedCache(decoder, batch, capacity)

    def step(self, inputs_embeds: np.ndarray, position_ids: np.ndarray, real: np.ndarray) -> Mapping[str, Array]:
        if real.shape[1] == 1:
            return self._decoder.step(inputs_embeds, position_ids, real)
        self._decoder.lengths[:] = real[:, :-1].sum(axis=1)
        self._decoder.run(self._prefill, {"inputs_embeds": inputs_embeds[:, :-1], "position_ids": position_ids[:, :, :-1]})
        rows, last = np.arange(len(real)), real.sum(axis=1) - 1
        self._decoder.lengths[:] = last
        tokens = inputs_embeds[rows, last][:, None], position_ids[:, rows, last][:, :, None]
        return self._decoder.step(*tokens, np.ones((len(last), 1), dtype=bool))


class ScatterCache:
    """For `decoder_standard`: the same buffer, written at the number of tokens that it holds; see `SharedCache`."""

    def __init__(self, session: Session, batch: int, capacity: int) -> None:
        self._session = session
        self._past = _empty_past(session, batch, capacity)
        self._lengths = np.zeros(batch, dtype=np.int64)

    def step(self, inputs_embeds: np.ndarray, position_ids: np.ndarray, real: np.ndarray) -> Mapping[str, Array]:
        feeds = {
            **_decoder_feeds(inputs_embeds, position_ids, real),
            "write_indices": self._lengths,
            "cache_indices": np.arange(self._lengths.max() + real.shape[1]),
            **self._past,
        }
        outputs = self._session.run(feeds, _presents(self._past))
        self._lengths += real.sum(axis=1)
        return outputs


def _presents(past: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same arrays by the names of the outputs: the graph updates them in place."""
    return {name.replace(PAST, "present."): value for name, value in past.items()}


def _decoder_feeds(inputs_embeds: np.ndarray, position_ids: np.ndarray, real: np.ndarray) -> Mapping[str, Array]:
    return {"inputs_embeds": inputs_embeds, "position_ids": position_ids, "last_indices": real.sum(axis=1) - 1}


def _empty_past(session: Session, batch: int, length: int) -> dict[str, np.ndarray]:
    specs = [tensor for tensor in session.spec.inputs if tensor.name.startswith(PAST)]
    return {
        tensor.name: np.zeros((batch, int(tensor.shape[1]), length, int(tensor.shape[3])), dtype=np.float32) for tensor in specs
    }


_COMPARISONS: dict[str, Callable[[_Examples, Session], Iterator[_Compared]]] = {
    "vision": _compare_vision,
    "vision_standard": _compare_vision,
    "score": _compare_score,
    "embed": _compare_embed,
    "decoder": partial(_compare_decoder, make_cache=SharedCache),
    DECODER_PREFILL: _compare_prefill,
    "decoder_standard": partial(_compare_decoder, make_cache=ScatterCache),
}
