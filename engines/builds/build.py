"""`build`: the graphs of a bundle become engines for a device, ahead of time where the backend can."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from foveate.engines.builds.ranges import ShapeProfile
from foveate.engines.builds.store import BuildFacts, EngineKey, EngineStore, Entry
from foveate.engines.errors import OptionError
from foveate.engines.format.bundle import Bundle
from foveate.engines.format.names import DECODER_PREFILL
from foveate.engines.format.precisions import BF16
from foveate.engines.format.spec import GraphSpec
from foveate.engines.registry import BACKENDS
from foveate.engines.system.resident import reset_peak, resident_bytes

BUILDERS = tuple(backend.name for backend in BACKENDS.values() if backend.builder)
"""Names of the backends that build engines."""

Progress = Callable[[str, str, int, int], None]
"""Told graph and target, the phase of its build, and how many of the phase's steps are done."""


@dataclass(frozen=True)
class BuildOptions:
    """What is built.

    Attributes:
        shapes: what requests the engines serve.
        backend: one of `BUILDERS`.
        precision: `fp32`, `fp16` or `bf16`.
        targets: devices as `sm89`; empty for the one at hand.
        profiles: `split` tunes an engine for prompts and for decode steps on their own; `single` has one profile for both,
            which saves memory where the backend keeps the weights once for each.
        strip_weights: leave the weights out of the engines; loading puts them in from the bundle. Needs a GPU to build.
        optimization_level: 0 (fast build) to 5; None leaves it to the backend.
    """

    shapes: ShapeProfile
    backend: str = "tensorrt-rtx"
    precision: str = BF16
    targets: tuple[str, ...] = ()
    profiles: str = "split"
    strip_weights: bool = False
    optimization_level: int | None = None


class Builder(Protocol):
    """A backend's way to build, made with the `BuildOptions`."""

    version: str
    graphs: tuple[str, ...]
    """Names of the graphs that the backend runs."""
    files: tuple[str, ...]
    """What is loaded beside `engine.bin`."""

    def targets(self) -> tuple[str, ...]:
        """The devices to build for.

        Raises:
            OptionError: a target that the backend can't build for, or none given and no device at hand.
        """
        ...

    def key_options(self, spec: GraphSpec) -> dict[str, Any]:
        """What of the options makes an engine of this graph another one, as JSON values.

        Raises:
            OptionError: the profile does not fit the graph.
        """
        ...

    def build(
        self, bundle: Bundle, spec: GraphSpec, target: str, folder: Path, progress: Callable[[str, int, int], None]
    ) -> dict[str, Any]:
        """Writes `engine.bin`, `build.log` and `files` into the folder and returns what the record is to keep, as JSON values.

        Raises:
            BackendError: the backend refuses the graph.
            KeyboardInterrupt: the build was interrupted.
        """
        ...


class Built(NamedTuple):
    """An engine of a build, and whether it was built now rather than found."""

    entry: Entry
    fresh: bool


def build(bundle: Bundle, options: BuildOptions, store: EngineStore, progress: Progress | None = None) -> list[Built]:
    """Builds the engines of a bundle that are not there yet.

    Args:
        bundle: an opened bundle.
        options: what is built.
        store: where the engines go, normally the bundle's folder `engines`.
        progress: told each step; may raise KeyboardInterrupt.

    Returns:
        An engine for each target and graph.

    Raises:
        BackendError: the backend refuses a graph.
        OptionError: it can't build for a target, or a profile contradicts itself.
        MissingPackageError: its library is not installed.
        MachineError: the store can't be written. What was built before stays.
    """
    builder = open_builder(options)
    keys = [
        engine_key(bundle, builder.key_options(bundle.graph(graph)), graph, options.backend, builder.version, target)
        for target in builder.targets()
        for graph in builder.graphs
        if graph != DECODER_PREFILL or graph in bundle.manifest.graphs  # only a decoder in int4 has it
    ]
    digests = frozenset(key.digest() for key in keys)
    return [_build_one(bundle, builder, key, store, digests, progress or (lambda *_: None)) for key in keys]


def open_builder(options: BuildOptions) -> Builder:
    """The builder of a backend.

    Raises:
        OptionError: no backend of this name builds engines, or it has no such option.
        MissingPackageError: its library is not installed.
    """
    record = BACKENDS.get(options.backend)
    if record is None or record.builder is None:
        builders = ", ".join(BUILDERS)
        raise OptionError(f"backend '{options.backend}' builds no engines. Choose one of {builders}.", options=("backend",))
    with record.loaded(record.builder) as made:
        builder: Builder = made(options)
    return builder


def engine_key(bundle: Bundle, options: dict[str, Any], graph: str, backend: str, version: str, target: str) -> EngineKey:
    """The key of a graph's engine; of `options` those that count."""
    files = bundle.manifest.files
    return EngineKey(
        graph=graph,
        graph_sha256=files[bundle.graph(graph).file].sha256,
        weights_sha256=_hash_weights(bundle),
        backend=backend,
        backend_version=version,
        target=target,
        options=options,
    )


def _hash_weights(bundle: Bundle) -> str:
    """Of the files that the graphs take their weights from: whatever lies beside them."""
    graphs = {graph.file for graph in bundle.manifest.graphs.values()}
    folders = {file.rpartition("/")[0] for file in graphs}
    hashes = [
        entry.sha256
        for name, entry in sorted(bundle.manifest.files.items())
        if name.rpartition("/")[0] in folders and name not in graphs
    ]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _build_one(
    bundle: Bundle, builder: Builder, key: EngineKey, store: EngineStore, digests: frozenset[str], progress: Progress
) -> Built:
    fresh = False
    title = f"{key.graph} for {key.target.upper()}"

    def write(folder: Path) -> BuildFacts:
        nonlocal fresh
        fresh = True
        reset_peak()
        start = time.perf_counter()
        details = builder.build(bundle, bundle.graph(key.graph), key.target, folder, partial(progress, title))
        return BuildFacts(time.perf_counter() - start, resident_bytes().peak or 0, details, builder.files)

    return Built(store.put(key, write, protect=digests), fresh)
