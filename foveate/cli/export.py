"""`foveate export`: a checkpoint becomes a bundle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import click
from rich.console import Console

from foveate.engines import RetentionPoint, needed_package

CALIBRATION_KEEPS = (1.0, 0.75, 0.5, 0.375, 0.25, 0.125)


def load_exporter() -> ModuleType:
    """The exporter, whose libraries the base install does not have.

    Raises:
        MissingPackageError: one of them is not installed.
    """
    with needed_package("the exporter needs it", "export"):
        from foveate import exporter
    return exporter


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the bundle, e.g. x.bundle.")
@click.option("--precision", default="fp32", show_default=True, help="fp32, int8 or int4, for the CPU.")
@click.option("--vision", help="Precision of the vision tower, where it is another: fp32 or int8.")
@click.option("--decoder", help="Precision of the decoder, where it is another: fp32, int8 or int4.")
@click.option("--force", is_flag=True, help="Replace a bundle that exists.")
@click.option("--scorer", type=click.Path(path_type=Path), help="A trained scorer, from 'foveate scorer train'.")
@click.option("--calibrate", type=click.Path(path_type=Path), help="Folder of questions to measure the retention curve on.")
@click.option("--check/--no-check", default=True, show_default=True, help="Compare every graph with the reference model.")
def export_command(
    checkpoint: Path,
    output: Path,
    precision: str,
    vision: str | None,
    decoder: str | None,
    force: bool,
    scorer: Path | None,
    calibrate: Path | None,
    check: bool,
) -> None:
    """Export CHECKPOINT, a Hugging Face folder, into a bundle of ONNX graphs."""
    exporter = load_exporter()
    measure = None if calibrate is None else calibration(calibrate)
    parts = {name: chosen for name, chosen in (("vision", vision), ("decoder", decoder)) if chosen}
    console = Console(stderr=True)
    with console.status("Exporting ...") as status:
        result = exporter.export(
            checkpoint,
            output,
            exporter.ExportOptions(precision, parts, overwrite=force, check=check, scorer=scorer),
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
    click.echo(result.bundle)


def calibration(data: Path) -> Callable[[Path], list[RetentionPoint]]:
    """Measures the retention curve of a bundle on the questions of a folder, which are read at once."""
    from foveate.evaluate import evaluate, retention_curve
    from foveate.runtime import load
    from foveate.samples import read_samples

    samples = read_samples(data)

    def measure(bundle: Path) -> list[RetentionPoint]:
        pipe = load(bundle, verify=False)
        selector = pipe.selector().name
        return retention_curve(evaluate(pipe, samples, CALIBRATION_KEEPS, [selector]), selector)

    return measure
