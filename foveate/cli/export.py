"""`foveate export`: a checkpoint becomes a bundle."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click
from rich.console import Console

from foveate.cli.command import always, command
from foveate.cli.documents import Comparison, Exported
from foveate.cli.files import check_checkpoint, check_exists
from foveate.cli.options import PATH, json_option
from foveate.cli.output import Output
from foveate.engines import RetentionPoint, needed_package
from foveate.engines.format.folders import check_free
from foveate.engines.format.names import DECODER, VISION
from foveate.engines.format.precisions import EXPORTED, FP32, PARTS, either
from foveate.samples import read_samples

if TYPE_CHECKING:
    from foveate.exporter import ExportResult

CALIBRATION_KEEPS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)
CALIBRATION_ENCODES = (0.5, 0.25)
"""Where the family's tower computes parts. A share costs a glance and so much of the tower, with however many keep ratios."""


def load_exporter(module: str = "pipeline") -> ModuleType:
    """A module of the exporter, whose libraries the base install does not have.

    Raises:
        MissingPackageError: one of them is not installed.
    """
    with needed_package("the exporter needs it", "export"):
        return import_module(f"foveate.exporter.{module}")


@command("export")
@always("checkpoint", type=PATH)
@always("-o", "--output", type=PATH, required=True, help="Folder of the bundle, e.g. x.bundle.")
@always("--precision", default=FP32, show_default=True, help=f"{either(EXPORTED)}, for the CPU.")
@always("--vision", also=("parts",), help=f"Precision of the vision tower, where it is another: {either(PARTS[VISION])}.")
@always("--decoder", also=("parts",), help=f"Precision of the decoder, where it is another: {either(PARTS[DECODER])}.")
@always("--force", "overwrite", is_flag=True, help="Replace a bundle that exists.")
@always("--scorer", type=PATH, help="A trained scorer, from 'foveate scorer train'.")
@always("--calibrate", type=PATH, help="Folder of questions to measure the retention curves on.")
@always("--check/--no-check", default=True, show_default=True, help="Compare every graph with the reference model.")
@json_option
def export_command(
    checkpoint: Path,
    output: Path,
    precision: str,
    vision: str | None,
    decoder: str | None,
    overwrite: bool,
    scorer: Path | None,
    calibrate: Path | None,
    check: bool,
    json_file: Path | None,
) -> None:
    """Export CHECKPOINT, a Hugging Face folder, into a bundle of ONNX graphs."""
    out = Output(json_file)
    check_checkpoint(checkpoint)
    check_free(output, overwrite)
    check_exists("--scorer", scorer)
    parts = {name: chosen for name, chosen in ((VISION, vision), (DECODER, decoder)) if chosen}
    load_exporter("precision").plan_precisions(precision, parts)
    measure = None if calibrate is None else Calibration(calibrate)
    exporter = load_exporter()
    with Console(stderr=True).status("Exporting ...") as status:
        result = exporter.export(
            checkpoint,
            output,
            exporter.ExportOptions(precision, parts, overwrite=overwrite, check=check, scorer=scorer),
            progress=lambda message: status.update(f"{message} ..."),
            calibrate=measure,
        )
    if result.parity is not None:
        worst = result.parity.worst()
        click.echo(
            f"parity: {len(result.parity.rows)} comparisons with the reference implementation passed; closest to its limit: "
            f"{worst.graph}.{worst.output}, {worst.measure} {worst.difference:.2g} of {worst.tolerance:.2g} allowed",
            err=True,
        )
    if measure is not None:
        click.echo(measure.told, err=True)
    out.say(str(result.bundle))
    out.finish(_document(result))


def _document(result: ExportResult) -> Exported:
    rows = None if result.parity is None else tuple(Comparison(**asdict(row)) for row in result.parity.rows)
    return Exported(bundle=str(result.bundle), parity=rows)


class Calibration:
    """Measures the retention curves of a bundle on the questions of a folder, which are read at once.

    Attributes:
        told: what was measured, in words.
    """

    def __init__(self, data: Path) -> None:
        self.told = ""
        self._samples = read_samples(data)

    def __call__(self, bundle: Path, report: Callable[[str], None]) -> list[RetentionPoint]:
        """Behind the whole tower, and behind a part of it on the questions where it saw no more than that."""
        from foveate.evaluate import evaluate, remark, retention_curve
        from foveate.runtime import load

        with load(bundle, verify=False) as pipe:
            selector = pipe.selector().name
            results = evaluate(
                pipe,
                self._samples,
                CALIBRATION_KEEPS,
                [selector],
                encodes=CALIBRATION_ENCODES,
                parts_only=True,
                progress=lambda done, total: report(f"measuring the retention curves: {done} of {total} questions"),
            )
        points = retention_curve(results, selector)
        whole = sum(point.encode is None for point in points)
        parts = f"{whole} keep ratios behind the whole tower, and at {len(points) - whole} behind a part of it"
        self.told = f"retention: {len(self._samples)} questions at {parts}. {remark(results)}".strip()
        return points
