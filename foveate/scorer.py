"""Labelling a user's data: the runtime prepares the prompts, the exporter explains the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from foveate.engines import hash_file
from foveate.engines.errors import LabelError
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.family import Family
from foveate.exporter.scorer import Example, LabelOptions, LabelResult, label, read_labels
from foveate.runtime import Preparer
from foveate.samples import QUESTIONS, Sample, read_samples


class Loader:
    """Samples by their number, prepared as the deployed model will see them."""

    def __init__(self, samples: Sequence[Sample], checkpoint: Path) -> None:
        self._samples = samples
        self._tokenizer = Checkpoint.open(checkpoint).load_tokenizer()
        self._first = {sample.source: number for number, sample in reversed(list(enumerate(samples)))}
        self._prepare: Preparer | None = None

    def __call__(self, family: Family, number: int) -> Example:
        """The sample as `label` wants it."""
        if self._prepare is None:
            self._prepare = Preparer(family.model_type, family.prompt(), family.processor(), self._tokenizer)
        sample = self._samples[number]
        prepared = self._prepare(sample.request())
        return Example(
            input_ids=prepared.layout.input_ids,
            position_ids=prepared.layout.position_ids,
            next_position=prepared.layout.next_position,
            visual_indices=prepared.layout.visual_indices,
            instruction_indices=prepared.instruction_indices,
            visuals=[visual.feeds for visual in prepared.visuals],
            grids=prepared.grids,
            image=self._first[sample.source],
            is_right=partial(self._is_right, sample),
        )

    def _is_right(self, sample: Sample, tokens: Sequence[int]) -> bool:
        return sample.answered_by(self._tokenizer.decode(list(tokens)))


def label_folder(
    checkpoint: Path,
    data: Path,
    output: Path,
    options: LabelOptions | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LabelResult:
    """Labels the samples of a folder; see `foveate.exporter.scorer.label`.

    Raises:
        RequestError: the data is missing or broken.
        ExportError: the checkpoint is.
        LabelError: `output` holds something else, or the model answered no sample correctly.
    """
    samples = read_samples(data)
    result = label(checkpoint, Loader(samples, checkpoint), len(samples), data_hash(data), output, options, progress)
    if not any(True for _ in read_labels(output)):
        raise LabelError(
            f"the model answered none of {len(samples)} samples of {data} correctly, so there is nothing to learn from. "
            f"Compare its answers with those of {QUESTIONS}: 'foveate evaluate' shows them."
        )
    return result


def data_hash(data: Path) -> str:
    """sha256 of the questions of a folder."""
    return hash_file(data / QUESTIONS)
