"""Opening videos that may come from anywhere: which of their frames the model sees, and when each is shown."""

from __future__ import annotations

import io
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeGuard

import numpy as np
from PIL import Image

from foveate.engines import MachineError, RequestError, needed_package
from foveate.engines.errors import shorten, shown
from foveate.runtime.frames import FRAME_RULES
from foveate.runtime.images import (
    EncodedFile,
    ImageLimits,
    ImageSource,
    check_bytes,
    describe,
    is_encoded,
    open_image,
    read_address,
    read_encoded,
)

if TYPE_CHECKING:
    from av import VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

VideoSource = str | os.PathLike[str] | EncodedFile | np.ndarray | Sequence[ImageSource]
"""A path, an encoded file, a `data:` address of one, frames one by one, or uint8 pixels `[frames, height, width, 3]`."""

_FORMATS = ("asf", "avi", "flv", "gif", "matroska", "mov", "mpeg", "mpegts", "ogg")
"""What FFmpeg's readers of these files are called. It knows more, among them playlists that open other files."""
_COUNTING = ("avi",)
"""Formats that give packets no times: FFmpeg counts them, which is wrong where frames are shown in another order."""
_Row = tuple[int | None, int, bool, bool]
"""Of a packet: when it is shown and how long, in units of the stream; whether it is a key frame; whether it is shown."""
_Rule = Callable[[np.ndarray, float], np.ndarray]
"""One of `FRAME_RULES`, with its rate and its most frames."""
_REMEDY = "Give a whole file, such as an MP4 or WebM."


@dataclass(frozen=True)
class VideoLimits:
    """What is too much to open.

    Attributes:
        max_pixels: of one frame, compared with the file's header, before anything is decoded.
        max_total_pixels: of all frames that `open_video` takes of one file; they are in memory together, three bytes a pixel.
            (A pipeline makes each frame small before it takes the next.)
        max_frames: that the model may see of one video.
        max_seconds: length of a file.
        max_bytes: size of a file.
    """

    max_pixels: int = 10_000_000
    max_total_pixels: int = 500_000_000
    max_frames: int = 768
    max_seconds: float = 3600.0
    max_bytes: int = 4 * 1024**3


@dataclass(frozen=True, eq=False)
class Clip:
    """The frames of a video that the model sees.

    Attributes:
        frames: RGB, all of one size, in the order of their times.
        seconds: when each is shown, counted from the first frame of the video.
    """

    frames: tuple[Image.Image, ...]
    seconds: tuple[float, ...]


class _Timeline(NamedTuple):
    """The packets of a video stream, in the order of the file.

    Attributes:
        seconds: `[packets]` float64, when each one's frame is shown, counted from the first frame; negative or unordered for
            frames that nobody sees or that others need first.
        stamps: `[packets]` int64, the same in the stream's own units; where the timeline is not exact, numbers of frames.
        keys: `[packets]` bool, whether decoding may start there.
        shown: `[packets]` bool.
        end: seconds from the first frame to the end of the last.
        exact: each packet is one frame; else the timeline is that of the frames, and packets have no times.
    """

    seconds: np.ndarray
    stamps: np.ndarray
    keys: np.ndarray
    shown: np.ndarray
    end: float
    exact: bool


def check_sampling(fps: float | None, max_frames: int | None, rule: str | None = None) -> None:
    """
    Raises:
        RequestError: `fps` is not a positive number, `max_frames` no whole number of at least 1, or `rule` none of
            `FRAME_RULES`; None is the default of the model's family.
    """
    if fps is not None and (isinstance(fps, bool) or not isinstance(fps, Real) or not (math.isfinite(fps) and fps > 0)):
        raise RequestError(f"fps is {fps!r}, expected a number above 0. Use 1 for a frame a second.", options=("fps",))
    if max_frames is not None and (isinstance(max_frames, bool) or not isinstance(max_frames, Integral) or max_frames < 1):
        raise RequestError(
            f"max_frames is {max_frames!r}, expected a whole number of at least 1. Leave it out for the model's own.",
            options=("max_frames",),
        )
    if rule is not None and (not isinstance(rule, str) or rule not in FRAME_RULES):
        raise RequestError(
            f"frame_rule is {shown(rule)}, expected one of {', '.join(FRAME_RULES)}. Leave it out for the model's own.",
            options=("frame_rule",),
        )


def is_given_frames(source: object) -> TypeGuard[Sequence[ImageSource] | np.ndarray]:
    """Whether a video is given as its frames, which nothing is to choose from."""
    return isinstance(source, np.ndarray | Sequence) and not isinstance(source, str | bytes | bytearray | memoryview)


