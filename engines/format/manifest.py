"""`manifest.json`: what a bundle contains and every fact that the runtime needs."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, TypeVar

import msgspec

from foveate.engines.errors import BundleError
from foveate.engines.format import names, precisions
from foveate.engines.format.dtypes import DType
from foveate.engines.format.seal import seal, unseal
from foveate.engines.format.spec import GraphSpec, Size

SCHEMA_VERSION = 6
_REMEDY = "Export the bundle again with this version of foveate."
_Kind = TypeVar("_Kind")

TemplateToken = Annotated[str, msgspec.Meta(pattern="^[a-z_]+_token$")]
TokenId = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Count = Annotated[int, msgspec.Meta(ge=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the manifest's parts: an unknown key is an error."""


class FileEntry(_Strict, frozen=True):
    """Size and hash of one file of the bundle."""

    sha256: Sha256
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class SourceEntry(_Strict, frozen=True):
    """The checkpoint that a bundle was made from; `sha256` is over its config and weights."""

    name: str
    sha256: Sha256


class DecoderEntry(_Strict, frozen=True):
    """Sizes of the text decoder and of its KV cache."""

    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    num_key_value_heads: Size
    head_dim: Size
    hidden_size: Size
    vocab_size: Size
    position_axes: Size
    """Rows of `position_ids`: 3 for M-RoPE (time, height, width), 1 otherwise."""
    max_position_embeddings: Size
    kv_dtype: DType


class GenerationEntry(_Strict, frozen=True, omit_defaults=True):
    """What the checkpoint's generation_config.json says about drawing tokens; where it says nothing, what transformers does."""

    repetition_penalty: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    no_repeat_ngram_size: Count = 0
    bad_words_ids: tuple[Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1)], ...] = ()
    min_new_tokens: Count = 0
    suppress_tokens: tuple[TokenId, ...] = ()
    begin_suppress_tokens: tuple[TokenId, ...] = ()
    stop_strings: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()
    do_sample: bool = False
    """Whether its authors sample; a request does where it asks for it."""
    temperature: NonNegative = 1.0
    top_k: Count = 50
    """0 for all tokens."""
    top_p: Share = 1.0
    unsupported_sampling: tuple[str, ...] = ()
    """Keys that change how its authors sample and that the runtime does not know."""
    prompt_counts: bool = True
    """Whether penalties look at the prompt too, or at the answer alone: what its own library shows them."""


class PromptEntry(_Strict, frozen=True):
    """How messages become token ids. Each image or video of a message renders as its placeholder token."""

    chat_template: str
    image_token: str
    video_token: str | None
    eos_token_ids: tuple[TokenId, ...]
    pad_token_id: TokenId
    max_new_tokens: Size = 64
    template_tokens: dict[TemplateToken, str] = {}
    """Text of the tokens that a chat template may name."""
    generation: GenerationEntry = GenerationEntry()


class RetentionPoint(_Strict, frozen=True):
    """What is left of the right answers at one keep ratio."""

    keep: Share
    retained: NonNegative
    """Accuracy as a share of that at keep 1: a net ratio."""
    low: NonNegative
    """Of its 95 % interval, like `high`."""
    high: NonNegative
    questions: Size
    stay: NonNegative
    """Of the answers right at keep 1 the share that is right here too."""
    stay_low: NonNegative
    """Of its 95 % interval, like `stay_high`."""
    stay_high: NonNegative

    @property
    def share(self) -> tuple[float, float, float]:
        """What stays right with its interval."""
        return self.stay, self.stay_low, self.stay_high


class ScorerEntry(_Strict, frozen=True):
    """What computes the `score` graph's scores, and what it was seen to retain."""

    kind: str = "attention"
    """`attention`, or `trained` for a network."""
    sha256: Sha256 | None = None
    """Of the network's file, which says how it was trained."""
    default_selector: str = "attention"
    """What chooses by the scores where a request names nothing."""
    retention: tuple[RetentionPoint, ...] = ()
    """Measured at export, with `default_selector`."""


class Manifest(_Strict, frozen=True):
    """The whole of `manifest.json`. Paths in `graphs` and `files` are relative to the bundle and use `/`."""

    schema_version: int
    foveate_version: str
    family: str
    source: SourceEntry
    graphs: dict[str, GraphSpec]
    decoder: DecoderEntry
    prompt: PromptEntry
    processor: dict[str, Any]
    """Constants of the family's processor; the processor checks its own keys."""
    scorer: ScorerEntry
    files: dict[str, FileEntry]

    @property
    def precision(self) -> str:
        """For people: that of the vision graph and the decoder, which are chosen apart."""
        graphs = [name for name in (names.VISION, names.DECODER) if name in self.graphs] or self.graphs
        return precisions.describe({name: self.graphs[name].precision for name in graphs})


def encode_manifest(manifest: Manifest) -> bytes:
    """The same bytes for the same manifest: keys in order of declaration, files sorted, the sha256 of it all at the end."""
    return seal(msgspec.structs.replace(manifest, files=dict(sorted(manifest.files.items()))))


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Reads a manifest; `where` is the path of its file.

    Raises:
        BundleError: not JSON, another schema version, a key that is missing, unknown or has an unusable value, or a hash
            that is not that of the rest.
    """
    document = unseal(data)
    if document is None:
        _check_version(data, where)  # says more of what is no manifest at all, or an older one, which has no hash
        raise BundleError(
            f"{where} was changed after it was written: its sha256 is not that of its content. Copy or export the bundle "
            f"again. After an edit by hand run: {shlex.join(['python', '-m', 'foveate.engines.format.reseal', where])}"
        )
    return decode_document(document, where)


def decode_document(data: bytes, where: str) -> Manifest:
    """Reads a manifest without its hash; see `decode_manifest`."""
    _check_version(data, where)
    return _decode(data, Manifest, where)


def _check_version(data: bytes, where: str) -> None:
    version = _decode(data, dict, where).get("schema_version")
    if version != SCHEMA_VERSION:
        raise BundleError(f"{where} has schema version {version!r}, this foveate reads {SCHEMA_VERSION}. {_REMEDY}")


def _decode(data: bytes, kind: type[_Kind], where: str) -> _Kind:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where} is not a valid manifest: {error}. {_REMEDY}") from error
