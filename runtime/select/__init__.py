"""Which visual tokens stay: selectors, each a value with one interface, found by name in `SELECTORS`."""

from __future__ import annotations

from importlib import import_module

from foveate.engines import RequestError
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


__all__ = [
    "SELECTORS",
    "Custom",
    "Policy",
    "Relevance",
    "Selection",
    "Selector",
    "keep_everything",
    "open_selector",
    "select",
    "top_k",
]