def open_video(
    source: VideoSource,
    fps: float = 1.0,
    max_frames: int = 32,
    limits: VideoLimits | None = None,
    rule: str = "interval",
) -> Clip:
    """The frames of a video that the model sees.

    Of a file, those that `rule` chooses; by default what is on the screen at 0, 1/fps, 2/fps, ... seconds, and where there are
    more than `max_frames` such times, that many frames, evenly spread over its whole length. They are turned as the file says.
    No frame is taken twice. Frames that are given one by one are all taken, and stand 1/fps apart.

    Args:
        source: path, encoded file, or frames.
        fps: frames per second.
        max_frames: most frames to take.
        limits: what is too much to open.
        rule: how frames of a file are chosen, a name in `FRAME_RULES`.

    Raises:
        RequestError: missing, unreadable or truncated; no video, no frames, or frames of several sizes; above the limits; an
            unusable `fps`, `max_frames` or `rule`.
        MissingPackageError: PyAV, which reads files, is not installed.
        MachineError: there is not enough memory.
    """
    limits = limits or VideoLimits()
    with open_frames(source, fps, max_frames, limits, rule, together=True) as (frames, seconds):
        return Clip(tuple(frames), seconds)


@contextmanager
def open_frames(
    source: VideoSource, fps: float, max_frames: int, limits: VideoLimits, rule: str, together: bool = False
) -> Iterator[tuple[Iterator[Image.Image], tuple[float, ...]]]:
    """The same one after the other, so that a frame can be made smaller before the next one is decoded.

    Args:
        source, fps, max_frames, limits, rule: see `open_video`.
        together: whether all will be in memory together, so that `VideoLimits.max_total_pixels` counts.

    Returns:
        The frames, each checked as it comes, and when each is shown.
    """
    check_sampling(fps, max_frames, rule)
    if max_frames > limits.max_frames:
        raise RequestError(
            f"max_frames is {max_frames}, the limit is {limits.max_frames}. Take fewer frames.", options=("max_frames",)
        )
    if is_encoded(source) or isinstance(source, str | os.PathLike):
        with _read_file(
            source, lambda seconds, end: FRAME_RULES[rule](seconds, end, fps, max_frames), limits, together
        ) as found:
            yield found
    elif is_given_frames(source):
        yield _read_frames(source, fps, max_frames, limits)
    else:
        raise RequestError(
            f"{describe(source, 'video')} is of no known kind. Give a path, encoded bytes, an open file, or a list of frames."
        )


def _read_frames(
    source: Sequence[ImageSource] | np.ndarray, fps: float, max_frames: int, limits: VideoLimits
) -> tuple[Iterator[Image.Image], tuple[float, ...]]:
    if isinstance(source, np.ndarray) and source.ndim != 4:
        raise RequestError(
            f"video array is {source.dtype} {list(source.shape)}, expected uint8 [frames, height, width, 3]. Convert it first."
        )
    name = f"video given as {len(source)} frames"
    if not 1 <= len(source) <= max_frames:
        raise RequestError(
            f"{name}, expected 1 to {max_frames}, which is max_frames. Choose among them or change max_frames.",
            options=("max_frames",),
        )
    of_frames = ImageLimits(limits.max_pixels)
    frames = (open_image(frame, of_frames) for frame in source)
    return _of_one_size(frames, name), tuple(number / fps for number in range(len(source)))


@contextmanager
def _read_file(
    source: str | os.PathLike[str] | EncodedFile, choose: _Rule, limits: VideoLimits, together: bool
) -> Iterator[tuple[Iterator[Image.Image], tuple[float, ...]]]:
    name = describe(source, "video")
    _check_library()
    with _opened(source, limits, name) as file:
        with _translated(name), _stream(file, limits, name) as (container, stream):
            timeline = _timeline(container, stream, limits, name)
        wanted = _sample(timeline, choose)
        with ExitStack() as stack:
            with _translated(name):
                container, stream = stack.enter_context(_stream(file, limits, name))
            if together:
                _check_total(len(wanted), stream.width * stream.height, limits, name)
            frames = _decode(container, stream, timeline, wanted, name)
            yield _of_one_size(frames, name), tuple(timeline.seconds[wanted].tolist())


