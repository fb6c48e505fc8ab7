"""LLaVA-OneVision: an image alone as a thumbnail and crops of high resolution, several images and videos as one crop each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from foveate.engines import Grid, RequestError, VisionShape
from foveate.engines.format.processors.llava_onevision import LlavaOnevisionConstants, newline_number
from foveate.engines.format.processors.pixels import mean_colour, whole_pictures
from foveate.runtime.encoding.glance import enlarge
from foveate.runtime.frames import FrameDefaults
from foveate.runtime.picture import Picture
from foveate.runtime.processors.interpolate import bilinear, single
from foveate.runtime.processors.pixels import Normalisation, resize, to_square
from foveate.runtime.processors.placeholders import expand_placeholders
from foveate.runtime.processors.square import resize_in_square
from foveate.runtime.resolution import NO_LIMITS, Resized, Resolution
from foveate.runtime.types import Layout, Run, Visual, VisualKind

_SHRINK_ABOVE = 1.1
_NEWLINE_GRID = (1, 1, 1)
_Taps = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class AnyRes:
    """How an image is cut, and which of its features stay.

    Attributes:
        canvas: height and width in pixels of what the crops tile.
        crops: rows and columns of crops.
        unpadded: rows and columns of features that are not padding.
        grid: the same after shrinking.
    """

    canvas: tuple[int, int]
    crops: tuple[int, int]
    unpadded: tuple[int, int]
    grid: tuple[int, int]


class LlavaOnevisionProcessor:
    """See `Processor`. The vision graph gets weighted sums of features to make, so packing is all here."""

    frame_defaults = FrameDefaults("uniform")
    most_pixels = None
    glance_stays = True

    def __init__(self, constants: LlavaOnevisionConstants) -> None:
        self.constants = constants
        self.grid_size, self.patches = constants.grid_size, constants.patches
        self.pooled_size = math.ceil(self.grid_size / 2)
        self._normalisation = Normalisation(constants)

    def image(self, image: Image.Image, alone: bool = True, resolution: Resolution = NO_LIMITS) -> Visual:
        """Crops an RGB image, bit for bit as transformers' PIL processor does.

        Args:
            image: RGB.
            alone: whether it is the only image of its prompt; only then it is seen in high resolution.
            resolution: its `max_visual_tokens` takes a smaller canvas, as transformers' processor with fewer
                `image_grid_pinpoints`, and where none is small enough, one crop, as of several images.

        Raises:
            RequestError: fewer tokens are asked for than one crop has, or limits in pixels; the model does not resize, and one
                of several images is not of its size.
        """
        resolution.refuse_pixels(self.constants.title)
        resolution.check_tokens(self.patches + 1, "an image")
        if not alone:
            return self._padded(image)
        usual = self.anyres(*image.size)
        plan = self._affordable(image, resolution.max_visual_tokens)
        visual = self._padded(image) if plan is None else self._high_resolution(image, plan)
        if plan == usual:
            return visual
        sides = (self.constants.image_size,) * 2 if plan is None else plan.canvas
        resized = Resized(sides[::-1], usual.canvas[::-1], visual.num_tokens, self._num_tokens(usual), ("max_visual_tokens",))
        return replace(visual, resized=resized)

    def video(self, frames: Iterable[Image.Image], seconds: Sequence[float], resolution: Resolution = NO_LIMITS) -> Visual:
        """See `Processor.video`: each frame is one crop whose features are pooled; the times are not told to the model."""
        size, count = self.pooled_size, len(seconds)
        resolution.refuse_pixels(self.constants.title)
        resolution.check_tokens(size**2 * count + 1, f"a video of {count} frames", "Lower max_frames.")
        resized = [self._resize(frame) for frame in frames]
        taps = [bilinear(cells, size, size) for cells in self._cells(count)]
        tokens = np.arange(size**2 * count).reshape(count, -1)
        shown = zip(resized, tokens, seconds, strict=True)
        pictures = [Picture(self._seen(frame), (size, size), own, second) for frame, own, second in shown]
        return self._visual(
            np.stack([np.asarray(frame) for frame in resized]),
            [*taps, single(np.array(newline_number(count, self.patches)))],
            ((count, size, size), _NEWLINE_GRID),
            pictures,
            "video",
        )

    def glance(self, visual: Visual) -> Visual | str:
        """See `Foveal.glance`: the first crop, which shows the whole image."""
        if len(visual.feeds["pixel_values"]) == 1 or visual.kind == "video":
            return "an image or frame of one crop has no smaller picture"
        base = np.arange(self.patches)
        feeds = {name: array[:1] for name, array in visual.feeds.items() if name in ("pixel_values", "patch_indices")}
        taps = {name: visual.feeds[name][base] for name in ("gather_indices", "gather_weights")}
        side = self.constants.image_size
        resized = resize(visual.pictures[0].image, side, side, self.constants)
        return Visual({**feeds, **taps}, visual.grids[:1], (self._whole_picture(resized),))

    def enlarge(self, scores: np.ndarray, small: Visual, whole: Visual) -> np.ndarray:
        """See `Foveal.enlarge`: tokens of the first crop keep theirs, and those of high resolution lie over the same image. A
        newline has the mean of its row."""
        parts = [scores]
        for _, rows, columns in whole.grids[1:]:
            grid = np.zeros((rows, columns), np.float32)
            if columns > 1:
                grid[:, :-1] = enlarge(scores, small.grids, ((1, rows, columns - 1),)).reshape(rows, -1)
                grid[:, -1] = grid[:, :-1].mean(axis=1)
            parts.append(grid.ravel())
        return np.concatenate(parts)

    def part(self, visual: Visual, tokens: np.ndarray) -> list[Run]:
        """See `Foveal.part`: a run for each crop, over the patches that its tokens are sums of.

        A token at the border of crops becomes the sum over the crop that has most of it, its weights scaled up to 1. Newlines
        come with the first run.
        """
        indices, weights = visual.feeds["gather_indices"][tokens], visual.feeds["gather_weights"][tokens]
        crops = len(visual.feeds["pixel_values"])
        of_taps, count = indices // self.patches, len(tokens)  # that of a newline is behind the last crop
        shares = np.zeros((count, crops + 1), np.float32)
        np.add.at(shares, (np.arange(count)[:, None], of_taps), weights)
        own = shares.argmax(axis=1)
        weights = np.where(of_taps == own[:, None], weights, 0) / shares.max(axis=1, keepdims=True)
        used = np.unique(own[own < crops]).tolist() or [0]
        own[own == crops] = used[0]
        return [self._run(visual, crop, tokens[own == crop], indices[own == crop], weights[own == crop]) for crop in used]

    def _run(self, visual: Visual, crop: int, tokens: np.ndarray, indices: np.ndarray, weights: np.ndarray) -> Run:
        """Tokens that are sums over one crop, or newlines."""
        places = indices - crop * self.patches
        counts = (weights > 0) & (places < self.patches)
        there = np.unique(places[counts]) if counts.any() else np.zeros(1, np.int64)  # no run is without a patch
        is_newline = indices == newline_number(len(visual.feeds["pixel_values"]), self.patches)
        rows = np.where(is_newline, newline_number(1, len(there)), np.where(counts, np.searchsorted(there, places), 0))
        feeds = {
            "pixel_values": visual.feeds["pixel_values"][crop : crop + 1, there],
            "patch_indices": there[None],
            "gather_indices": rows,
            "gather_weights": weights,
        }
        return Run(feeds, tokens)

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """See `Processor.vision_shape`; of an image that is alone in its prompt."""
        plan = self.anyres(width, height)
        return VisionShape(1 + math.prod(plan.crops), self.patches, self._num_tokens(plan))

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """See `Processor.vision_shape_of_tokens`. A video has the fewest tokens per frame, so its frames bound the crops of
        images too, but for those that are nearly all padding (one side more than 50 times the other)."""
        pooled = self.pooled_size**2
        # Fewer than a frame has are a part of a crop, in which a token has at least a patch.
        patches = self.patches if visual_tokens >= pooled else min(self.patches, visual_tokens)
        return VisionShape(math.ceil(visual_tokens / pooled), patches, visual_tokens)

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """See `Processor.layout`. Positions count all tokens, visual ones too."""
        placeholders: dict[int, VisualKind] = {self.constants.image_token_id: "image", self.constants.video_token_id: "video"}
        return expand_placeholders(input_ids, placeholders, visuals)

    def anyres(self, width: int, height: int) -> AnyRes:
        """The canvas whose crops show most of an image, and the features that are left of it.

        LLaVA-NeXT's rules (`select_best_resolution`, `unpad_image` of transformers) with LLaVA-OneVision's `anyres_max_N`.
        """
        return self._plan(width, height, self._canvas(width, height, self.constants.image_grid_pinpoints))

    def _affordable(self, image: Image.Image, max_visual_tokens: int | None) -> AnyRes | None:
        """The same among the canvases that make no more visual tokens; None where all make more."""
        pinpoints = self.constants.image_grid_pinpoints
        if max_visual_tokens is not None:
            plans = {pinpoint: self._plan(*image.size, pinpoint) for pinpoint in pinpoints}
            pinpoints = tuple(one for one, plan in plans.items() if self._num_tokens(plan) <= max_visual_tokens)
        return self._plan(*image.size, self._canvas(*image.size, pinpoints)) if pinpoints else None

    def _num_tokens(self, plan: AnyRes) -> int:
        return self.patches + plan.grid[0] * (plan.grid[1] + 1)

    def _plan(self, width: int, height: int, canvas: tuple[int, int]) -> AnyRes:
        crops = (canvas[0] // self.constants.image_size, canvas[1] // self.constants.image_size)
        rows, columns = (count * self.grid_size for count in crops)
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        ratio = math.sqrt(rows * columns / (self.constants.max_crops * self.patches))
        grid = (int(rows // ratio), int(columns // ratio)) if ratio > _SHRINK_ABOVE else (rows, columns)
        return AnyRes(canvas, crops, (rows, columns), grid)

    def _canvas(self, width: int, height: int, pinpoints: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Height and width of the pinpoint that shows most of the image's pixels, and of those the one that wastes least."""

        def fit(pinpoint: tuple[int, int]) -> tuple[int, int]:
            scale = min(pinpoint[1] / width, pinpoint[0] / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return shown, shown - pinpoint[0] * pinpoint[1]

        return max(pinpoints, key=fit)

    def _high_resolution(self, image: Image.Image, plan: AnyRes) -> Visual:
        """The whole image as one crop, then its crops without their padding, with a newline token behind each row."""
        fitted = resize(image, *_fitting(image, plan.canvas), self.constants)
        side = self.constants.image_size
        thumbnail = resize(image, side, side, self.constants)
        crops = np.concatenate([np.asarray(thumbnail)[None], self._crops(fitted, plan)])
        taps = [single(np.arange(self.patches)), self._high_resolution_taps(plan)]
        rows, columns = plan.grid
        high_resolution: tuple[Grid, ...] = ((1, rows, columns + 1),) if rows else ()
        if rows and columns:
            tokens = self.patches + np.arange(rows * (columns + 1)).reshape(rows, -1)[:, :-1].ravel()
            picture = Picture(fitted, (rows, columns), tokens)
        else:  # an image thin enough is all padding, and nothing or only newlines are left
            picture = self._whole_picture(thumbnail)
        return self._visual(crops, taps, ((1, self.grid_size, self.grid_size), *high_resolution), [picture])

    def _crops(self, fitted: Image.Image, plan: AnyRes) -> np.ndarray:
        """`[crops, image_size, image_size, 3]` uint8 of an image in the middle of its canvas, on black."""
        height, width = plan.canvas
        canvas = Image.new("RGB", (width, height))
        canvas.paste(fitted, ((width - fitted.width) // 2, (height - fitted.height) // 2))
        size, (rows, columns) = self.constants.image_size, plan.crops
        return np.asarray(canvas).reshape(rows, size, columns, size, 3).swapaxes(1, 2).reshape(-1, size, size, 3)

    def _high_resolution_taps(self, plan: AnyRes) -> _Taps:
        (crop_rows, crop_columns), (rows, columns) = plan.crops, plan.unpadded
        count = crop_rows * crop_columns
        crops = self.patches + self._cells(count).reshape(crop_rows, crop_columns, self.grid_size, self.grid_size)
        cells = crops.swapaxes(1, 2).reshape(crop_rows * self.grid_size, -1)
        top, left = (cells.shape[0] - rows) // 2, (cells.shape[1] - columns) // 2
        cells = cells[top : top + rows, left : left + columns]
        indices, weights = single(cells) if plan.grid == plan.unpadded else bilinear(cells, *plan.grid)
        newlines, ones = single(np.full(plan.grid[0], newline_number(count + 1, self.patches)))
        return _behind_rows(indices, newlines), _behind_rows(weights, ones)

    def _padded(self, image: Image.Image) -> Visual:
        """The image in the middle of a square of the mean colour, as one crop, with a newline token at its end."""
        side = self.constants.image_size
        if not self.constants.do_resize and max(image.size) != side:
            raise RequestError(
                f"one of several images is {image.width} x {image.height} pixels, and this model takes them as they are, with "
                f"a longer side of {side}. Resize it."
            )
        resized = resize_in_square(image, side, mean_colour(self.constants.image_mean), self.constants.resample)
        taps = [single(np.arange(newline_number(1, self.patches) + 1))]
        grids = ((1, self.grid_size, self.grid_size), _NEWLINE_GRID)
        return self._visual(np.asarray(resized)[None], taps, grids, [self._whole_picture(resized)])

    def _resize(self, image: Image.Image) -> Image.Image:
        """To one crop, whatever its aspect ratio."""
        return to_square(image, self.constants.image_size, self.constants)

    def _seen(self, crop: Image.Image) -> Image.Image:
        """What whole patches tile."""
        side = self.grid_size * self.constants.patch_size
        return crop.crop((0, 0, side, side))

    def _whole_picture(self, crop: Image.Image) -> Picture:
        return Picture(self._seen(crop), (self.grid_size, self.grid_size), np.arange(self.patches))

    def _cells(self, crops: int) -> np.ndarray:
        """`[crops, grid_size, grid_size]` int64: the number of each feature."""
        return np.arange(crops * self.patches).reshape(crops, self.grid_size, self.grid_size)

    def _visual(
        self,
        crops: np.ndarray,
        taps: Sequence[_Taps],
        grids: tuple[Grid, ...],
        pictures: Sequence[Picture],
        kind: VisualKind = "image",
    ) -> Visual:
        indices, weights = (np.concatenate(parts) for parts in zip(*taps, strict=True))
        pixel_values = self._normalisation.square_patches(crops, self.grid_size, self.constants.patch_size)
        feeds = {
            "pixel_values": pixel_values,
            "patch_indices": whole_pictures(*pixel_values.shape[:2]),
            "gather_indices": indices,
            "gather_weights": weights,
        }
        return Visual(feeds, grids, tuple(pictures), kind)


def _fitting(image: Image.Image, canvas: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the image as large as the canvas (height, width) takes it, with its aspect ratio."""
    height, width = canvas
    scale_x, scale_y = width / image.width, height / image.height
    if scale_x < scale_y:
        return width, min(math.ceil(image.height * scale_x), height)
    return min(math.ceil(image.width * scale_y), width), height


def _behind_rows(values: np.ndarray, newlines: np.ndarray) -> np.ndarray:
    """`[rows * columns, n]` with one of `newlines [rows, n]` behind each row."""
    rows, taps = newlines.shape
    columns = values.size // max(1, rows * taps)
    return np.concatenate([values.reshape(rows, columns, taps), newlines[:, None]], axis=1).reshape(-1, taps)
