"""What half precision costs in right answers, without a GPU: the very graphs that engines are built of, computed on the CPU.

    python -m benchmarks.precision tiny.bundle DATA [--precision fp16] [--count 200]

DATA is a folder of questions (`python -m models.scenes.write`). fp16 runs on ONNX Runtime, bf16, which its CPU has not, in
the reference implementation of ONNX: seconds a question. A GPU sums in another order and mostly in float32, so this says what
the types cost, not what a kernel does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import numpy as np
import onnx
import onnxruntime
from onnx.reference import ReferenceEvaluator
from rich.console import Console
from rich.table import Table

import foveate
from foveate.cli.progress import Bar
from foveate.engines import Array, Bundle, GraphSpec, HostMemory, Session, make_placement
from foveate.engines.backends.onnxruntime.session import OnnxRuntimeSession
from foveate.engines.backends.opening import graphs_of
from foveate.engines.backends.tensorrt.network import lower
from foveate.engines.backends.tensorrt.precision import typed_spec
from foveate.runtime import Pipeline
from foveate.runtime.pipeline import open_tokenizer
from foveate.samples import Sample, read_samples

KEEPS = (1.0, 0.5, 0.25)
_KV_CAPACITY = 2048
_NEW_TOKENS = 8


class ReferenceSession:
    """A graph in ONNX's reference implementation; see `Session`."""

    def __init__(self, file: Path, spec: GraphSpec) -> None:
        self.spec = spec
        self.memory = HostMemory()
        self._inner = ReferenceEvaluator(onnx.load(file))

    def run(self, feeds: Mapping[str, Array], buffers: Mapping[str, Array] | None = None) -> dict[str, Array]:
        outputs = dict(zip(self._inner.output_names, self._inner.run(None, dict(feeds)), strict=True))
        for name, buffer in (buffers or {}).items():
            np.asarray(buffer)[...] = outputs[name]
            outputs[name] = buffer
        return outputs

    def close(self) -> None:
        self._inner = None


def open_graph(bundle: Bundle, graph: str, precision: str, folder: Path) -> Session:
    """A graph lowered as for an engine."""
    fixed, file = {"kv_capacity": _KV_CAPACITY}, folder / f"{graph}.onnx"
    lower(bundle.file(bundle.graph(graph).file), bundle.graph(graph), precision, fixed, file)
    spec = typed_spec(bundle.graph(graph), precision, fixed)
    if precision == "bf16":
        return ReferenceSession(file, spec)
    inner = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return OnnxRuntimeSession(onnxruntime, inner, spec, HostMemory())


def open_pipeline(bundle: Bundle, precision: str, folder: Path) -> Pipeline:
    """The bundle in a precision."""
    graphs = graphs_of(bundle, make_placement("tensorrt-rtx"))
    sessions = {name: open_graph(bundle, graph, precision, folder) for name, graph in graphs.items()}
    return Pipeline(bundle.manifest, open_tokenizer(bundle), sessions)


def ask(pipe: Pipeline, sample: Sample, keep: float) -> Any:
    return pipe.generate(sample.request(keep=keep, max_new_tokens=_NEW_TOKENS))


@click.command(help=__doc__)
@click.argument("path", type=click.Path(path_type=Path))
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--precision", default="fp16")
@click.option("--count", default=200)
def main(path: Path, data: Path, precision: str, count: int) -> None:
    bundle, samples = Bundle.open(path), read_samples(data)[:count]
    table = Table("keep", "right fp32", f"right {precision}", "same answers", "same kept tokens")
    with (
        TemporaryDirectory() as folder,
        foveate.load(path) as reference,
        open_pipeline(bundle, precision, Path(folder)) as pipe,
        Bar("Asking") as bar,
    ):
        for step, keep in enumerate(KEEPS):
            right, same, overlap = np.zeros(2, int), 0, 0.0
            for number, sample in enumerate(samples):
                answers = [ask(each, sample, keep) for each in (reference, pipe)]
                right += [sample.answered_by(answer.text) for answer in answers]
                same += answers[0].tokens == answers[1].tokens
                kept = [set(answer.selection.keep_indices.tolist()) for answer in answers]
                overlap += len(kept[0] & kept[1]) / len(kept[0])
                bar.show(step * len(samples) + number + 1, len(KEEPS) * len(samples))
            shares = (f"{100 * value / len(samples):.1f} %" for value in (*right, same, overlap))
            table.add_row(f"{keep:g}", *shares)
    Console().print(table)


if __name__ == "__main__":
    main()
