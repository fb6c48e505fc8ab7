"""What the graphs of a bundle take and give, from the sizes of its decoder: the tables of `docs/bundle.md`.

The exporter makes the graphs' specs of it, and a manifest's are held against it. Inputs of the vision graphs are the family's
own, and graphs of other names are nobody's business here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from foveate.engines.errors import BundleError
from foveate.engines.format import names
from foveate.engines.format.manifest import DecoderEntry, Manifest
from foveate.engines.format.neighbours import NEIGHBOURS
from foveate.engines.format.spec import GraphSpec, TensorSpec

VISION_GRAPHS = (names.VISION, names.VISION_STANDARD)
_REMEDY = "Export the bundle again."


class GraphTensors(NamedTuple):
    """What a graph takes, in order, and gives."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    optional: tuple[TensorSpec, ...] = ()
    """Further inputs that may be there."""


def check_contract(manifest: Manifest, where: str) -> None:
    """Holds graph specs and token ids against the decoder's sizes.

    Raises:
        BundleError: a graph has another name, input, output, dtype or shape than the sizes ask for, or a token id has no row
            in the table.
    """
    expected = graph_tensors(manifest.decoder)
    for name, spec in manifest.graphs.items():
        if spec.name != name:
            raise BundleError(f"{where} lists graph '{spec.name}' as '{name}'. {_REMEDY}")
        if name in VISION_GRAPHS:  # what it takes, the family knows
            _check_tensors(f"{where}: graph '{name}' has output", spec.outputs, expected[name].outputs)
        elif name in expected:
            _check_graph(spec, expected[name], where)
    _check_tokens(manifest, where)


def _check_graph(spec: GraphSpec, expected: GraphTensors, where: str) -> None:
    inputs = expected.inputs + tuple(tensor for tensor in expected.optional if tensor.name in _by_name(spec.inputs))
    _check_tensors(f"{where}: graph '{spec.name}' has input", spec.inputs, inputs)
    _check_tensors(f"{where}: graph '{spec.name}' has output", spec.outputs, expected.outputs)


def _check_tensors(fact: str, tensors: tuple[TensorSpec, ...], expected: tuple[TensorSpec, ...]) -> None:
    found, wanted = _by_name(tensors), _by_name(expected)
    if len(tensors) != len(found):
        raise BundleError(f"{fact}s of the same name. {_REMEDY}")
    for name in dict.fromkeys((*wanted, *found)):
        if found.get(name) != wanted.get(name):
            raise BundleError(
                f"{fact} '{name}' as {_describe(found.get(name))}, the decoder's sizes ask for {_describe(wanted.get(name))}. "
                f"{_REMEDY}"
            )


def _check_tokens(manifest: Manifest, where: str) -> None:
    rows, prompt = manifest.decoder.vocab_size, manifest.prompt
    ids = {"pad_token_id": (prompt.pad_token_id,), "eos_token_ids": prompt.eos_token_ids}
    for name, tokens in ids.items():
        for token in tokens:
            if token >= rows:
                raise BundleError(f"{where}: {name} has {token}, the vocabulary has {rows} tokens. {_REMEDY}")


def _by_name(tensors: tuple[TensorSpec, ...]) -> Mapping[str, TensorSpec]:
    return {tensor.name: tensor for tensor in tensors}


def _describe(tensor: TensorSpec | None) -> str:
    if tensor is None:
        return "nothing"
    narrowable = " (narrowable)" if tensor.narrowable else ""
    return f"{tensor.dtype} {list(tensor.shape)} on the {tensor.location}{narrowable}"


def graph_tensors(sizes: DecoderEntry) -> dict[str, GraphTensors]:
    """Of each graph that the runtime knows; see docs/bundle.md. Inputs of the vision graphs are not among them."""
    hidden = sizes.hidden_size
    embeds = _passed("inputs_embeds", ("batch", "sequence", hidden))
    visual = _passed("visual_embeds", ("visual_tokens", hidden))
    tokens = (embeds, TensorSpec("position_ids", "int64", (sizes.position_axes, "batch", "sequence")))
    last = TensorSpec("last_indices", "int64", ("batch",))
    lengths = (TensorSpec("seqlens_k", "int32", ("batch",)), TensorSpec("total_sequence_length", "int32", ()))
    places = (TensorSpec("write_indices", "int64", ("batch",)), TensorSpec("cache_indices", "int64", ("cache_tokens",)))
    past, present = _cache(sizes, names.PAST), _cache(sizes, names.PRESENT)
    following = (
        TensorSpec("logits", "float32", ("batch", sizes.vocab_size), "device"),
        TensorSpec("likeliest_tokens", "int64", ("batch",)),
    )
    return {
        **dict.fromkeys(VISION_GRAPHS, GraphTensors((), (visual,))),
        names.SCORE: _score(sizes),
        names.EMBED: GraphTensors(
            (
                TensorSpec("input_ids", "int64", ("batch", "sequence")),
                visual,
                TensorSpec("keep_indices", "int64", ("kept_tokens",)),
                TensorSpec("placeholder_indices", "int64", ("kept_tokens",)),
            ),
            (embeds,),
        ),
        names.DECODER: GraphTensors((*tokens, last, *lengths, *past), (*following, *present)),
        names.DECODER_PREFILL: GraphTensors((*tokens, *lengths, *past), present),
        names.DECODER_STANDARD: GraphTensors((*tokens, last, *places, *past), (*following, *present)),
    }


def _passed(name: str, shape: tuple[int | str, ...], dtype: str = "float32") -> TensorSpec:
    """What one graph gives and another takes: the host looks at none of it."""
    return TensorSpec(name, dtype, shape, "device", narrowable=True)


def _score(sizes: DecoderEntry) -> GraphTensors:
    inputs = (
        _passed("inputs_embeds", ("total_tokens", sizes.hidden_size)),
        TensorSpec("position_ids", "int64", (sizes.position_axes, "total_tokens")),
        TensorSpec("visual_indices", "int64", ("visual_tokens",)),
        TensorSpec("instruction_indices", "int64", ("instruction_tokens",)),
    )
    outputs = tuple(TensorSpec(name, "float32", ("visual_tokens",)) for name in ("scores", "attention"))
    neighbours = TensorSpec("neighbour_indices", "int64", ("visual_tokens", NEIGHBOURS))
    return GraphTensors(inputs, outputs, (neighbours,))


def _cache(sizes: DecoderEntry, prefix: str) -> tuple[TensorSpec, ...]:
    shape = ("batch", sizes.num_key_value_heads, "kv_capacity", sizes.head_dim)
    return tuple(
        _passed(f"{prefix}{layer}.{part}", shape, sizes.kv_dtype)
        for layer in range(sizes.num_hidden_layers)
        for part in ("key", "value")
    )
