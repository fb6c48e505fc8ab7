"""The method, end to end: prepare, vision, score, select, embed, prefill, decode."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from numbers import Integral
from typing import Self

import numpy as np
from tokenizers import Tokenizer

from foveate.engines import (
    Array,
    Bundle,
    BundleError,
    Manifest,
    Memory,
    OptionError,
    RequestError,
    Session,
    SessionOptions,
    close_all,
    describe_environment,
    find_neighbours,
    make_placement,
    open_decoder,
    open_sessions,
)
from foveate.engines.errors import reason_of, shown
from foveate.engines.format.names import DECODER, EMBED, SCORE, VISION
from foveate.engines.format.processors import read_constants
from foveate.engines.system.steady import steadily
from foveate.runtime.batch import Pruned, pad, prune
from foveate.runtime.decode import decode
from foveate.runtime.encoding import Encoding, Part
from foveate.runtime.encoding.choose import Stages, choose
from foveate.runtime.encoding.part import only
from foveate.runtime.images import ImageLimits
from foveate.runtime.latency import LatencyModel, Sizes, Unmeasured, find_model, plan
from foveate.runtime.logits import LogitsProcessor
from foveate.runtime.prepare import Preparer
from foveate.runtime.retention import check_floor
from foveate.runtime.sampling import Sampling
from foveate.runtime.scheduler.engine import Engine
from foveate.runtime.scheduler.options import DEFAULT_SLOT_TOKENS, EngineOptions, check_precision
from foveate.runtime.scheduler.rows import Rows, run_all
from foveate.runtime.select import Policy, Relevance, Selection, Selector, keep_everything, resolve_selector, select
from foveate.runtime.sequence import TokenSequence, describe
from foveate.runtime.stages import Stopwatch
from foveate.runtime.stream import Stream, enough_memory, finished
from foveate.runtime.text import TextStream
from foveate.runtime.text_model import TextModel
from foveate.runtime.types import Answer, Begun, Encoded, Prepared, Request
from foveate.runtime.video import VideoLimits
from foveate.runtime.vision_cache import DEFAULT_BYTES, VisionCache

SCORES = frozenset({"scores", "attention"})
"""What the score graph gives."""
TOKENIZER = "tokenizer/tokenizer.json"


@steadily
def load(
    path: str | os.PathLike[str],
    backend: str = "onnxruntime",
    options: SessionOptions | None = None,
    kv_capacity_tokens: int | None = None,
    limits: ImageLimits | None = None,
    verify: bool = True,
    video_limits: VideoLimits | None = None,
    vision_cache_bytes: int = DEFAULT_BYTES,
    vision_backend: str | None = None,
    vision_threads: int | None = None,
    vision_nice: int = 0,
) -> Pipeline:
    """Opens a bundle for answering requests.

    Args:
        path: the bundle's folder.
        backend: what runs the graphs.
        options: how: threads, provider, precision of the engines. Both backends take those that they have.
        kv_capacity_tokens: most tokens of one request, pruned prompt and answer together; None takes the model's limit.
        limits: which images are too large.
        verify: compare every file with its hash first.
        video_limits: which videos are too large.
        vision_cache_bytes: most memory for the visual tokens of images and videos that were seen before, so that another
            question about them does not run the vision graph; 0 for none.
        vision_backend: what runs the vision graph, where another backend is faster at it; None for the same.
        vision_threads: CPU threads of the vision and the score graph, which an engine runs beside the decoder; None takes those
            of `options`.
        vision_nice: niceness of these threads in an engine, 0 to 19: with more of it they leave the CPU to the decoder, so that
            pictures take longer and hardly slow the answers that grow. Linux alone has it.

    Raises:
        BundleError: the bundle can't be read or trusted.
        BackendError: the backend is missing or refuses a graph.
        OptionError: there is no such backend, no backend has an option that is set, or `kv_capacity_tokens` is not within what
            the model takes.
    """
    options = options or SessionOptions()
    placement = make_placement(backend, options, vision_backend, vision_threads, vision_nice)
    bundle = Bundle.open(path, verify=verify)
    tokenizer = open_tokenizer(bundle)
    sessions = open_sessions(bundle, placement)
    try:
        latency = find_model(bundle, options.engines, describe_environment(placement, sessions[DECODER].memory))
        manifest = bundle.manifest
        return Pipeline(
            manifest, tokenizer, sessions, kv_capacity_tokens, limits, video_limits, vision_cache_bytes, latency, vision_nice
        )
    except BaseException:
        close_all(sessions.values())
        raise


class Pipeline:
    """A loaded bundle; `with` closes it. Threads may share it, but for `close`: every method may be called at any time, and an
    answer is the same as if it were the only one. A stream is for one thread at a time.

    Args:
        manifest: the bundle's manifest.
        tokenizer: the bundle's tokenizer.
        sessions: what `open_sessions` gives; the pipeline closes them.
        kv_capacity_tokens: see `load`.
        limits: see `load`.
        video_limits: see `load`.
        vision_cache_bytes: see `load`.
        latency: what stages take where the sessions run, if it was measured.
        vision_nice: see `load`.

    Attributes:
        vision_cache: what it keeps of images and videos; `vision_cache.stats` says how it does.
        latency: what budgets in milliseconds are planned with, or why there is nothing to plan with.
        vision_nice: of the threads that prepare pictures in an engine.

    Raises:
        BundleError: unknown family, processor constants or chat template.
        OptionError: `kv_capacity_tokens` is not within what the model takes.
    """

    def __init__(
        self,
        manifest: Manifest,
        tokenizer: Tokenizer,
        sessions: Mapping[str, Session],
        kv_capacity_tokens: int | None = None,
        limits: ImageLimits | None = None,
        video_limits: VideoLimits | None = None,
        vision_cache_bytes: int = DEFAULT_BYTES,
        latency: LatencyModel | Unmeasured | None = None,
        vision_nice: int = 0,
    ) -> None:
        self.manifest = manifest
        self.vision_nice = vision_nice
        self.latency = latency
        self.vision_cache = VisionCache(vision_cache_bytes)
        self._tokenizer = tokenizer
        self._sessions = sessions
        constants = read_constants(manifest.family, manifest.processor)
        self._prepare = Preparer(manifest.family, manifest.prompt, constants, tokenizer, limits, video_limits)
        # Where graphs run behind the host's back, a stage that reads nothing would seem to take no time.
        self._wait = self.memory.synchronize
        self._stages = Stages(
            self._prepare, self.selector, self.vision, self.score, self.vision_cache.holds, self._wait, lambda: self.latency
        )
        decoder = open_decoder(sessions.values(), manifest.decoder)
        self.text_model = TextModel(sessions[EMBED], decoder, manifest.decoder.position_axes)
        limit = min(manifest.decoder.max_position_embeddings, decoder.capacity_tokens or sys.maxsize)
        self._capacity_tokens = _check_capacity(kv_capacity_tokens, limit)

    @property
    def most_pixels(self) -> int | None:
        """What images and frames are shrunk to where `Request.max_pixels` says nothing; None for models that it is not for."""
        return self._prepare.most_pixels

    @property
    def memory(self) -> Memory:
        """Where the arrays of its graphs lie; those of the vision graph may lie elsewhere."""
        return self._sessions[EMBED].memory

    def stream(self, request: Request) -> Stream:
        """Answers a request token by token; iterate over what it returns.

        Everything up to the prefill is done when this returns.

        Raises:
            RequestError: the request can't be served.
            BackendError: a graph failed.
            MachineError: there is not enough memory.
        """
        return self._start([request], [None])

    def generate(self, request: Request, encoded: Encoded | None = None) -> Answer:
        """Answers a request; raises what `stream` raises.

        Args:
            request: the question.
            encoded: what `encode` gave for a request with the same messages and images; the vision graph is not run again.
        """
        return self._start([request], [encoded]).answers()[0]

    def generate_batch(self, requests: Sequence[Request]) -> list[Answer]:
        """Answers several requests at once, each with its own budget and sampling; raises what `stream` raises."""
        sequences = [self.admit(request) for request in requests]
        if not sequences:
            return []
        most = max(sequence.cache_tokens for sequence in sequences)
        pad_token_id = self.manifest.prompt.pad_token_id
        with enough_memory():
            rows = Rows(self.text_model, len(sequences), most, pad_token_id, remember=False)
            run_all(rows, sequences)
        return [finished(sequence, rows.token_bytes * rows.capacity_tokens) for sequence in sequences]

    def engine(self, options: EngineOptions | None = None) -> Engine:
        """Answers many requests at once, each of which may come, be cancelled and end at any time.

        Args:
            options: how many, and how.

        Raises:
            OptionError: a slot is to have more tokens than the model takes, the decoder's answers would hang on what runs
                beside, or nothing was measured for `ttft_slo_ms`.
            MachineError: there is not enough memory for the slots.
        """
        options = options or EngineOptions()
        check_precision(self._sessions[DECODER].spec, options.slots)
        most = self._capacity_tokens
        tokens = min(DEFAULT_SLOT_TOKENS, most) if options.tokens_per_slot is None else options.tokens_per_slot
        if tokens > most:
            fact = f"tokens_per_slot is {tokens}, this pipeline takes {most}"
            raise OptionError(f"{fact}. Choose {most} or less.", options=("tokens_per_slot",))
        with enough_memory():
            return Engine(self, tokens, options)

    def close(self) -> None:
        """Frees the graphs; the pipeline can't answer afterwards. No other thread may be in it. Another call does nothing."""
        self.vision_cache.clear()
        close_all(self._sessions.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @enough_memory()
    def encode(self, request: Request, visual_embeds: Array | None = None, begun: Begun | None = None) -> Encoded:
        """The stages that depend neither on the budget nor on the selector; `generate` takes the result.

        Args:
            request: the question.
            visual_embeds: `[visual_tokens, hidden_size]`, what `encode` gave for another question about the same images; the
                vision graph is not run again.
            begun: what was done for it already.

        Raises:
            RequestError: images, videos or messages that can't be used, or `visual_embeds` of other images.
            BackendError: the vision graph failed.
            MachineError: there is not enough memory.
        """
        stopwatch = Stopwatch() if begun is None else Stopwatch(begun.stage_ms)
        with stopwatch("preprocess"):
            prepared = self.prepare(request) if begun is None else begun.prepared
        # What no budget shrinks, before the work begins.
        self._check_length(prepared.num_text_tokens, self._max_new_tokens(request), begun)
        total, encoding = prepared.num_visual_tokens, None
        if request.limits_encoding and visual_embeds is None:
            chosen = choose(request, prepared, self._stages, stopwatch)
            if isinstance(chosen, Part):
                with stopwatch("vision"):
                    visual_embeds = self._encode_part(prepared, chosen.tokens, chosen.seen, not chosen.glance_tokens)
                    self._wait()
                return Encoded(only(prepared, chosen.tokens), visual_embeds, stopwatch.stage_ms, chosen.encoding(), chosen)
            encoding = Encoding(total, total, reason=chosen)
        with stopwatch("vision"):
            visual_embeds = self.vision(prepared) if visual_embeds is None else self.text_model.bring(visual_embeds)
            self._wait()
        if len(visual_embeds) != prepared.num_visual_tokens:
            raise RequestError(
                f"there are visual_embeds of {len(visual_embeds)} tokens, the images have {prepared.num_visual_tokens}. "
                "Give those of the same images, or leave them out."
            )
        return Encoded(prepared, visual_embeds, stopwatch.stage_ms, encoding)

    def _encode_part(self, prepared: Prepared, tokens: np.ndarray, seen: Sequence[Array] = (), cached: bool = False) -> Array:
        """`visual_embeds [encoded, hidden_size]` of some of the visual tokens.

        Args:
            prepared: the request, whole.
            tokens: `[encoded]` int64, ascending.
            seen: `Part.seen`.
            cached: the part may be asked for again; one that hangs on a question would only push others out of the cache.
        """
        see = self._see if cached else self._run_vision
        runs = self._prepare.runs(prepared, tokens, [len(embeds) for embeds in seen])
        made = [see(feeds) for feeds in runs.feeds]
        new = [self.text_model.bring(self._sessions[VISION].memory.concatenate(made))] if made else []
        return self.text_model.pick([*seen, *new], runs.rows)

    def _run_vision(self, feeds: Mapping[str, np.ndarray]) -> Array:
        return self._sessions[VISION].run(feeds)["visual_embeds"]

    def _see(self, feeds: Mapping[str, np.ndarray]) -> Array:
        """What the vision graph gives, or gave the last time."""
        return self.vision_cache.get(feeds, partial(self._run_vision, feeds))

    @enough_memory()
    def _start(self, requests: Sequence[Request], encoded: Sequence[Encoded | None]) -> Stream:
        """Every stage up to the logits of the first token."""
        sequences = [self.admit(request, known) for request, known in zip(requests, encoded, strict=True)]
        batch = pad([sequence.take_prompt() for sequence in sequences], self.manifest.prompt.pad_token_id)
        cache = self.text_model.decoder.new_cache(len(sequences), max(sequence.cache_tokens for sequence in sequences))
        stopwatch = Stopwatch()
        with stopwatch("embed"):
            inputs_embeds = self.text_model.embed(batch)
            self._wait()
        with stopwatch("prefill"):
            following = self.text_model.prefill(cache, inputs_embeds, batch)
        for index, sequence in enumerate(sequences):
            sequence.index = index
            sequence.stage_ms |= stopwatch.stage_ms
        return Stream(sequences, decode(self.text_model, cache, sequences, following), cache.nbytes // len(sequences))

    @enough_memory()
    def admit(self, request: Request, encoded: Encoded | None = None, begun: Begun | None = None) -> TokenSequence:
        """The stages that each request goes through on its own: a sequence whose prompt waits for the decoder.

        Args:
            request: the question.
            encoded: see `generate`.
            begun: see `encode`.
        """
        selector = self.selector(request.select)
        request = replace(request, sampling=self._sampling(request))
        if begun is not None and not request.limits_encoding:  # what can't fit whatever the scores say: it is not even seen
            fewest = request.budget.fewest(begun.prepared.num_visual_tokens)
            self._check_length(begun.prepared.num_text_tokens + fewest, self._max_new_tokens(request), begun)
        encoded = encoded or self.encode(request, begun=begun)
        prepared, visual_embeds = encoded.prepared, encoded.visual_embeds
        sizes = Sizes(
            prepared.num_visual_tokens,
            prepared.num_text_tokens,
            sum(encoded.stage_ms.values()),
            bool(selector.needs & SCORES),
        )
        part = encoded.part
        planned = (plan if part is None else part.plan)(request.budget, sizes, self.latency)
        request = replace(request, budget=planned.budget)
        stopwatch = Stopwatch(encoded.stage_ms)
        why = planned.reason or (begun.why if begun else "")
        everything = request.budget.keeps_all(prepared.num_visual_tokens)
        with stopwatch("score"):
            unscored = request.explain and prepared.num_visual_tokens and (part is None or part.scores is None)
            bypass = everything and not unscored
            relevance = None if bypass else self.score(prepared, visual_embeds, selector.needs)
        with stopwatch("select"):
            selection = self.select(request, prepared, relevance)
            if why:
                selection = replace(selection, reason=why)
            told = selection if part is None else part.lift(selection, why or prepared.note)
            check_floor(request.min_retained, told, self.manifest.scorer, None if part is None else len(part.tokens))
            if relevance is not None:
                visual_embeds = self.text_model.bring(selector.embeds(relevance, selection.keep_indices))
            prompt = prune(prepared, visual_embeds, selection)
        self._check_length(len(prompt.input_ids), self._max_new_tokens(request), begun)
        sequence = self._sequence(request, prepared, prompt)
        sequence.stage_ms = stopwatch.stage_ms
        encoding = encoded.encoding
        if encoding is None and request.limits_encoding:
            encoding = Encoding(told.num_visual_tokens, told.num_visual_tokens, reason="the visual tokens were given")
        sequence.facts = describe(prepared, told, planned.predicted_ttft_ms, encoding, part)
        return sequence

    def prepare(self, request: Request) -> Prepared:
        """Images and videos to patches, messages to token ids and positions.

        Raises:
            RequestError: images, videos or messages that can't be used.
        """
        return self._prepare(request)

    def vision(self, prepared: Prepared) -> Array:
        """`visual_embeds [visual_tokens, hidden_size]` of every image and video, one run each, where the backend works; those
        that it has seen before come from `vision_cache`."""
        if not prepared.visuals:
            return self.text_model.no_visual_embeds
        parts = [self._see(visual.feeds) for visual in prepared.visuals]
        return self.text_model.bring(self._sessions[VISION].memory.concatenate(parts))

    def score(self, prepared: Prepared, visual_embeds: Array, needs: frozenset[str] = SCORES) -> Relevance:
        """What a selector asks for about the visual tokens: how much each matters for the question, and the question itself.

        Args:
            prepared: the request.
            visual_embeds: `[visual_tokens, hidden_size]`, what `vision` gave, here or on another backend.
            needs: `Selector.needs`.
        """
        found: dict[str, np.ndarray] = {}
        visual_embeds = self.text_model.bring(visual_embeds)
        if needs & SCORES:
            found = {name: np.asarray(array) for name, array in self._run_score(prepared, visual_embeds).items()}
        if "text_embeds" in needs:
            found["text_embeds"] = self.text_model.embed_tokens(prepared.layout.input_ids[prepared.instruction_indices])
        seed = prepared.seed if "seed" in needs else 0
        grids = prepared.grids if prepared.present is None else ()
        return Relevance(visual_embeds, grids, seed=seed, **found)

    def first_logits(self, prepared: Prepared, visual_embeds: Array, selection: Selection | None = None) -> np.ndarray:
        """`logits [vocab_size]` float32 of the first token of an answer.

        Args:
            prepared: the request.
            visual_embeds: `[visual_tokens, hidden_size]`, what `vision` gave, here or on another backend.
            selection: which visual tokens stay; None for all.
        """
        selection = selection or keep_everything(prepared.num_visual_tokens, "")
        prompt = prune(prepared, self.text_model.bring(visual_embeds), selection)
        batch = pad([prompt], self.manifest.prompt.pad_token_id)
        cache = self.text_model.decoder.new_cache(1, len(prompt.input_ids))
        logits: np.ndarray = self.text_model.prefill(cache, self.text_model.embed(batch), batch).logits[0]
        return logits

    def _run_score(self, prepared: Prepared, visual_embeds: Array) -> Mapping[str, Array]:
        session = self._sessions[SCORE]
        feeds = {
            "inputs_embeds": self.text_model.embed_unpruned(prepared.layout, visual_embeds),
            "position_ids": prepared.layout.position_ids,
            "visual_indices": prepared.layout.visual_indices,
            "instruction_indices": prepared.instruction_indices,
        }
        if any(tensor.name == "neighbour_indices" for tensor in session.spec.inputs):  # only a scorer on the grid asks for them
            feeds["neighbour_indices"] = find_neighbours(prepared.grids, prepared.present)
        return session.run(feeds)

    def select(self, request: Request, prepared: Prepared, relevance: Relevance | None) -> Selection:
        """Which visual tokens stay; without relevance all of them.

        Raises:
            RequestError: a selector that breaks its contract.
            BackendError: scores that are not finite.
        """
        total = prepared.num_visual_tokens
        everything = request.budget.keeps_all(total)
        if everything or relevance is None:
            scores = None if relevance is None else self.selector(request.select).weights(relevance)
            return keep_everything(total, everything or "", scores)
        return select(relevance, request.budget, self.selector(request.select), prepared.note)

    def selector(self, chosen: Selector | Policy | str | None = None) -> Selector:
        """The selector that a request's `select` means; None is the default, `runtime.select.default_selector`.

        Raises:
            RequestError: there is no such selector, or it needs a trained scorer, which the bundle has not.
        """
        return resolve_selector(chosen, self.manifest.scorer)

    def _max_new_tokens(self, request: Request) -> int:
        return request.max_new_tokens or self.manifest.prompt.max_new_tokens

    def _check_length(self, prompt_tokens: int, max_new_tokens: int, begun: Begun | None) -> None:
        limit = self._capacity_tokens if begun is None else begun.capacity_tokens
        if prompt_tokens + max_new_tokens > limit:
            raise RequestError(
                f"prompt and answer have {prompt_tokens} + {max_new_tokens} tokens, the limit is {limit}. "
                "Keep fewer visual tokens, shorten the text or lower max_new_tokens.",
                options=("keep", "max_new_tokens"),
            )

    def _sampling(self, request: Request) -> Sampling:
        """That of a request, with the checkpoint's settings where it leaves them to it."""
        vocab_size = self.manifest.decoder.vocab_size
        given = request.sampling
        words = (given.logit_bias, given.suppress_tokens, given.begin_suppress_tokens, *(given.bad_words_ids or ()))
        named = chain.from_iterable(tokens or () for tokens in words)
        if beyond := [token for token in named if token >= vocab_size]:
            raise RequestError(f"the sampling names token {beyond[0]}, the model has 0 to {vocab_size - 1}. Take it out.")
        return given.over(self.manifest.prompt.generation)

    def _sequence(self, request: Request, prepared: Prepared, prompt: Pruned) -> TokenSequence:
        sampling, entry = request.sampling, self.manifest.prompt
        stop = entry.generation.stop_strings if request.stop is None else request.stop
        eos_token_ids = () if request.ignore_eos else entry.eos_token_ids
        processor = self._processor(sampling, prepared, eos_token_ids)
        return TokenSequence(
            prompt,
            TextStream(self._tokenizer, stop),
            eos_token_ids,
            self._max_new_tokens(request),
            sampling.sampler() if sampling.temperature else None,
            processor if processor.changes else None,
            [token for text in stop if (token := self._special_token(text)) is not None],
            None if request.grammar is None else request.grammar.start(),
            request.logprobs,
        )

    def _processor(self, sampling: Sampling, prepared: Prepared, eos_token_ids: Sequence[int]) -> LogitsProcessor:
        counts = self.manifest.prompt.generation.prompt_counts
        prompt_ids = prepared.layout.input_ids if counts else np.empty(0, np.int64)
        return LogitsProcessor(prompt_ids, eos_token_ids, **sampling.changes())

    def _special_token(self, text: str) -> int | None:
        """The id of a token that never becomes text, by its own name."""
        token = self._tokenizer.token_to_id(text)
        return token if token is not None and not self._tokenizer.decode([token], skip_special_tokens=True) else None


def open_tokenizer(bundle: Bundle) -> Tokenizer:
    """The tokenizer of a bundle.

    Raises:
        BundleError: it can't be read.
    """
    path = bundle.file(TOKENIZER)
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises a bare Exception
        raise BundleError(f"{path} is not a tokenizer: {reason_of(error)}. Export the bundle again.") from error


def _check_capacity(wanted: int | None, limit: int) -> int:
    if wanted is None:
        return limit
    whole = isinstance(wanted, Integral) and not isinstance(wanted, bool)
    if not whole or not 1 <= wanted <= limit:
        fact = f"kv_capacity_tokens is {shown(wanted)}, this model takes 1 to {limit}"
        raise OptionError(f"{fact}. Choose a number in between.", options=("kv_capacity_tokens",))
    return int(wanted)
