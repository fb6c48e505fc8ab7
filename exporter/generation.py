"""generation_config.json: what of it a bundle carries, what can't be followed, and what can't matter.

Together the tables name every key of transformers' GenerationConfig; a test holds them against the installed one, and
`docs/families.md` is written from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from foveate.engines import ExportError, GenerationEntry
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.config import because, convert

FILE = "generation_config.json"

FOLLOWED = (
    "repetition_penalty",
    "no_repeat_ngram_size",
    "bad_words_ids",
    "min_new_tokens",
    "suppress_tokens",
    "begin_suppress_tokens",
    "stop_strings",
    "do_sample",
    "temperature",
    "top_k",
    "top_p",
)
"""Keys that are fields of `GenerationEntry`."""

ENDS = ("eos_token_id", "pad_token_id", "max_new_tokens")
"""Keys that are fields of `PromptEntry`."""

REFUSED: Mapping[str, tuple[object, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "constraints": (),
    "force_words_ids": (),
    "penalty_alpha": (0,),
    "dola_layers": (),
    "guidance_scale": (1,),
    "sequence_bias": (),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "exponential_decay_length_penalty": (),
    "forced_eos_token_id": (),
    "min_length": (0,),
    "max_time": (),
    "num_return_sequences": (1,),
    "token_healing": (False,),
    "watermarking_config": (),
}
"""Keys that change answers in a way that the runtime does not know -> values that change nothing, as None does."""

SAMPLING: Mapping[str, tuple[object, ...]] = {
    "min_p": (0,),
    "top_h": (),
    "typical_p": (1,),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
}
"""The same of keys that matter only where tokens are sampled: a request that asks for the checkpoint's sampling is refused."""

WITHOUT_EFFECT: Mapping[str, str] = (
    because("the request says how long an answer may be", "max_length")
    | because("the chat template says how a prompt begins", "bos_token_id", "decoder_start_token_id", "forced_bos_token_id")
    | because("of beam search, which is refused", "early_stopping", "length_penalty", "diversity_penalty")
    | because("no order and no probability changes", "remove_invalid_values", "renormalize_logits")
    | because("how the same tokens are computed", "use_cache", "cache_implementation", "cache_config", "max_cache_len")
    | because("how the same tokens are computed", "low_memory", "prefill_chunk_size", "compile_config", "disable_compile")
    | because("how the same tokens are computed", "continuous_batching_config", "use_mtp")
    | because("of speculative decoding, which gives the same tokens", "is_assistant", "num_assistant_tokens")
    | because("of speculative decoding, which gives the same tokens", "num_assistant_tokens_schedule", "speculation_type")
    | because("of speculative decoding, which gives the same tokens", "assistant_confidence_threshold", "target_lookbehind")
    | because("of speculative decoding, which gives the same tokens", "assistant_early_exit", "assistant_lookbehind")
    | because("of speculative decoding, which gives the same tokens", "assistant_ensemble_weight", "prompt_lookup_num_tokens")
    | because("of speculative decoding, which gives the same tokens", "max_matching_ngram_size")
    | because("what a call in Python returns", "output_attentions", "output_hidden_states", "output_scores", "output_logits")
    | because("what a call in Python returns", "return_dict_in_generate")
    | because("where the file is from", "transformers_version", "_from_model_config")
)
"""Keys that change no answer here -> why."""


class Generation(NamedTuple):
    """How answers are drawn and end: the fields of `PromptEntry` of these names."""

    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    max_new_tokens: int
    generation: GenerationEntry


class _Ends(msgspec.Struct, frozen=True):
    """What ends an answer."""

    eos_token_id: int | tuple[int, ...] = ()
    pad_token_id: int | None = None
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1)] = 64


class _Lists(msgspec.Struct, frozen=True):
    """Tokens, which may lie beyond the table, and texts."""

    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    stop_strings: str | tuple[str, ...] = ()


def read_generation(
    checkpoint: Checkpoint,
    vocab_size: int,
    config: Mapping[str, Any],
    folder: str = "",
    turn_ends: Sequence[int] = (),
    prompt_counts: bool = True,
) -> Generation:
    """What a checkpoint says about drawing tokens.

    Args:
        checkpoint: the checkpoint.
        vocab_size: rows of the table; a token beyond is never drawn.
        config: what config.json says about the text model; it stands in for a file that is missing, as in transformers, and for
            eos and pad tokens that the file does not name.
        folder: where the file lies in the checkpoint.
        turn_ends: tokens that end an answer whatever the file says.
        prompt_counts: see `GenerationEntry`.

    Raises:
        ExportError: a key has an unusable value or asks for what the runtime does not do, or no token ends an answer.
    """
    where = checkpoint.path / folder / FILE
    values = checkpoint.optional_json(str(Path(folder, FILE))) if where.is_file() else config
    named = {key: value for key, value in values.items() if value is not None}
    _refuse(named, where)
    of_config = {key: config[key] for key in ("eos_token_id", "pad_token_id") if config.get(key) is not None}
    ends = convert(of_config | named, _Ends, where)
    eos = ends.eos_token_id if isinstance(ends.eos_token_id, tuple) else (ends.eos_token_id,)
    drawn = _within((*turn_ends, *eos), vocab_size)
    if not drawn:
        raise ExportError(
            f"{where.parent} names no 'eos_token_id' in {FILE} or config.json within the {vocab_size} tokens of the table"
            f"{f', but {list(eos)}' if eos else ''}, so no answer would end. Write the tokenizer's end token there."
        )
    pad = _within(() if ends.pad_token_id is None else (ends.pad_token_id,), vocab_size)
    return Generation(drawn, (*pad, *drawn)[0], ends.max_new_tokens, _entry(named, drawn, vocab_size, where, prompt_counts))


def _refuse(named: Mapping[str, Any], where: Path) -> None:
    for key in _changed(named, REFUSED):
        raise ExportError(
            f"{where}: {key} is {named[key]!r}, which changes answers in a way that bundles do not follow. "
            "Delete the key to export without it."
        )


def _entry(named: Mapping[str, Any], eos: Sequence[int], vocab_size: int, where: Path, prompt_counts: bool) -> GenerationEntry:
    lists = convert(named, _Lists, where)
    words = tuple(word for word in lists.bad_words_ids if word not in {(token,) for token in eos})  # as transformers does
    if any(not 0 <= token < vocab_size for word in words for token in word):
        raise ExportError(f"{where}: bad_words_ids names tokens beyond the {vocab_size} of the table. Take them out.")
    checked = {
        "bad_words_ids": words,
        "suppress_tokens": _within(lists.suppress_tokens, vocab_size),
        "begin_suppress_tokens": _within(lists.begin_suppress_tokens, vocab_size),
        "stop_strings": (lists.stop_strings,) if isinstance(lists.stop_strings, str) else lists.stop_strings,
        "unsupported_sampling": tuple(_changed(named, SAMPLING)),
        "prompt_counts": prompt_counts,
    }
    return convert({key: named[key] for key in FOLLOWED if key in named} | checked, GenerationEntry, where)


def _changed(named: Mapping[str, Any], harmless: Mapping[str, Sequence[object]]) -> Iterator[str]:
    """The keys of a table that have another value than one that changes nothing."""
    return (key for key, values in harmless.items() if key in named and named[key] not in values)


def _within(tokens: Iterable[int], vocab_size: int) -> tuple[int, ...]:
    """Those of the table, each once: others are never drawn."""
    return tuple(dict.fromkeys(token for token in tokens if 0 <= token < vocab_size))
