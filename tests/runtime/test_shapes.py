"""What users know of their requests, as sizes of engines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from foveate.engines import Bundle, Manifest, OptionError, Range, RequestError
from foveate.runtime.shapes import parse_image_sizes, plan_shapes


@pytest.fixture(scope="module")
def manifest(reference_bundle: Path) -> Manifest:
    return Bundle.open(reference_bundle, verify=False).manifest


def test_any_image_of_the_model_by_default(manifest: Manifest) -> None:
    shapes = plan_shapes(manifest)
    assert shapes.visual_tokens == Range(1, 1024, 1024)  # the reference model takes no larger image
    assert shapes.patches == Range(4, 4096, 4096)


@pytest.mark.parametrize("name", ["llava-onevision-tiny", "vila1.5-tiny"])
def test_engines_take_parts_of_crops_and_frames(trained_bundle: Callable[[str], Path], name: str) -> None:
    manifest = Bundle.open(trained_bundle(name), verify=False).manifest
    patches = [plan_shapes(manifest).patches, plan_shapes(manifest, image_sizes=[(224, 224)]).patches]
    for found in patches:
        assert found.min == 1
        assert found.max == found.opt > 1


def test_several_images_share_a_prompt(manifest: Manifest) -> None:
    sizes = parse_image_sizes("224x224:336x336:448x448")
    shapes = plan_shapes(manifest, image_sizes=sizes, images=8, new_tokens=16)
    assert shapes.visual_tokens == Range(64, 144, 8 * 256)
    assert shapes.patches == Range(4, 576, 1024)  # a part of an image has fewer patches than the smallest
    assert shapes.new_tokens == 16


def test_frames_of_a_video_and_an_image(manifest: Manifest) -> None:
    shapes = plan_shapes(manifest, image_sizes=parse_image_sizes("224x224"), frames=Range(4, 8, 16))
    assert shapes.frames == Range(1, 8, 16)
    assert shapes.visual_tokens == Range(64, 64, 16 * 64)
    assert plan_shapes(manifest, Range(4, 64, 512), frames=Range(2, 2, 4)).frames == Range(1, 2, 4)


@pytest.mark.parametrize("text", ["", "448", "448x", "0x448", "448x448:", "1x1:2x2:3x3:4x4", "-4x4", "448 x 448"])
def test_texts_that_are_no_sizes(text: str) -> None:
    with pytest.raises(OptionError, match=r"is no range of image sizes.*Use 448x448:1344x1344"):
        parse_image_sizes(text)


def test_sizes_that_contradict(manifest: Manifest) -> None:
    with pytest.raises(OptionError, match="both visual tokens and image sizes"):
        plan_shapes(manifest, Range(1, 2, 3), [(448, 448)])
    with pytest.raises(OptionError, match="images is 4, which counts with image sizes only"):
        plan_shapes(manifest, Range(1, 2, 3), images=4)
    with pytest.raises(OptionError, match="Put them in order"):
        plan_shapes(manifest, image_sizes=[(448, 448), (224, 224)])
    with pytest.raises(RequestError, match="aspect ratio"):
        plan_shapes(manifest, image_sizes=[(10, 10_000)])
