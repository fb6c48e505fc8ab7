"""`foveate build`: the graphs of a bundle become engines."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from foveate.cli import documents
from foveate.cli.command import Need, always, command, when
from foveate.cli.options import PATH, json_option
from foveate.cli.output import Output
from foveate.cli.tables import Table
from foveate.engines import BACKENDS, Bundle, Range
from foveate.engines.builds.build import BUILDERS, BuildOptions, Built, build
from foveate.engines.builds.store import ENGINES, EngineStore
from foveate.engines.format.precisions import BF16, FP32, HALVES
from foveate.runtime.shapes import parse_image_sizes, plan_shapes

_RANGE = "MIN:OPT:MAX"
_COMPILERS = [name for name in BUILDERS if BACKENDS[name].compiles]
_AS_THEY_ARE = set(BUILDERS) - set(_COMPILERS)

COMPILED = Need(
    lambda given: given["backend"] not in _AS_THEY_ARE,
    "backend '{backend}' builds graphs as they are, for every shape",
    f"Use it with --backend {' or '.join(_COMPILERS)}",
)
IMAGE_SIZE = Need(lambda given: given["image_sizes"] is not None, "no size of an image is given", "Give one with --image-size")


@command("build")
@always("bundle", type=PATH)
@always("--backend", required=True, help=f"What will run the engines: {', '.join(BUILDERS)}.")
@when(COMPILED, "--precision", default=BF16, show_default=True, help=f"{', '.join(HALVES)}, or {FP32} for checks.")
@when(
    COMPILED,
    "--target",
    "targets",
    metavar="SM,...",
    also=("target",),
    help="GPUs to build for, e.g. sm86,sm89,sm120.  [default: the one at hand]",
)
@when(COMPILED, "--visual-tokens", metavar=_RANGE, help="Visual tokens of a prompt.  [default: one image of up to 4096]")
@when(
    COMPILED,
    "--image-size",
    "image_sizes",
    metavar="WxH:WxH",
    help="The same from images: smallest and largest, as 448x448:1344x1344.",
)
@when(IMAGE_SIZE, "--images", default=1, show_default=True, help="Most images of a prompt, with --image-size.")
@when(
    COMPILED,
    "--frames",
    metavar=_RANGE,
    help="Frames of a video that one run of the vision graph takes.  [default: an image]",
)
@when(COMPILED, "--text-tokens", default="1:64:1024", show_default=True, metavar=_RANGE, help="Text tokens of a prompt.")
@when(COMPILED, "--new-tokens", default=256, show_default=True, help="Longest answer.")
@when(COMPILED, "--batch", default="1", show_default=True, metavar=_RANGE, help="Requests at once.")
@when(
    COMPILED,
    "--profiles",
    default="split",
    show_default=True,
    help="split: for prompts and for steps; single: less memory.",
)
@when(COMPILED, "--strip-weights", is_flag=True, help="Leave the weights out; loading takes them from the bundle. Needs a GPU.")
@when(COMPILED, "--optimization-level", type=int, help="0 builds fast, 5 searches longest.  [default: the backend's]")
@always("--engines", type=PATH, help="Folder of the engines.  [default: BUNDLE/engines]")
@always("--max-gib", type=float, also=("max_bytes",), help="Remove the engines that were used least recently above this size.")
@json_option
def build_command(
    bundle: Path,
    backend: str,
    precision: str,
    targets: str | None,
    visual_tokens: str | None,
    image_sizes: str | None,
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
    json_file: Path | None,
) -> None:
    """Build the engines of BUNDLE for one device or several.

    With --backend onnxruntime: its weights packed for this CPU, so that it starts faster and processes share them.
    """
    output = Output(json_file)
    opened = Bundle.open(bundle)
    shapes = plan_shapes(
        opened.manifest,
        None if visual_tokens is None else Range.parse(visual_tokens),
        None if image_sizes is None else parse_image_sizes(image_sizes),
        images,
        None if frames is None else Range.parse(frames),
        text_tokens=Range.parse(text_tokens),
        new_tokens=new_tokens,
        batch=Range.parse(batch),
    )
    wanted = tuple(targets.split(",")) if targets else ()
    options = BuildOptions(shapes, backend, precision, wanted, profiles, strip_weights, optimization_level)
    store = EngineStore(engines or bundle / ENGINES, None if max_gib is None else int(max_gib * 2**30))
    with Console(stderr=True).status("Building ...") as status:

        def show(title: str, phase: str, done: int, total: int) -> None:
            status.update(f"{title}: {phase} ({done} of {total}) ...")

        built = build(opened, options, store, show)
    output.show(_table(built))
    output.say(str(store.folder))
    entries = tuple(documents.Engine.of(entry) for entry, _ in built)
    output.finish(documents.Built(folder=str(store.folder), engines=entries, fresh=sum(fresh for _, fresh in built)))


def _table(built: list[Built]) -> Table:
    numbers = ("seconds", "engine MiB", "peak GiB")
    rows = [
        (
            entry.record.key.graph,
            entry.record.key.target,
            entry.record.key.options.get("precision", "as it is"),
            f"{entry.record.build_seconds:.1f}" if fresh else "(there)",
            f"{entry.record.engine_bytes / 2**20:.1f}",
            f"{entry.record.peak_bytes / 2**30:.2f}",
        )
        for entry, fresh in built
    ]
    return Table(("graph", "target", "precision", *numbers), rows, numbers)
