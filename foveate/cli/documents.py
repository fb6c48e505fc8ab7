"""What `--json` writes: one document a command. docs/json.md is made from these classes; a change that breaks a reader gets a
new number in `schema`."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, get_type_hints

import msgspec

from foveate.check import Agreement, StageDifference
from foveate.engines.builds.store import Entry
from foveate.runtime.stages import STAGES, Timings


class _Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the documents and of their parts: what is not documented is not there."""


class Document(_Part, frozen=True, kw_only=True, tag_field="schema"):
    """Base of the documents.

    Attributes:
        foveate_version: what wrote it.
    """

    foveate_version: str = msgspec.field(default_factory=lambda: version("foveate"))


class Comparison(_Part, frozen=True, kw_only=True):
    """One output of one graph, held against the reference implementation.

    Attributes:
        graph: its name.
        output: name of the tensor.
        case: what was put in.
        difference: found.
        tolerance: allowed.
        measure: what both are: the largest difference, or the relative one of a quantised graph.
    """

    graph: str
    output: str
    case: str
    difference: float
    tolerance: float
    measure: str


class Exported(Document, frozen=True, kw_only=True, tag="foveate.export.1"):
    """`foveate export`

    Attributes:
        bundle: path of the bundle.
        parity: every comparison; null where nothing was compared.
    """

    bundle: str
    parity: tuple[Comparison, ...] | None


class Engine(_Part, frozen=True, kw_only=True):
    """An engine, or the packed weights of a graph.

    Attributes:
        graph: that it was built of.
        backend: that runs it.
        version: of the backend.
        target: device, as `sm89`, or kind of CPU.
        options: of the build: precision, profiles.
        engine_bytes: size of the file.
        build_seconds: what building took.
        peak_bytes: most resident memory while it was built; 0 where it is not known.
        details: what the backend says about it: layers, scratch memory in bytes.
        path: of the file.
    """

    graph: str
    backend: str
    version: str
    target: str
    options: dict[str, Any]
    engine_bytes: int
    build_seconds: float
    peak_bytes: int
    details: dict[str, Any]
    path: str

    @classmethod
    def of(cls, entry: Entry) -> Engine:
        record = entry.record
        return cls(
            graph=record.key.graph,
            backend=record.key.backend,
            version=record.key.backend_version,
            target=record.key.target,
            options=record.key.options,
            engine_bytes=record.engine_bytes,
            build_seconds=record.build_seconds,
            peak_bytes=record.peak_bytes,
            details=record.details,
            path=str(entry.engine),
        )


class Built(Document, frozen=True, kw_only=True, tag="foveate.build.1"):
    """`foveate build`

    Attributes:
        folder: of the engines.
        engines: one for each graph and target.
        fresh: how many of them were built now; the others were there.
    """

    folder: str
    engines: tuple[Engine, ...]
    fresh: int


class Inspected(Document, frozen=True, kw_only=True, tag="foveate.inspect.1"):
    """`foveate inspect`

    Attributes:
        family: of the model.
        source: name of the checkpoint.
        precision: of the graphs.
        exported_by: version of foveate.
        scorer: kind of the scorer: `trained` or `attention`.
        selector: that chooses where a request names none.
        retained: keep ratio to share of right answers that stay; empty where it was not measured.
        retained_encoded: the same behind a part of the tower, by the share of the visual tokens that it computes.
        bytes: of all files.
        graphs: name to names of the inputs.
        engines: that were built of it.
        damaged: what is wrong with engines that can't be read.
    """

    family: str
    source: str
    precision: str
    exported_by: str
    scorer: str
    selector: str
    retained: dict[str, float]
    retained_encoded: dict[str, dict[str, float]] = {}
    bytes: int
    graphs: dict[str, tuple[str, ...]]
    engines: tuple[Engine, ...]
    damaged: tuple[str, ...]


