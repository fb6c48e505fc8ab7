"""Which frames of a file are taken: the rules of the families' authors, spelt out."""

from __future__ import annotations

import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines.format.processors.llava_llama import LlavaLlamaConstants
from foveate.runtime import FRAME_RULES, open_video
from foveate.runtime.frames import FrameDefaults
from foveate.runtime.processors.llava_llama import LlavaLlamaProcessor
from foveate.runtime.processors.llava_onevision import LlavaOnevisionProcessor
from foveate.runtime.processors.qwen2_vl import Qwen2VLProcessor
from tests.runtime.clips import encode, grey, number_of


def smart_nframes(total_frames: int, video_fps: float, fps: float, max_frames: int) -> int:
    """qwen-vl-utils' rule, as its documentation and code have it: FRAME_FACTOR 2, FPS_MIN_FRAMES 4."""
    fewest, most = 4, math.floor(min(max_frames, total_frames) / 2) * 2
    nframes = min(min(max(total_frames / video_fps * fps, fewest), most), total_frames)
    return math.floor(nframes / 2) * 2


@given(st.integers(2, 3000), st.sampled_from([1, 5, 10, 24, 25, 29.97, 30, 60]), st.floats(0.1, 8), st.integers(2, 768))
def test_frames_are_those_of_qwen_vl_utils(total: int, video_fps: float, fps: float, max_frames: int) -> None:
    count = smart_nframes(total, video_fps, fps, max_frames)
    expected = torch.linspace(0, total - 1, count, dtype=torch.float64).round().long().unique().tolist()
    taken = FRAME_RULES["qwen-vl-utils"](np.arange(total) / video_fps, total / video_fps, fps, max_frames)
    assert taken.tolist() == expected


@given(st.integers(1, 3000), st.integers(1, 100))
def test_frames_are_evenly_spread_by_their_numbers(total: int, max_frames: int) -> None:
    """As LLaVA-OneVision's `load_video` and VILA's `opencv_extract_frames` do; VILA takes all of a shorter video."""
    expected = np.linspace(0, total - 1, max_frames, dtype=int) if total >= max_frames else np.arange(total)
    taken = FRAME_RULES["uniform"](np.arange(total) / 10, total / 10, 1.0, max_frames)
    assert taken.tolist() == sorted(set(expected.tolist()))


@given(st.sampled_from(sorted(FRAME_RULES)), st.integers(1, 300), st.floats(0.1, 60), st.integers(1, 100))
def test_every_rule_takes_some_frames_once_and_no_more_than_it_may(rule: str, total: int, fps: float, max_frames: int) -> None:
    taken = FRAME_RULES[rule](np.arange(total) / 10, total / 10, fps, max_frames)
    assert 1 <= len(taken) <= max_frames
    assert (np.diff(taken) > 0).all()
    assert 0 <= taken[0] <= taken[-1] < total


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("interval", [0, 10, 20, 30]), ("uniform", [0, 13, 26, 39]), ("qwen-vl-utils", [0, 13, 26, 39])],
)
def test_a_file_gives_the_frames_of_the_rule(rule: str, expected: list[int]) -> None:
    clip = open_video(encode([grey(number) for number in range(40)]), fps=1, max_frames=4, rule=rule)
    assert [number_of(frame) for frame in clip.frames] == expected
    assert clip.seconds == pytest.approx([number / 10 for number in expected])


def test_families_take_the_frames_that_their_authors_take() -> None:
    assert Qwen2VLProcessor.frame_defaults == FrameDefaults("qwen-vl-utils", fps=2.0, max_frames=32)
    assert LlavaOnevisionProcessor.frame_defaults == FrameDefaults("uniform", max_frames=32)
    constants = {
        "image_size": 72,
        "patch_size": 14,
        "merge_size": 2,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "rescale_factor": 1 / 255,
        "image_token_id": 5,
        "frame_separator_ids": [1],
    }
    eight, six = (
        LlavaLlamaProcessor(msgspec.convert(constants | changes, LlavaLlamaConstants))
        for changes in ({}, {"num_video_frames": 6})
    )
    assert eight.frame_defaults == FrameDefaults("uniform", max_frames=8)
    assert six.frame_defaults.max_frames == 6
