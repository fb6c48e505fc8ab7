"""Keeps other libraries from talking to the user: what they warn and report is about their own inside."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Drops Python warnings and log records up to `WARNING` inside the block."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """The same, and no progress bars of transformers."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with quiet():
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