class Checked(Document, frozen=True, kw_only=True, tag="foveate.check.1"):
    """`foveate check`

    Attributes:
        backend: that was held against ONNX Runtime's CPU.
        min_cosine: that each stage has to reach.
        passed: whether all do.
        stages: difference of each.
        answers: agreement at each keep ratio.
    """

    backend: str
    min_cosine: float
    passed: bool
    stages: tuple[StageDifference, ...]
    answers: tuple[Agreement, ...]


class Selected(_Part, frozen=True, kw_only=True):
    """Which visual tokens stayed.

    Attributes:
        keep_indices: numbers of the visual tokens that stayed, ascending.
        num_visual_tokens: how many there were.
        selector: that chose; `all` where nothing was dropped.
        reason: why nothing was dropped; empty where something was.
        scores: of each visual token, higher stays; null where they were not computed.
    """

    keep_indices: tuple[int, ...]
    num_visual_tokens: int
    selector: str
    reason: str
    scores: tuple[float, ...] | None


def _stage_times() -> type[msgspec.Struct]:
    """The class of `Timings.to_dict`."""
    kinds: dict[str, Any] = get_type_hints(Timings)
    noted = {stage.key: (kinds[stage.key], stage.does) for stage in STAGES}
    noted["ttft_ms"] = float, "time to first token: the sum of all but decode_ms"
    noted["tpot_ms"] = float, "mean of decode_ms; 0 where there is none"
    fields = [(name, Annotated[kind, msgspec.Meta(description=note)]) for name, (kind, note) in noted.items()]
    return msgspec.defstruct("StageTimes", fields, bases=(_Part,), frozen=True, kw_only=True)


StageTimes = _stage_times()


class Resized(_Part, frozen=True, kw_only=True):
    """What the request's limits made of an image or a video.

    Attributes:
        size: width and height in pixels of what the model saw.
        usual_size: those without the request's limits.
        visual_tokens: that it became.
        usual_visual_tokens: without the request's limits.
        by: the limits that did it.
    """

    size: tuple[int, int]
    usual_size: tuple[int, int]
    visual_tokens: int
    usual_visual_tokens: int
    by: tuple[str, ...]


class Encoding(_Part, frozen=True, kw_only=True):
    """What the vision tower computed.

    Attributes:
        encoded_tokens: visual tokens that it computed at full resolution.
        visual_tokens: that there are.
        glance_tokens: of the small pictures that it looked at first; 0 where it did not.
        reason: why it computed more than the request asked for; empty where that is not so.
        redundant_tokens: visual tokens that repeat others, where it was looked for them.
        redundant_runs: of these, which of the computed tokens stand for them: the first of a run, how many there are, and the
            token that stands for them.
    """

    encoded_tokens: int
    visual_tokens: int
    glance_tokens: int
    reason: str
    redundant_tokens: int
    redundant_runs: tuple[tuple[int, int, int], ...]


class TokenLogprob(_Part, frozen=True, kw_only=True):
    """How likely a token was to the model, before temperature, penalties and masks.

    Attributes:
        token_id: that was drawn.
        logprob: natural logarithm of its probability.
        top_logprobs: the likeliest tokens at its place, likeliest first: id and the same.
    """

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...]


