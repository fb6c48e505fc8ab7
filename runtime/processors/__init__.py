"""What a model family needs of images, videos, placeholders and positions. Each family is one module, loaded when asked for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import Protocol, runtime_checkable

import numpy as np
from PIL import Image

from foveate.engines import VisionShape
from foveate.engines.format.processors.pixels import PixelConstants
from foveate.runtime.frames import FrameDefaults
from foveate.runtime.resolution import NO_LIMITS, Resolution
from foveate.runtime.types import Layout, Run, Visual

PROCESSORS = {
    "llava": "foveate.runtime.processors.llava:LlavaProcessor",
    "llava_llama": "foveate.runtime.processors.llava_llama:LlavaLlamaProcessor",
    "llava_onevision": "foveate.runtime.processors.llava_onevision:LlavaOnevisionProcessor",
    "qwen2_vl": "foveate.runtime.processors.qwen2_vl:Qwen2VLProcessor",
}
"""Name of a family -> `module:class`; the class is called with the family's constants."""


class Processor(Protocol):
    """The runtime's side of a model family.

    What it allocates is bounded by the image it is given and by what the model sees of it.

    Attributes:
        frame_defaults: which frames of a video file the family's authors look at.
        most_pixels: what images and frames are shrunk to where a request says nothing; None where it can't say anything.
    """

    frame_defaults: FrameDefaults
    most_pixels: int | None

    def image(self, image: Image.Image, alone: bool = True, resolution: Resolution = NO_LIMITS) -> Visual:
        """Patches of an RGB image.

        Args:
            image: RGB.
            alone: whether it is the only image of its prompt; for families that look closer then.
            resolution: limits that the request sets in place of the model's own; `Visual.resized` says what they changed.

        Raises:
            RequestError: the family can't take an image of this shape, or has no such limits.
        """
        ...

    def video(self, frames: Iterable[Image.Image], seconds: Sequence[float], resolution: Resolution = NO_LIMITS) -> Visual:
        """Patches of the frames of one video, as a `Visual` of kind "video" with a picture for each frame.

        Args:
            frames: at least one, RGB, all of one size, in the order of their times. Each is let go before the next is taken.
            seconds: when each is shown, counted from the start of the video; for `Picture.seconds`, and for
                families that tell the model so.
            resolution: as for `image`.

        Raises:
            RequestError: the family can't take frames of this shape, has no such limits, or takes no videos.
        """
        ...

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """What `image` makes of an image of that many pixels that is alone, without making it.

        Raises:
            RequestError: the family can't take an image of this shape.
        """
        ...

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """What one image of that many visual tokens takes; `visual_tokens` is at least 1."""
        ...

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """Expands the one placeholder of each image and video and gives every token its position.

        Args:
            input_ids: `[tokens]` int64, as the prompt was encoded.
            visuals: the images and videos (`Visual.kind`), in the order of their placeholders.

        Raises:
            RequestError: the prompt has other placeholders than there are images and videos.
        """
        ...


@runtime_checkable
class Foveal(Protocol):
    """A processor whose vision graph takes some of the visual tokens of an image or a video, for `Request.encode`.

    Attributes:
        glance_stays: whether a glance's visual tokens are the first ones of the whole, so that no part computes them again.
    """

    glance_stays: bool

    def glance(self, visual: Visual) -> Visual | str:
        """The same image as a small picture, or some steps of the same video; or why there is none."""
        ...

    def enlarge(self, scores: np.ndarray, small: Visual, whole: Visual) -> np.ndarray:
        """Scores `[glance_tokens]` of the visual tokens of `glance`, read at the places of the whole's, `[visual_tokens]`
        float32. Those of what moves in a video may be raised."""
        ...

    def part(self, visual: Visual, tokens: np.ndarray) -> Sequence[Run]:
        """The runs that give some of the visual tokens alone, each at its place.

        Args:
            visual: an image or a video.
            tokens: int64, ascending, their numbers in it; at least one.
        """
        ...


@runtime_checkable
class Tiled(Protocol):
    """A processor whose visual tokens are tiles of pixels, of which the vision graph takes some, for `Request.redundancy`."""

    def cells(self, visual: Visual) -> Sequence[np.ndarray]:
        """The pixels of each visual token as the model sees them, one array for each of `Visual.grids`: `[steps, rows, columns,
        values]` uint8, with all frames of a step."""
        ...

    def part(self, visual: Visual, tokens: np.ndarray) -> Sequence[Run]:
        """See `Foveal.part`."""
        ...


def open_processor(family: str, constants: PixelConstants) -> Processor:
    """The processor of a family, with its constants (`read_constants`)."""
    module, _, name = PROCESSORS[family].partition(":")
    processor: Processor = getattr(import_module(module), name)(constants)
    return processor