def _check_library() -> None:
    with needed_package("it reads videos", "video"):
        import av  # noqa: F401


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Errors of the library as errors of the request."""
    from av.error import FFmpegError

    try:
        yield
    except MemoryError as error:
        raise MachineError(f"there is not enough memory to read {name}. Shrink the video or free memory.") from error
    except (FFmpegError, OSError, ValueError, ArithmeticError) as error:
        fact = shorten((getattr(error, "strerror", None) or str(error)).replace("\n", " "))
        raise RequestError(f"{name} can't be read as a video: {fact}. {_REMEDY}") from error


@contextmanager
def _opened(source: str | os.PathLike[str] | EncodedFile, limits: VideoLimits, name: str) -> Iterator[BinaryIO]:
    """The file, opened here: FFmpeg takes names for addresses too, and would fetch what they point to."""
    if isinstance(source, str | os.PathLike):
        content = read_address(source, limits.max_bytes, name)
    else:
        content = read_encoded(source, limits.max_bytes, name)
    if content is not None:
        check_bytes(len(content), limits.max_bytes, name)
        yield io.BytesIO(content)
        return
    assert isinstance(source, str | os.PathLike)
    with ExitStack() as stack:
        with _translated(name):
            if not Path(source).is_file():
                raise RequestError(f"{name} is not there or is not a file. Check the path.")
            check_bytes(Path(source).stat().st_size, limits.max_bytes, name)
            file = stack.enter_context(Path(source).open("rb"))
        yield file


@contextmanager
def _stream(file: BinaryIO, limits: VideoLimits, name: str) -> Iterator[tuple[InputContainer, VideoStream]]:
    """The video stream of a file, from its start."""
    import av
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

    file.seek(0)
    # Titles are of no use here, and many are in no known encoding.
    options = {"format_whitelist": ",".join(_FORMATS)}
    with av.open(file, "r", options=options, metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        if not isinstance(stream, VideoStream):
            raise RequestError(f"{name} has no video stream. Give a file with pictures.")
        if not isinstance(stream.codec_context, VideoCodecContext):
            raise RequestError(f"{name} is of a kind that FFmpeg does not decode. {_REMEDY}")
        width, height = stream.codec_context.width, stream.codec_context.height
        if width * height > limits.max_pixels:
            raise RequestError(
                f"{name} has frames of {width} x {height} pixels, the limit is {limits.max_pixels}. "
                "Shrink the video or raise VideoLimits.max_pixels.",
                options=("video_limits",),
            )
        stream.thread_type = "AUTO"
        yield container, stream


def _timeline(container: InputContainer, stream: VideoStream, limits: VideoLimits, name: str) -> _Timeline:
    """Reads the file without decoding it."""
    rows: list[_Row] = []
    file_end = 0.0
    for packet in container.demux():
        if packet.stream.index == stream.index and packet.size:
            if packet.is_corrupt:
                raise RequestError(f"{name} is cut off or damaged after {len(rows)} frames. {_REMEDY}")
            rows.append((packet.pts, packet.duration or 0, packet.is_keyframe, not packet.is_discard))
        if packet.pts is not None:
            file_end = max(file_end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
    _check_whole(container, stream, len(rows), file_end, name)
    if _has_times(rows, container, stream):
        return _from_rows(rows, stream, limits, name)
    rows = _decoded_rows(container, stream)
    return _from_rows(rows, stream, limits, name)._replace(stamps=np.arange(len(rows)), exact=False)


def _has_times(rows: Sequence[_Row], container: InputContainer, stream: VideoStream) -> bool:
    """Whether packets say when their frames are shown."""
    stamps = [stamp for stamp, _, _, _ in rows if stamp is not None]
    counted = container.format.name in _COUNTING and stream.codec_context.has_b_frames and stamps == sorted(stamps)
    return len(set(stamps)) == len(rows) and not counted


def _check_whole(container: InputContainer, stream: VideoStream, packets: int, file_end: float, name: str) -> None:
    if packets < stream.frames:
        raise RequestError(f"{name} has {packets} frames, its header says {stream.frames}. {_REMEDY}")
    claimed = (container.duration or 0) / 1e6
    # Headers may be rounded, and durations of other streams guessed.
    if file_end < claimed - max(1.0, 0.05 * claimed):
        raise RequestError(f"{name} ends after {file_end:.1f} s, its header says {claimed:.1f} s. {_REMEDY}")


def _check_total(frames: int, pixels: int, limits: VideoLimits, name: str) -> None:
    if frames * pixels > limits.max_total_pixels:
        raise RequestError(
            f"{name} gives {frames} frames of {pixels} pixels, the limit is {limits.max_total_pixels} pixels together. "
            "Take fewer frames or shrink the video."
        )


def _decoded_rows(container: InputContainer, stream: VideoStream) -> list[_Row]:
    """The rows of a file whose packets have no times: those of its frames, which come in the order of showing."""
    container.seek(0)
    rows = [(frame.pts, frame.duration or 0) for frame in container.decode(stream)]
    stamps = sorted(stamp for stamp, _ in rows if stamp is not None)
    return [(stamp, duration, False, True) for stamp, (_, duration) in zip(stamps, rows, strict=False)]


def _from_rows(rows: Sequence[_Row], stream: VideoStream, limits: VideoLimits, name: str) -> _Timeline:
    if not any(shown for _, _, _, shown in rows):
        raise RequestError(f"{name} has no frames. {_REMEDY}")
    stamps, durations = np.array([row[:2] for row in rows], np.int64).T
    keys, shown = np.array([row[2:] for row in rows], bool).T
    first, last = stamps[shown].min(), stamps[shown].max()
    # Some formats give no durations: the last frame is shown as long as the others are on average.
    duration = durations[stamps == last][0] or (last - first) / max(1, shown.sum() - 1)
    unit = float(stream.time_base or 1)
    end = float(last - first + duration) * unit
    if end > limits.max_seconds:
        raise RequestError(f"{name} is {end:.0f} s long, the limit is {limits.max_seconds:g} s. Cut it.")
    return _Timeline((stamps - first) * unit, stamps, keys, shown, end, exact=True)


def _sample(timeline: _Timeline, choose: _Rule) -> np.ndarray:
    """Numbers of the packets whose frames to take, `[frames]`, in the order of their times."""
    ordered = np.flatnonzero(timeline.shown)
    ordered = ordered[np.argsort(timeline.seconds[ordered], kind="stable")]
    return np.asarray(ordered[choose(timeline.seconds[ordered], timeline.end)])


def _decode(
    container: InputContainer, stream: VideoStream, timeline: _Timeline, wanted: np.ndarray, name: str
) -> Iterator[Image.Image]:
    """The wanted frames, one at a time; only what they depend on is decoded.

    Raises:
        RequestError: one of them is broken or missing.
    """
    missing = {int(timeline.stamps[number]): float(timeline.seconds[number]) for number in wanted}
    with _translated(name):
        for number, frame in enumerate(_fed(container, stream, _spans(timeline, wanted))):
            stamp = frame.pts if timeline.exact else number
            if frame.is_corrupt:  # also one that no wanted frame shows, as those may build on it
                raise RequestError(f"{name} is damaged near {frame.time or 0:.1f} s. {_REMEDY}")
            if stamp is not None and missing.pop(stamp, None) is not None:
                yield Image.fromarray(frame.to_ndarray(format="rgb24")).rotate(frame.rotation, expand=True)
    if missing:
        raise RequestError(f"{name} is damaged: there is no frame at {min(missing.values()):.1f} s. {_REMEDY}")


def _spans(timeline: _Timeline, wanted: np.ndarray) -> list[tuple[int, int]]:
    """First and last packet of what to decode, in order; spans do not overlap.

    A frame needs what stands between it and the last key frame that is not shown after it. (Behind a later one there may be
    frames that are shown before it and need its forerunners.)
    """
    if not timeline.exact:
        return [(0, sys.maxsize)]
    key_numbers = np.flatnonzero(timeline.keys)
    spans: list[tuple[int, int]] = []
    for number in np.sort(wanted).tolist():
        earlier = key_numbers[(key_numbers <= number) & (timeline.stamps[key_numbers] <= timeline.stamps[number])]
        start = int(earlier[-1]) if len(earlier) else 0
        while spans and start <= spans[-1][1] + 1:
            start = min(start, spans.pop()[0])
        spans.append((start, number))
    return spans


def _fed(container: InputContainer, stream: VideoStream, spans: Sequence[tuple[int, int]]) -> Iterator[VideoFrame]:
    """The frames of some spans of packets; the decoder forgets everything between them."""
    packets = enumerate(packet for packet in container.demux(stream) if packet.size)
    for start, last in spans:
        for number, packet in packets:
            if number >= start:
                yield from stream.decode(packet)
            if number == last:
                break
        yield from stream.decode(None)
        stream.codec_context.flush_buffers()


def _of_one_size(frames: Iterable[Image.Image], name: str) -> Iterator[Image.Image]:
    first: tuple[int, int] | None = None
    for frame in frames:
        first = first or frame.size
        if frame.size != first:
            small, large = (f"{width} x {height}" for width, height in sorted((first, frame.size)))
            raise RequestError(f"{name} has frames of {small} and of {large} pixels, expected one size. Resize them first.")
        yield frame
