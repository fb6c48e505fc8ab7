"""Opening videos: which frames are taken of a file, and one clear line for each kind of bad input."""

from __future__ import annotations

import base64
import builtins
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from foveate.engines import MissingPackageError, RequestError
from foveate.runtime import Clip, Request, VideoLimits, open_video
from tests.runtime.clips import encode, grey, number_of

OPEN_GOP = "open-gop=1:keyint=8:min-keyint=8:scenecut=0:bframes=3:b-adapt=0:threads=1"
FILES = {
    "mp4, open groups": ("libx264", "mp4", {"x264-params": OPEN_GOP}),
    "mp4, fragmented": ("libx264", "mp4", {"g": "7"}),
    "matroska": ("libx264", "matroska", {"g": "8"}),
    "webm": ("libvpx-vp9", "webm", {"g": "9"}),
    "transport stream": ("libx264", "mpegts", {"g": "5"}),
    "flash": ("libx264", "flv", {}),
    "hevc": ("libx265", "mp4", {"x265-params": "log-level=none:keyint=10"}),
    "avi": ("mpeg4", "avi", {"qmin": "1", "qmax": "1", "bf": "2"}),
    "avi without times": ("libx264", "avi", {"g": "8", "bf": "3"}),
    "wmv": ("wmv2", "asf", {"qmin": "1", "qmax": "1"}),
}


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """40 frames, 10 a second, in each format; only the first frame and every few more can be decoded on their own."""
    frames = [grey(number) for number in range(40)]
    muxers = {"mp4, fragmented": {"movflags": "frag_keyframe+empty_moov"}}
    return {
        name: encode(frames, codec=codec, container=container, options=options, muxer=muxers.get(name))
        for name, (codec, container, options) in FILES.items()
    }


@pytest.fixture(scope="module")
def clip() -> bytes:
    return encode([grey(number) for number in range(40)])


def numbers(clip: Clip) -> list[int]:
    return [number_of(frame) for frame in clip.frames]


@pytest.mark.parametrize("name", FILES)
def test_frames_are_those_on_the_screen_at_each_time(files: dict[str, bytes], name: str) -> None:
    clip = open_video(files[name])
    assert numbers(clip) == [0, 10, 20, 30]
    assert clip.seconds == pytest.approx((0, 1, 2, 3), abs=2e-3)
    assert all(frame.mode == "RGB" and frame.size == (64, 48) for frame in clip.frames)
    assert numbers(open_video(files[name], fps=3)) == [0, 3, 6, 10, 13, 16, 20, 23, 26, 30, 33, 36]
    assert numbers(open_video(files[name], fps=10, max_frames=40)) == list(range(40))


@pytest.mark.parametrize("name", FILES)
def test_a_long_video_is_spread_over_its_whole_length(files: dict[str, bytes], name: str) -> None:
    clip = open_video(files[name], fps=10, max_frames=3)
    assert numbers(clip) == [0, 13, 26]
    assert clip.seconds == pytest.approx((0, 1.3, 2.6), abs=2e-3)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.3, 25), st.integers(1, 50))
def test_any_sampling_takes_what_is_on_the_screen(clip: bytes, fps: float, max_frames: int) -> None:
    """Against the rule, spelt out: 40 frames of a tenth of a second each."""
    step = max(1 / fps, 4 / max_frames)
    expected = sorted({min(39, int(number * step * 10 + 0.01)) for number in range(max_frames) if number * step < 4 - 1e-3})
    taken = open_video(clip, fps=fps, max_frames=max_frames)
    assert numbers(taken) == expected
    assert taken.seconds == pytest.approx([number / 10 for number in expected])


def test_frames_of_uneven_times(clip: bytes) -> None:
    """Frames 0 to 5 are shown at 0, 0.1, 0.2, 1.5, 1.6 and 3.0 s."""
    content = encode([grey(number) for number in range(6)], times=[0, 1, 2, 15, 16, 30], container="matroska")
    assert numbers(open_video(content, fps=2)) == [0, 2, 3, 4, 5]  # 0.5 and 1.0 s show frame 2, 2.0 and 2.5 s frame 4
    assert open_video(content, fps=2).seconds == pytest.approx((0, 0.2, 1.5, 1.6, 3.0))


def test_a_video_that_does_not_start_at_zero() -> None:
    content = encode([grey(number) for number in range(20)], times=list(range(70, 90)), container="matroska")
    assert numbers(open_video(content)) == [0, 10]
    assert open_video(content).seconds == (0.0, 1.0)


def test_one_frame_is_a_video() -> None:
    assert numbers(open_video(encode([grey(7)]))) == [7]


