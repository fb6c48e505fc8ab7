"""Asking held-out questions, and what was found over all of them.

Everything lies in one folder. Each step goes on where it stopped; a finished one is not run again.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console

import foveate
from foveate.engines import SessionOptions
from foveate.evaluate import ANSWERS, REPORTS, Plan, Record, Results, evaluate_bundle, summarise
from foveate.exporter.scorer import LabelOptions
from foveate.runtime.select.scores import Oracle
from foveate.samples import QUESTIONS, Sample, read_samples
from foveate.scorer import label_folder

KINDS = ("image", "video")
KEEPS = (0.5, 0.25)
DEFAULT = "foveated"
"""What a bundle with a scorer chooses by."""


@dataclass(frozen=True)
class Part:
    """Selectors that are asked together, of a bundle with the checkpoint's own scorer.

    Attributes:
        title: what tables call it.
        selectors: their names.
        kinds: those of `KINDS` that it is asked about.
        precision: of the bundle.
        narrowed: parts of the bundle in another precision, by name.
        vision_backend: what runs the vision graph, where it is another.
    """

    title: str
    selectors: tuple[str, ...] = (DEFAULT,)
    kinds: tuple[str, ...] = KINDS
    precision: str = "fp32"
    narrowed: tuple[tuple[str, str], ...] = ()
    vision_backend: str | None = None

    @property
    def name(self) -> str:
        """The title, for a folder."""
        return re.sub("[^a-z0-9]+", "-", self.title).strip("-")

    @property
    def labelled(self) -> bool:
        """Labels take a model run with gradients, so such a part is asked about the first seed alone."""
        return Oracle.name in self.selectors


@dataclass(frozen=True)
class Case:
    """One checkpoint asked about one kind of input; all of it lies in `work`."""

    checkpoint: Path
    kind: str
    work: Path

    @property
    def name(self) -> str:
        return self.checkpoint.resolve().name

    def folder(self, seed: int) -> Path:
        """Of everything about one seed."""
        return self.work / self.name / f"seed-{seed}"

    def questions(self, seed: int, count: int) -> Path:
        """The folder of held-out questions, one a picture or clip."""
        data = self.folder(seed) / self.kind
        if not (data / QUESTIONS).is_file():
            options = ("--split", "heldout", "--world", self.name, "--kind", self.kind, "--seed", seed, "--count", count)
            command = [sys.executable, "-m", "models.scenes.write", *map(str, options), "-o", str(data)]
            subprocess.run(command, check=True)
        return data

    def labels(self, seed: int, data: Path) -> Path:
        """What the oracle chooses by."""
        labels = self.folder(seed) / f"labels-{self.kind}"
        label_folder(self.checkpoint, data, labels, LabelOptions(wrong=True))
        return labels

    def bundle(self, part: Part) -> Path:
        """The checkpoint with its scorer, exported; parts that differ in what runs them share one."""
        precisions = (part.precision, *(f"{name}-{precision}" for name, precision in part.narrowed))
        bundle = self.work / self.name / f"{'-'.join(precisions)}.bundle"
        if not bundle.exists():
            scorer = self.checkpoint / "scorer.safetensors"
            foveate.export(self.checkpoint, bundle, foveate.ExportOptions(part.precision, dict(part.narrowed), scorer=scorer))
        return bundle

    def report(self, seed: int, part: Part) -> Path:
        """Where the answers of a part are."""
        return self.folder(seed) / f"report-{self.kind}-{part.name}"

    def finished(self, seed: int, part: Part) -> bool:
        return (self.report(seed, part) / REPORTS[0]).is_file()

    def ask(self, seed: int, count: int, part: Part) -> None:
        """Asks the selectors of a part; a finished part is not looked at again."""
        if self.finished(seed, part):
            return
        data, title = self.questions(seed, count), f"{self.name}, {self.kind}, seed {seed}, {part.title}"
        with Console().status(title) as status:
            evaluate_bundle(
                self.bundle(part),
                data,
                self.report(seed, part),
                KEEPS,
                part.selectors,
                max_new_tokens=8,
                options=SessionOptions(threads=1),
                vision_backend=part.vision_backend,
                progress=lambda done, total: status.update(f"{title}: {done} of {total}"),
                labels=self.labels(seed, data) if part.labelled else None,
            )

    def results(self, seeds: Sequence[int], parts: Sequence[Part]) -> Results | None:
        """What was found over all seeds whose first part is finished, all parts as one; None where there is none."""
        parts = [part for part in parts if self.kind in part.kinds]
        samples: list[Sample] = []
        records: list[Record] = []
        for seed in seeds:
            if self.finished(seed, parts[0]):
                samples += read_samples(self.folder(seed) / self.kind)
                finished = [part for part in parts if self.finished(seed, part)]
                records += map(_join, *(_read(self.report(seed, part)) for part in finished))
        oracle = {} if any(part.labelled for part in parts) else None
        plan = Plan.make(KEEPS, [name for part in parts for name in part.selectors], oracle=oracle)
        return summarise(samples, records, plan) if samples else None


def _read(report: Path) -> list[Record]:
    return [msgspec.json.decode(line, type=Record) for line in (report / ANSWERS).read_bytes().splitlines()[1:]]


def _join(*records: Record) -> Record:
    """The answers of several parts to one sample; keep 1 is in each of them."""
    replies = {(reply.selector, reply.keep): reply for record in reversed(records) for reply in record.replies}
    return Record(records[0].number, sum(record.seconds for record in records), tuple(replies.values()))
