"""How pixels become numbers: preprocessor_config.json and its kin, from the places and with the defaults of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, Self, TypeVar

import msgspec

from foveate.engines import ExportError
from foveate.engines.format.processors.pixels import FILTERS, LARGEST, SMALLEST, Channels, PixelConstants, mean_colour
from foveate.exporter.checkpoint import Checkpoint
from foveate.exporter.config import check_supported, convert

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_IMAGES, _VIDEOS, _BOTH = "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json"
_Fields = ParamSpec("_Fields")
_Constants = TypeVar("_Constants", bound=PixelConstants)
_BACKENDS = ("Fast", "Pil")
"""What names of processor classes may end in; it tells what computes, not what."""


class PreprocessorConfig(msgspec.Struct, frozen=True):
    """The keys that transformers' image and video processors of the families read, with the defaults that they share.

    Keys that are not here change no pixel: `do_convert_rgb`, because the runtime opens every image as RGB; those about arrays
    and devices; and what says how many frames to take, while `do_sample_frames` is off.
    """

    image_processor_type: str | None = None
    feature_extractor_type: str | None = None
    do_resize: bool = True
    size: int | tuple[int, ...] | dict[str, int | None] | None = None
    default_to_square: bool | None = False
    resample: int = 3
    do_center_crop: bool | None = None
    crop_size: int | tuple[int, ...] | dict[str, int | None] | None = None
    do_pad: bool | None = None
    pad_size: int | tuple[int, ...] | dict[str, int | None] | None = None
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    image_mean: float | tuple[float, float, float] = CLIP_MEAN
    image_std: float | tuple[float, float, float] = CLIP_STD
    min_pixels: int | None = None
    max_pixels: int | None = None
    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    image_grid_pinpoints: tuple[tuple[int, int], ...] | None = None
    use_square_size: bool | None = False
    do_sample_frames: bool = False
    cap_pixels_per_frame: bool = False


@dataclass(frozen=True)
class Preprocessing:
    """The config of a checkpoint's image or video processor.

    Attributes:
        where: its file, for errors.
        keys: what it says. A switch that is null is off, as it is in transformers.
        about_videos: whether it says so of videos alone.
    """

    where: Path
    keys: PreprocessorConfig
    about_videos: bool = False

    @classmethod
    def of_images(cls, checkpoint: Checkpoint, defaults: Mapping[str, Any] | None = None, folder: str = "") -> Self:
        """From processor_config.json where that has a part for images, as transformers 5 saves it, else from
        preprocessor_config.json.

        Args:
            checkpoint: the checkpoint.
            defaults: of its processor's class, where they are not those of `PreprocessorConfig`.
            folder: the sub-folder where the files lie, with a slash at its end.

        Raises:
            ExportError: a key has another type than it should.
        """
        return cls._first(checkpoint, folder, ((_BOTH, "image_processor"), (_IMAGES, "")), defaults)

    @classmethod
    def of_videos(cls, checkpoint: Checkpoint, defaults: Mapping[str, Any] | None = None) -> Self:
        """The same of videos: a part of processor_config.json, a file of their own, or what holds for images.

        Raises:
            ExportError: a key has another type than it should, or frames are to be chosen by the file.
        """
        places = ((_BOTH, "video_processor"), (_VIDEOS, ""), (_BOTH, "image_processor"), (_IMAGES, ""))
        found = cls._first(checkpoint, "", places, defaults)
        found.check("do_sample_frames", found.keys.do_sample_frames, (False,))
        return found

    @classmethod
    def _first(
        cls, checkpoint: Checkpoint, folder: str, places: Iterable[tuple[str, str]], defaults: Mapping[str, Any] | None
    ) -> Self:
        name, about_videos = _IMAGES, False
        values: dict[str, Any] = {}
        for file, part in places:
            content = checkpoint.optional_json(folder + file)
            found = content.get(part, {}) if part else content
            if not isinstance(found, dict):
                raise ExportError(f"{checkpoint.path / folder / file}: '{part}' is no object. Use the file that belongs to it.")
            if found:
                name, values, about_videos = file, found, file == _VIDEOS or part == "video_processor"
                break
        where = checkpoint.path / folder / name
        given = {key: False if value is None and key.startswith("do_") else value for key, value in values.items()}
        return cls(where, convert({**(defaults or {}), **given}, PreprocessorConfig, where), about_videos)

    def check(self, what: str, value: object, supported: tuple[object, ...]) -> None:
        """Refuses what the runtime's processor does not do; see `check_supported`."""
        check_supported(self.where, what, value, supported)

    def check_type(self, *supported: str) -> str:
        """The processor's class without its backend; the first of `supported` where the file names none.

        Raises:
            ExportError: it is another class.
        """
        named = self.keys.image_processor_type
        if named is None and self.keys.feature_extractor_type is not None:
            named = self.keys.feature_extractor_type.replace("FeatureExtractor", "ImageProcessor")
        for backend in _BACKENDS:
            named = named and named.removesuffix(backend)
        self.check("image_processor_type", named or supported[0], supported)
        return named or supported[0]

    def sides(self, what: str, square: bool | None = None) -> dict[str, int]:
        """`size` or `crop_size` in the one form that transformers makes of all of them, such as `{"height": 2, "width": 3}`.

        Args:
            what: the key.
            square: whether one number is both sides, or the shorter one; None takes the file's word.

        Raises:
            ExportError: it is none of the forms, or a side is below 1.
        """
        value = getattr(self.keys, what)
        if isinstance(value, int):
            square = self.keys.default_to_square if square is None else square
            value = {"height": value, "width": value} if square else {"shortest_edge": value}
        elif isinstance(value, tuple):
            value = dict(zip(("height", "width"), value, strict=False)) if len(value) == 2 else {"length": 0}
        sides = {name: side for name, side in (value or {}).items() if side is not None}
        if any(side < 1 for side in sides.values()):
            raise ExportError(
                f"{self.where}: {what} is {getattr(self.keys, what)!r}, expected sides of at least 1. Use the file that "
                "belongs to the weights."
            )
        return sides

    def check_colour(self) -> None:
        """
        Raises:
            ExportError: the mean is no colour, with which transformers pads an image to a square.
        """
        try:
            mean_colour(_channels(self.keys.image_mean))
        except ValueError as error:
            raise ExportError(
                f"{self.where}: image_mean is {self.keys.image_mean}, and images are padded with it as a colour, expected 0 to "
                "1. Use the file that belongs to the weights."
            ) from error

    def pixels(self) -> PixelConstants:
        """The constants that every runtime processor has: how an image is resized, and its values become numbers.

        Raises:
            ExportError: one of them can't be used.
        """
        keys = self.keys
        self.check("resample", keys.resample, tuple(FILTERS))
        mean, std = _channels(keys.image_mean), _channels(keys.image_std)
        for name, values in (("image_mean", mean), ("image_std", std), ("rescale_factor", (keys.rescale_factor,))):
            if not all(abs(value) <= LARGEST for value in values) or (name == "image_std" and min(map(abs, values)) < SMALLEST):
                raise ExportError(f"{self.where}: {name} is {values}, which gives no numbers. Use the file of the weights.")
        return PixelConstants(
            do_resize=keys.do_resize,
            resample=keys.resample,
            do_rescale=keys.do_rescale,
            rescale_factor=keys.rescale_factor,
            do_normalize=keys.do_normalize,
            image_mean=mean,
            image_std=std,
        )

    def build(self, kind: Callable[_Fields, _Constants], *args: _Fields.args, **fields: _Fields.kwargs) -> _Constants:
        """The constants of a family's processor.

        Raises:
            ExportError: a value is beyond what the processor takes.
        """
        try:
            constants = kind(*args, **fields)
            return msgspec.convert(msgspec.to_builtins(constants), type(constants))  # a struct that is made checks no ranges
        except (ValueError, msgspec.ValidationError) as error:
            raise ExportError(
                f"{self.where} and the config give constants that no processor takes: {error}. Use the files that belong to "
                "the weights."
            ) from error


def check_same_pixels(images: Preprocessing, videos: Preprocessing) -> None:
    """Refuses frames that become numbers in another way than images, which no runtime processor does.

    Raises:
        ExportError: they do.
    """
    expected = images.pixels()
    for name, value in msgspec.structs.asdict(videos.pixels()).items():
        if value != getattr(expected, name):
            raise ExportError(
                f"{videos.where}: {name} of videos is {value}, that of images {getattr(expected, name)}, expected the same. "
                "Use the files that belong together."
            )


def _channels(value: float | Channels) -> Channels:
    """One number stands for all channels, as in transformers."""
    return (value, value, value) if isinstance(value, int | float) else value
