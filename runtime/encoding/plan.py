"""What the vision tower computes, planned before it runs: from the latencies that were measured where the bundle runs now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foveate.engines import RequestError
from foveate.runtime.encoding.cost import Estimate
from foveate.runtime.latency import LatencyModel, most_within


@dataclass(frozen=True)
class TowerSizes:
    """A request before the vision tower.

    Attributes:
        pictures: visual tokens of each image, or of each step of a video, that the tower is to compute: a run each.
        glances: visual tokens of the small picture of each; None where there can be no glance.
        text_tokens: of the prompt.
        spent_ms: what the request took so far.
        needs_scores: whether the selector wants scores.
    """

    pictures: tuple[int, ...]
    glances: tuple[int, ...] | None
    text_tokens: int
    spent_ms: float = 0.0
    needs_scores: bool = True

    @property
    def visual_tokens(self) -> int:
        return sum(self.pictures)


class TowerModel:
    """Predicts the milliseconds from pixels to the first token of a request, by what its tower computes.

    Args:
        sizes: of the request.
        model: latencies measured in this environment, or an estimate in a unit of its own.
    """

    def __init__(self, sizes: TowerSizes, model: LatencyModel | Estimate) -> None:
        self._sizes, self._model = sizes, model
        self._tower_ms = sum(map(model.vision_ms, sizes.pictures))

    def whole_ms(self) -> float:
        """Everything computed, everything kept."""
        return self._sizes.spent_ms + self._tower_ms + self._prefill_ms(self._sizes.visual_tokens)

    def kept_ms(self, kept: int) -> float:
        """Everything computed, and as many kept as there are, at most `kept`."""
        return self.whole_ms() if kept >= self._sizes.visual_tokens else self.pruned_ms(kept)

    def pruned_ms(self, kept: int) -> float:
        """Everything computed, scored, and some of it kept."""
        score_ms = self._model.score_ms(self._sizes.visual_tokens) if self._sizes.needs_scores else 0.0
        return self._sizes.spent_ms + self._tower_ms + score_ms + self._prefill_ms(kept)

    def part_ms(self, encoded: int) -> float:
        """A glance, its scores, and then some visual tokens computed and kept, which pictures share by their size. Only where
        there can be a glance."""
        glances = self._sizes.glances
        assert glances is not None
        glance_ms = sum(map(self._model.vision_ms, glances)) + self._model.score_ms(sum(glances))
        shares = (-(-encoded * tokens // self._sizes.visual_tokens) for tokens in self._sizes.pictures)
        return self._sizes.spent_ms + glance_ms + sum(map(self._model.vision_ms, shares)) + self._prefill_ms(encoded)

    def _prefill_ms(self, visual_tokens: int) -> float:
        return self._model.prefill_ms(self._sizes.text_tokens + visual_tokens)


@dataclass(frozen=True)
class TowerPlan:
    """What a budget in milliseconds comes to before the tower.

    Attributes:
        encoded_tokens: visual tokens that the tower computes after a glance; None has it compute all, without one.
        kept_tokens: visual tokens that the LLM is to see.
        predicted_ttft_ms: from pixels to the first token.
        reason: why the tower computes all; empty where it does not.
    """

    encoded_tokens: int | None
    kept_tokens: int
    predicted_ttft_ms: float
    reason: str = ""


def plan_part(ttft_ms: float, sizes: TowerSizes, model: LatencyModel, most: int) -> TowerPlan:
    """How many visual tokens a glance and a part give within a time, at most `most`.

    Raises:
        RequestError: not a single one.
    """
    takes = TowerModel(sizes, model)
    encoded = most_within(ttft_ms, most, takes.part_ms)
    if encoded < 1:
        raise _too_little(ttft_ms, sizes, {"after a glance": takes.part_ms(1)})
    return TowerPlan(encoded, encoded, takes.part_ms(encoded))


def plan_tower(ttft_ms: float, sizes: TowerSizes, model: LatencyModel) -> TowerPlan:
    """The way to the first token that keeps the most visual tokens within a time: everything; else a glance and a part, or the
    whole tower and pruning behind it, where that keeps as many.

    Raises:
        RequestError: no way keeps a single one.
    """
    takes, total = TowerModel(sizes, model), sizes.visual_tokens
    if (whole_ms := takes.whole_ms()) <= ttft_ms or not total:
        return TowerPlan(None, total, whole_ms, f"all tokens fit into {ttft_ms:g} ms" if whole_ms <= ttft_ms else "")
    kept = most_within(ttft_ms, total - 1, takes.pruned_ms)
    encoded = -1 if sizes.glances is None else most_within(ttft_ms, total - 1, takes.part_ms)
    if max(kept, encoded) < 1:
        ways = {"with all visual tokens computed": takes.pruned_ms(1)}
        raise _too_little(ttft_ms, sizes, ways if sizes.glances is None else ways | {"after a glance": takes.part_ms(1)})
    if encoded > kept:
        return TowerPlan(encoded, encoded, takes.part_ms(encoded))
    reason = "" if sizes.glances is None else f"a glance and its part would keep no more within {ttft_ms:g} ms"
    return TowerPlan(None, kept, takes.pruned_ms(kept), reason)


def _too_little(ttft_ms: float, sizes: TowerSizes, ways: Mapping[str, float]) -> RequestError:
    """What the fastest of several ways takes."""
    way = min(ways, key=lambda name: ways[name])
    return RequestError(
        f"the budget is {ttft_ms:g} ms, and with a single visual token, {way}, the answer begins after about "
        f"{ways[way]:.0f} ms, {sizes.spent_ms:.0f} ms of them before the vision tower. Raise it, or use smaller images."
    )
