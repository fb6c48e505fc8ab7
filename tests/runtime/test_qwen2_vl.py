"""Qwen2-VL's processor against transformers: pixels bit for bit, positions one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLModel

from foveate.engines import BundleError, RequestError, VisionShape
from foveate.engines.format.processors import read_constants
from foveate.runtime import Visual
from foveate.runtime.processors import Processor, open_processor
from foveate.runtime.processors.qwen2_vl import Qwen2VLProcessor, smart_resize


def opened(constants: dict[str, Any]) -> Processor:
    return open_processor("qwen2_vl", read_constants("qwen2_vl", constants))


@pytest.fixture(scope="module")
def expected_pixels(constants: dict[str, Any]) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(**{name: value for name, value in constants.items() if not name.endswith("_id")})


@pytest.fixture(scope="module")
def rope_model(constants: dict[str, Any]) -> Qwen2VLModel:
    """Just enough of the model for `get_rope_index`, which needs no weights."""
    from transformers import Qwen2VLConfig

    model = Qwen2VLModel.__new__(Qwen2VLModel)
    torch.nn.Module.__init__(model)
    model.config = Qwen2VLConfig(vision_config={"spatial_merge_size": constants["merge_size"]})
    return model


def expected_video(processor: Qwen2VLImageProcessorPil, frames: list[Image.Image]) -> tuple[np.ndarray, list[int]]:
    """`pixel_values_videos` and `video_grid_thw`, from transformers' image processor under the limits of videos: each frame is
    one of the two equal halves in time of an image's patches. (transformers' video processor needs torchvision.)"""
    frames = frames + frames[-1:] * (len(frames) % 2)
    size = {"shortest_edge": 128 * 28 * 28, "longest_edge": 28 * 28 * 768}  # the defaults of transformers' video processor
    images = [processor(frame, size=size, return_tensors="np") for frame in frames]
    halves = [image["pixel_values"].reshape(-1, 3, 2, 14 * 14)[:, :, 0] for image in images]
    steps = [np.stack(pair, axis=2).reshape(len(halves[0]), -1) for pair in zip(halves[::2], halves[1::2], strict=True)]
    _, rows, columns = images[0]["image_grid_thw"][0].tolist()
    return np.concatenate(steps), [len(steps), rows, columns]


def expected_positions(merge: int, rows: int, columns: int) -> list[list[int]]:
    """Row and column of each patch, token by token, spelt out."""
    return [
        [row + i, column + j]
        for row in range(0, rows, merge)
        for column in range(0, columns, merge)
        for i in range(merge)
        for j in range(merge)
    ]


@settings(max_examples=25)
@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_patches_are_those_of_transformers_bit_for_bit(
    processor: Qwen2VLProcessor, expected_pixels: Qwen2VLImageProcessorPil, height: int, width: int, seed: int
) -> None:
    if max(height, width) > 200 * min(height, width):
        return
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    visual = processor.image(Image.fromarray(pixels))
    expected = expected_pixels([Image.fromarray(pixels)], return_tensors="np")
    patches, positions = visual.feeds["pixel_values"], visual.feeds["patch_positions"]
    np.testing.assert_array_equal(patches[0], expected["pixel_values"])
    assert (patches.dtype, positions.dtype) == (np.float32, np.int64)
    _, rows, columns = expected["image_grid_thw"][0].tolist()
    assert visual.grids == ((1, rows // 2, columns // 2),)
    assert positions.tolist() == expected_positions(2, rows, columns)


@settings(max_examples=15)
@given(st.integers(1, 5), st.integers(20, 400), st.integers(20, 400), st.integers(0, 2**32 - 1))
def test_patches_of_frames_are_those_of_transformers_bit_for_bit(
    processor: Qwen2VLProcessor, expected_pixels: Qwen2VLImageProcessorPil, count: int, height: int, width: int, seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)
    frames = [Image.fromarray(frame) for frame in pixels]
    visual = processor.video(frames, [float(number) for number in range(count)])
    expected, (steps, rows, columns) = expected_video(expected_pixels, frames)
    patches = visual.feeds["pixel_values"]
    assert patches.shape[:2] == (steps, rows * columns)
    assert patches.dtype == np.float32
    np.testing.assert_array_equal(patches.reshape(expected.shape), expected)
    assert visual.feeds["patch_positions"].tolist() == expected_positions(2, rows, columns)
    assert (visual.kind, visual.grids) == ("video", ((steps, rows // 2, columns // 2),))


def test_two_frames_share_their_visual_tokens(processor: Qwen2VLProcessor) -> None:
    visual = processor.video([Image.new("RGB", (280, 280), (shade, 0, 0)) for shade in (0, 90, 180)], (0.0, 0.5, 1.0))
    per_step = visual.num_tokens // 2
    assert [picture.seconds for picture in visual.pictures] == [0.0, 0.5, 1.0]
    assert [picture.image.getpixel((0, 0))[0] for picture in visual.pictures] == [0, 90, 180]
    assert [picture.tokens.min() // per_step for picture in visual.pictures] == [0, 0, 1]
    assert np.unique(np.concatenate([picture.tokens for picture in visual.pictures])).tolist() == list(range(2 * per_step))


def test_the_limits_of_frames_are_the_bundles(constants: dict[str, Any]) -> None:
    frames = [Image.new("RGB", (280, 280))] * 2
    assert opened(constants).video(frames, (0.0, 1.0)).grids == ((1, 12, 12),)  # 128 tokens at least
    small = opened({**constants, "video_min_pixels": 28 * 28, "video_max_pixels": 16 * 28 * 28})
    assert small.video(frames, (0.0, 1.0)).grids == ((1, 4, 4),)


def test_frames_of_an_extreme_shape_are_refused(processor: Qwen2VLProcessor) -> None:
    with pytest.raises(RequestError, match="aspect ratio of at most 200"):
        processor.video([Image.new("RGB", (603, 3))], (0.0,))


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_sizes_keep_the_rules_of_transformers(processor: Qwen2VLProcessor, height: int, width: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as expected

    constants = processor.constants
    try:
        wanted = expected(height, width, 28, constants.min_pixels, constants.max_pixels)
    except ValueError:
        with pytest.raises(RequestError, match="aspect ratio of at most 200"):
            smart_resize(height, width, constants, constants.min_pixels, constants.max_pixels)
    else:
        assert smart_resize(height, width, constants, constants.min_pixels, constants.max_pixels) == wanted


@settings(max_examples=50)
@given(st.integers(1, 400), st.integers(1, 400))
def test_the_shape_of_an_image_is_known_without_its_pixels(processor: Qwen2VLProcessor, width: int, height: int) -> None:
    picture = Image.new("RGB", (width, height))
    try:
        visual = processor.image(picture)
    except RequestError:
        with pytest.raises(RequestError, match="aspect ratio of at most 200"):
            processor.vision_shape(width, height)
        return
    shape = processor.vision_shape(width, height)
    assert (shape.frames, shape.patches) == visual.feeds["pixel_values"].shape[:2]
    assert shape.visual_tokens == visual.num_tokens
    assert processor.vision_shape_of_tokens(shape.visual_tokens) == shape


def test_patches_of_visual_tokens(constants: dict[str, Any]) -> None:
    assert opened(constants).vision_shape_of_tokens(1296) == VisionShape(1, 5184, 1296)
    assert opened({**constants, "merge_size": 3}).vision_shape_of_tokens(7) == VisionShape(1, 63, 7)


sides = st.integers(1, 9)
# As transformers 5 counts on after a video by its rows and columns only, no video has more steps than those.
grids = st.tuples(sides, sides, sides).map(lambda grid: (min(grid[0], max(grid[1:])), *grid[1:]))
segments = st.lists(st.one_of(st.integers(1, 6), st.tuples(st.sampled_from(["image", "video"]), grids)), min_size=1, max_size=7)


@given(segments)
def test_positions_are_those_of_transformers(
    processor: Qwen2VLProcessor, rope_model: Qwen2VLModel, segments: list[int | tuple[str, tuple[int, int, int]]]
) -> None:
    """A number is so many text tokens, a pair an image or video between its start and end tokens."""
    ids, visuals = prompt_of(processor, segments)
    layout = processor.layout(ids, visuals)
    input_ids = torch.from_numpy(layout.input_ids)[None]
    kinds = (input_ids == processor.constants.image_token_id) + 2 * (input_ids == processor.constants.video_token_id)
    image_grid, video_grid = (
        torch.tensor([[t, 2 * h, 2 * w] for visual in visuals for t, h, w in visual.grids if visual.kind == kind])
        for kind in ("image", "video")
    )
    positions, delta = rope_model.get_rope_index(input_ids, kinds.int(), image_grid, video_grid)
    np.testing.assert_array_equal(layout.position_ids, positions[:, 0])
    assert layout.next_position == int(delta) + len(layout.input_ids)
    np.testing.assert_array_equal(layout.visual_indices, np.flatnonzero(kinds[0]))
    assert len(layout.visual_indices) == sum(visual.num_tokens for visual in visuals)
    assert (layout.input_ids.dtype, layout.position_ids.dtype, layout.visual_indices.dtype) == (np.int64,) * 3


def prompt_of(processor: Qwen2VLProcessor, segments: list[Any]) -> tuple[np.ndarray, list[Visual]]:
    constants = processor.constants
    tokens = {"image": constants.image_token_id, "video": constants.video_token_id}
    ids: list[int] = []
    visuals = []
    for segment in segments:
        if isinstance(segment, int):
            ids += [1] * segment
        else:
            kind, (steps, rows, columns) = segment
            ids += [2, tokens[kind], 3]
            visuals.append(Visual({}, ((steps if kind == "video" else 1, rows, columns),), (), kind))
    return np.array(ids), visuals


def test_text_after_a_long_video_stands_behind_all_of_it(processor: Qwen2VLProcessor) -> None:
    """The paper's rule, with which the checkpoints were trained: text goes on from the largest position before it."""
    ids, visuals = prompt_of(processor, [2, ("video", (7, 2, 3)), 2])
    layout = processor.layout(ids, visuals)
    video = layout.position_ids[:, layout.visual_indices]
    assert video.min(axis=1).tolist() == [3, 3, 3]
    assert video.max(axis=1).tolist() == [9, 4, 5]
    assert layout.position_ids[:, layout.visual_indices[-1] + 1 :].tolist() == [[10, 11, 12]] * 3
    assert layout.next_position == 13


