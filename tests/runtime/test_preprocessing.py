"""preprocessor_config.json from the checkpoint to the pixels: what is followed gives those of transformers' PIL processors that
read the same file, bit for bit; the rest is refused by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from foveate.engines import BundleError, ExportError, RequestError
from foveate.engines.format.processors import read_constants
from foveate.runtime.processors import Processor, open_processor
from models.scenes.checkpoint import build_config, build_model, build_tokenizer, save_checkpoint
from tests import tiny_llava, tiny_llava_llama, tiny_llava_onevision

exporter = pytest.importorskip("foveate.exporter")
FAMILIES = ("qwen2_vl", "llava", "llava_onevision", "llava_llama")
FILE = "preprocessor_config.json"
SIZES = [(90, 61), (60, 300), (29, 31), (72, 72), (56, 84), (1, 7)]
SWITCHES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no normalisation": {"do_normalize": False},
    "no rescaling": {"do_rescale": False},
    "neither": {"do_normalize": False, "do_rescale": False},
    "nearest": {"resample": 0},
    "lanczos": {"resample": 1},
    "bilinear": {"resample": 2},
    "box": {"resample": 4},
    "hamming": {"resample": 5},
    "other numbers": {"rescale_factor": 1 / 127.5, "image_mean": [0.2, 0.9, 0.0], "image_std": [-0.5, 2.0, 1e-3]},
    "one number for all channels": {"image_std": 0.3},
    "null is off": {"do_rescale": None, "do_normalize": None, "do_pad": None},
    "colour": {"do_convert_rgb": False},
    "a fast class": {"image_processor_type": "Fast"},
}


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny checkpoint of each family."""
    folder = tmp_path_factory.mktemp("checkpoints")
    tokenizer = build_tokenizer()
    save_checkpoint(build_model(build_config(tokenizer), seed=0), tokenizer, folder / "qwen2_vl")
    tiny_llava.save_tiny(folder / "llava")
    tiny_llava_onevision.save_tiny(folder / "llava_onevision")
    tiny_llava_llama.save_tiny(folder / "llava_llama", "vicuna_v1")
    config = json.loads((folder / "llava_llama" / "config.json").read_text())
    (folder / "llava_llama" / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": None}))
    return {path.name: path for path in folder.iterdir()}


Edit = Callable[..., Path]


@pytest.fixture
def edit(checkpoints: dict[str, Path], tmp_path: Path) -> Edit:
    """A copy of a checkpoint whose preprocessing says something else; a type of "Fast" only names the backend of its own."""

    def edited(family: str, changes: dict[str, Any]) -> Path:
        folder = tmp_path / family
        shutil.copytree(checkpoints[family], folder)
        for file in folder.rglob(f"*{FILE}"):
            values = json.loads(file.read_text())
            if changes.get("image_processor_type") == "Fast":
                values["image_processor_type"] = values.get("image_processor_type", "Qwen2VLImageProcessor") + "Fast"
            else:
                values |= changes
            file.write_text(json.dumps(values))
        return folder

    return edited


def constants(folder: Path) -> dict[str, Any]:
    from foveate.exporter.checkpoint import Checkpoint
    from foveate.exporter.families import read_family

    written: dict[str, Any] = msgspec.to_builtins(read_family(Checkpoint.open(folder)).processor())
    return written


def opened(folder: Path) -> Processor:
    return open_processor(folder.name, read_constants(folder.name, constants(folder)))


def unfold(pictures: np.ndarray, patch: int) -> np.ndarray:
    """`[n, 3, side, side]` to `[n, patches, 3 * patch * patch]` float32, as the towers' convolution sees them."""
    pictures = np.asarray(pictures)
    grid = pictures.shape[-1] // patch
    blocks = pictures[..., : grid * patch, : grid * patch].reshape(-1, 3, grid, patch, grid, patch)
    return blocks.transpose(0, 2, 4, 1, 3, 5).reshape(len(pictures), grid**2, -1).astype(np.float32)


def expected(folder: Path, image: Image.Image) -> np.ndarray:
    """`pixel_values` of transformers' processor of the folder, in the order of ours."""
    if folder.name == "qwen2_vl":
        return Qwen2VLImageProcessorPil.from_pretrained(folder)(image, return_tensors="np")["pixel_values"][None]
    if folder.name == "llava_onevision":
        return unfold(
            LlavaOnevisionImageProcessorPil.from_pretrained(folder)(image, return_tensors="np")["pixel_values"][0], 14
        )
    if folder.name == "llava_llama":
        return unfold(SiglipImageProcessorPil.from_pretrained(folder / "vision_tower")(image)["pixel_values"], 14)
    values = json.loads((folder / FILE).read_text())
    kind = CLIPImageProcessorPil if values["image_processor_type"].startswith("CLIP") else LlavaImageProcessorPil
    return unfold(kind.from_pretrained(folder)(image)["pixel_values"], 14)


def check_pixels(folder: Path, sizes: list[tuple[int, int]]) -> None:
    processor = opened(folder)
    for size in sizes:
        image = picture(*size)
        pixels = processor.image(image).feeds["pixel_values"]
        assert pixels.dtype == np.float32
        np.testing.assert_array_equal(pixels, expected(folder, image))


@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_pixels_are_those_of_transformers_for_every_switch(family: str, switch: str, edit: Edit) -> None:
    check_pixels(edit(family, SWITCHES[switch]), SIZES)


@pytest.mark.parametrize(
    ("family", "good", "bad"),
    [
        ("qwen2_vl", [(56, 84), (28, 28)], [(57, 84), (1, 7)]),
        ("llava", SIZES, []),  # what is cut out is the model's square
        ("llava_onevision", SIZES, []),  # crops are resized whatever the file says
        ("llava_llama", [(72, 72)], [(72, 71), (90, 61)]),
    ],
)
def test_images_as_they_are_where_the_file_says_so(
    family: str, good: list[tuple[int, int]], bad: list[tuple[int, int]], edit: Edit
) -> None:
    folder = edit(family, {"do_resize": False})
    check_pixels(folder, good)
    for size in bad:
        with pytest.raises(RequestError, match=r"takes them as they are.* Resize it"):
            opened(folder).image(picture(*size))


def test_several_images_and_frames_as_they_are(edit: Edit) -> None:
    processor = opened(edit("llava_onevision", {"do_resize": False}))
    assert processor.image(picture(72, 40), alone=False).num_tokens == 26
    for call in (lambda: processor.image(picture(73, 40), alone=False), lambda: processor.video([picture(72, 40)], [0.0])):
        with pytest.raises(RequestError, match=r"takes them as they are.* Resize it"):
            call()


@pytest.mark.parametrize(
    "changes",
    [
        {"size": {"shortest_edge": 64}},
        {"size": {"shortest_edge": 40}},
        {"size": 70},
        {"size": {"height": 60, "width": 90}},
        {"size": [80, 33]},
        {"size": 60, "default_to_square": True},
        {"crop_size": 56},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": True},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": {"shortest_edge": 72}, "resample": 2},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "size": [64, 64], "do_normalize": False},
        {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "do_center_crop": False},
    ],
    ids=str,
)
def test_sizes_of_llava_are_followed(changes: dict[str, Any], edit: Edit) -> None:
    check_pixels(edit("llava", changes), SIZES)


