"""`foveate check`: a backend held against ONNX Runtime, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import click
import numpy as np

from foveate.check import CheckReport, check
from foveate.cli.options import SessionChoice, session_options
from foveate.cli.progress import Bar
from foveate.cli.tables import make_table, open_console
from foveate.runtime import Request, load
from foveate.samples import read_samples

_QUESTION = "What is in the image?"
_SIDE = 448


@click.command("check")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.argument("question", default=_QUESTION)
@click.option("-i", "--image", "images", multiple=True, type=click.Path(path_type=Path), help="An image; may be repeated.")
@click.option("--data", type=click.Path(path_type=Path), help="Folder of images and questions in place of one question.")
@click.option("--count", default=20, show_default=True, help="Questions of --data to ask.")
@click.option("--min-cosine", default=0.99, show_default=True, help="Fail where a stage is less similar than this.")
@click.option("--max-new-tokens", type=int, help="Longest answer.  [default: the bundle's]")
@session_options(backend=None, vision=False)
def check_command(
    bundle: Path,
    question: str,
    images: tuple[Path, ...],
    data: Path | None,
    count: int,
    min_cosine: float,
    max_new_tokens: int | None,
    session: SessionChoice,
) -> None:
    """Compare BUNDLE on a backend with the same bundle on ONNX Runtime's CPU.

    Without --image and --data the request is QUESTION about a picture of a colour gradient.
    """
    requests = _requests(question, images, data, count, max_new_tokens)
    with (
        closing(load(bundle)) as reference,
        closing(load(bundle, session.backend, session.options, verify=False)) as other,
        Bar("checking") as bar,
    ):
        report = check(reference, other, requests, progress=bar.show)
    _print(report)
    report.require(min_cosine)


def _requests(
    question: str, images: Sequence[Path], data: Path | None, count: int, max_new_tokens: int | None
) -> list[Request]:
    if data is None:
        return [Request.ask(question, images or _gradient(), max_new_tokens=max_new_tokens)]
    samples = read_samples(data)[:count]
    return [sample.request(max_new_tokens=max_new_tokens) for sample in samples]


def _gradient() -> np.ndarray:
    """A picture that differs everywhere: `[448, 448, 3]` uint8."""
    ramp = np.linspace(0, 255, _SIDE, dtype=np.uint8)
    red, green = np.meshgrid(ramp, ramp)
    return np.stack([red, green, 255 - red // 2 - green // 2], axis=-1)


def _print(report: CheckReport) -> None:
    console = open_console()
    numbers = ("cosine", "max |diff|", "of")
    stages = make_table("stage", "output", *numbers, numbers=numbers)
    for stage in report.stages:
        row = (f"{stage.cosine:.6f}", f"{stage.max_abs_diff:.2g}", f"{stage.scale:.2g}")
        stages.add_row(stage.stage, stage.output, *row)
    titles = ("keep", "same kept tokens", "same greedy tokens")
    answers = make_table(*titles, numbers=titles)
    for one in report.answers:
        answers.add_row(f"{one.keep:g}", f"{100 * one.overlap:.1f} %", f"{one.same_tokens} of {one.requests}")
    console.print(stages)
    console.print(answers)
