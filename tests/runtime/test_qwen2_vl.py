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
from foveate.runtime import Visual
from foveate.runtime.processors import open_processor
from foveate.runtime.processors.qwen2_vl import Qwen2VLProcessor, smart_resize


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


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_sizes_keep_the_rules_of_transformers(processor: Qwen2VLProcessor, height: int, width: int) -> None:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as expected

    constants = processor.constants
    try:
        wanted = expected(height, width, 28, constants.min_pixels, constants.max_pixels)
    except ValueError:
        with pytest.raises(RequestError, match="aspect ratio of at most 200"):
            smart_resize(height, width, constants)
    else:
        assert smart_resize(height, width, constants) == wanted


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
    assert Qwen2VLProcessor(constants).vision_shape_of_tokens(1296) == VisionShape(1, 5184, 1296)
    assert Qwen2VLProcessor({**constants, "merge_size": 3}).vision_shape_of_tokens(7) == VisionShape(1, 63, 7)


grids = st.tuples(st.integers(1, 9), st.integers(1, 9))
segments = st.lists(st.one_of(st.integers(1, 6), grids), min_size=1, max_size=7)


@given(segments)
def test_positions_are_those_of_transformers(
    processor: Qwen2VLProcessor, rope_model: Qwen2VLModel, segments: list[int | tuple[int, int]]
) -> None:
    """A number is so many text tokens, a pair an image between its start and end tokens."""
    constants, ids, images = processor.constants, [], []
    for segment in segments:
        if isinstance(segment, int):
            ids += [1] * segment
        else:
            ids += [constants.vision_start_token_id, constants.image_token_id, constants.vision_end_token_id]
            images.append(Visual({}, ((1, *segment),), ()))
    layout = processor.layout(np.array(ids), images)
    input_ids = torch.from_numpy(layout.input_ids)[None]
    kinds = (input_ids == constants.image_token_id).int()
    grid = torch.tensor([[frames, 2 * rows, 2 * columns] for image in images for frames, rows, columns in image.grids])
    positions, delta = rope_model.get_rope_index(input_ids, kinds, grid)
    np.testing.assert_array_equal(layout.position_ids, positions[:, 0])
    assert layout.next_position == int(delta) + len(layout.input_ids)
    np.testing.assert_array_equal(layout.visual_indices, np.flatnonzero(kinds[0]))
    assert len(layout.visual_indices) == sum(image.num_tokens for image in images)
    assert (layout.input_ids.dtype, layout.position_ids.dtype, layout.visual_indices.dtype) == (np.int64,) * 3


def test_placeholders_and_images_must_agree(processor: Qwen2VLProcessor) -> None:
    image = Visual({}, ((1, 2, 2),), ())
    with pytest.raises(RequestError, match="1 image placeholders and 2 images"):
        processor.layout(np.array([1, processor.constants.image_token_id]), [image, image])
    with pytest.raises(RequestError, match="video placeholder"):
        processor.layout(np.array([1, processor.constants.video_token_id]), [])


def test_unknown_and_missing_constants_are_bundle_errors(constants: dict[str, Any]) -> None:
    for broken in ({**constants, "colour": 1}, {k: v for k, v in constants.items() if k != "merge_size"}):
        with pytest.raises(BundleError, match="Export the bundle again"):
            Qwen2VLProcessor(broken)
    with pytest.raises(BundleError, match="image_mean"):
        Qwen2VLProcessor({**constants, "image_mean": [0.5]})


def test_the_registry_opens_families_by_name(constants: dict[str, Any]) -> None:
    assert isinstance(open_processor("qwen2_vl", constants), Qwen2VLProcessor)
    with pytest.raises(BundleError, match="family 'llava'"):
        open_processor("llava", constants)
