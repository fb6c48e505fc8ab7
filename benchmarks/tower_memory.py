"""Peak memory of one request: the whole tower against part of it.

    python -m benchmarks.tower_memory x.bundle --image-size 1008x672 --image-size 4000x3000 --variant 0.25:0.25

Every size and variant is asked in a process of its own. Its peak is held against what the process takes once the bundle is
loaded. A variant is an ENCODE:KEEP; the whole tower at the same keep is always there. The picture is seen as large as it is,
whatever the model's own limit. What needs more than `--limit-gib` is refused by the system, and the row says so. Layers run one
after the other, so a checkpoint with two of them (`python -m models.true_shapes.write qwen2-vl-2b FOLDER --layers 2`) says what
the tower needs beside its weights: at 12 megapixels all 32 take 700 TFLOP.
"""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from rich.console import Console
from rich.table import Table

import foveate
from benchmarks.foveated import QUESTION, Variant, variants_of
from benchmarks.peers.worker import peak_rss_bytes
from foveate.engines import FoveateError, SessionOptions

GIB = 2**30


class Peak(NamedTuple):
    """Bytes of a process, and the visual tokens of its request; `failed` says why there was no answer."""

    loaded: int
    peak: int
    visual_tokens: int
    encoded_tokens: int
    failed: str = ""


def ask(bundle: Path, size: str, variant: Variant, backend: str | None, threads: int, limit: int) -> Peak:
    """One request in this process, which it should have for itself."""
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    width, height = (int(side) for side in size.split("x"))
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    options = SessionOptions(threads=threads)
    with foveate.load(bundle, options=options, verify=False, vision_cache_bytes=0, vision_backend=backend) as pipe:
        loaded = peak_rss_bytes()
        try:
            # As large as it is: the model's own limit may be a tenth of it.
            request = foveate.Request.ask(QUESTION, image, **variant.options, max_pixels=width * height, max_new_tokens=1)
            answer = pipe.generate(request)
        except FoveateError as error:
            return Peak(loaded, peak_rss_bytes(), 0, 0, str(error).partition(".")[0])
    total = answer.selection.num_visual_tokens
    return Peak(loaded, peak_rss_bytes(), total, answer.encoding.encoded_tokens if answer.encoding else total)


def measure(
    bundle: Path, sizes: Sequence[str], variants: Sequence[Variant], backend: str | None, threads: int, limit: int
) -> Iterator[tuple[str, Variant, Peak]]:
    """Each size with each variant, one after the other."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        for size in sizes:
            for variant in variants:
                yield size, variant, pool.submit(ask, bundle, size, variant, backend, threads, limit).result()


@click.command(help=__doc__)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image-size", "sizes", multiple=True, default=("1008x672",), show_default=True)
@click.option("--variant", "texts", multiple=True, default=("0.25:0.25",), show_default=True, help="ENCODE:KEEP.")
@click.option("--vision-backend", help="What runs the vision graph.")
@click.option("--threads", default=0, show_default=True)
@click.option("--limit-gib", default=20, show_default=True, help="Most address space of a process.")
def main(
    bundle: Path, sizes: tuple[str, ...], texts: tuple[str, ...], vision_backend: str | None, threads: int, limit_gib: int
) -> None:
    variants = variants_of(texts)[1:]  # nobody asks for keep 1 of a picture that large
    table = Table("picture", "encode : keep", "visual tokens", "encoded", "loaded GiB", "peak GiB", "of the request GiB")
    for size, variant, peak in measure(bundle, sizes, variants, vision_backend, threads, limit_gib * GIB):
        request = peak.failed or f"{(peak.peak - peak.loaded) / GIB:.2f}"
        counts = f"{peak.visual_tokens:,}", f"{peak.encoded_tokens:,}"
        table.add_row(size, str(variant), *counts, f"{peak.loaded / GIB:.2f}", f"{peak.peak / GIB:.2f}", request)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
