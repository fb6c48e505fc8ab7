"""A bundle on disk: opened and verified, or written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from foveate.engines.errors import BundleError
from foveate.engines.format.contract import check_contract
from foveate.engines.format.manifest import FileEntry, Manifest, decode_manifest, encode_manifest
from foveate.engines.format.precisions import FP32
from foveate.engines.format.spec import GraphSpec
from foveate.engines.system.files import replace_file
from foveate.engines.system.links import is_cached, plain_files
from foveate.engines.system.steady import steadily

MANIFEST = "manifest.json"
_MAX_MANIFEST_BYTES = 64 * 1024 * 1024
_FILE_NAME = re.compile(r"[\w.-]+(/[\w.-]+)*", re.ASCII)


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and manifest."""

    path: Path
    manifest: Manifest

    @property
    def sha256(self) -> str:
        """Of the manifest, and so of everything that it lists: the bundle's identity, whatever lies in `engines`."""
        return hashlib.sha256(encode_manifest(self.manifest)).hexdigest()

    @classmethod
    @steadily
    def open(cls, path: str | os.PathLike[str], verify: bool = True) -> Bundle:
        """Opens a bundle; with `verify` every listed file is hashed and compared.

        Raises:
            BundleError: no bundle there, a manifest that is broken or contradicts itself, a path that leaves the folder, a
                file beside the graphs that is not listed, or one that is missing or changed.
        """
        folder = Path(path)
        manifest_file = folder / MANIFEST
        if not manifest_file.is_file():
            raise BundleError(
                f"{folder} is not a bundle: it has no {MANIFEST}. Make one with 'foveate export CHECKPOINT -o x.bundle'."
            )
        if manifest_file.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{manifest_file} is over {_MAX_MANIFEST_BYTES} bytes, no manifest is. Export the bundle again.")
        bundle = cls(folder, decode_manifest(manifest_file.read_bytes(), str(manifest_file)))
        for name in [*bundle.manifest.files, *(graph.file for graph in bundle.manifest.graphs.values())]:
            bundle.file(name)
        check_contract(bundle.manifest, str(manifest_file))
        bundle._check_listed()
        if verify:
            bundle.verify()
        return bundle

    def file(self, name: str) -> Path:
        """The path of a file of the bundle. Names are relative, of ASCII letters, digits, `_`, `.`, `-` and `/`.

        Raises:
            BundleError: the name is none of these, climbs out of the folder (also through a link), or is not in the
                manifest.
        """
        if not _is_inside(name, self.path):
            raise BundleError(
                f"{self.path / MANIFEST} names {name!r}, which leaves the bundle. Do not use a bundle from this source."
            )
        if name not in self.manifest.files:
            raise BundleError(
                f"{self.path / MANIFEST} uses '{name}' but does not list it under 'files'. Export the bundle again."
            )
        return self.path / name

    @contextmanager
    def plain_file(self, name: str) -> Iterator[Path]:
        """The path of a file for libraries that want no links, in it or beside it; see `foveate.engines.system.links`."""
        folder = name.rpartition("/")[0]
        beside = [listed for listed in self.manifest.files if listed == name or listed.startswith(f"{folder}/")]
        self.file(name)
        with plain_files(self.path, beside) as plain:
            yield plain / name

    def graph(self, name: str) -> GraphSpec:
        """The spec of a graph.

        Raises:
            BundleError: the bundle has no such graph.
        """
        if name not in self.manifest.graphs:
            quantised = any(graph.precision != FP32 for graph in self.manifest.graphs.values())
            fact = f"It is {self.manifest.precision}, for ONNX Runtime's CPU"
            remedy = f"{fact}: export in {FP32}" if quantised else "Export it again"
            raise BundleError(f"{self.path} has no graph '{name}', it has {', '.join(self.manifest.graphs)}. {remedy}.")
        return self.manifest.graphs[name]

    def verify(self) -> None:
        """Compares every listed file with its size and hash.

        Raises:
            BundleError: a file is missing or differs.
        """
        for name, entry in self.manifest.files.items():
            path = self.file(name)
            if not os.path.isfile(path):  # unlike Path.is_file it takes a name that is too long as missing
                raise BundleError(f"{path} is missing from the bundle. Export the bundle again or copy it whole.")
            size = path.stat().st_size
            if size != entry.size_bytes:
                raise BundleError(
                    f"{path} has {size} bytes, the manifest says {entry.size_bytes}. Export the bundle again or copy it whole."
                )
            if hash_file(path) != entry.sha256:
                raise BundleError(
                    f"{path} was changed: its sha256 differs from the manifest's. Export the bundle again or copy it whole."
                )

    def _check_listed(self) -> None:
        """A graph takes weights from any file of its folder: one that is not listed would be taken as it is."""
        for folder in {graph.file.rpartition("/")[0] for graph in self.manifest.graphs.values()}:
            if not folder:
                raise BundleError(f"{self.path / MANIFEST} has a graph in no folder of its own. Export the bundle again.")
            for path in (self.path / folder).rglob("*"):
                name = path.relative_to(self.path).as_posix()
                if name not in self.manifest.files and not path.name.startswith(".") and not _is_plain_folder(path):
                    raise BundleError(
                        f"{path} lies beside the graphs, but the manifest does not list it under 'files'. "
                        "Delete it, or export the bundle again."
                    )


def _is_inside(name: str, folder: Path) -> bool:
    if not _FILE_NAME.fullmatch(name) or not {".", ".."}.isdisjoint(name.split("/")):
        return False
    try:
        target = (folder / name).resolve()
        return target.is_relative_to(folder.resolve()) or is_cached(target, folder.resolve())
    except (OSError, RuntimeError):  # a link to itself, before Python 3.13
        return False


def _is_plain_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def hash_file(path: Path) -> str:
    """sha256 of a file, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def list_files(folder: Path) -> dict[str, FileEntry]:
    """Every file below a folder but the manifest, with size and hash, by its relative path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    return {path.relative_to(folder).as_posix(): FileEntry(hash_file(path), path.stat().st_size) for path in paths}


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` in place of an older one, atomically."""
    replace_file(folder / MANIFEST, encode_manifest(manifest))
