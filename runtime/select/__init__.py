"""Which visual tokens stay: selectors, each a value with one interface, found by name in `SELECTORS`."""

from __future__ import annotations

from importlib import import_module

from foveate.engines import RequestError, ScorerEntry
from foveate.runtime.select.base import (
    Custom,
    Policy,
    Relevance,
    Selection,
    Selector,
    keep_everything,
    select,
    top_k,
)
from foveate.runtime.select.scores import Learned

SELECTORS = {
    "foveated": "foveate.runtime.select.scores:Foveated",
    "learned": "foveate.runtime.select.scores:Learned",
    "attention": "foveate.runtime.select.scores:Attention",
    "random": "foveate.runtime.select.spatial:Random",
    "pooling": "foveate.runtime.select.spatial:Pooling",
    "divprune": "foveate.runtime.select.diversity:DivPrune",
    "cdpruner": "foveate.runtime.select.diversity:CDPruner",
    "cdpruner-frames": "foveate.runtime.select.diversity:CDPrunerFrames",
    "cdpruner-openvino": "foveate.runtime.select.diversity:CDPrunerOpenVINO",
    "cdpruner-openvino-frames": "foveate.runtime.select.diversity:CDPrunerOpenVINOFrames",
    "dart": "foveate.runtime.select.diversity:DART",
    "evs": "foveate.runtime.select.video:EVS",
    "learned-mmr": "foveate.runtime.select.combined:LearnedMMR",
    "learned-dpp": "foveate.runtime.select.combined:LearnedDPP",
}
"""Name of a selector -> `module:class`, made without arguments. The oracle needs labels, so it has no name here."""


def open_selector(name: str) -> Selector:
    """The selector of a name, with its defaults.

    Raises:
        RequestError: there is no such selector.
    """
    if name not in SELECTORS:
        raise RequestError(f"there is no selector '{name}'. Choose one of {', '.join(SELECTORS)}.", options=("select",))
    module, _, cls = SELECTORS[name].partition(":")
    selector: Selector = getattr(import_module(module), cls)()
    return selector


def default_selector(scorer: ScorerEntry) -> Selector:
    """What chooses where a request names nothing: the bundle says which, and its retention curve was measured with it."""
    return open_selector(scorer.default_selector)


def resolve_selector(chosen: Selector | Policy | str | None, scorer: ScorerEntry) -> Selector:
    """The selector that a request's `select` means.

    Args:
        chosen: a selector, its name or a function; None is the default.
        scorer: of the bundle.

    Raises:
        RequestError: there is no such selector, or it needs a trained scorer, which the bundle has not.
    """
    if chosen is None:
        return default_selector(scorer)
    selector = open_selector(chosen) if isinstance(chosen, str) else chosen
    if not isinstance(selector, Selector):
        selector = Custom(selector)
    if isinstance(selector, Learned) and scorer.kind == "attention":
        raise RequestError(
            f"selector '{selector.name}' needs a trained scorer, which this bundle has not. "
            "Export it with one ('foveate export CHECKPOINT --scorer FILE'), or use select='attention'.",
            options=("select",),
        )
    return selector


__all__ = [
    "SELECTORS",
    "Custom",
    "Policy",
    "Relevance",
    "Selection",
    "Selector",
    "default_selector",
    "keep_everything",
    "open_selector",
    "resolve_selector",
    "select",
    "top_k",
]