def test_without_a_crop_only_squares_are_seen(edit: Edit) -> None:
    folder = edit("llava", {"do_center_crop": False})
    check_pixels(folder, [(72, 72), (200, 200)])
    with pytest.raises(RequestError, match=r"84 x 56 pixels where the model sees 56 x 56, .* Give a square image"):
        opened(folder).image(picture(84, 56))


@pytest.mark.parametrize(
    "changes", [{"min_pixels": 100, "max_pixels": 9000}, {"size": {"shortest_edge": 784, "longest_edge": 9000}}]
)
def test_pixel_limits_are_followed(changes: dict[str, Any], edit: Edit) -> None:
    check_pixels(edit("qwen2_vl", {"min_pixels": None, "max_pixels": None} | changes), SIZES)


@pytest.mark.parametrize("family", FAMILIES)
def test_processor_config_goes_before_the_older_file_as_in_transformers(family: str, edit: Edit) -> None:
    folder = edit(family, {})
    where = folder / "vision_tower" if family == "llava_llama" else folder
    values = json.loads((where / FILE).read_text())
    both = {
        "image_processor": values | {"image_mean": [0.1, 0.2, 0.3]},
        "video_processor": values | {"image_mean": [0.1, 0.2, 0.3]},
    }
    (where / "processor_config.json").write_text(json.dumps(both))
    assert constants(folder)["image_mean"] == (0.1, 0.2, 0.3)
    check_pixels(folder, SIZES[:2])


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    *((family, {"resample": 6}, "resample is 6") for family in FAMILIES),
    *((family, {"image_std": [0.5, 0, 0.5]}, "image_std is") for family in FAMILIES),
    *((family, {"do_rescale": "no"}, "do_rescale") for family in FAMILIES),
    *((family, {"image_mean": [0.5]}, "image_mean") for family in FAMILIES),
    *(
        (family, {"image_processor_type": "ViTImageProcessor"}, "image_processor_type is 'ViTImageProcessor'")
        for family in FAMILIES
    ),
    ("qwen2_vl", {"resample": None}, "resample"),
    ("llava", {"size": None}, r"form of size is \(\)"),
    ("qwen2_vl", {"patch_size": 16}, "patch_size is 16, supported is 14"),
    ("qwen2_vl", {"merge_size": 1}, "merge_size is 1, supported is 2"),
    ("qwen2_vl", {"temporal_patch_size": 1}, "temporal_patch_size is 1, supported is 2"),
    ("qwen2_vl", {"min_pixels": 0}, "are 0, the most"),
    ("qwen2_vl", {"max_pixels": 0}, "the most .* 0, expected"),
    ("qwen2_vl", {"max_pixels": 1 << 41}, "constants that no processor takes"),
    ("qwen2_vl", {"min_pixels": 9000, "max_pixels": 8000}, "are 9000, the most .* 8000"),
    ("qwen2_vl", {"min_pixels": 50_000_000, "max_pixels": 10**9}, "are 50000000, the most"),
    ("qwen2_vl", {"min_pixels": None, "max_pixels": None, "size": {"min_pixels": 1, "max_pixels": 2}}, "expected both"),
    ("qwen2_vl", {"min_pixels": None, "max_pixels": None, "size": {"shortest_edge": 3136}}, "expected both"),
    ("qwen2_vl", {"do_center_crop": True}, "do_center_crop is True"),
    ("qwen2_vl", {"do_pad": True}, "do_pad is True"),
    ("qwen2_vl", {"do_sample_frames": True}, "do_sample_frames is True"),
    ("qwen2_vl", {"cap_pixels_per_frame": True}, "cap_pixels_per_frame is True"),
    ("llava", {"crop_size": {"height": 56, "width": 48}}, "crop_size is {'height': 56, 'width': 48}"),
    ("llava", {"size": {"longest_edge": 56}}, "form of size"),
    ("llava", {"size": {"shortest_edge": 0}}, "expected sides of at least 1"),
    ("llava", {"size": {"shortest_edge": 5000}}, "at most 4 times the 56 pixels"),
    ("llava", {"do_pad": True}, "do_pad is True"),  # which CLIP's class does not do
    ("llava", {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "image_mean": 120.0}, "image_mean is 120"),
    ("llava", {"image_processor_type": "LlavaImageProcessor", "do_pad": True, "do_resize": False}, "do_resize with do_pad"),
    ("llava", {"do_center_crop": False, "size": 64}, "size without do_center_crop"),
    ("llava", {"use_square_size": True}, "use_square_size is True"),
    ("llava_onevision", {"size": {"height": 72, "width": 80}}, "size is {'height': 72, 'width': 80}"),
    ("llava_onevision", {"crop_size": {"height": 36, "width": 36}}, "crop_size is"),
    ("llava_onevision", {"image_mean": 1.01}, "as a colour, expected 0 to 1"),
    ("llava_llama", {"size": {"shortest_edge": 72}}, "size is {'shortest_edge': 72}"),
    ("llava_llama", {"do_pad": True}, "do_pad is True"),
    ("llava_llama", {"do_center_crop": True}, "crop_size is {}"),
]


