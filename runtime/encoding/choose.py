"""Which visual tokens the tower computes: those that repeat no others, and of these what the question needs, after a glance."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from foveate.engines import Array, RequestError
from foveate.runtime.budget import Budget
from foveate.runtime.encoding.cost import Estimate, first_worth, spread
from foveate.runtime.encoding.glance import can_rank, check_selector
from foveate.runtime.encoding.outcome import Part
from foveate.runtime.encoding.part import by_visual
from foveate.runtime.encoding.plan import TowerModel, TowerSizes, plan_part, plan_tower
from foveate.runtime.encoding.request import AUTO, count_tokens
from foveate.runtime.latency import LatencyModel, Unmeasured, measured
from foveate.runtime.prepare import Preparer
from foveate.runtime.select import Policy, Relevance, Selector, select
from foveate.runtime.stages import Stopwatch
from foveate.runtime.types import Prepared, Request


@dataclass(frozen=True)
class Stages:
    """What of the pipeline a choice needs.

    Attributes:
        preparer: compares pixels and makes the small pictures.
        selector: what a request's `select` means.
        vision: see `Pipeline.vision`.
        score: see `Pipeline.score`.
        knows: whether the vision cache has what the vision graph gives for these inputs.
        wait: for what runs behind the host's back.
        latency: what stages take here, if it was measured.
    """

    preparer: Preparer
    selector: Callable[[Selector | Policy | str | None], Selector]
    vision: Callable[[Prepared], Array]
    score: Callable[[Prepared, Array, frozenset[str]], Relevance]
    knows: Callable[[Mapping[str, np.ndarray]], bool]
    wait: Callable[[], None]
    latency: Callable[[], LatencyModel | Unmeasured | None]


def choose(request: Request, prepared: Prepared, stages: Stages, stopwatch: Stopwatch) -> Part | str:
    """The visual tokens that the tower computes for a request that sets `encode` or `redundancy`; or why it has to compute all.

    Raises:
        RequestError: options that can't be had together.
    """
    if not prepared.num_visual_tokens:
        return "the request has no image"
    _check_floor(request)
    choice = _Choice(request, prepared, stages, stopwatch)
    return choice.cheapest() if request.encode == AUTO else choice.asked()


def _check_floor(request: Request) -> None:
    if request.min_retained is not None and request.redundancy is not None:
        raise RequestError(
            "min_retained is set, and the bundle's curves were measured with all visual tokens, and after a glance, but not "
            "without redundant ones. Leave out min_retained or redundancy.",
            options=("min_retained", "redundancy"),
        )


@dataclass(frozen=True)
class _Choice:
    """The choice of one request; see `choose`."""

    request: Request
    prepared: Prepared
    stages: Stages
    stopwatch: Stopwatch

    @property
    def total(self) -> int:
        return self.prepared.num_visual_tokens

    def asked(self) -> Part | str:
        """What the request says, whatever it costs."""
        unique = self.unique(self.request.redundancy)
        if self.request.encode is None:
            return unique
        count = count_tokens(self.request.encode, self.request.budget, self.total)
        assert isinstance(count, int)  # only for `auto` there may be none
        if count >= self.left(unique):
            return unique or f"encode covers all {self.total} visual tokens"
        check_selector(self.selector)
        small = self.small()
        if isinstance(small, str):
            return (
                replace(unique, reason=small)
                if isinstance(unique, Part)
                else "; ".join(dict.fromkeys(filter(None, (unique, small))))
            )
        ttft_ms = self.request.budget.ttft_ms
        if ttft_ms is None:
            return self.seen(small, count, unique)
        planned = plan_part(ttft_ms, self.sizes(unique, small), self.measured(ttft_ms), count)
        return replace(self.seen(small, planned.kept_tokens, unique), predicted_ttft_ms=planned.predicted_ttft_ms)

    def cheapest(self) -> Part | str:
        """What is least work: all visual tokens, those that repeat no others, or of these as many as are kept, after a glance.
        Of two that are about the same work it is the one that looks at more."""
        if self.knows([visual.feeds for visual in self.prepared.visuals]):
            return "all visual tokens were computed for another question"
        unique = self.unique(self.tolerance)
        if isinstance(unique, Part) and self.knows(self.stages.preparer.runs(self.prepared, unique.tokens).feeds):
            return unique
        if self.request.budget.ttft_ms is not None:
            return self.in_time(self.request.budget.ttft_ms, unique)
        count = count_tokens(AUTO, self.request.budget, self.total)
        kept = self.total if isinstance(count, str) else count
        larger = [self.takes(self.sizes(tokens)).kept_ms(kept) for tokens in ("", unique)]
        seen = count if isinstance(count, str) else self.worthwhile(larger, count, unique)
        if isinstance(seen, Part):
            return seen
        if isinstance(unique, Part) and first_worth(larger):
            return replace(unique, reason=seen)
        if isinstance(unique, Part):
            unique = f"the {len(unique.tokens)} of {self.total} visual tokens that repeat no others are hardly less work"
        return "; ".join(dict.fromkeys(reason for reason in (unique, seen) if reason))

    @property
    def tolerance(self) -> int | None:
        """Of redundant visual tokens: those with equal pixels where the request says none. No curve was measured without them,
        and some selectors need them, so these leave them in."""
        request = self.request
        unasked = None if request.min_retained is not None or self.selector.needs_all else 0
        return unasked if request.redundancy is None else request.redundancy

    def knows(self, feeds: Iterable[Mapping[str, np.ndarray]]) -> bool:
        """Whether the vision cache has what the tower gives for all of them."""
        with self.stopwatch("preprocess"):
            return all(map(self.stages.knows, feeds))

    def worthwhile(self, larger: list[float], count: int, unique: Part | str) -> Part | str:
        """`count` visual tokens after a glance; or why that is not worth it, empty where no glance is needed.

        Args:
            larger: costs of what looks at more.
            count: how many the glance would choose.
            unique: among which, where that is not all.
        """
        if count >= self.left(unique):
            return "" if isinstance(unique, Part) else f"encode covers all {self.total} visual tokens"
        if not can_rank(self.selector):
            return self.unranked
        sizes = self.sizes(unique)
        if first_worth([*larger, self.takes(replace(sizes, glances=())).part_ms(count)]) == len(larger):
            small = self.small()
            if isinstance(small, str):
                return small
            if first_worth([*larger, self.takes(replace(sizes, glances=spread(small.grids))).part_ms(count)]) == len(larger):
                return self.seen(small, count, unique)
        return f"a glance and {count} of {self.total} visual tokens are hardly less work"

    @property
    def selector(self) -> Selector:
        return self.stages.selector(self.request.select)

    def in_time(self, ttft_ms: float, unique: Part | str) -> Part | str:
        """What keeps the most visual tokens within a time: all, those that repeat no others, or a part after a glance."""
        model = self.measured(ttft_ms)
        for computed in ("", unique):
            if TowerModel(self.sizes(computed), model).whole_ms() <= ttft_ms:
                return computed if isinstance(computed, Part) else f"all tokens fit into {ttft_ms:g} ms"
        small = self.small() if can_rank(self.selector) else self.unranked
        planned = plan_tower(ttft_ms, self.sizes(unique, small), model)
        if planned.encoded_tokens is not None and not isinstance(small, str):
            return replace(self.seen(small, planned.kept_tokens, unique), predicted_ttft_ms=planned.predicted_ttft_ms)
        reason = small if isinstance(small, str) else planned.reason
        return replace(unique, reason=reason) if isinstance(unique, Part) else "; ".join(filter(None, (unique, reason)))

    def sizes(self, unique: Part | str, small: Prepared | str = "") -> TowerSizes:
        """Of the request before the tower, of which it computes those that repeat no others."""
        return TowerSizes(
            spread(self.prepared.grids, unique.tokens if isinstance(unique, Part) else None),
            None if isinstance(small, str) else spread(small.grids),
            self.prepared.num_text_tokens,
            sum(self.stopwatch.stage_ms.values()),
            bool(self.selector.needs & {"scores", "attention"}),
        )

    def takes(self, sizes: TowerSizes) -> TowerModel:
        """By what was measured, else by an estimate; from now on."""
        latency = self.stages.latency()
        model = latency if isinstance(latency, LatencyModel) else Estimate()
        return TowerModel(replace(sizes, spent_ms=0.0), model)

    def measured(self, ttft_ms: float) -> LatencyModel:
        return measured(self.stages.latency(), f"the budget is {ttft_ms:g} ms")

    @property
    def unranked(self) -> str:
        return f"selector '{self.selector.name}' looks at visual tokens, which are not there before the tower"

    def left(self, unique: Part | str) -> int:
        """How many visual tokens repeat no others."""
        return len(unique.tokens) if isinstance(unique, Part) else self.total

    def unique(self, tolerance: int | None) -> Part | str:
        """The visual tokens that repeat no others; or why there are no fewer, empty where it was not looked for them."""
        if tolerance is None:
            return ""
        with self.stopwatch("preprocess"):
            sources = self.stages.preparer.sources(self.prepared, tolerance)
        if isinstance(sources, str):
            return sources
        tokens = np.flatnonzero(sources == np.arange(self.total))
        if len(tokens) == self.total:
            return "no visual token repeats its neighbours"
        return Part(tokens, None, "redundancy", self.total, sources=sources)

    def small(self) -> Prepared | str:
        """The request with small pictures; or why there are none."""
        with self.stopwatch("glance"):
            return self.stages.preparer.glance(self.request, self.prepared)

    def seen(self, small: Prepared, count: int, unique: Part | str) -> Part:
        """`count` visual tokens that matter for the question, of those that repeat no others."""
        stages, whole, selector = self.stages, self.prepared, self.selector
        with self.stopwatch("glance"):
            glance_embeds = stages.vision(small)
            stages.wait()
        with self.stopwatch("score"):
            weights = selector.weights(stages.score(small, glance_embeds, selector.needs))
            assert weights is not None  # the selector ranks
            scores = stages.preparer.enlarge(weights, small.visuals, whole.visuals)
        with self.stopwatch("select"):
            among = unique.tokens if isinstance(unique, Part) else np.arange(self.total)
            # Without grids: before the tower the periphery of a clip is that of an image, half of the budget would be too much.
            found = Relevance(np.empty((len(among), 0)), (), scores[among], scores[among])
            tokens = among[select(found, Budget(tokens=count), selector).keep_indices]
        known = by_visual(glance_embeds, small.visuals) if stages.preparer.glance_stays else ()
        part = Part(tokens, scores, selector.name, self.total, small.num_visual_tokens, small.pictures, known)
        if isinstance(unique, Part):
            return replace(part, sources=unique.sources)
        return part if self.request.redundancy is None else replace(part, reason=unique)