def test_placeholders_and_visuals_must_agree(processor: Qwen2VLProcessor) -> None:
    image, video = Visual({}, ((1, 2, 2),), ()), Visual({}, ((2, 2, 2),), (), "video")
    image_id, video_id = processor.constants.image_token_id, processor.constants.video_token_id
    with pytest.raises(RequestError, match="placeholders for 1 images and 0 videos, the request 2 images and 0 videos"):
        processor.layout(np.array([1, image_id]), [image, image])
    for ids, visuals in (([video_id], []), ([video_id], [image]), ([image_id, video_id], [video, image])):
        with pytest.raises(RequestError, match="expected the same in the same order"):
            processor.layout(np.array(ids), visuals)


def test_unknown_and_missing_constants_are_bundle_errors(constants: dict[str, Any]) -> None:
    for broken in ({**constants, "colour": 1}, {k: v for k, v in constants.items() if k != "merge_size"}):
        with pytest.raises(BundleError, match="Export the bundle again"):
            opened(broken)
    with pytest.raises(BundleError, match="image_mean"):
        opened({**constants, "image_mean": [0.5]})


def test_the_registry_opens_families_by_name(constants: dict[str, Any]) -> None:
    assert isinstance(opened(constants), Qwen2VLProcessor)
    with pytest.raises(BundleError, match="family 'phi3_v'"):
        read_constants("phi3_v", constants)
