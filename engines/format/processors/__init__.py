"""Constants of processors: what a family's pixels, placeholders and positions depend on, in a manifest as `processor`.

Each family is one module: the struct of its constants with their limits, and the facts that exporter and runtime share.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import msgspec

from foveate.engines.errors import BundleError, reason_of
from foveate.engines.format.processors.pixels import PixelConstants

CONSTANTS = {
    "llava": "foveate.engines.format.processors.llava:LlavaConstants",
    "llava_llama": "foveate.engines.format.processors.llava_llama:LlavaLlamaConstants",
    "llava_onevision": "foveate.engines.format.processors.llava_onevision:LlavaOnevisionConstants",
    "qwen2_vl": "foveate.engines.format.processors.qwen2_vl:Qwen2VLConstants",
}
"""Name of a family -> `module:struct`."""


def constants_type(family: str) -> type[PixelConstants]:
    """The struct of a family's constants.

    Raises:
        BundleError: this foveate does not know the family.
    """
    if family not in CONSTANTS:
        raise BundleError(f"the bundle is of family '{family}', this foveate runs {', '.join(CONSTANTS)}. Update foveate.")
    module, _, name = CONSTANTS[family].partition(":")
    kind: type[PixelConstants] = getattr(import_module(module), name)
    return kind


def read_constants(family: str, constants: Mapping[str, Any]) -> PixelConstants:
    """`manifest.processor` as the constants of a family.

    Raises:
        BundleError: this foveate does not know the family; or a key is missing, unknown or has an unusable value.
    """
    kind = constants_type(family)
    try:
        return msgspec.convert(dict(constants), kind)
    except msgspec.ValidationError as error:
        raise BundleError(
            f"the manifest's processor constants are not {kind.title}'s: {reason_of(error)}. Export the bundle again."
        ) from error
