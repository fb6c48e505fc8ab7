"""The graphs of a bundle: what each takes and gives, by the contract, and the module that computes it."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec import structs
from torch import Tensor, nn

from foveate.engines import GraphSpec, TensorSpec
from foveate.engines.format import names
from foveate.engines.format.contract import VISION_GRAPHS, GraphTensors, graph_tensors
from foveate.exporter.decoder import DecoderConfig, OnnxRuntimeDecoder, OnnxRuntimePrefill, StandardDecoder, TextDecoder
from foveate.exporter.embed import Embed
from foveate.exporter.score import Score
from foveate.exporter.scorer.network import Scorer


@dataclass(frozen=True)
class GraphModule:
    """A module that takes the spec's inputs in order; those of the cache, named with `PAST`, come as one list."""

    spec: GraphSpec
    module: nn.Module

    def in_precision(self, precision: str) -> GraphModule:
        """The graph that will be written with its matrices in a precision; the module stays."""
        return GraphModule(structs.replace(self.spec, precision=precision), self.module)


class Vision(nn.Module):
    """The graph `vision`: a family's tower, under the name that its weights start with."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.visual(*inputs)


def vision_graphs(visual: nn.Module, inputs: tuple[TensorSpec, ...], config: DecoderConfig) -> list[GraphModule]:
    """Both lowerings of `vision`, from a family's tower and what it takes: they are traced alike, and one is fused then."""
    module, tensors = Vision(visual), graph_tensors(config.entry())
    return [_graph(name, module, inputs, tensors[name].outputs) for name in VISION_GRAPHS]


def text_graphs(language_model: TextDecoder, scorer: Scorer | None) -> list[GraphModule]:
    """`score`, `embed`, both lowerings of the decoder, and what fills the cache of the first, which may have weights of another
    precision; they share the language model's weights."""
    tensors = graph_tensors(language_model.config.entry())
    score = tensors[names.SCORE]
    on_grid = scorer is not None and scorer.on_grid
    tensors[names.SCORE] = GraphTensors(score.inputs + (score.optional if on_grid else ()), score.outputs)
    modules = {
        names.SCORE: Score(language_model, scorer),
        names.EMBED: Embed(language_model),
        names.DECODER: OnnxRuntimeDecoder(language_model),
        names.DECODER_PREFILL: OnnxRuntimePrefill(language_model),
        names.DECODER_STANDARD: StandardDecoder(language_model),
    }
    return [_graph(name, module, tensors[name].inputs, tensors[name].outputs) for name, module in modules.items()]


def _graph(name: str, module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphModule:
    return GraphModule(GraphSpec(name, f"graphs/{name}.onnx", inputs, outputs), module.eval())
