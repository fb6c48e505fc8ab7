"""The graphs of a bundle: what each takes and gives, as `docs/bundle.md` has it, and the module that computes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from foveate.engines import NEIGHBOURS, PREFILL_DECODER, GraphSpec, TensorSpec
from foveate.exporter.decoder import DecoderConfig, OnnxRuntimeDecoder, OnnxRuntimePrefill, StandardDecoder, TextDecoder
from foveate.exporter.prompt import Embed, Score
from foveate.exporter.scorer.network import Scorer

PAST_PREFIX = "past_key_values."
_NEIGHBOUR_INDICES = TensorSpec("neighbour_indices", "int64", ("visual_tokens", NEIGHBOURS))
_LAST_INDICES = TensorSpec("last_indices", "int64", ("batch",))
_LENGTHS = (TensorSpec("seqlens_k", "int32", ("batch",)), TensorSpec("total_sequence_length", "int32", ()))


@dataclass(frozen=True)
class GraphModule:
    """A module that takes the spec's inputs in order; those of the cache, named with `PAST_PREFIX`, come as one list."""

    spec: GraphSpec
    module: nn.Module


class Vision(nn.Module):
    """The graph `vision`: a family's tower, under the name that its weights start with."""

    def __init__(self, visual: nn.Module) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.visual(*inputs)


def vision_graphs(visual: nn.Module, inputs: tuple[TensorSpec, ...], hidden_size: int) -> list[GraphModule]:
    """Both lowerings of `vision`, from a family's tower and what it takes: they are traced alike, and one is fused then."""
    module, outputs = Vision(visual), (_visual_embeds(hidden_size),)
    return [_graph(name, module, inputs, outputs) for name in ("vision", "vision_standard")]


def text_graphs(language_model: TextDecoder, scorer: Scorer | None) -> list[GraphModule]:
    """`score`, `embed`, both lowerings of the decoder, and what fills the cache of the first, which may have weights of another
    precision; they share the language model's weights."""
    return [
        _score_graph(language_model, scorer),
        _embed_graph(language_model),
        _decoder_graph(language_model),
        _prefill_graph(language_model),
        _standard_decoder_graph(language_model),
    ]


def _score_graph(language_model: TextDecoder, scorer: Scorer | None) -> GraphModule:
    config = language_model.config
    inputs = (
        TensorSpec("inputs_embeds", "float32", ("total_tokens", config.hidden_size)),
        TensorSpec("position_ids", "int64", (config.position_axes, "total_tokens")),
        TensorSpec("visual_indices", "int64", ("visual_tokens",)),
        TensorSpec("instruction_indices", "int64", ("instruction_tokens",)),
        *((_NEIGHBOUR_INDICES,) if scorer is not None and scorer.on_grid else ()),
    )
    outputs = tuple(TensorSpec(name, "float32", ("visual_tokens",)) for name in ("scores", "attention"))
    return _graph("score", Score(language_model, scorer), inputs, outputs)


def _embed_graph(language_model: TextDecoder) -> GraphModule:
    hidden_size = language_model.config.hidden_size
    inputs = (
        TensorSpec("input_ids", "int64", ("batch", "sequence")),
        _visual_embeds(hidden_size),
        TensorSpec("keep_indices", "int64", ("kept_tokens",)),
        TensorSpec("placeholder_indices", "int64", ("kept_tokens",)),
    )
    return _graph("embed", Embed(language_model), inputs, (_inputs_embeds(hidden_size),))


def _decoder_graph(language_model: TextDecoder) -> GraphModule:
    config = language_model.config
    inputs = (*_decoder_inputs(config), _LAST_INDICES, *_LENGTHS, *_cache(config, PAST_PREFIX))
    outputs = (*_next_token(config), *_cache(config, "present."))
    return _graph("decoder", OnnxRuntimeDecoder(language_model), inputs, outputs)


def _prefill_graph(language_model: TextDecoder) -> GraphModule:
    config = language_model.config
    inputs = (*_decoder_inputs(config), *_LENGTHS, *_cache(config, PAST_PREFIX))
    return _graph(PREFILL_DECODER, OnnxRuntimePrefill(language_model), inputs, _cache(config, "present."))


def _standard_decoder_graph(language_model: TextDecoder) -> GraphModule:
    config = language_model.config
    inputs = (
        *_decoder_inputs(config),
        _LAST_INDICES,
        TensorSpec("write_indices", "int64", ("batch",)),
        TensorSpec("cache_indices", "int64", ("cache_tokens",)),
        *_cache(config, PAST_PREFIX),
    )
    outputs = (*_next_token(config), *_cache(config, "present."))
    return _graph("decoder_standard", StandardDecoder(language_model), inputs, outputs)


def _graph(name: str, module: nn.Module, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> GraphModule:
    return GraphModule(GraphSpec(name, f"graphs/{name}.onnx", inputs, outputs), module.eval())


def _decoder_inputs(config: DecoderConfig) -> tuple[TensorSpec, ...]:
    return (
        _inputs_embeds(config.hidden_size),
        TensorSpec("position_ids", "int64", (config.position_axes, "batch", "sequence")),
    )


def _inputs_embeds(hidden_size: int) -> TensorSpec:
    return TensorSpec("inputs_embeds", "float32", ("batch", "sequence", hidden_size))


def _visual_embeds(hidden_size: int) -> TensorSpec:
    return TensorSpec("visual_embeds", "float32", ("visual_tokens", hidden_size))


def _next_token(config: DecoderConfig) -> tuple[TensorSpec, ...]:
    return TensorSpec("logits", "float32", ("batch", config.vocab_size)), TensorSpec("likeliest_tokens", "int64", ("batch",))


def _cache(config: DecoderConfig, prefix: str) -> tuple[TensorSpec, ...]:
    shape = ("batch", config.num_key_value_heads, "kv_capacity", config.head_dim)
    names = [f"{prefix}{layer}.{part}" for layer in range(config.num_hidden_layers) for part in ("key", "value")]
    return tuple(TensorSpec(name, "float32", shape) for name in names)
