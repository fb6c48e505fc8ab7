"""`manifest.json`: what a bundle contains and every fact that the runtime needs."""

from __future__ import annotations

import shlex
from typing import Annotated, Any, TypeVar

import msgspec

from foveate.engines.errors import BundleError, reason_of
from foveate.engines.format import precisions
from foveate.engines.format.dtypes import DType
from foveate.engines.format.seal import seal, unseal
from foveate.engines.format.spec import GraphSpec, Size

SCHEMA_VERSION = 7
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
    """Of its bytes, in lower-case hex."""
    size_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
    """Its length."""


class SourceEntry(_Strict, frozen=True):
    """The checkpoint that a bundle was made from."""

    name: str
    """Of its folder."""
    sha256: Sha256
    """Over its config and weights."""


class DecoderEntry(_Strict, frozen=True):
    """Sizes of the text decoder and of its KV cache."""

    num_hidden_layers: Annotated[int, msgspec.Meta(ge=1, le=1024)]
    """Each has a key and a value in the cache."""
    num_key_value_heads: Size
    """Heads of keys and values in the cache."""
    head_dim: Size
    """Numbers of a head."""
    hidden_size: Size
    """Numbers of an embedding."""
    vocab_size: Size
    """Rows of the table of embeddings and columns of the logits."""
    position_axes: Size
    """Rows of `position_ids`: 3 for M-RoPE (time, height, width), 1 otherwise."""
    max_position_embeddings: Size
    """Most tokens of prompt and answer together."""
    kv_dtype: DType
    """Of the cache."""


class GenerationEntry(_Strict, frozen=True, omit_defaults=True):
    """What the checkpoint's generation_config.json says about drawing tokens; where it says nothing, what transformers does."""

    repetition_penalty: Annotated[float, msgspec.Meta(gt=0)] = 1.0
    """Divides the positive logits of tokens that were there, and multiplies the negative ones."""
    no_repeat_ngram_size: Count = 0
    """No run of so many tokens comes twice; 0 lets all come."""
    bad_words_ids: tuple[Annotated[tuple[TokenId, ...], msgspec.Meta(min_length=1)], ...] = ()
    """Runs of tokens that never come."""
    min_new_tokens: Count = 0
    """No end of an answer before so many tokens."""
    suppress_tokens: tuple[TokenId, ...] = ()
    """Tokens that never come."""
    begin_suppress_tokens: tuple[TokenId, ...] = ()
    """Tokens that do not come first in an answer."""
    stop_strings: tuple[Annotated[str, msgspec.Meta(min_length=1)], ...] = ()
    """Texts that end an answer."""
    do_sample: bool = False
    """Whether its authors sample; a request does where it asks for it."""
    temperature: NonNegative = 1.0
    """Of a request that asks for the checkpoint's sampling, like `top_k` and `top_p`; 0 takes the likeliest token."""
    top_k: Count = 50
    """So many of the likeliest tokens are drawn from; 0 for all."""
    top_p: Share = 1.0
    """Of the likeliest tokens those that together have this probability are drawn from."""
    unsupported_sampling: tuple[str, ...] = ()
    """Keys that change how its authors sample and that the runtime does not know."""
    prompt_counts: bool = True
    """Whether penalties look at the prompt too, or at the answer alone: what its own library shows them."""


class PromptEntry(_Strict, frozen=True):
    """How messages become token ids. Each image or video of a message renders as its placeholder token."""

    chat_template: str
    """Jinja2, as in transformers: `messages` and `add_generation_prompt` become text."""
    image_token: str
    """The placeholder of an image, one token of the tokenizer; it becomes as many as the image has visual tokens."""
    video_token: str | None
    """The same of a video; null where the family takes none."""
    eos_token_ids: tuple[TokenId, ...]
    """Each of them ends an answer."""
    pad_token_id: TokenId
    """Fills the rows of a batch up."""
    max_new_tokens: Size = 64
    """Longest answer where a request does not say."""
    template_tokens: dict[TemplateToken, str] = {}
    """Text of the tokens that a chat template may name."""
    generation: GenerationEntry = GenerationEntry()
    """How tokens are drawn."""


class RetentionPoint(_Strict, frozen=True):
    """What is left of the right answers at one keep ratio."""

    keep: Share
    """Of the visual tokens."""
    retained: NonNegative
    """Accuracy as a share of that at keep 1: a net ratio."""
    low: NonNegative
    """Lower end of its 95 % interval."""
    high: NonNegative
    """Upper end of it."""
    questions: Size
    """How many were asked."""
    stay: NonNegative
    """Of the answers right at keep 1 the share that is right here too."""
    stay_low: NonNegative
    """Lower end of its 95 % interval."""
    stay_high: NonNegative
    """Upper end of it."""

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
    """Of this file; a reader of another version refuses it."""
    foveate_version: str
    """Of the exporter."""
    family: str
    """`model_type` of the checkpoint: which processor makes the inputs of the vision graph."""
    source: SourceEntry
    """What it was made from."""
    graphs: dict[str, GraphSpec]
    """By name."""
    decoder: DecoderEntry
    """Sizes that the graphs share."""
    prompt: PromptEntry
    """How messages become tokens, and tokens an answer."""
    processor: dict[str, Any]
    """Constants of the family's processor; the processor checks its own keys."""
    scorer: ScorerEntry
    """What the graph `score` computes."""
    files: dict[str, FileEntry]
    """Every file of the bundle but this one, by its path."""

    @property
    def precision(self) -> str:
        """For people: that of the parts, where they differ each one's."""
        graphs = [name for name in precisions.PARTS if name in self.graphs] or self.graphs
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
        raise BundleError(f"{where} is not a valid manifest: {reason_of(error)}. {_REMEDY}") from error