class AnswerFacts(_Part, frozen=True, kw_only=True):
    """An answer and how it came about.

    Attributes:
        text: without special tokens and without the stop string.
        tokens: every token drawn, with the end-of-text token where it ended so.
        finish_reason: `eos`, `stop` or `length`.
        selection: which visual tokens stayed.
        grids: frames, rows and columns of the visual tokens of each image or video.
        frame_seconds: when each frame of a video is shown.
        prompt_tokens: that the decoder saw.
        timings: wall time of each stage.
        kv_bytes: allocated for the KV cache.
        reused_tokens: of the prompt, whose keys and values were there already; 0 outside of an engine.
        encoding: what the vision tower computed; null where the request set neither `encode` nor `redundancy`.
        predicted_ttft_ms: what ttft_ms was expected to be; null where the budget is not in milliseconds.
        resized: of each image and video; null where the request's limits changed nothing.
        logprobs: of each token; empty where the request does not ask for them, and the command does not.
    """

    text: str
    tokens: tuple[int, ...]
    finish_reason: str
    selection: Selected
    grids: tuple[tuple[int, ...], ...]
    frame_seconds: tuple[float, ...]
    prompt_tokens: int
    timings: StageTimes  # type: ignore[valid-type]
    kv_bytes: int
    reused_tokens: int = 0
    encoding: Encoding | None = None
    predicted_ttft_ms: float | None
    resized: tuple[Resized | None, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


class Generated(AnswerFacts, frozen=True, kw_only=True, tag_field="schema", tag="foveate.generate.1"):
    """`foveate generate`

    Attributes:
        foveate_version: what wrote it.
    """

    foveate_version: str = msgspec.field(default_factory=lambda: version("foveate"))


class Labelled(Document, frozen=True, kw_only=True, tag="foveate.scorer.label.1"):
    """`foveate scorer label`

    Attributes:
        labels: folder of the labels.
        seen: samples that were looked at in this run.
        labelled: how many of them have labels.
    """

    labels: str
    seen: int
    labelled: int


class Losses(_Part, frozen=True, kw_only=True):
    """Of one pass over the samples: KL divergence in nats, means.

    Attributes:
        training: over the training samples.
        validation: over the samples of the images that were kept for validation.
    """

    training: float
    validation: float


class Trained(Document, frozen=True, kw_only=True, tag="foveate.scorer.train.1"):
    """`foveate scorer train`

    Attributes:
        scorer: path of the scorer.
        learning_curve: path of the chart.
        training_samples: how many there were.
        epochs: losses of each.
        best_epoch: the one whose weights were kept, counted from 0.
        early_stopped: whether validation stopped improving before the last epoch.
    """

    scorer: str
    learning_curve: str
    training_samples: int
    epochs: tuple[Losses, ...]
    best_epoch: int
    early_stopped: bool


class Shown(_Part, frozen=True, kw_only=True):
    """A question of the demo.

    Attributes:
        question: that was asked.
        right_answer: that was expected.
        picture: path of the picture of what stayed.
        answers: by keep ratio.
    """

    question: str
    right_answer: str
    picture: str
    answers: dict[str, AnswerFacts]


class Demonstrated(Document, frozen=True, kw_only=True, tag="foveate.demo.1"):
    """`foveate demo`

    Attributes:
        bundle: path of the bundle.
        report: path of the profile's page.
        questions: with their answers.
    """

    bundle: str
    report: str
    questions: tuple[Shown, ...]


class Serving(Document, frozen=True, kw_only=True, tag="foveate.serve.1"):
    """`foveate serve`, once it takes requests

    Attributes:
        url: where it listens.
        models: names of the bundles.
    """

    url: str
    models: tuple[str, ...]


DOCUMENTS = {
    "export": "foveate.cli.documents:Exported",
    "build": "foveate.cli.documents:Built",
    "inspect": "foveate.cli.documents:Inspected",
    "check": "foveate.cli.documents:Checked",
    "generate": "foveate.cli.documents:Generated",
    "scorer label": "foveate.cli.documents:Labelled",
    "scorer train": "foveate.cli.documents:Trained",
    "profile": "foveate.profile.results:Profile",
    "bench": "foveate.bench.results:Benchmark",
    "evaluate": "foveate.cli.evaluate:Evaluated",
    "serve": "foveate.cli.documents:Serving",
    "demo": "foveate.cli.documents:Demonstrated",
}
"""Command -> `module:class` of what its `--json` writes."""


def find_document(command: str) -> type[msgspec.Struct]:
    """The class of a command's document."""
    module, _, name = DOCUMENTS[command].partition(":")
    found: type[msgspec.Struct] = getattr(import_module(module), name)
    return found
