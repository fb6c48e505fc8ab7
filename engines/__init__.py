"""The bundle format, and the backends that run its graphs."""

from foveate.engines.backends.decoders.opening import DECODERS, open_decoder
from foveate.engines.backends.decoders.protocol import NAN_LOGITS, Decoder, KVCache, NextTokens
from foveate.engines.backends.environment import describe_environment
from foveate.engines.backends.feeds import check_buffers, check_feeds
from foveate.engines.backends.interrupt import Interrupt
from foveate.engines.backends.memory import Array, HostMemory, Memory
from foveate.engines.backends.opening import close_all, open_session, open_sessions
from foveate.engines.backends.options import SessionOptions
from foveate.engines.backends.placement import Place, Placement, make_placement
from foveate.engines.backends.session import Session
from foveate.engines.builds.latencies import Environment, LatencyEntry, LatencyPoint, read_latencies, save_latencies
from foveate.engines.builds.ranges import GraphProfile, Range, ShapeProfile, VisionShape
from foveate.engines.errors import (
    BackendError,
    BundleError,
    BusyError,
    CancelledError,
    DataError,
    DeadlineError,
    ExportError,
    FoveateError,
    LabelError,
    MachineError,
    MissingPackageError,
    OptionError,
    ParityError,
    RequestError,
    ScorerError,
)
from foveate.engines.format.bundle import Bundle, hash_file, list_files, write_manifest
from foveate.engines.format.folders import new_folder
from foveate.engines.format.manifest import (
    SCHEMA_VERSION,
    DecoderEntry,
    FileEntry,
    GenerationEntry,
    Manifest,
    PromptEntry,
    RetentionPoint,
    ScorerEntry,
    SourceEntry,
)
from foveate.engines.format.names import DECODER_PREFILL
from foveate.engines.format.neighbours import NEIGHBOURS, Grid, find_neighbours
from foveate.engines.format.spec import GraphSpec, TensorSpec
from foveate.engines.registry import BACKENDS
from foveate.engines.system.cpu import usable_cpus
from foveate.engines.system.files import replace_file
from foveate.engines.system.packages import install_remedy, missing_package, needed_package
from foveate.engines.system.resident import reset_peak, resident_bytes

__all__ = [
    "BACKENDS",
    "DECODERS",
    "DECODER_PREFILL",
    "NAN_LOGITS",
    "NEIGHBOURS",
    "SCHEMA_VERSION",
    "Array",
    "BackendError",
    "Bundle",
    "BundleError",
    "BusyError",
    "CancelledError",
    "DataError",
    "DeadlineError",
    "Decoder",
    "DecoderEntry",
    "Environment",
    "ExportError",
    "FileEntry",
    "FoveateError",
    "GenerationEntry",
    "GraphProfile",
    "GraphSpec",
    "Grid",
    "HostMemory",
    "Interrupt",
    "KVCache",
    "LabelError",
    "LatencyEntry",
    "LatencyPoint",
    "MachineError",
    "Manifest",
    "Memory",
    "MissingPackageError",
    "NextTokens",
    "OptionError",
    "ParityError",
    "Place",
    "Placement",
    "PromptEntry",
    "Range",
    "RequestError",
    "RetentionPoint",
    "ScorerEntry",
    "ScorerError",
    "Session",
    "SessionOptions",
    "ShapeProfile",
    "SourceEntry",
    "TensorSpec",
    "VisionShape",
    "check_buffers",
    "check_feeds",
    "close_all",
    "describe_environment",
    "find_neighbours",
    "hash_file",
    "install_remedy",
    "list_files",
    "make_placement",
    "missing_package",
    "needed_package",
    "new_folder",
    "open_decoder",
    "open_session",
    "open_sessions",
    "read_latencies",
    "replace_file",
    "reset_peak",
    "resident_bytes",
    "save_latencies",
    "usable_cpus",
    "write_manifest",
]
