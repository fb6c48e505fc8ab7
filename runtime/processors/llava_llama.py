"""VILA1.5: each image and each frame of a video is resized to one square and becomes as many visual tokens as any other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from foveate.engines import RequestError, VisionShape
from foveate.engines.format.processors.llava_llama import LlavaLlamaConstants, merged_patches
from foveate.engines.format.processors.pixels import whole_pictures
from foveate.runtime.frames import FrameDefaults
from foveate.runtime.picture import Picture
from foveate.runtime.processors.pixels import Normalisation, cut, to_square
from foveate.runtime.resolution import NO_LIMITS, Resolution
from foveate.runtime.types import Layout, Run, Visual, VisualKind


class LlavaLlamaProcessor:
    """See `Processor`."""

    def __init__(self, constants: LlavaLlamaConstants) -> None:
        self.constants = constants
        self.frame_defaults = FrameDefaults("uniform", max_frames=constants.num_video_frames)
        self.most_pixels = None
        self._normalisation = Normalisation(constants)

    def image(self, image: Image.Image, alone: bool = True, resolution: Resolution = NO_LIMITS) -> Visual:
        """Resizes and normalises an RGB image, bit for bit as transformers' PIL processor of SigLIP does.

        Raises:
            RequestError: the model does not resize, and the image has another size than it takes; fewer tokens are asked for
                than an image has, or limits in pixels.
        """
        resolution.refuse_pixels(self.constants.title)
        resolution.check_tokens(self.constants.frame_tokens, "an image")
        return self._visual([image], [None], "image")

    def video(self, frames: Iterable[Image.Image], seconds: Sequence[float], resolution: Resolution = NO_LIMITS) -> Visual:
        """See `Processor.video`: each frame is an image; the times are not told to the model."""
        tokens = self.constants.frame_tokens * len(seconds)
        resolution.refuse_pixels(self.constants.title)
        resolution.check_tokens(tokens, f"a video of {len(seconds)} frames", "Lower max_frames.")
        return self._visual(frames, seconds, "video")

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """See `Processor.vision_shape`: every image takes the same."""
        return self.vision_shape_of_tokens(self.constants.frame_tokens)

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """See `Processor.vision_shape_of_tokens`: as many whole frames as the tokens need, or a part of one, in which a token
        has at least a patch."""
        whole = self.constants.frame_tokens
        patches = self.constants.patches if visual_tokens >= whole else min(self.constants.patches, visual_tokens)
        return VisionShape(math.ceil(visual_tokens / whole), patches, visual_tokens)

    def part(self, visual: Visual, tokens: np.ndarray) -> list[Run]:
        """See `Tiled.part`: a run for each frame, over the patches that its tokens are made of."""
        constants, frames = self.constants, tokens // self.constants.frame_tokens
        made_of = merged_patches(1, constants.grid_size, constants.merge_size)[tokens % constants.frame_tokens]
        runs = []
        for frame in np.unique(frames).tolist():
            patches = made_of[frames == frame]
            there = np.unique(patches[patches < constants.patches])
            feeds = {
                "pixel_values": visual.feeds["pixel_values"][frame : frame + 1, there],
                "patch_indices": there[None],
                "gather_indices": np.searchsorted(there, patches),
            }
            runs.append(Run(feeds, tokens[frames == frame]))
        return runs

    def cells(self, visual: Visual) -> list[np.ndarray]:
        """See `Tiled.cells`."""
        side = self.constants.merge_size * self.constants.patch_size
        return [cut([picture.image for picture in visual.pictures], side).swapaxes(1, 2)]  # tokens go column by column

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """See `Processor.layout`. A video is as many images with a separator between them; positions count every token."""
        placeholder = self.constants.image_token_id
        places = np.flatnonzero(input_ids == placeholder)
        if len(places) != len(visuals):
            raise RequestError(
                f"the prompt has {len(places)} placeholders, there are {len(visuals)} images and videos. Give a part for each."
            )
        pieces = np.split(input_ids, np.stack([places, places + 1], axis=1).ravel())
        pieces[1::2] = [self._expanded(visual) for visual in visuals]  # every other piece is a placeholder
        expanded_ids = np.concatenate(pieces)
        visual_indices = np.flatnonzero(expanded_ids == placeholder)
        return Layout(expanded_ids, np.arange(len(expanded_ids))[None], visual_indices, len(expanded_ids))

    def _expanded(self, visual: Visual) -> np.ndarray:
        """`[tokens]` int64: what a placeholder becomes."""
        frame = np.full(self.constants.frame_tokens, self.constants.image_token_id, np.int64)
        separator = np.array(self.constants.frame_separator_ids, np.int64)
        frames = visual.num_tokens // self.constants.frame_tokens
        return np.concatenate([frame, *[separator, frame] * (frames - 1)])

    def _visual(self, frames: Iterable[Image.Image], seconds: Sequence[float | None], kind: VisualKind) -> Visual:
        resized = [to_square(frame, self.constants.image_size, self.constants) for frame in frames]
        # The model's tokens go column by column, so what grids call a row is a column of the picture.
        grid = (self.constants.token_side, self.constants.token_side)
        tokens = np.arange(len(resized) * self.constants.frame_tokens).reshape(len(resized), *grid).transpose(0, 2, 1)
        shown = zip(resized, tokens, seconds, strict=True)
        pictures = tuple(Picture(self._seen(image), grid, own.flatten(), second) for image, own, second in shown)
        pixels = np.stack([np.asarray(image) for image in resized])
        patches = self._normalisation.square_patches(pixels, self.constants.grid_size, self.constants.patch_size)
        feeds = {
            "pixel_values": patches,
            "patch_indices": whole_pictures(*patches.shape[:2]),
            "gather_indices": merged_patches(len(patches), self.constants.grid_size, self.constants.merge_size),
        }
        return Visual(feeds, ((len(resized), *grid),), pictures, kind)

    def _seen(self, image: Image.Image) -> Image.Image:
        """What the visual tokens tile: an odd grid's last row and column of tokens reach past the patches, into black."""
        patch = self.constants.patch_size
        seen = self.constants.grid_size * patch
        side = self.constants.token_side * self.constants.merge_size * patch
        return image.crop((0, 0, seen, seen)).crop((0, 0, side, side))
