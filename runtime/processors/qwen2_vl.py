"""Qwen2-VL: images and videos of any resolution, 2 x 2 patches merged into one visual token, M-RoPE positions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from foveate.engines import RequestError, VisionShape
from foveate.engines.format.processors.pixels import patch_values
from foveate.engines.format.processors.qwen2_vl import POSITION_AXES, Qwen2VLConstants, patch_positions
from foveate.runtime.encoding.glance import enlarge
from foveate.runtime.encoding.motion import motion
from foveate.runtime.frames import FrameDefaults
from foveate.runtime.picture import Picture
from foveate.runtime.processors.pixels import Normalisation, resize
from foveate.runtime.resolution import NO_LIMITS, Resized, Resolution
from foveate.runtime.types import Layout, Run, Visual, VisualKind

_MAX_ASPECT_RATIO = 200
_GLANCES: dict[VisualKind, Sequence[tuple[int, int]]] = {"image": ((512, 3), (150, 2)), "video": ((512, 3), (64, 2))}
"""From how many visual tokens on a third or a half of its sides shows enough of an image, or of one step of a video, for a
first look. A step of a video needs fewer: what one does not show, others may."""
_MOVES = 10
"""How many times its score what moves most in a video is worth: what it asks about often moves, comes or goes."""


class _Limits(NamedTuple):
    """Of one image or frame: fewest and most pixels, and most visual tokens."""

    min_pixels: int
    max_pixels: int
    max_tokens: int | None = None


class Qwen2VLProcessor:
    """See `Processor`."""

    frame_defaults = FrameDefaults("qwen-vl-utils", fps=2.0)
    glance_stays = False

    def __init__(self, constants: Qwen2VLConstants) -> None:
        self.constants = constants
        self.most_pixels = max(constants.max_pixels, constants.video_max_pixels)
        self._normalisation = Normalisation(constants)

    def image(self, image: Image.Image, alone: bool = True, resolution: Resolution = NO_LIMITS) -> Visual:
        """Resizes and normalises an RGB image and cuts it into patches, bit for bit as transformers' PIL processor does.

        Raises:
            RequestError: one side is more than 200 times the other, limits that contradict each other, or a model that does not
                resize and an image that visual tokens do not tile.
        """
        usual = _Limits(self.constants.min_pixels, self.constants.max_pixels)
        limits = self._limits(usual, resolution, resolution.max_visual_tokens)
        resized = self._resize(image, limits)
        return self._still(resized, self._note(image.size, resized.size, usual, 1, resolution))

    def video(self, frames: Iterable[Image.Image], seconds: Sequence[float], resolution: Resolution = NO_LIMITS) -> Visual:
        """Resizes and normalises frames as `image` does, within the limits of videos, and cuts them into patches that span
        `temporal_patch_size` frames; where the last are too few, the last one is repeated, as transformers does.

        Raises:
            RequestError: as for `image`, or fewer tokens are asked for than there are temporal patches.
        """
        span = self.constants.temporal_patch_size
        steps = math.ceil(len(seconds) / span)
        resolution.check_tokens(steps, f"a video of {len(seconds)} frames", "Lower max_frames.")
        usual = _Limits(self.constants.video_min_pixels, self.constants.video_max_pixels)
        most = resolution.max_visual_tokens
        limits = self._limits(usual, resolution, None if most is None else most // steps)
        resized, size = [], (0, 0)
        for frame in frames:
            resized.append(self._resize(frame, limits))
            size = frame.size
        return self._moving(resized, seconds, self._note(size, resized[-1].size, usual, steps, resolution))

    def _limits(self, usual: _Limits, resolution: Resolution, max_tokens: int | None) -> _Limits:
        """Those of the request, and the model's own where it names none."""
        most = resolution.max_pixels or usual.max_pixels
        fewest = resolution.min_pixels or usual.min_pixels
        if fewest > most or fewest > self.constants.most_pixels_at_least:
            raise RequestError(
                f"min_pixels is {fewest} and max_pixels {most}, expected the fewest to be at most that and at most "
                f"{self.constants.most_pixels_at_least}. Give both, or leave both out for the model's own."
            )
        return _Limits(fewest, most, max_tokens)

    def _resize(self, image: Image.Image, limits: _Limits) -> Image.Image:
        if self.constants.do_resize:
            height, width = self._fit(*image.size, limits)
            return resize(image, width, height, self.constants)
        side = self.constants.token_size
        if image.width % side or image.height % side:
            raise RequestError(
                f"image or frame is {image.width} x {image.height} pixels, and this model takes them as they are, of sides "
                f"that are multiples of {side}. Resize it."
            )
        tokens = image.width * image.height // side**2
        if tokens > (limits.max_tokens or tokens):
            raise RequestError(
                f"image or frame has {tokens} visual tokens, and this model takes them as they are, but max_visual_tokens "
                f"allows {limits.max_tokens}. Resize it, or raise max_visual_tokens.",
                options=("max_visual_tokens",),
            )
        return image

    def _fit(self, width: int, height: int, limits: _Limits) -> tuple[int, int]:
        """Height and width within the limits; those without `max_tokens`, where they have no more."""
        side = self.constants.token_size
        usual = smart_resize(height, width, self.constants, limits.min_pixels, limits.max_pixels)
        if limits.max_tokens is None or usual[0] * usual[1] <= limits.max_tokens * side**2:
            return usual
        most = min(limits.max_pixels, limits.max_tokens * side**2)
        height, width = smart_resize(height, width, self.constants, min(limits.min_pixels, most), most)
        # Sides are rounded up to whole tokens where an image grows and where it is thin: then there may be too many.
        rows, columns = height // side, width // side
        if rows * columns > limits.max_tokens:
            shrink = math.sqrt(rows * columns / limits.max_tokens)
            rows, columns = max(1, math.floor(rows / shrink)), max(1, math.floor(columns / shrink))
            rows, columns = min(rows, limits.max_tokens // columns or 1), min(columns, limits.max_tokens)
        return rows * side, columns * side

    def _note(
        self, size: tuple[int, int], seen: tuple[int, int], usual: _Limits, steps: int, resolution: Resolution
    ) -> Resized | None:
        """What the request's limits changed about an image or frame of that size."""
        named = resolution.named
        if not named or not self.constants.do_resize:
            return None
        height, width = self._fit(*size, usual)
        if (width, height) == seen:
            return None
        tokens, usual_tokens = (steps * w * h // self.constants.token_size**2 for w, h in (seen, (width, height)))
        return Resized(seen, (width, height), tokens, usual_tokens, named)

    def _tiles(self, resized: Image.Image) -> tuple[tuple[int, int], np.ndarray]:
        """Rows and columns of the visual tokens over a picture, and their numbers."""
        size = self.constants.token_size
        grid = (resized.height // size, resized.width // size)
        return grid, np.arange(grid[0] * grid[1])

    def _still(self, image: Image.Image, note: Resized | None = None) -> Visual:
        """An image of its final size, which fills every frame of a patch."""
        frames = [image] * self.constants.temporal_patch_size
        return self._visual(frames, [Picture(image, *self._tiles(image))], "image", note)

    def _moving(self, frames: Sequence[Image.Image], seconds: Sequence[float | None], note: Resized | None = None) -> Visual:
        """Frames of their final size."""
        span, (grid, tokens) = self.constants.temporal_patch_size, self._tiles(frames[0])
        pictures = [
            Picture(frame, grid, tokens + number // span * len(tokens), shown)
            for number, (frame, shown) in enumerate(zip(frames, seconds, strict=True))
        ]
        return self._visual([*frames, *[frames[-1]] * (-len(frames) % span)], pictures, "video", note)

    def _visual(
        self, frames: Sequence[Image.Image], pictures: Sequence[Picture], kind: VisualKind, resized: Resized | None
    ) -> Visual:
        """Whole temporal patches of frames that are resized already."""
        merge, span = self.constants.merge_size, self.constants.temporal_patch_size
        grid = pictures[0].grid
        rows, columns = grid[0] * merge, grid[1] * merge
        steps = [frames[start : start + span] for start in range(0, len(frames), span)]
        feeds = {
            "pixel_values": np.stack([self._patches(step, rows, columns) for step in steps]),
            "patch_positions": patch_positions(rows, columns, merge),
        }
        return Visual(feeds, ((len(steps), *grid),), tuple(pictures), kind, resized)

    def glance(self, visual: Visual) -> Visual | str:
        """See `Foveal.glance`: the image, or the frames of every other step, at a third or half of its sides."""
        rows, columns = visual.grids[0][1:]
        shrink = glance_shrink(rows * columns, visual.kind)
        if shrink is None:
            return "a smaller picture would show too little"
        side, span = self.constants.token_size, self.constants.temporal_patch_size
        width, height = (max(1, round(cells / shrink)) * side for cells in (columns, rows))
        seen = [picture for number, picture in enumerate(visual.pictures) if number // span % 2 == 0]
        small = [resize(picture.image, width, height, self.constants) for picture in seen]
        return self._still(small[0]) if visual.kind == "image" else self._moving(small, [picture.seconds for picture in seen])

    def cells(self, visual: Visual) -> list[np.ndarray]:
        """See `Tiled.cells`."""
        (steps, rows, columns), side = visual.grids[0], self.constants.token_size
        frames = [np.asarray(picture.image) for picture in visual.pictures]
        span = min(self.constants.temporal_patch_size, len(frames))  # an image fills every frame of a patch
        frames += [frames[-1]] * (-len(frames) % span)
        blocks = np.stack(frames).reshape(steps, span, rows, side, columns, side, 3)
        return [blocks.transpose(0, 2, 4, 1, 3, 5, 6).reshape(steps, rows, columns, -1)]

    def enlarge(self, scores: np.ndarray, small: Visual, whole: Visual) -> np.ndarray:
        """See `Foveal.enlarge`: a step between two that were glanced at has the geometric mean of theirs, and what moves is
        worth more."""
        (seen, _, _), (steps, rows, columns) = small.grids[0], whole.grids[0]
        found = enlarge(scores, small.grids, [(seen, rows, columns)])
        if whole.kind == "image":
            return found
        by_step, step = found.reshape(seen, -1), np.arange(steps)
        between = np.sqrt(by_step[step // 2] * by_step[np.minimum((step + 1) // 2, seen - 1)])
        return np.asarray(between.ravel() * (1 + (_MOVES - 1) * motion(whole.pictures)))

    def part(self, visual: Visual, tokens: np.ndarray) -> list[Run]:
        """See `Foveal.part`: a run for each step, as attention stays within one. Patches of a token lie side by side, and know
        their place by their positions."""
        values, positions = visual.feeds["pixel_values"], visual.feeds["patch_positions"]
        merged = self.constants.merge_size**2
        steps, cells = np.divmod(tokens, math.prod(visual.grids[0][1:]))
        runs = []
        for step in np.unique(steps):
            own = steps == step
            patches = (cells[own, None] * merged + np.arange(merged)).ravel()
            feeds = {"pixel_values": values[step : step + 1, patches], "patch_positions": positions[patches]}
            runs.append(Run(feeds, tokens[own]))
        return runs

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """See `Processor.vision_shape`."""
        if self.constants.do_resize:
            height, width = smart_resize(height, width, self.constants, self.constants.min_pixels, self.constants.max_pixels)
        token_size = self.constants.token_size
        return self.vision_shape_of_tokens((height // token_size) * (width // token_size))

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """See `Processor.vision_shape_of_tokens`."""
        return VisionShape(1, visual_tokens * self.constants.merge_size**2, visual_tokens)

    def _patches(self, frames: Sequence[Image.Image], rows: int, columns: int) -> np.ndarray:
        """One temporal patch of RGB frames to `[patches, 3 * frames * size * size]` float32, the patches of one token in a
        row."""
        size, merge = self.constants.patch_size, self.constants.merge_size
        patches = np.empty((rows * columns, 3, len(frames), size * size), np.float32)
        for number, frame in enumerate(frames):
            if number and frame is frames[number - 1]:
                patches[:, :, number] = patches[:, :, number - 1]
                continue
            blocks = np.asarray(frame).reshape(rows // merge, merge, size, columns // merge, merge, size, 3)
            blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5).reshape(rows * columns, 3, size * size)
            self._normalisation.into(patches[:, :, number], blocks, axis=1)
        return patches.reshape(rows * columns, patch_values(size, len(frames)))

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """See `Processor.layout`. Positions follow Qwen2-VL's M-RoPE (arXiv 2409.12191, section 2.1): text moves all axes
        on by one per token; an image or video spans its grid and moves them on by its longest side. (transformers 5.23 leaves
        time out of that, so it gives text after a video of more steps than rows and columns positions the video has too.)"""
        placeholders = np.flatnonzero(self._is_visual(input_ids))
        self._check_placeholders(input_ids[placeholders], visuals)
        counts, advances = np.ones((2, len(input_ids)), np.int64)
        counts[placeholders] = [visual.num_tokens for visual in visuals]
        advances[placeholders] = [max(visual.grids[0]) for visual in visuals]
        ends = np.cumsum(advances)
        expanded_ids = np.repeat(input_ids, counts)
        position_ids = np.tile(np.repeat(ends - advances, counts), (POSITION_AXES, 1))
        visual_indices = np.flatnonzero(self._is_visual(expanded_ids))
        if visuals:
            position_ids[:, visual_indices] += np.concatenate([np.indices(v.grids[0]).reshape(3, -1) for v in visuals], axis=1)
        return Layout(expanded_ids, position_ids, visual_indices, int(ends[-1]))

    def _is_visual(self, input_ids: np.ndarray) -> np.ndarray:
        return np.isin(input_ids, (self.constants.image_token_id, self.constants.video_token_id))

    def _check_placeholders(self, placeholder_ids: np.ndarray, visuals: Sequence[Visual]) -> None:
        kinds = ["video" if id == self.constants.video_token_id else "image" for id in placeholder_ids.tolist()]
        if kinds != [visual.kind for visual in visuals]:
            raise RequestError(
                f"the prompt has placeholders for {_count(kinds)}, the request {_count([v.kind for v in visuals])}, "
                "expected the same in the same order. Give one part for each image and video."
            )


def glance_shrink(visual_tokens: int, kind: VisualKind) -> int | None:
    """What the sides of an image, or of frames, are divided by for a first look; None where that shows too little.

    Args:
        visual_tokens: of an image, or of one step of a video.
        kind: which of the two.
    """
    return next((shrink for fewest, shrink in _GLANCES[kind] if visual_tokens >= fewest), None)


def _count(kinds: Sequence[str]) -> str:
    return f"{kinds.count('image')} images and {kinds.count('video')} videos"


def smart_resize(height: int, width: int, constants: Qwen2VLConstants, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width that whole visual tokens tile, within the pixel limits, near the original aspect ratio.

    Qwen2-VL's own rule, with its rounding (half to even).

    Raises:
        RequestError: one side is more than 200 times the other.
    """
    if max(height, width) > _MAX_ASPECT_RATIO * min(height, width):
        raise RequestError(
            f"image or frame is {width} x {height} pixels, expected an aspect ratio of at most {_MAX_ASPECT_RATIO}. Crop it."
        )
    factor = constants.token_size
    rows, columns = round(height / factor), round(width / factor)
    pixels = rows * columns * factor**2
    if pixels > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows = max(1, math.floor(height / shrink / factor))
        columns = max(1, math.floor(width / shrink / factor))
    elif pixels < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = math.ceil(height * grow / factor), math.ceil(width * grow / factor)
    return rows * factor, columns * factor
