"""Exports a checkpoint of a published model's true shape, with random weights, and says what it took.

    python -m benchmarks.export_true_shape FOLDER [--model NAME] [--layers N] [--precision P] [--keep]

`qwen2-vl-2b` needs 14 GB in FOLDER (4.4 GB of bf16 checkpoint, 8.8 GB of float32 bundle), `llava-onevision-0.5b` 6 GB,
`vila1.5-3b` 19 GB.
Both are deleted at the end without --keep.
"""

from __future__ import annotations

import argparse
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from foveate.engines import resident_bytes
from foveate.exporter import ExportOptions, export
from models.true_shapes.write import MODELS, write_checkpoint


def measure_export(checkpoint: Path, bundle: Path, scorer: Path, precision: str) -> tuple[float, int]:
    """Seconds and peak resident bytes of an export in a process of its own."""
    start = time.perf_counter()

    def report(step: str) -> None:
        print(f"{time.perf_counter() - start:7.1f} s  {step}", flush=True)

    export(checkpoint, bundle, ExportOptions(precision, check=False, scorer=scorer), report)
    return time.perf_counter() - start, resident_bytes().peak or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", choices=MODELS, default="qwen2-vl-2b")
    parser.add_argument("--layers", type=int, help="layers of the decoder and of the tower, for a quick try")
    parser.add_argument("--precision", default="fp32", help="fp32, int8 or int4")
    parser.add_argument("--keep", action="store_true", help="leave checkpoint and bundle in the folder")
    arguments = parser.parse_args()
    checkpoint, bundle = arguments.folder / arguments.model, arguments.folder / f"{arguments.model}.bundle"
    try:
        scorer = write_checkpoint(arguments.model, checkpoint, arguments.layers)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            seconds, peak_bytes = pool.submit(measure_export, checkpoint, bundle, scorer, arguments.precision).result()
        size_bytes = sum(file.stat().st_size for file in bundle.rglob("*") if file.is_file())
        print(f"export {seconds:.0f} s, peak resident {peak_bytes / 1e9:.2f} GB, bundle {size_bytes / 1e9:.2f} GB")
    finally:
        if not arguments.keep:
            shutil.rmtree(checkpoint, ignore_errors=True)
            shutil.rmtree(bundle, ignore_errors=True)


if __name__ == "__main__":
    main()
