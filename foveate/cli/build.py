"""`foveate build`: the graphs of a bundle become engines."""

from __future__ import annotations

from pathlib import Path

import click
from click.core import ParameterSource
from rich.console import Console
from rich.table import Table

from foveate.cli.tables import make_table, open_console
from foveate.engines import BackendError, Bundle, Range
from foveate.engines.build import AS_THEY_ARE, BUILDERS, BuildOptions, Built, build
from foveate.engines.store import ENGINES, EngineStore
from foveate.runtime.shapes import parse_image_sizes, plan_shapes

_RANGE = "MIN:OPT:MAX"
_OF_ALL = frozenset({"bundle", "backend", "engines", "max_gib"})


@click.command("build")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--backend", required=True, help=f"What will run the engines: {', '.join(BUILDERS)}.")
@click.option("--precision", default="bf16", show_default=True, help="fp16, bf16, or fp32 for checks.")
@click.option("--target", metavar="SM,...", help="GPUs to build for, e.g. sm86,sm89,sm120.  [default: the one at hand]")
@click.option("--visual-tokens", metavar=_RANGE, help="Visual tokens of a prompt.  [default: one image of up to 4096]")
@click.option("--image-size", metavar="WxH:WxH", help="The same from images: smallest and largest, as 448x448:1344x1344.")
@click.option("--images", default=1, show_default=True, help="Most images of a prompt, with --image-size.")
@click.option("--frames", metavar=_RANGE, help="Frames of a video that one run of the vision graph takes.  [default: an image]")
@click.option("--text-tokens", default="1:64:1024", show_default=True, metavar=_RANGE, help="Text tokens of a prompt.")
@click.option("--new-tokens", default=256, show_default=True, help="Longest answer.")
@click.option("--batch", default="1", show_default=True, metavar=_RANGE, help="Requests at once.")
@click.option("--profiles", default="split", show_default=True, help="split: for prompts and for steps; single: less memory.")
@click.option("--strip-weights", is_flag=True, help="Leave the weights out; loading takes them from the bundle. Needs a GPU.")
@click.option("--optimization-level", type=int, help="0 builds fast, 5 searches longest.  [default: the backend's]")
@click.option("--engines", type=click.Path(path_type=Path), help="Folder of the engines.  [default: BUNDLE/engines]")
@click.option("--max-gib", type=float, help="Remove the engines that were used least recently above this size.")
def build_command(
    bundle: Path,
    backend: str,
    precision: str,
    target: str | None,
    visual_tokens: str | None,
    image_size: str | None,
    images: int,
    frames: str | None,
    text_tokens: str,
    new_tokens: int,
    batch: str,
    profiles: str,
    strip_weights: bool,
    optimization_level: int | None,
    engines: Path | None,
    max_gib: float | None,
) -> None:
    """Build the engines of BUNDLE for one device or several.

    With --backend onnxruntime: its weights packed for this CPU, so that it starts faster and processes share them.
    """
    if backend in AS_THEY_ARE:
        _check_options(backend)
    opened = Bundle.open(bundle)
    shapes = plan_shapes(
        opened.manifest,
        None if visual_tokens is None else Range.parse(visual_tokens),
        None if image_size is None else parse_image_sizes(image_size),
        images,
        None if frames is None else Range.parse(frames),
        text_tokens=Range.parse(text_tokens),
        new_tokens=new_tokens,
        batch=Range.parse(batch),
    )
    targets = tuple(target.split(",")) if target else ()
    options = BuildOptions(shapes, backend, precision, targets, profiles, strip_weights, optimization_level)
    store = EngineStore(engines or bundle / ENGINES, None if max_gib is None else int(max_gib * 2**30))
    with Console(stderr=True).status("Building ...") as status:

        def show(title: str, phase: str, done: int, total: int) -> None:
            status.update(f"{title}: {phase} ({done} of {total}) ...")

        built = build(opened, options, store, show)
    open_console().print(_table(built))
    click.echo(store.folder)


def _check_options(backend: str) -> None:
    """Refuses what would be ignored."""
    context = click.get_current_context()
    given = [name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    for name in given:
        if name not in _OF_ALL:
            flag = f"--{name.replace('_', '-')}"
            raise BackendError(f"backend '{backend}' builds graphs as they are, for every shape. Leave out {flag}.")


def _table(built: list[Built]) -> Table:
    numbers = ("seconds", "engine MiB", "peak GiB")
    table = make_table("graph", "target", "precision", *numbers, numbers=numbers)
    for entry, fresh in built:
        record = entry.record
        table.add_row(
            record.key.graph,
            record.key.target,
            record.key.options.get("precision", "as it is"),
            f"{record.build_seconds:.1f}" if fresh else "(there)",
            f"{record.engine_bytes / 2**20:.1f}",
            f"{record.peak_bytes / 2**30:.2f}",
        )
    return table
