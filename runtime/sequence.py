"""One growing answer, from the pruned prompt to the last token."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from foveate.engines import NextTokens, RequestError
from foveate.runtime.batch import Pruned
from foveate.runtime.encoding import Encoding, Part
from foveate.runtime.grammar import GrammarState
from foveate.runtime.logits import LogitsProcessor, likeliest, log_probabilities
from foveate.runtime.sampling import Sampler, greedy
from foveate.runtime.select import Selection
from foveate.runtime.text import TextStream
from foveate.runtime.types import Chunk, Prepared, TokenLogprob


@dataclass(eq=False)
class TokenSequence:
    """One growing answer. Which slot of a cache it has, whoever steps the decoder knows.

    Attributes:
        prompt: what the decoder reads first; None once it was taken, for visual tokens may be larger than their KV cache.
        text: turns its tokens into text.
        eos_token_ids: tokens that end it.
        max_new_tokens: most tokens that it may draw.
        sampler: draws its tokens; None takes the likeliest.
        processor: changes the logits first; None leaves them as they are.
        stop_token_ids: special tokens that were given as stop strings.
        grammar: what its tokens have to be; None leaves that open. It ends the answer where it is finished.
        top_logprobs: how many of the likeliest tokens are given with the log probability of each token; None gives neither.
        facts: what its `Answer` says about the request, see `describe`.
        stage_ms: what the stages before the first token took.
        index: its place among the answers of a stream.
        prompt_tokens: tokens of the prompt.
        next_position: of the token that is fed next, the same on every position axis.
        tokens: drawn so far.
        pieces: of text, one for each token.
        logprobs: of its tokens, where they are asked for.
        decode_ms: what each of its steps took.
        finish_reason: None while it goes on.
    """

    prompt: Pruned | None
    text: TextStream
    eos_token_ids: Collection[int]
    max_new_tokens: int
    sampler: Sampler | None = None
    processor: LogitsProcessor | None = None
    stop_token_ids: Collection[int] = ()
    grammar: GrammarState | None = None
    top_logprobs: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    stage_ms: dict[str, float] = field(default_factory=dict)
    index: int = 0
    prompt_tokens: int = field(init=False)
    next_position: int = field(init=False)
    tokens: list[int] = field(default_factory=list)
    pieces: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    decode_ms: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    def __post_init__(self) -> None:
        assert self.prompt is not None
        self.prompt_tokens = len(self.prompt.input_ids)
        self.next_position = self.prompt.next_position

    @property
    def cache_tokens(self) -> int:
        """Most tokens that it holds in a cache."""
        return self.prompt_tokens + self.max_new_tokens

    def take_prompt(self) -> Pruned:
        """The prompt, which it lets go."""
        prompt, self.prompt = self.prompt, None
        assert prompt is not None
        return prompt

    def draw(self, following: NextTokens, slot: int) -> Chunk:
        """Draws the next token from what the decoder says about its slot, and says what it adds."""
        token = self._choose(following, slot)
        self.tokens.append(token)
        text, self.finish_reason = self._read(token)
        self.pieces.append(text)
        chunk = Chunk(text, token, self.finish_reason, self.index)
        if self.top_logprobs is None:
            return chunk
        self.logprobs.append(self._logprob(following.logits[slot], token, self.top_logprobs))
        return replace(chunk, logprob=self.logprobs[-1].logprob, top_logprobs=self.logprobs[-1].top_logprobs)

    def _read(self, token: int) -> tuple[str, str | None]:
        """The text that a token adds, and why the answer ends with it; None where it goes on."""
        ended, stopped = token in self.eos_token_ids, token in self.stop_token_ids
        text = "" if ended or stopped else self.text.push(token)
        stopped = stopped or (self.grammar is not None and self.grammar.finished)
        full = len(self.tokens) == self.max_new_tokens
        reason = "eos" if ended else "stop" if stopped else "length" if full else None
        if reason is not None and not self.text.stopped:
            text += self.text.flush()
        return text, "stop" if self.text.stopped else reason

    def _choose(self, following: NextTokens, slot: int) -> int:
        if self.processor is None and self.sampler is None and self.grammar is None:
            return following.likeliest_token(slot)  # without the logits, which may lie on a GPU
        logits = following.logits[slot]
        if self.processor is not None:
            logits = self.processor(self.tokens, logits)
        if self.grammar is None:
            return (self.sampler or greedy)(logits)
        logits = self._masked(self.grammar, logits)
        token = (self.sampler or greedy)(logits)
        self.grammar.accept(token)
        return token

    @staticmethod
    def _masked(grammar: GrammarState, logits: np.ndarray) -> np.ndarray:
        masked = np.array(logits)
        grammar.mask(masked)
        if np.isneginf(masked.max()):
            raise RequestError(
                "the grammar allows no token that the sampling allows. Drop some of suppress_tokens, bad_words_ids, "
                "no_repeat_ngram_size or min_new_tokens, or loosen the grammar."
            )
        return masked

    @staticmethod
    def _logprob(logits: np.ndarray, token: int, count: int) -> TokenLogprob:
        logprobs = log_probabilities(logits)
        return TokenLogprob(
            token, float(logprobs[token]), tuple((int(top), float(logprobs[top])) for top in likeliest(logits, count))
        )


def describe(
    prepared: Prepared,
    selection: Selection,
    predicted_ttft_ms: float | None,
    encoding: Encoding | None,
    part: Part | None = None,
) -> dict[str, Any]:
    """What an answer says about its request, without the images and patches, which may be larger than the KV cache.

    The pictures stay where `Answer.explain` can draw something on them.
    """
    explained = selection.scores is not None or len(selection.keep_indices) < selection.num_visual_tokens
    return {
        "selection": selection,
        "grids": prepared.grids,
        "predicted_ttft_ms": predicted_ttft_ms,
        "encoding": encoding,
        "frame_seconds": tuple(picture.seconds for picture in prepared.pictures if picture.seconds is not None),
        "resized": prepared.resized,
        "pictures": prepared.pictures if explained else (),
        "part": part and replace(part, seen=()),
    }
