"""The measured latencies go into the bundle, for budgets in milliseconds."""

from __future__ import annotations

from pathlib import Path

import msgspec

from foveate.engines import Bundle, write_manifest
from foveate.profile.results import Profile


def save_latency(bundle: Path, profile: Profile) -> None:
    """Stores the profile's latencies in the manifest, in place of older ones of the same environment.

    Raises:
        BundleError: the bundle can't be read.
    """
    manifest = Bundle.open(bundle, verify=False).manifest
    others = [entry for entry in manifest.latency if entry.environment != profile.latency.environment]
    write_manifest(bundle, msgspec.structs.replace(manifest, latency=(*others, profile.latency)))
