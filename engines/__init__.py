"""The bundle format, and the backends that run its graphs."""

from foveate.engines.backends import BACKENDS, SessionOptions, open_session
from foveate.engines.bundle import Bundle, hash_file, list_files, new_folder, write_manifest
from foveate.engines.errors import (
    BackendError,
    BundleError,
    ExportError,
    FoveateError,
    LabelError,
    ParityError,
    RequestError,
    ScorerError,
)
from foveate.engines.files import replace_file
from foveate.engines.manifest import (
    SCHEMA_VERSION,
    DecoderEntry,
    FileEntry,
    Manifest,
    PromptEntry,
    RetentionPoint,
    ScorerEntry,
    SourceEntry,
)
from foveate.engines.neighbours import NEIGHBOURS, Grid, find_neighbours
from foveate.engines.session import FakeSession, Session
from foveate.engines.spec import GraphSpec, TensorSpec, check_buffers, check_feeds

__all__ = [
    "BACKENDS",
    "NEIGHBOURS",
    "SCHEMA_VERSION",
    "BackendError",
    "Bundle",
    "BundleError",
    "DecoderEntry",
    "ExportError",
    "FakeSession",
    "FileEntry",
    "FoveateError",
    "GraphSpec",
    "Grid",
    "LabelError",
    "Manifest",
    "ParityError",
    "PromptEntry",
    "RequestError",
    "RetentionPoint",
    "ScorerEntry",
    "ScorerError",
    "Session",
    "SessionOptions",
    "SourceEntry",
    "TensorSpec",
    "check_buffers",
    "check_feeds",
    "find_neighbours",
    "hash_file",
    "list_files",
    "new_folder",
    "open_session",
    "replace_file",
    "write_manifest",
]
