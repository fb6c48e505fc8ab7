"""The keys of a checkpoint's config files: which are followed, which are refused, and which can't matter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeVar

import msgspec

from foveate.engines import ExportError
from foveate.engines.errors import shorten

_T = TypeVar("_T")
BELONGING = "Use the file that belongs to the weights."

Positive = Annotated[int, msgspec.Meta(gt=0, le=2**24)]
"""A count or a size, far above those of any model."""
Layers = Annotated[int, msgspec.Meta(gt=0, le=1024)]
"""A count of layers, each of which is built."""


class Only(tuple[object, ...]):
    """The values of a list that may stand in it; a key without a list is no fault."""

    def __contains__(self, value: object) -> bool:
        return value is None or (isinstance(value, list) and all(one in tuple(self) for one in value))


def because(reason: str, *keys: str) -> dict[str, str]:
    """Keys that are ignored for one reason."""
    return dict.fromkeys(keys, reason)


class Config(msgspec.Struct, frozen=True):
    """Keys of a config as a class of transformers knows them. `docs/families.md` lists them all, from these classes.

    A field is a key that is followed; its default is that of transformers, so that a config which leaves defaults out reads as
    a whole one. The rest is said in class attributes, which add to those of the bases. A key that is nowhere is one that
    transformers does not know either.

    Attributes:
        supported: key -> the values that the graphs do, others are refused; None stands for null and for a missing key.
        remedies: key -> what to do where it is refused, in place of taking another checkpoint.
        ignored: key -> why no value of it changes an answer.
        spellings: other name of a key -> the key. Where both are there, the other name wins, as in transformers.
    """

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    remedies: ClassVar[Mapping[str, str]] = {}
    ignored: ClassVar[Mapping[str, str]] = {}
    spellings: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def read(cls, values: Mapping[str, Any], where: Path, part: str = "") -> Self:
        """Reads a config; `part` is the key under which it lies in the file `where`, for errors.

        Raises:
            ExportError: a key is missing, has another type, or asks for what the graphs do not do.
        """
        spelled = {key: values[name] for name, key in cls.all("spellings").items() if values.get(name) is not None}
        values = {**values, **spelled}
        defaults, remedies = cls.defaults(), cls.all("remedies")
        for key, supported in cls.all("supported").items():
            check_supported(where, f"{part}{key}", values.get(key, defaults.get(key)), supported, remedies.get(key))
        config = convert(values, cls, where, part)
        config.check(where, part)
        return config

    def check(self, where: Path, part: str) -> None:
        """Holds keys against each other; `where` and `part` as in `read`.

        Raises:
            ExportError: they contradict each other.
        """

    @classmethod
    def all(cls, name: str) -> dict[str, Any]:
        """A class attribute together with those of the bases."""
        return {key: value for base in reversed(cls.__mro__) for key, value in vars(base).get(name, {}).items()}

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """The values of keys that a config may leave out."""
        fields = msgspec.structs.fields(cls)
        return {field.name: field.default for field in fields if field.default is not msgspec.NODEFAULT}


class ModelConfig(Config, frozen=True):
    """What every config of a model may hold, as in transformers' PreTrainedConfig, versions 4 and 5."""

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "quantization_config": (None,),
        "compression_config": (None,),
        "per_layer_config": (None,),
        "is_encoder_decoder": (None, False),
        "pruned_heads": (None, {}),
        "tie_last_hidden_states": (None,),
    }
    remedies: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("quantization_config", "compression_config"),
        "Export the checkpoint that it was quantised from: an export in int8 or int4 quantises by itself.",
    )
    ignored: ClassVar[Mapping[str, str]] = (
        because("where the file is from", "transformers_version", "_name_or_path", "name_or_path", "_commit_hash")
        | because(
            "`model_type` decides, and code of a checkpoint is never run", "architectures", "auto_map", "custom_pipelines"
        )
        | because("graphs compute in float32, from weights of any float type", "dtype", "torch_dtype", "use_bfloat16")
        | because("what a call in Python returns", "output_hidden_states", "output_attentions", "return_dict", "torchscript")
        | because("how it is computed, not what", "chunk_size_feed_forward", "attn_implementation", "_attn_implementation")
        | because("how it is computed, not what", "_attn_implementation_autoset", "_experts_implementation")
        | because("of classifiers", "id2label", "label2id", "num_labels", "problem_type", "finetuning_task")
        | because("of encoder-decoder models", "is_decoder", "add_cross_attention", "cross_attention_hidden_size")
        | because("of encoder-decoder models", "tie_encoder_decoder", "decoder_start_token_id")
        | because("the tokenizer is `tokenizer.json`", "tokenizer_class", "prefix")
        | because("of training", "task_specific_params", "tf_legacy_loss")
    )


class TokenizerConfig(Config, frozen=True):
    """tokenizer_config.json, of which transformers' own tokenizer follows the rest."""

    supported: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "split_special_tokens": (None, False),
        "clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output": (None, False),
    }
    ignored: ClassVar[Mapping[str, str]] = (
        because("where the file is from", "name_or_path", "processor_class", "backend", "files_loaded", "verbose")
        | because("prompts are neither cut nor filled up", "model_max_length", "max_len", "padding_side", "truncation_side")
        | because("prompts are neither cut nor filled up", "tokenizer_truncation", "tokenizer_padding", "pad_token_type_id")
        | because("the graphs have inputs of their own", "model_input_names")
        | because("transformers ignores it for BPE, which all of these tokenizers are", "clean_up_tokenization_spaces")
        | because("answers are text, which nothing parses", "response_template", "response_schema")
        | because("a request's text never becomes a control token", "chat_control_tokens")
        | because("how it is computed, not what", "use_fast", "use_default_system_prompt", "trust_remote_code", "auto_map")
    )


def convert(values: Mapping[str, Any], kind: type[_T], where: Path, part: str = "") -> _T:
    """Reads the keys that `kind` knows; others are ignored.

    Raises:
        ExportError: a key is missing or has another type.
    """
    try:
        return msgspec.convert(values, kind)
    except msgspec.ValidationError as error:
        raise ExportError(f"{where}: {str(error).replace('`$', f'`$.{part}'.rstrip('.'))}. {BELONGING}") from error


def check_supported(where: Path, what: str, value: object, supported: tuple[object, ...], remedy: str | None = None) -> None:
    """Refuses what the graphs do not do.

    Raises:
        ExportError: `value` is none of `supported`; None among them stands for a key that is not there.
    """
    if value not in supported:
        known = [repr(one) for one in supported if one is not None] or ["a checkpoint without it"]
        fact = f"{what} is {shorten(repr(value))}, supported is {' or '.join(known)} only"
        raise ExportError(f"{where}: {fact}. {remedy or 'Use another checkpoint.'}")


def check_multiple(where: Path, what: str, value: int, by: str, size: int) -> None:
    """Refuses a size that can't be divided into equal parts.

    Raises:
        ExportError: `value` is no multiple of `size`.
    """
    if value % size:
        raise ExportError(f"{where}: {what} is {value}, expected a multiple of {by}, which is {size}. {BELONGING}")
