"""`foveate export`: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import click
from rich.console import Console

from foveate.engines.errors import ExportError


def load_exporter() -> ModuleType:
    """The exporter, whose libraries the base install does not have.

    Raises:
        ExportError: one of them is not installed.
    """
    try:
        from foveate import exporter
    except ModuleNotFoundError as error:
        raise ExportError(f"the package '{error.name}' is not installed. Run: pip install 'foveate[export]'") from error
    return exporter


@click.command("export")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the bundle, e.g. x.bundle.")
@click.option("--precision", default="fp32", show_default=True, help="Precision of the weights.")
@click.option("--force", is_flag=True, help="Replace a bundle that exists.")
@click.option("--check/--no-check", default=True, show_default=True, help="Compare every graph with transformers.")
def export_command(checkpoint: Path, output: Path, precision: str, force: bool, check: bool) -> None:
    """Export CHECKPOINT, a Hugging Face folder, into a bundle of ONNX graphs."""
    exporter = load_exporter()
    console = Console(stderr=True)
    with console.status("Exporting ...") as status:
        result = exporter.export(
            checkpoint,
            output,
            exporter.ExportOptions(precision=precision, overwrite=force, check=check),
            progress=lambda message: status.update(f"{message} ..."),
        )
    if result.parity is not None:
        worst = result.parity.worst()
        click.echo(
            f"parity: {len(result.parity.rows)} comparisons with transformers passed; closest to its limit: "
            f"{worst.graph}.{worst.output}, max |diff| {worst.max_abs_diff:.2g} of {worst.tolerance:.2g} allowed",
            err=True,
        )
    click.echo(result.bundle)
