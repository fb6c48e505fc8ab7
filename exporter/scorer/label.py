"""`label`: which visual tokens mattered for the answers of a model, and what its first layer knew about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from foveate.engines import Grid, LabelError
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.families import read_family
from foveate.exporter.family import Family, Reference, ReferenceOutput
from foveate.exporter.scorer.features import FEATURES, FirstLayer, count_channels, features
from foveate.exporter.scorer.relevance import CONTRIBUTIONS, OBJECTIVES, relevance
from foveate.exporter.scorer.store import SCHEMA_VERSION, Label, LabelsHeader, start, write_shard


@dataclass(frozen=True)
class LabelOptions:
    """How to label.

    Attributes:
        objective: what is differentiated: `margin` or, as in the paper, `logit`.
        contribution: what of attention times gradient counts: `magnitude` or, as in the paper, `positive`.
        wrong: label samples that the model answers wrongly too, by the answer it gave. Training leaves them out.
        max_new_tokens: longest answer.
        limit: label this many samples, drawn with `seed`; None for all.
        seed: of the draw.
        shard_size: samples that are lost at most when a run is killed.
    """

    objective: str = "margin"
    contribution: str = "magnitude"
    wrong: bool = False
    max_new_tokens: int = 16
    limit: int | None = None
    seed: int = 0
    shard_size: int = 50

    def __post_init__(self) -> None:
        for name, value, known in (
            ("objective", self.objective, OBJECTIVES),
            ("contribution", self.contribution, CONTRIBUTIONS),
        ):
            if value not in known:
                raise LabelError(f"{name} '{value}' is not known. Choose one of {', '.join(known)}.")
        for name, number in (("max_new_tokens", self.max_new_tokens), ("limit", self.limit), ("shard_size", self.shard_size)):
            if number is not None and number < 1:
                raise LabelError(f"{name} is {number}, expected at least 1. Raise it.")
        if self.seed < 0:
            raise LabelError(f"seed is {self.seed}, expected at least 0. Raise it.")


@dataclass(frozen=True, eq=False)
class Example:
    """One sample as the runtime prepares it, so that labels are of the very prompt that will be scored.

    Attributes:
        input_ids: `[tokens]` int64, with a placeholder per visual token.
        position_ids: `[position_axes, tokens]` int64.
        next_position: where the positions of the answer start.
        visual_indices: `[visual_tokens]` int64, where the placeholders stand.
        instruction_indices: `[rows]` int64, the rows whose attention is scored.
        visuals: the vision graph's inputs for each image or video.
        grids: frames, rows and columns of the visual tokens of each image.
        image: number of the first sample with the same image.
        is_right: whether token ids are a right answer.
    """

    input_ids: np.ndarray
    position_ids: np.ndarray
    next_position: int
    visual_indices: np.ndarray
    instruction_indices: np.ndarray
    visuals: Sequence[Mapping[str, np.ndarray]]
    grids: Sequence[Grid]
    image: int
    is_right: Callable[[Sequence[int]], bool]


@dataclass(frozen=True)
class LabelResult:
    """How many samples were looked at in this run, and how many of them have labels."""

    seen: int
    labelled: int


Progress = Callable[[int, int], None]
"""Told how many samples are done, and of how many."""


def label(
    checkpoint: Path,
    load: Callable[[Family, int], Example],
    num_samples: int,
    data_sha256: str,
    output: Path,
    options: LabelOptions | None = None,
    progress: Progress | None = None,
) -> LabelResult:
    """Labels the samples that a model answers correctly; a run that was killed goes on where it stopped.

    Args:
        checkpoint: the folder of a Hugging Face checkpoint.
        load: gives a sample by its number, prepared for the family.
        num_samples: how many there are.
        data_sha256: says when a folder of labels is of other data.
        output: the folder of labels.
        options: how to label.
        progress: see `Progress`.

    Raises:
        ExportError: the checkpoint is incomplete, broken or not supported.
        LabelError: `output` holds something else, or can't be written.
    """
    options, report = options or LabelOptions(), progress or (lambda done, total: None)
    source = Checkpoint.open(Path(checkpoint))
    family = read_family(source)
    heads = family.decoder.num_attention_heads
    header = LabelsHeader(
        schema_version=SCHEMA_VERSION,
        checkpoint=source.path.resolve().name,
        checkpoint_sha256=source.sha256(),
        data_sha256=data_sha256,
        heads=heads,
        channels=count_channels(list(FEATURES), heads),
        objective=options.objective,
        contribution=options.contribution,
        wrong=options.wrong,
        max_new_tokens=options.max_new_tokens,
        samples=_draw(num_samples, options),
        shard_size=options.shard_size,
    )
    waiting = start(Path(output), header)
    if not waiting:
        return LabelResult(0, 0)
    labeller = _Labeller(family, family.reference(), options)
    done, labelled = sum(len(header.shard_samples(s)) for s in range(header.num_shards) if s not in set(waiting)), 0
    for shard in waiting:
        labels = []
        for number in header.shard_samples(shard):
            found = labeller.label(number, load(family, number))
            labels += [found] if found else []
            done += 1
            report(done, len(header.samples))
        write_shard(Path(output), shard, labels, header)
        labelled += len(labels)
    return LabelResult(sum(len(header.shard_samples(shard)) for shard in waiting), labelled)


def _draw(num_samples: int, options: LabelOptions) -> tuple[int, ...]:
    """Numbers of the samples, ascending, so that questions about one image stay together."""
    if options.limit is None or options.limit >= num_samples:
        return tuple(range(num_samples))
    chosen = np.random.default_rng(options.seed).choice(num_samples, options.limit, replace=False)
    return tuple(sorted(chosen.tolist()))


@dataclass(frozen=True, eq=False)
class Prompt:
    """An example in the reference's embeddings, ready to be continued.

    Attributes:
        reference: the model.
        example: the prompt.
        embeds: `[tokens, D]`, visual tokens in their places.
    """

    reference: Reference
    example: Example
    embeds: Tensor

    @classmethod
    def embed(cls, reference: Reference, example: Example, visual_embeds: Tensor | None = None) -> Prompt:
        """Embeds a prompt; `visual_embeds [visual_tokens, D]` where they are known already."""
        if visual_embeds is None:
            visual_embeds = embed_images(reference, example)
        embeds = reference.text_embeds(torch.from_numpy(example.input_ids)).clone()
        embeds[torch.from_numpy(example.visual_indices)] = visual_embeds
        return cls(reference, example, embeds)

    def run(self, answer: Sequence[int]) -> ReferenceOutput:
        """The model on the prompt and the beginning of an answer; with gradient where that is enabled."""
        first, axes = self.example.next_position, len(self.example.position_ids)
        positions = np.tile(np.arange(first, first + len(answer)), (axes, 1))
        position_ids = torch.from_numpy(np.concatenate([self.example.position_ids, positions], axis=1))
        embeds = torch.cat((self.embeds, self.reference.text_embeds(torch.tensor(answer, dtype=torch.int64))))
        return self.reference.forward(embeds.requires_grad_(torch.is_grad_enabled()), position_ids)

    @torch.no_grad()
    def answer(self, eos_token_ids: Collection[int], max_new_tokens: int) -> list[int]:
        """Greedy tokens up to the end of the answer, without the token that ends it.

        Every token runs the whole sequence: answers are short, and the gradients cost several such runs a token anyway.
        """
        tokens: list[int] = []
        while len(tokens) < max_new_tokens:
            token = int(self.run(tokens).logits[-1].argmax())
            if token in eos_token_ids:
                break
            tokens.append(token)
        return tokens

    def first_layer(self, output: ReferenceOutput) -> FirstLayer:
        """What the first layer knows about the visual tokens."""
        visual, rows = (torch.from_numpy(i) for i in (self.example.visual_indices, self.example.instruction_indices))
        attention = output.attentions[0][0].detach().index_select(1, rows).index_select(2, visual)
        return FirstLayer(attention, self.embeds.index_select(0, visual), self.embeds.index_select(0, rows))


def embed_images(reference: Reference, example: Example) -> Tensor:
    """`visual_embeds [visual_tokens, D]` of every image of an example."""
    return torch.cat([reference.visual_embeds(visual) for visual in example.visuals])


class _Labeller:
    """A loaded model and the images that it saw last."""

    def __init__(self, family: Family, reference: Reference, options: LabelOptions) -> None:
        self._reference = reference
        self._options = options
        self._eos = frozenset(family.prompt().eos_token_ids)
        self._seen: tuple[Sequence[Mapping[str, np.ndarray]], Tensor] | None = None

    def label(self, sample: int, example: Example) -> Label | None:
        """The label of a sample; None where the answer is wrong and only right ones are wanted, or is empty."""
        prompt = Prompt.embed(self._reference, example, self._visual_embeds(example))
        answer = prompt.answer(self._eos, self._options.max_new_tokens)
        correct = bool(answer) and example.is_right(answer)
        if not answer or not (correct or self._options.wrong):
            return None
        with torch.enable_grad():
            output = prompt.run(answer[:-1])
            objective, contribution = OBJECTIVES[self._options.objective], CONTRIBUTIONS[self._options.contribution]
            mattered = relevance(output.logits, output.attentions, answer, objective, contribution)
        return Label(
            sample,
            example.image,
            correct,
            tuple(example.grids),
            features(prompt.first_layer(output), list(FEATURES)).numpy(),
            mattered[example.visual_indices].numpy(),
        )

    def _visual_embeds(self, example: Example) -> Tensor:
        """`[visual_tokens, D]`; computed once for questions in a row about the same images."""
        if self._seen is None or not _same(self._seen[0], example.visuals):
            self._seen = example.visuals, embed_images(self._reference, example)
        return self._seen[1]


def _same(one: Sequence[Mapping[str, np.ndarray]], other: Sequence[Mapping[str, np.ndarray]]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(np.array_equal(a[name], b[name]) for a, b in pairs for name in a)
