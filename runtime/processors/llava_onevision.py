"""LLaVA-OneVision: an image alone as a thumbnail and crops of high resolution, several images and videos as one crop each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from PIL import Image

from foveate.engines import BundleError, Grid, VisionShape
from foveate.runtime.processors.interpolate import bilinear, single
from foveate.runtime.processors.pixels import Normalisation
from foveate.runtime.processors.placeholders import expand_placeholders
from foveate.runtime.types import Layout, Picture, Visual, VisualKind

_SHRINK_ABOVE = 1.1
_NEWLINE_GRID = (1, 1, 1)
_Taps = tuple[np.ndarray, np.ndarray]


class LlavaOnevisionConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`manifest.processor` of a LLaVA-OneVision bundle.

    Attributes:
        image_size: side of a crop in pixels.
        patch_size: side of a patch in pixels; pixels of a crop that fill no whole patch are not seen.
        image_grid_pinpoints: height and width of the canvases that crops may tile.
        max_crops: crops above which the features of high resolution are shrunk to about so many (`anyres_max_N`).
        image_mean, image_std, rescale_factor: how channels are normalised.
        image_token_id, video_token_id: the placeholders.
    """

    image_size: int
    patch_size: int
    image_grid_pinpoints: tuple[tuple[int, int], ...]
    max_crops: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    rescale_factor: float
    image_token_id: int
    video_token_id: int


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
    """See `Processor`. The vision graph gets weighted sums of features to make, so packing is all here.

    Rows to sum are features of one crop after the other, `grid_size ** 2` each, and behind them the newline token.
    """

    def __init__(self, constants: Mapping[str, Any]) -> None:
        try:
            self.constants = msgspec.convert(dict(constants), LlavaOnevisionConstants)
        except msgspec.ValidationError as error:
            raise BundleError(
                f"the manifest's processor constants are not LLaVA-OneVision's: {error}. Export the bundle again."
            ) from error
        self.grid_size = self.constants.image_size // self.constants.patch_size
        self.patches = self.grid_size**2
        self.pooled_size = math.ceil(self.grid_size / 2)
        image = self.constants
        self._normalisation = Normalisation(image.image_mean, image.image_std, image.rescale_factor)

    def image(self, image: Image.Image, alone: bool = True) -> Visual:
        """Crops an RGB image, bit for bit as transformers' PIL processor does.

        Args:
            image: RGB.
            alone: whether it is the only image of its prompt; only then it is seen in high resolution.
        """
        return self._high_resolution(image) if alone else self._padded(image)

    def video(self, frames: Sequence[Image.Image], seconds: Sequence[float]) -> Visual:
        """See `Processor.video`: each frame is one crop whose features are pooled; the times are not told to the model."""
        resized = [self._resize(frame) for frame in frames]
        size, places = self.pooled_size, self.patches * len(frames)
        taps = [bilinear(cells, size, size) for cells in self._cells(len(frames))]
        tokens = np.arange(size**2 * len(frames)).reshape(len(frames), -1)
        shown = zip(resized, tokens, seconds, strict=True)
        pictures = [Picture(self._seen(frame), (size, size), own, second) for frame, own, second in shown]
        return self._visual(
            np.stack([np.asarray(frame) for frame in resized]),
            [*taps, single(np.array(places))],
            ((len(frames), size, size), _NEWLINE_GRID),
            pictures,
            "video",
        )

    def vision_shape(self, width: int, height: int) -> VisionShape:
        """See `Processor.vision_shape`; of an image that is alone in its prompt."""
        plan = self.anyres(width, height)
        tokens = self.patches + plan.grid[0] * (plan.grid[1] + 1)
        return VisionShape(1 + math.prod(plan.crops), self.patches, tokens)

    def vision_shape_of_tokens(self, visual_tokens: int) -> VisionShape:
        """See `Processor.vision_shape_of_tokens`. A video has the fewest tokens per frame, so its frames bound the crops of
        images too, but for those that are nearly all padding (one side more than 50 times the other)."""
        return VisionShape(math.ceil(visual_tokens / self.pooled_size**2), self.patches, visual_tokens)

    def layout(self, input_ids: np.ndarray, visuals: Sequence[Visual]) -> Layout:
        """See `Processor.layout`. Positions count all tokens, visual ones too."""
        placeholders: dict[int, VisualKind] = {self.constants.image_token_id: "image", self.constants.video_token_id: "video"}
        return expand_placeholders(input_ids, placeholders, visuals)

    def anyres(self, width: int, height: int) -> AnyRes:
        """The canvas whose crops show most of an image, and the features that are left of it.

        LLaVA-NeXT's rules (`select_best_resolution`, `unpad_image` of transformers) with LLaVA-OneVision's `anyres_max_N`.
        """
        canvas = self._canvas(width, height)
        crops = (canvas[0] // self.constants.image_size, canvas[1] // self.constants.image_size)
        rows, columns = (count * self.grid_size for count in crops)
        if width / height > columns / rows:
            rows -= (rows - int(round(height * (columns / width), 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * (rows / height), 7))) // 2 * 2
        ratio = math.sqrt(rows * columns / (self.constants.max_crops * self.patches))
        grid = (int(rows // ratio), int(columns // ratio)) if ratio > _SHRINK_ABOVE else (rows, columns)
        return AnyRes(canvas, crops, (rows, columns), grid)

    def _canvas(self, width: int, height: int) -> tuple[int, int]:
        """Height and width of the pinpoint that shows most of the image's pixels, and of those the one that wastes least."""

        def fit(pinpoint: tuple[int, int]) -> tuple[int, int]:
            scale = min(pinpoint[1] / width, pinpoint[0] / height)
            shown = min(int(width * scale) * int(height * scale), width * height)
            return shown, shown - pinpoint[0] * pinpoint[1]

        return max(self.constants.image_grid_pinpoints, key=fit)

    def _high_resolution(self, image: Image.Image) -> Visual:
        """The whole image as one crop, then its crops without their padding, with a newline token behind each row."""
        plan = self.anyres(*image.size)
        fitted = _fit(image, plan.canvas)
        thumbnail = self._resize(image)
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
        newlines, ones = single(np.full(plan.grid[0], self.patches * (count + 1)))
        return _behind_rows(indices, newlines), _behind_rows(weights, ones)

    def _padded(self, image: Image.Image) -> Visual:
        """The image in the middle of a square of the mean colour, as one crop, with a newline token at its end."""
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in self.constants.image_mean))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        resized = self._resize(square)
        taps = [single(np.arange(self.patches + 1))]
        grids = ((1, self.grid_size, self.grid_size), _NEWLINE_GRID)
        return self._visual(np.asarray(resized)[None], taps, grids, [self._whole_picture(resized)])

    def _resize(self, image: Image.Image) -> Image.Image:
        """To one crop, whatever its aspect ratio."""
        return image.resize((self.constants.image_size, self.constants.image_size), Image.Resampling.BICUBIC)

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
        feeds = {"pixel_values": pixel_values, "gather_indices": indices, "gather_weights": weights}
        return Visual(feeds, grids, tuple(pictures), kind)


def _fit(image: Image.Image, canvas: tuple[int, int]) -> Image.Image:
    """The image as large as the canvas (height, width) takes it, with its aspect ratio."""
    height, width = canvas
    scale_x, scale_y = width / image.width, height / image.height
    if scale_x < scale_y:
        height = min(math.ceil(image.height * scale_x), height)
    else:
        width = min(math.ceil(image.width * scale_y), width)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _behind_rows(values: np.ndarray, newlines: np.ndarray) -> np.ndarray:
    """`[rows * columns, n]` with one of `newlines [rows, n]` behind each row."""
    rows, taps = newlines.shape
    columns = values.size // max(1, rows * taps)
    return np.concatenate([values.reshape(rows, columns, taps), newlines[:, None]], axis=1).reshape(-1, taps)
