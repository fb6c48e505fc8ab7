"""Opens graphs: one of a bundle, or those of all its parts."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial

from foveate.engines.backends.options import BackendOptions, SessionOptions, options_class
from foveate.engines.backends.placement import PARTS, Placement, make_placement
from foveate.engines.backends.session import Session
from foveate.engines.errors import OptionError
from foveate.engines.format.bundle import Bundle
from foveate.engines.format.names import DECODER, DECODER_PREFILL, DECODER_STANDARD, EMBED, VISION, VISION_STANDARD
from foveate.engines.registry import find_backend
from foveate.engines.system.niceness import run_giving_way

_STANDARD = {VISION: VISION_STANDARD, DECODER: DECODER_STANDARD}
"""Part with two graphs -> the one that every backend can run."""


def open_sessions(bundle: Bundle, placement: Placement | None = None) -> dict[str, Session]:
    """Loads what answers a request.

    Args:
        bundle: an opened bundle.
        placement: what runs each part; None is ONNX Runtime on the CPU.

    Returns:
        A session for each of `PARTS`, and `decoder_prefill` where the decoder has a graph of its own for it.

    Raises:
        BackendError, BundleError, OptionError, MissingPackageError: what `open_session` raises; nothing stays open then.
    """
    placement = placement or make_placement()
    if missing := [part for part in PARTS if part not in placement]:
        raise OptionError(f"the placement has nothing for {', '.join(missing)}. Name a backend for each of {', '.join(PARTS)}.")
    sessions: dict[str, Session] = {}
    try:
        for name, graph in graphs_of(bundle, placement).items():
            backend, options, nice = placement[DECODER if name == DECODER_PREFILL else name]
            sessions[name] = run_giving_way(nice, partial(open_session, bundle, graph, backend, options))
        if not sessions[EMBED].memory.shares(sessions[DECODER].memory):
            raise OptionError("embed and decoder write the same arrays, and lie in different memories. Place both alike.")
    except BaseException:
        close_all(sessions.values())
        raise
    return sessions


def graphs_of(bundle: Bundle, placement: Placement) -> dict[str, str]:
    """Name of a session -> the graph that it runs."""
    graphs = {part: graph_of(part, placement[part].options) for part in PARTS}
    if graphs[DECODER] == DECODER and DECODER_PREFILL in bundle.manifest.graphs:
        graphs[DECODER_PREFILL] = DECODER_PREFILL
    return graphs


def graph_of(part: str, options: BackendOptions) -> str:
    """The graph that is a part of a bundle where it runs with these options."""
    return part if part in options.fused else _STANDARD.get(part, part)


def open_session(
    bundle: Bundle, graph: str, backend: str = "onnxruntime", options: SessionOptions | BackendOptions | None = None
) -> Session:
    """Loads one graph of a bundle with a backend.

    Args:
        bundle: an opened bundle.
        graph: of it.
        backend: its name.
        options: the backend's own, or those of any backend.

    Raises:
        BackendError: the backend can't load the graph.
        BundleError: the graph is not the one that the manifest describes.
        OptionError: there is no such backend, or it has no such option.
        MissingPackageError: its library is not installed.
    """
    record = find_backend(backend)
    own = options if isinstance(options, BackendOptions) else (options or SessionOptions()).of(backend)[backend]
    if not isinstance(own, options_class(backend)):
        raise OptionError(f"backend '{backend}' can't use {type(own).__name__}. Use {options_class(backend).__name__}.")
    with record.loaded(record.session) as open_it:
        session: Session = open_it(bundle, graph, own)
    return session


def close_all(sessions: Iterable[Session]) -> None:
    """Closes sessions, each whatever the others raise."""
    with ExitStack() as stack:
        for session in sessions:
            stack.callback(session.close)
