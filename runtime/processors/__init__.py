"""What a model family needs of images, placeholders and positions. Each family is one module, loaded when asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from PIL import Image

from foveate.engines import BundleError, VisionShape
from foveate.runtime.types import Layout, Visual

PROCESSORS = {"qwen2_vl": "foveate.runtime.processors.qwen2_vl:Qwen2VLProcessor"}
"""Name of a family -> `module:class`; the class is called with the manifest's `processor` constants."""


class Processor(Protocol):
    """The runtime's side of a model family."""

    def image(self, image: Image.Image) -> Visual:
        """Patches of an RGB image.

        Raises:
            RequestError: the family can't take an image of this shape.
        """
        ...

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """What `image` makes of an image of that many pixels, without making it.

        Raises:
            RequestError: the family can't take an image of this shape.
        """
        ...

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """What one image of that many visual tokens takes; `visual_tokens` is at least 1."""
        ...

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """Expands the one placeholder of each image and gives every token its position.

        Args:
            input_ids: `[tokens]` int64, as the prompt was encoded.
            visuals: the images, in the order of their placeholders.

        Raises:
            RequestError: the prompt has more or fewer placeholders than there are images.
        """
        ...


def open_processor(family: str, constants: Mapping[str, Any]) -> Processor:
    """The processor of a family.

    Raises:
        BundleError: this foveate does not know the family, or its constants are not the expected ones.
    """
    if family not in PROCESSORS:
        raise BundleError(f"the bundle is of family '{family}', this foveate runs {', '.join(PROCESSORS)}. Update foveate.")
    module, _, name = PROCESSORS[family].partition(":")
    processor: Processor = getattr(import_module(module), name)(constants)
    return processor
