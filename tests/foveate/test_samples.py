"""A user's questions: what is read, and which line an error names."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foveate.engines.errors import DataError
from foveate.samples import Sample, read_samples
from tests.foveate.conftest import SCENES

GOOD = {"image": "images/1.png", "question": "What is this?", "answer": "a cat"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes a folder with an image and a `questions.jsonl` of the given lines: bytes, or what JSON has for a value."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "1.png").write_bytes(b"")
    (tmp_path / "outside.png").write_bytes(b"")

    def write(*lines: object) -> Path:
        encoded = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
        (tmp_path / "data" / "questions.jsonl").write_bytes(b"\n".join(encoded))
        return tmp_path / "data"

    return write


def test_every_line_is_a_sample_and_its_image_is_found(write: Callable[..., Path]) -> None:
    folder = write(GOOD, b"", {**GOOD, "type": "animal"}, b"")
    image = str(folder / "images" / "1.png")
    assert read_samples(folder) == [
        Sample(image=image, question="What is this?", answer="a cat"),
        Sample(image=image, question="What is this?", answer="a cat", type="animal"),
    ]


def test_a_question_about_a_video(write: Callable[..., Path]) -> None:
    folder = write({"video": "images/1.png", "question": "What moves?", "answer": "a cat"})
    (sample,) = read_samples(folder)
    assert sample.source == sample.video == str(folder / "images" / "1.png")
    request = sample.request(keep=0.5)
    assert (request.images, request.videos, request.budget.ratio) == ((), (sample.video,), 0.5)


def test_the_demos_questions_have_types_and_images() -> None:
    samples = read_samples(SCENES)
    assert len(samples) == 12
    assert all(sample.type and Path(sample.image).is_file() for sample in samples)


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b'{"image": "images/1.png", "question": "What', "truncated"),
        (b"a cat", "malformed"),
        (b'{"image": "\xff\xfe"}', "utf-8"),
        (["images/1.png", "What is this?", "a cat"], "Expected `object`"),
        ({"image": "images/1.png", "question": "What is this?"}, "answer"),
        ({**GOOD, "answer": 3}, "answer"),
        ({**GOOD, "anwser": "a cat"}, "anwser"),
        ({**GOOD, "question": " "}, "is empty"),
        ({**GOOD, "answer": ""}, "is empty"),
        ({**GOOD, "image": "images/2.png"}, "does not exist"),
        ({**GOOD, "image": "images"}, "does not exist"),
        ({**GOOD, "image": "../outside.png"}, "leaves the folder"),
        ({**GOOD, "image": "/etc/hostname"}, "leaves the folder"),
        ({"video": "../outside.png", "question": "What?", "answer": "a cat"}, "video '../outside.png' leaves the folder"),
        ({**GOOD, "video": "images/1.png"}, "expected an image or a video, one of them"),
        ({"question": "What is this?", "answer": "a cat"}, "expected an image or a video, one of them"),
    ],
)
def test_a_broken_line_is_named_by_its_number(write: Callable[..., Path], line: object, part: str) -> None:
    with pytest.raises(DataError, match=r"questions\.jsonl, line 4: ") as caught:
        read_samples(write(GOOD, b"", GOOD, line, GOOD))
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_image_behind_a_link_out_of_the_folder_is_refused(write: Callable[..., Path], tmp_path: Path) -> None:
    folder = write({**GOOD, "image": "images/link.png"})
    (folder / "images" / "link.png").symlink_to(tmp_path / "outside.png")
    with pytest.raises(DataError, match=r"line 1.*leaves the folder"):
        read_samples(folder)


@pytest.mark.parametrize("lines", [(), (b"", b"  ", b"")])
def test_a_file_without_a_question(write: Callable[..., Path], lines: tuple[bytes, ...]) -> None:
    with pytest.raises(DataError, match="is empty, expected a question a line"):
        read_samples(write(*lines))


def test_a_folder_without_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"questions\.jsonl does not exist"):
        read_samples(tmp_path)


@given(st.sampled_from(["a cat", "A CAT", "Straße"]), st.text(" \n\t", max_size=3), st.booleans(), st.text(" \n", max_size=3))
def test_case_space_and_a_full_stop_make_no_answer_wrong(answer: str, before: str, stop: bool, behind: str) -> None:
    text = f"{before}{answer.swapcase()}{'.' if stop else ''}{behind}"
    assert Sample(question="", answer=answer).answered_by(text)


@pytest.mark.parametrize("text", ["", "cat", "a cat, or a dog", "a  cat", "a cat.."])
def test_another_text_is_wrong(text: str) -> None:
    assert not Sample(question="", answer="a cat").answered_by(text)


def test_a_line_may_say_which_frames_it_is_about(write: Callable[..., Path]) -> None:
    folder = write({"video": "images/1.png", "question": "What?", "answer": "a", "fps": 1, "frame_rule": "interval"}, GOOD)
    about_frames, about_image = (sample.request(keep=1.0) for sample in read_samples(folder))
    assert (about_frames.fps, about_frames.frame_rule) == (1.0, "interval")
    assert (about_image.fps, about_image.frame_rule) == (None, None)