def test_an_animation_is_a_video() -> None:
    pictures = [Image.fromarray(grey(number)) for number in range(4)]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=500)
    assert numbers(open_video(file.getvalue(), fps=2)) == [0, 1, 2, 3]


@pytest.mark.parametrize(("rotation", "left", "top"), [(90, 255, 255), (-90, 255, 0), (180, 255, 255), (0, 0, 0)])
def test_a_video_is_turned_as_its_file_says(rotation: int, left: int, top: int) -> None:
    """Left half black, right half white: 90 degrees counterclockwise put white on top, 180 degrees on the left."""
    half = np.concatenate([np.zeros((48, 32, 3), np.uint8), np.full((48, 32, 3), 255, np.uint8)], axis=1)
    (frame,) = open_video(encode([half] * 3, container="mov", rotation=rotation)).frames
    upright = abs(rotation) == 90
    assert frame.size == ((48, 64) if upright else (64, 48))
    corner = np.asarray(frame)[4:12, 4:12].mean() if upright else np.asarray(frame)[24, 4:12].mean()
    assert corner == pytest.approx(top if upright else left, abs=12)


def test_sources_of_every_kind_give_the_same(clip: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip)
    expected = numbers(open_video(clip))
    assert numbers(open_video(path)) == numbers(open_video(str(path))) == expected


def test_frames_given_one_by_one_are_all_taken() -> None:
    pixels = [grey(number) for number in range(5)]
    for source in (pixels, [Image.fromarray(frame) for frame in pixels], np.stack(pixels), tuple(pixels)):
        clip = open_video(source, fps=2)
        assert numbers(clip) == [0, 1, 2, 3, 4]
        assert clip.seconds == (0.0, 0.5, 1.0, 1.5, 2.0)


