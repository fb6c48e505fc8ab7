"""`foveate check`: a backend held against ONNX Runtime, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np

from foveate.check import CheckReport, check
from foveate.cli.command import Need, always, command, when
from foveate.cli.documents import Checked
from foveate.cli.files import check_sources
from foveate.cli.options import PATH, SessionChoice, json_option, session_options
from foveate.cli.output import Output
from foveate.cli.progress import Bar
from foveate.cli.tables import Table
from foveate.runtime import Request, load
from foveate.samples import read_samples

_QUESTION = "What is in the image?"
_SIDE = 448

DATA = Need(lambda given: given["data"] is not None, "there is no folder of questions", "Give one with --data")
NO_DATA = Need(lambda given: given["data"] is None, "the questions are those of --data", "Leave out --data")


@command("check")
@always("bundle", type=PATH)
@when(NO_DATA, "question", default=_QUESTION)
@when(NO_DATA, "-i", "--image", "images", multiple=True, type=PATH, help="An image; may be repeated.")
@always("--data", type=PATH, help="Folder of images and questions in place of one question.")
@when(DATA, "--count", default=20, show_default=True, type=click.IntRange(1), help="Questions of --data to ask.")
@always("--min-cosine", default=0.99, show_default=True, help="Fail where a stage is less similar than this.")
@always("--max-new-tokens", type=int, help="Longest answer.  [default: the bundle's]")
@session_options(backend=None, vision=False)
@json_option
def check_command(
    bundle: Path,
    question: str,
    images: tuple[Path, ...],
    data: Path | None,
    count: int,
    min_cosine: float,
    max_new_tokens: int | None,
    session: SessionChoice,
    json_file: Path | None,
) -> None:
    """Compare BUNDLE on a backend with the same bundle on ONNX Runtime's CPU.

    Without --image and --data the request is QUESTION about a picture of a colour gradient.
    """
    output = Output(json_file)
    check_sources(images)
    requests = _requests(question, images, data, count, max_new_tokens)
    with (
        load(bundle) as reference,
        load(bundle, session.backend, session.options, verify=False) as other,
        Bar("checking") as bar,
    ):
        report = check(reference, other, requests, progress=bar.show)
    output.show(*_tables(report))
    output.finish(
        Checked(
            backend=session.backend,
            min_cosine=min_cosine,
            passed=all(stage.cosine >= min_cosine for stage in report.stages),
            stages=tuple(report.stages),
            answers=tuple(report.answers),
        )
    )
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


def _tables(report: CheckReport) -> tuple[Table, Table]:
    numbers = ("cosine", "max |diff|", "of")
    stages = [
        (stage.stage, stage.output, f"{stage.cosine:.6f}", f"{stage.max_abs_diff:.2g}", f"{stage.scale:.2g}")
        for stage in report.stages
    ]
    titles = ("keep", "same kept tokens", "same greedy tokens")
    answers = [
        (f"{one.keep:g}", f"{100 * one.overlap:.1f} %", f"{one.same_tokens} of {one.requests}") for one in report.answers
    ]
    return Table(("stage", "output", *numbers), stages, numbers), Table(titles, answers, titles)
