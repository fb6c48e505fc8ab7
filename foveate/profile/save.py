"""The measured latencies go beside the engines of the bundle, for budgets in milliseconds."""

from __future__ import annotations

from pathlib import Path

from foveate.engines import Bundle, save_latencies
from foveate.engines.builds.store import ENGINES
from foveate.profile.results import Profile


def save_latency(bundle: Path, profile: Profile, engines: Path | None = None) -> Path:
    """Stores the profile's latencies, in place of older ones of the same bundle and environment.

    Args:
        bundle: its folder; no file of it changes.
        profile: what was measured.
        engines: folder of the engines that ran; None is the bundle's own.

    Returns:
        The file.

    Raises:
        BundleError: the bundle can't be read.
        MachineError: the folder of the engines can't be written.
    """
    return save_latencies(engines or bundle / ENGINES, Bundle.open(bundle, verify=False).sha256, profile.latency)