def test_only_what_the_wanted_frames_need_is_decoded(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    import foveate.runtime.video as module

    fed = []
    original = module._spans
    monkeypatch.setattr(module, "_spans", lambda *arguments: fed.append(original(*arguments)) or fed[-1])
    open_video(files["matroska"], fps=10, max_frames=2)  # frames 0 and 20; one of eight is a key frame
    assert sum(last - first + 1 for first, last in fed[0]) < 12


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf"), True, "2"])
def test_an_unusable_rate(fps: Any) -> None:
    for call in (lambda: open_video([grey(0)], fps=fps), lambda: Request.ask("What?", videos=["a.mp4"], fps=fps)):
        with pytest.raises(RequestError, match=r"fps is .* expected a number above 0"):
            call()


@pytest.mark.parametrize("max_frames", [0, -3, 1.5, True])
def test_an_unusable_number_of_frames(max_frames: Any) -> None:
    for call in (lambda: open_video([grey(0)], max_frames=max_frames), lambda: Request.ask("", max_frames=max_frames)):
        with pytest.raises(RequestError, match=r"max_frames is .* at least 1"):
            call()


@pytest.mark.parametrize(
    ("limits", "match"),
    [
        (VideoLimits(max_pixels=3000), "64 x 48 pixels, the limit is 3000"),
        (VideoLimits(max_total_pixels=4 * 64 * 48 - 1), "4 frames of 3072 pixels, the limit is 12287 pixels together"),
        (VideoLimits(max_frames=31), "max_frames is 32, the limit is 31"),
        (VideoLimits(max_seconds=3.5), r"4 s long, the limit is 3\.5 s"),
        (VideoLimits(max_bytes=100), "bytes, the limit is 100"),
    ],
)
def test_what_is_too_large(clip: bytes, limits: VideoLimits, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        open_video(clip, limits=limits)


@pytest.mark.parametrize(
    ("source", "match"),
    [
        ([], "0 frames, expected 1 to 32"),
        (np.zeros((0, 4, 4, 3), np.uint8), "0 frames, expected 1 to 32"),
        ([grey(0)] * 33, "33 frames, expected 1 to 32"),
        (grey(0), r"video array is uint8 \[48, 64, 3\]"),
        ([grey(0), grey(0, (32, 48))], "frames of 32 x 48 and of 64 x 48 pixels"),
        ([grey(0).astype(float)], "image array is float64"),
        (7, "video given as int"),
        ("missing.mp4", "video 'missing.mp4' is not there"),
        (".", "is not a file"),
        (b"", "can't be read as a video"),
        (b"not a video" * 100, "can't be read as a video"),
        (b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/hosts\n#EXT-X-ENDLIST\n", "can't be read as a video"),
        (b"ffconcat version 1.0\nfile 'other.mp4'\n", "can't be read as a video"),
    ],
    ids=str,
)
def test_what_is_no_video(source: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match) as caught:
        open_video(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["mp4, open groups", "matroska", "webm", "hevc", "avi"])  # others do not say their length
@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
def test_a_file_that_is_cut_off(files: dict[str, bytes], name: str, share: float) -> None:
    content = files[name]
    with pytest.raises(RequestError, match="Give a whole file"):
        open_video(content[: int(len(content) * share)], fps=10, max_frames=40)


@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_never_ends_in_another_error(files: dict[str, bytes], name: str) -> None:
    content = files[name]
    for seed in range(12):
        random = np.random.default_rng(seed)
        damaged = np.frombuffer(content, np.uint8).copy()
        damaged[random.integers(0, len(damaged), 30)] ^= np.uint8(0x5A)
        for broken in (damaged.tobytes(), content[: random.integers(0, len(content))]):
            try:
                clip = open_video(broken, fps=10, max_frames=40)
            except RequestError:
                continue
            assert len(clip.frames) == len(clip.seconds) >= 1


@pytest.mark.parametrize("kept", [5, 40])
@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_a_damaged_frame_is_no_answer(codec: str, kept: int) -> None:
    """Of the fifth packet only the start is left: without its header there is no frame, with it a frame full of guesses."""
    av = pytest.importorskip("av")
    noise = [np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8) for number in range(10)]
    content = bytearray(encode(noise, codec=codec))
    with av.open(io.BytesIO(content)) as file:
        start, size = [(packet.pos, packet.size) for packet in file.demux(video=0)][4]
    content[start + kept : start + size] = bytes(size - kept)
    assert len(open_video(bytes(content), fps=1).frames) == 1  # only the first is wanted, which does not need it
    with pytest.raises(RequestError, match="Give a whole file"):
        open_video(bytes(content), fps=10)


def test_a_frame_that_builds_on_a_damaged_one_is_no_answer() -> None:
    av = pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 256, (20, 48, 64, 3), dtype=np.uint8)
    content = bytearray(encode(list(noise), codec="mpeg4", options={"g": "20", "sc_threshold": "1000000000"}))
    with av.open(io.BytesIO(content)) as file:
        start, size = [(packet.pos, packet.size) for packet in file.demux(video=0)][4]
    content[start + 40 : start + size] = bytes(size - 40)
    with pytest.raises(RequestError, match=r"damaged near 0\.4 s"):
        open_video(bytes(content))  # wants those at 0 and 1 s


def test_a_file_without_pictures() -> None:
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", layout="mono")
        frame.rate = 8000
        output.mux(stream.encode(frame))
        output.mux(stream.encode())
    with pytest.raises(RequestError, match="no video stream"):
        open_video(file.getvalue())


def test_a_file_without_frames() -> None:
    with pytest.raises(RequestError, match="Give a whole file"):
        open_video(encode([grey(0)], muxer={"movflags": "empty_moov+frag_keyframe"})[:700])


def test_without_the_library_files_are_refused_and_frames_are_not(clip: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without_av(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "av":
            raise ModuleNotFoundError("No module named 'av'", name="av")
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without_av)
    with pytest.raises(MissingPackageError, match=r"'av' is not installed, it reads videos\. Run: pip install 'av>=[\d.]+'$"):
        open_video(clip)
    assert numbers(open_video([grey(3)])) == [3]


def test_metadata_in_an_unknown_encoding_is_no_error() -> None:
    content = encode([grey(number) for number in range(20)], container="avi", codec="mpeg4", title="Zeit A")
    changed = content.replace(b"Zeit A", b"Zeit \xe4")
    assert changed != content
    assert numbers(open_video(changed)) == [0, 10]


def test_open_files_and_addresses_are_videos(clip: bytes, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip)
    address = "data:video/mp4;base64," + base64.b64encode(clip).decode()
    with path.open("rb") as file:
        for source in (bytearray(clip), memoryview(clip), io.BytesIO(clip), file, file, address):
            assert numbers(open_video(source)) == [0, 10, 20, 30]


@pytest.mark.parametrize(
    ("source", "match"),
    [
        (None, "video given as NoneType is of no known kind"),
        ((grey(number) for number in range(3)), "video given as generator is of no known kind.* a list of frames"),
        ("https://example.org/a.mp4", "of the kind 'https:', and nothing is fetched"),
        ([None], "image given as NoneType is of no known kind"),
    ],
)
def test_other_sources_are_named(source: Any, match: str) -> None:
    with pytest.raises(RequestError, match=match):
        open_video(source)


def test_numbers_of_numpy_are_numbers(clip: bytes) -> None:
    assert numbers(open_video(clip, fps=np.float32(1), max_frames=np.int64(4))) == [0, 10, 20, 30]
