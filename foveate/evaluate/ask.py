"""What is asked about every sample, and the answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import NamedTuple

import msgspec
import numpy as np

from foveate.engines import Array, RequestError
from foveate.engines.errors import OptionError
from foveate.runtime import Answer, Budget, Encoded, Pipeline, Policy, Relevance, Request, Selector, open_selector
from foveate.runtime.encoding import AUTO, Encode, Encoding, check_encode
from foveate.runtime.select.scores import Oracle, Ranking
from foveate.samples import Sample

Labels = Mapping[int, np.ndarray]
"""Relevance `[num_visual_tokens]` float32 by the number of the sample, counted from 0; without the samples that have none."""
Progress = Callable[[int, int], None]
"""Gets the number of finished samples, and of all."""


class Key(NamedTuple):
    """What is asked about a sample: selector, keep ratio, and what the tower may compute; None where that is everything."""

    selector: str
    keep: float
    encode: Encode | None = None


WHOLE = Key("all", 1.0)
"""Of the answers that the others are held against."""


@dataclass(frozen=True)
class Plan:
    """What is asked about every sample, beside keep 1.

    Attributes:
        keeps: keep ratios below 1, descending.
        selectors: names in the order of the report; the others are held against the first.
        known: the selectors by name, all but the oracle.
        oracle: what the oracle chooses by, where it is among the names.
        max_new_tokens: most tokens of an answer; None takes the bundle's default.
        encodes: shares of the visual tokens that the tower may compute, descending, then `auto`; each is asked with the keep
            ratios that are not above it.
    """

    keeps: tuple[float, ...]
    selectors: tuple[str, ...]
    known: Mapping[str, Selector | Policy]
    oracle: Labels
    max_new_tokens: int | None
    encodes: tuple[Encode, ...] = ()

    @classmethod
    def make(
        cls,
        keeps: Sequence[float],
        selectors: Sequence[str],
        custom: Mapping[str, Selector | Policy] | None = None,
        oracle: Labels | None = None,
        max_new_tokens: int | None = None,
        encodes: Sequence[Encode] = (),
    ) -> Plan:
        """Checks the arguments of `evaluate`, and raises what it raises about them."""
        _check_keeps(keeps)
        _check_selectors(selectors, oracle)
        custom = custom or {}
        named = [name for name in selectors if name != Oracle.name]
        with _as_option("selectors"):
            known = {name: custom[name] if name in custom else open_selector(name) for name in named}
        below = tuple(sorted((float(keep) for keep in keeps if keep < 1), reverse=True))
        plan = cls(below, tuple(selectors), known, oracle or {}, max_new_tokens, _settle_encodes(encodes, below))
        if plan.encodes and not plan.early_selectors:
            raise OptionError(
                f"none of the selectors ({', '.join(selectors)}) can choose before the tower, as encode asks. "
                "Add attention, or leave out encode.",
                options=("encodes", "selectors"),
            )
        return plan

    @property
    def early_selectors(self) -> tuple[str, ...]:
        """Those that can choose before the tower: by scores alone."""
        return tuple(name for name in self.selectors if isinstance(self.known.get(name), Ranking))

    @property
    def keys(self) -> tuple[Key, ...]:
        """In the order of the report: keep 1, fewer visual tokens behind the whole tower, then behind a part of it."""
        whole = [Key(name, keep) for keep in self.keeps for name in self.selectors]
        budgets = [(keep, encode) for encode in self.encodes for keep in self.keeps if encode == AUTO or keep <= encode]
        return (WHOLE, *whole, *(Key(name, *budget) for budget in budgets for name in self.early_selectors))

    def selectors_of(self, number: int) -> dict[str, Selector | Policy]:
        """The selectors that choose for a sample, by name; the oracle only where the sample has a label."""
        labelled = {Oracle.name: Oracle(self.oracle[number])} if number in self.oracle else {}
        return {**self.known, **labelled}


@contextmanager
def _as_option(name: str) -> Iterator[None]:
    """A value that no request could have is an unusable option here."""
    try:
        yield
    except RequestError as error:
        raise OptionError(str(error), options=(name,)) from error


def _check_keeps(keeps: Sequence[float]) -> None:
    with _as_option("keeps"):
        for keep in keeps:
            Budget(ratio=keep)
    _refuse_twice("keep ratio", keeps, "keeps")
    if all(keep == 1 for keep in keeps):
        raise OptionError("no keep ratio is below 1, so there is nothing to compare. Use 1,0.5,0.25.", options=("keeps",))


def _check_selectors(selectors: Sequence[str], oracle: Labels | None) -> None:
    _refuse_twice("selector", selectors, "selectors")
    if not selectors:
        raise OptionError("there is no selector, expected at least one. Use attention.", options=("selectors",))
    if Oracle.name in selectors and oracle is None:
        raise OptionError(
            f"selector '{Oracle.name}' chooses by labels, and there are none. Give labels, or drop it.", options=("labels",)
        )
    if Oracle.name not in selectors and oracle is not None:
        raise OptionError(
            f"there are labels, and selector '{Oracle.name}' is not asked for. Add it, or drop the labels.",
            options=("selectors", "labels"),
        )


def _settle_encodes(encodes: Sequence[Encode], keeps: Sequence[float]) -> tuple[Encode, ...]:
    """Checked, in their order, without the whole tower, which is asked in any case."""
    with _as_option("encodes"):
        settled = [encode for given in encodes if (encode := check_encode(given)) is not None]
    _refuse_twice("encode", settled, "encodes")
    shares = sorted((share for share in settled if share != AUTO and share < 1), reverse=True)
    for share in shares:
        if share < min(keeps):
            raise OptionError(
                f"encode {share:g} is below every keep ratio, and the LLM can't see more than the tower. "
                f"Add {share:g} to the keep ratios, or drop it.",
                options=("encodes", "keeps"),
            )
    return (*shares, *(encode for encode in settled if encode == AUTO))


def _refuse_twice(what: str, values: Sequence[object], option: str) -> None:
    value, count = Counter(values).most_common(1)[0] if values else (None, 0)
    if count > 1:
        raise OptionError(f"{what} {value} is given {count} times, expected once. Drop the others.", options=(option,))


class Reply(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One answer to one sample."""

    selector: str
    keep: float
    text: str
    right: bool
    kept_tokens: int
    encode: Encode | None = None
    encoding: Encoding | None = None
    """What the tower computed, where `encode` said how much it may."""

    @property
    def key(self) -> Key:
        return Key(self.selector, self.keep, self.encode)

    @property
    def seen_whole(self) -> bool:
        """Whether the tower saw everything although it was to see a part."""
        seen = self.encoding
        return seen is not None and bool(seen.reason) and seen.encoded_tokens == seen.visual_tokens


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that was answered to one sample, keep 1 first: a line of `answers.jsonl`."""

    number: int
    seconds: float
    replies: tuple[Reply, ...]


def ask(
    pipe: Pipeline, samples: Sequence[Sample], plan: Plan, start: int = 0, progress: Progress | None = None
) -> Iterator[Record]:
    """Asks one sample after the other, from number `start` on; raises what `Pipeline.generate` raises.

    Args:
        pipe: the bundle.
        samples: all of them.
        plan: what is asked.
        start: number of the first sample to ask.
        progress: is told before the first and after each sample.
    """
    tell = progress or (lambda done, total: None)
    tell(start, len(samples))
    embeds: dict[str, Array] = {}
    for number in range(start, len(samples)):
        sample, begin = samples[number], perf_counter()
        request = sample.request(keep=1.0, max_new_tokens=plan.max_new_tokens)
        encoded = pipe.encode(request, embeds.get(sample.source))
        embeds = {sample.source: encoded.visual_embeds}  # questions about one image mostly stand together
        asked = {WHOLE: request, **_pruned(pipe, request, encoded, plan.selectors_of(number), plan.keeps)}
        answers = {key: pipe.generate(question, encoded) for key, question in asked.items()}
        replies = [_reply(key, answer, sample) for key, answer in answers.items()]
        replies += [_reply(key, answer, sample, seen) for key, answer, seen in _foveated(pipe, request, plan, answers)]
        yield Record(number, perf_counter() - begin, tuple(replies))
        tell(number + 1, len(samples))


@dataclass(frozen=True, eq=False)
class _Informed(Selector):
    """A selector that brings what it chooses by, so that a sample is scored once for all selectors and keep ratios."""

    selector: Selector
    relevance: Relevance

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.selector.name

    def __call__(self, relevance: Relevance, count: int) -> np.ndarray:
        return self.selector(self.relevance, count)

    def weights(self, relevance: Relevance) -> np.ndarray | None:
        return self.selector.weights(self.relevance)

    def embeds(self, relevance: Relevance, keep_indices: np.ndarray) -> Array:
        return self.selector.embeds(self.relevance, keep_indices)


def _pruned(
    pipe: Pipeline, request: Request, encoded: Encoded, chosen: Mapping[str, Selector | Policy], keeps: Sequence[float]
) -> dict[Key, Request]:
    """The request with every selector at every keep ratio."""
    selectors = {name: pipe.selector(selector) for name, selector in chosen.items()}
    needs = frozenset[str]().union(*(selector.needs for selector in selectors.values()))
    relevance = pipe.score(encoded.prepared, encoded.visual_embeds, needs)
    return {
        Key(name, keep): replace(request, budget=Budget(ratio=keep), select=_Informed(selector, relevance))
        for name, selector in selectors.items()
        for keep in keeps
    }


def _foveated(
    pipe: Pipeline, request: Request, plan: Plan, whole: Mapping[Key, Answer]
) -> Iterator[tuple[Key, Answer, Encoding | None]]:
    """The answers where the tower may see a part, and what it saw. Where that is everything, they are those of `whole`."""
    found: dict[tuple[str, Encode | None, float], Encoded] = {}
    for key in plan.keys:
        if key.encode is None:
            continue
        name, keep, encode = key
        question = replace(request, budget=Budget(ratio=keep), select=plan.known[name], encode=encode)
        # A share says by itself what the tower computes, whatever is kept of it.
        same = (name, encode, keep if encode == AUTO else 1.0)
        if same not in found:
            if encode == AUTO:
                pipe.vision_cache.clear()  # as if it were the first question about the picture
            found[same] = pipe.encode(question)
        encoded = found[same]
        answer = whole[Key(name, keep)] if encoded.part is None else pipe.generate(question, encoded)
        yield key, answer, encoded.encoding


def _reply(key: Key, answer: Answer, sample: Sample, encoding: Encoding | None = None) -> Reply:
    text, kept = answer.text, len(answer.selection.keep_indices)
    return Reply(key.selector, key.keep, text, sample.answered_by(text), kept, key.encode, encoding)
