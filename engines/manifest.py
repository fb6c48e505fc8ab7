"""`manifest.json`: what a bundle contains and every fact that the runtime needs."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from foveate.engines.errors import BundleError
from foveate.engines.spec import GraphSpec

SCHEMA_VERSION = 4

TemplateToken = Literal["bos_token", "eos_token", "pad_token", "unk_token"]
Size = Annotated[int, msgspec.Meta(ge=1)]
TokenId = Annotated[int, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(gt=0, le=1)]
NonNegative = Annotated[float, msgspec.Meta(ge=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the manifest's parts: an unknown key is an error."""


class FileEntry(_Strict, frozen=True):
    """Size and hash of one file of the bundle."""

    sha256: Sha256
    size_bytes: Annotated[int, msgspec.Meta(ge=0)]


class SourceEntry(_Strict, frozen=True):
    """The checkpoint that a bundle was made from; `sha256` is over its config and weights."""

    name: str
    model_type: str
    sha256: Sha256


class DecoderEntry(_Strict, frozen=True):
    """Sizes of the text decoder and of its KV cache."""

    num_hidden_layers: Size
    num_key_value_heads: Size
    head_dim: Size
    hidden_size: Size
    vocab_size: Size
    position_axes: Size
    """Rows of `position_ids`: 3 for M-RoPE (time, height, width), 1 otherwise."""
    max_position_embeddings: Size
    kv_dtype: str


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


class RetentionPoint(_Strict, frozen=True):
    """What is left of the right answers at one keep ratio."""

    keep: Share
    retained: NonNegative
    """Accuracy as a share of that at keep 1: a net ratio."""
    low: NonNegative
    """Of its 95 % interval, like `high`."""
    high: NonNegative
    questions: Size
    stay: NonNegative | None = None
    """Of the answers right at keep 1 the share that is right here too; None in bundles older than this entry."""
    stay_low: NonNegative | None = None
    """Of its 95 % interval, like `stay_high`."""
    stay_high: NonNegative | None = None

    @property
    def share(self) -> tuple[float, float, float]:
        """What stays right with its interval; in older bundles what is retained."""
        if self.stay is None or self.stay_low is None or self.stay_high is None:
            return self.retained, self.low, self.high
        return self.stay, self.stay_low, self.stay_high


class ScorerEntry(_Strict, frozen=True):
    """What computes the `score` graph's scores, and what it was seen to retain."""

    kind: str = "attention"
    """`attention`, or `trained` for a network."""
    sha256: Sha256 | None = None
    """Of the network's file."""
    training: dict[str, Any] = {}
    """Facts about the network's training, as its file has them."""
    retention: tuple[RetentionPoint, ...] = ()
    """Measured at export, with `default_selector`."""
    selector: str = ""
    """What chooses by the scores where a request names nothing; empty in bundles older than this entry."""

    @property
    def default_selector(self) -> str:
        """`selector`, or what there was before it had an entry."""
        return self.selector or ("attention" if self.kind == "attention" else "learned")


class Environment(_Strict, frozen=True):
    """What graphs run on, and how. Latencies are those of one environment."""

    device: str
    """The CPU or GPU as it calls itself."""
    cpus: Size
    """That the process may use."""
    backend: str
    """Name and version."""
    options: dict[str, str]
    """Those of the session that are not the default."""


class LatencyPoint(_Strict, frozen=True):
    """Median milliseconds of a stage at a number of tokens."""

    tokens: Size
    ms: NonNegative


class LatencyEntry(_Strict, frozen=True):
    """What the stages that depend on the budget took in one environment, as `foveate profile --save` measured them."""

    environment: Environment
    score: tuple[LatencyPoint, ...]
    """Scoring and selecting, by visual tokens before pruning."""
    prefill: tuple[LatencyPoint, ...]
    """Embedding and prefill, by tokens of the pruned prompt."""


class Manifest(_Strict, frozen=True, omit_defaults=True):
    """The whole of `manifest.json`. Paths in `graphs` and `files` are relative to the bundle and use `/`."""

    schema_version: int
    foveate_version: str
    family: str
    source: SourceEntry
    precision: str
    graphs: dict[str, GraphSpec]
    decoder: DecoderEntry
    prompt: PromptEntry
    processor: dict[str, Any]
    """Constants of the family's processor; the processor checks its own keys."""
    scorer: ScorerEntry
    files: dict[str, FileEntry]
    latency: tuple[LatencyEntry, ...] = ()
    """One for each environment that was measured."""


def encode_manifest(manifest: Manifest) -> bytes:
    """The same bytes for the same manifest: keys in order of declaration, files sorted."""
    ordered = msgspec.structs.replace(manifest, files=dict(sorted(manifest.files.items())))
    return msgspec.json.format(msgspec.json.encode(ordered), indent=2) + b"\n"


def decode_manifest(data: bytes, where: str) -> Manifest:
    """Reads a manifest; `where` names its file in errors.

    Raises:
        BundleError: not JSON, another schema version, or a key that is missing, unknown or has an unusable value.
    """
    remedy = "Export the bundle again with this version of foveate."
    try:
        version = msgspec.json.decode(data, type=dict).get("schema_version")
        if version != SCHEMA_VERSION:
            raise BundleError(f"{where} has schema version {version!r}, this foveate reads {SCHEMA_VERSION}. {remedy}")
        return msgspec.json.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BundleError(f"{where} is not a valid manifest: {error}. {remedy}") from error
