"""The gate of an export: every graph through ONNX Runtime against the checkpoint in its own library."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch

from foveate.engines import (
    Array,
    Bundle,
    Decoder,
    NextTokens,
    ParityError,
    Session,
    find_neighbours,
    open_decoder,
    open_session,
)
from foveate.engines.format.names import DECODER, DECODER_PREFILL, DECODER_STANDARD, EMBED, SCORE, VISION, VISION_STANDARD
from foveate.engines.format.precisions import FP32
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
    progress: Callable[[str], None],
) -> ParityReport:
    """Compares every graph of a bundle with the checkpoint it was made from, and with the scorer that was put into it.

    Args:
        bundle: to check.
        family: of the checkpoint.
        scorer: of the bundle.
        progress: told which graph is checked.

    Raises:
        ParityError: an output differs by more than its tolerance, or is not a number.
    """
    progress("loading the reference")
    examples = _Examples(bundle, family, family.reference(), scorer, np.random.default_rng(0))
    rows: list[ParityRow] = []
    for name, spec in bundle.manifest.graphs.items():
        progress(f"checking the graph '{name}'")
        with closing(open_session(bundle, name)) as session:
            found = list(_COMPARISONS[name](examples, session))
        rows += [_row(name, *one) for one in found] if spec.precision == FP32 else _quantised_rows(name, found)
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


def _compare_decoder(examples: _Examples, *sessions: Session) -> Iterator[_Compared]:
    decoder = open_decoder(sessions, examples.bundle.manifest.decoder)
    for lengths in ((7,), (5, 9)):
        total = max(lengths) + _DECODE_STEPS
        embeds, positions = examples.embeds(len(lengths), total), examples.position_ids(len(lengths), total)
        reference = [examples.logits(embeds[row], positions[:, row]) for row in range(len(lengths))]
        for step, got in enumerate(_decode(decoder, embeds, positions, np.array(lengths, np.int32))):
            expected = np.stack([logits[length - 1 + step] for logits, length in zip(reference, lengths, strict=True)])
            case = f"{f'decode step {step}' if step else 'prefill'} of prompts of {' and '.join(map(str, lengths))} tokens"
            yield "logits", case, got.logits.copy(), expected
            # Another token will do where the reference holds both for equally likely.
            chosen = np.take_along_axis(expected, got.likeliest[:, None], axis=1)[:, 0]
            yield "likeliest_tokens", case, chosen, expected.max(axis=1)


def _compare_prefill(examples: _Examples, session: Session) -> Iterator[_Compared]:
    """By what `decoder` makes of the cache that it filled."""
    decoder = open_session(examples.bundle, DECODER)
    yield from _compare_decoder(examples, decoder, session)
    decoder.close()


def _decode(decoder: Decoder, embeds: np.ndarray, positions: np.ndarray, lengths: np.ndarray) -> Iterator[NextTokens]:
    """The prompts of `lengths` first, padded, then one token of each row at a time."""
    cache, longest, rows = decoder.new_cache(len(lengths), embeds.shape[1]), lengths.max(), np.arange(len(lengths))
    yield decoder.prefill(cache, embeds[:, :longest], positions[:, :, :longest], lengths)
    for _ in range(_DECODE_STEPS):
        yield decoder.step(cache, embeds[rows, cache.lengths, None], positions[:, rows, cache.lengths, None])


_COMPARISONS: dict[str, Callable[[_Examples, Session], Iterator[_Compared]]] = {
    VISION: _compare_vision,
    VISION_STANDARD: _compare_vision,
    SCORE: _compare_score,
    EMBED: _compare_embed,
    DECODER: _compare_decoder,
    DECODER_PREFILL: _compare_prefill,
    DECODER_STANDARD: _compare_decoder,
}
