"""What each precision costs in right answers: the table of docs/retention.md.

    python -m benchmarks.quantised models/qwen2-vl-tiny --work out/families

Exports each checkpoint in every precision and asks held-out questions of one seed, images and video. Every step goes on where
it stopped; a finished one is not run again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from rich.console import Console

import foveate
from benchmarks.families import DEFAULT, KINDS, PAGE, Case
from benchmarks.pages import row_of, write_between
from foveate.engines import SessionOptions
from foveate.evaluate import Results, evaluate_bundle
from foveate.evaluate.statistics import wilson

KEEPS = (0.5, 0.25)
SEED, COUNT = 3, 1000
"""Of the questions of each kind."""
LIMIT = 0.01
"""Loss of right answers, as a share of those in fp32, above which a precision is marked."""
_BEGIN = "<!-- benchmarks/quantised.py writes what follows -->"


@dataclass(frozen=True)
class Variant:
    """A bundle's precision, and what runs its vision graph."""

    name: str
    precision: str
    parts: tuple[tuple[str, str], ...] = ()
    vision_backend: str | None = None

    @property
    def folder(self) -> str:
        """Variants that differ in what runs them share a bundle."""
        return "-".join((self.precision, *(f"{part}-{chosen}" for part, chosen in self.parts)))


VARIANTS = (
    Variant("fp32", "fp32"),
    Variant("fp32, vision in OpenVINO", "fp32", vision_backend="openvino"),
    Variant("vision int8, decoder fp32", "fp32", (("vision", "int8"),)),
    Variant("int8", "int8"),
    Variant("int8, vision in OpenVINO", "int8", vision_backend="openvino"),
    Variant("int4 (vision int8)", "int4"),
)
Key = tuple[str, str, str]
"""Checkpoint, kind, variant."""


def ask(checkpoint: Path, kind: str, variant: Variant, work: Path) -> Results:
    """The questions of a kind, with the checkpoint's own scorer."""
    name = checkpoint.resolve().name
    folder = work / name / variant.folder
    bundle = folder / "x.bundle"
    if not bundle.exists():
        folder.mkdir(parents=True, exist_ok=True)
        options = foveate.ExportOptions(variant.precision, dict(variant.parts), scorer=checkpoint / "scorer.safetensors")
        foveate.export(checkpoint, bundle, options)
    with Console().status(f"{name}, {kind}, {variant.name}") as status:
        return evaluate_bundle(
            bundle,
            Case(checkpoint, kind, work).questions(SEED, COUNT),
            folder / f"report-{kind}-{variant.vision_backend or 'same'}",
            KEEPS,
            (DEFAULT,),
            max_new_tokens=8,
            options=SessionOptions(threads=1),
            vision_backend=variant.vision_backend,
            progress=lambda done, total: status.update(f"{name}, {kind}, {variant.name}: {done} of {total}"),
        )


def table(found: Mapping[Key, Results]) -> Iterator[str]:
    """Right answers by precision and keep ratio; those that lose more than `LIMIT` of fp32's in bold."""
    yield "| checkpoint | input | precision | keep 1 | " + " | ".join(f"keep {keep:g}" for keep in KEEPS) + " |"
    yield "|---" * (4 + len(KEEPS)) + "|"
    for (checkpoint, kind, name), results in found.items():
        plain = _right(found[checkpoint, kind, VARIANTS[0].name])
        cells = [_cell(right, whole, results.questions) for right, whole in zip(_right(results), plain, strict=True)]
        yield f"| `{checkpoint}` | {kind} | {name} | {' | '.join(cells)} |"


def _right(results: Results) -> np.ndarray:
    """Right answers at keep 1 and at each of `KEEPS`."""
    rows = [results.overall.whole, *(row_of(results.overall, DEFAULT, keep) for keep in KEEPS)]
    return np.array([row.right for row in rows])


def _cell(right: int, plain: int, questions: int) -> str:
    share = wilson(int(right), questions)
    text = f"{100 * share.value:.1f} ({100 * share.low:.1f} - {100 * share.high:.1f})"
    return f"**{text}**" if right < (1 - LIMIT) * plain else text


@click.command(help=__doc__)
@click.argument("checkpoints", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True, help="May be that of benchmarks.families.")
@click.option("--page/--no-page", default=True, show_default=True, help="Whether to write docs/retention.md.")
def main(checkpoints: Sequence[Path], work: Path, page: bool) -> None:
    found = {
        (path.resolve().name, kind, variant.name): ask(path, kind, variant, work)
        for path in checkpoints
        for kind in KINDS
        for variant in VARIANTS
    }
    if page:
        write_between(PAGE, _BEGIN, list(table(found)))
    for line in table(found):
        click.echo(line)


if __name__ == "__main__":
    main()