@pytest.mark.parametrize(
    ("family", "changes", "message"), REFUSED, ids=[f"{family}: {changes}" for family, changes, _ in REFUSED]
)
def test_the_rest_is_refused_by_name(family: str, changes: dict[str, Any], message: str, edit: Edit) -> None:
    folder = edit(family, changes)
    with pytest.raises(ExportError, match=message) as caught:
        constants(folder)
    assert "preprocessor_config.json" in str(caught.value)


def test_a_filter_that_vila_itself_would_not_use_is_refused(edit: Edit) -> None:
    """Its code resizes with the bicubic filter before the processor sees the image, where the config says "resize"."""
    folder = edit("llava_llama", {"resample": 2})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_aspect_ratio": "resize"}))
    with pytest.raises(ExportError, match="resample is 2, supported is 3 only"):
        constants(folder)


@pytest.mark.parametrize("name", ["do_resize", "do_rescale", "do_normalize", "resample"])
def test_frames_that_become_numbers_in_another_way_are_refused(name: str, edit: Edit) -> None:
    for family in ("qwen2_vl", "llava_onevision"):
        folder = edit(family, {})
        values = json.loads((folder / FILE).read_text())
        changed = values | {name: 2 if name == "resample" else False}
        (folder / "video_preprocessor_config.json").write_text(json.dumps(changed))
        with pytest.raises(ExportError, match=rf"video_preprocessor_config\.json: {name} of videos is"):
            constants(folder)


HOSTILE: list[tuple[str, dict[str, Any]]] = [
    *((family, {"image_std": [0.5, 0.0, 0.5]}) for family in FAMILIES),
    *((family, {"rescale_factor": float("nan")}) for family in FAMILIES),
    *((family, {"resample": 9}) for family in FAMILIES),
    *((family, {"patch_size": 0}) for family in FAMILIES),
    *((family, {"patch_size": 1 << 63}) for family in FAMILIES),
    *((family, {"image_token_id": -1}) for family in FAMILIES),
    *(
        (family, {"image_size": value})
        for family in ("llava", "llava_onevision", "llava_llama")
        for value in (0, -72, 1 << 40, 7)
    ),
    *(
        ("qwen2_vl", {name: 0})
        for name in ("merge_size", "temporal_patch_size", "min_pixels", "max_pixels", "video_max_pixels")
    ),
    ("qwen2_vl", {"min_pixels": 50_000_000, "max_pixels": 60_000_000}),
    ("qwen2_vl", {"video_min_pixels": 50_000_000, "video_max_pixels": 60_000_000}),
    ("qwen2_vl", {"min_pixels": 5000, "max_pixels": 4000}),
    ("llava", {"size": [8193]}),
    ("llava", {"size": [56, 56, 56]}),
    ("llava", {"do_pad": True, "image_mean": [2.0, 0.5, 0.5]}),
    ("llava_onevision", {"image_grid_pinpoints": []}),
    ("llava_onevision", {"image_grid_pinpoints": [[72, 70]]}),
    ("llava_onevision", {"image_grid_pinpoints": [[7200, 7200]]}),
    ("llava_onevision", {"max_crops": 0}),
    ("llava_onevision", {"image_mean": [2.0, 0.5, 0.5]}),
    ("llava_llama", {"merge_size": 0}),
    ("llava_llama", {"num_video_frames": 0}),
]


@pytest.mark.parametrize(("family", "changes"), HOSTILE, ids=[f"{family}: {changes}" for family, changes in HOSTILE])
def test_constants_of_a_manifest_out_of_range_are_bundle_errors(
    family: str, changes: dict[str, Any], checkpoints: dict[str, Path]
) -> None:
    with pytest.raises(BundleError, match=r"processor constants are not .* Export the bundle again"):
        read_constants(family, constants(checkpoints[family]) | changes)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_older_bundle_without_the_new_constants_sees_the_same(family: str, checkpoints: dict[str, Path]) -> None:
    now = constants(checkpoints[family])
    new = ("do_resize", "resample", "do_rescale", "do_normalize", "size", "do_center_crop", "do_pad", "num_video_frames")
    older = {name: value for name, value in now.items() if name not in new}
    for size in SIZES:
        processors = [open_processor(family, read_constants(family, values)) for values in (older, now)]
        pixels = [processor.image(picture(*size)).feeds["pixel_values"] for processor in processors]
        np.testing.assert_array_equal(*pixels)
