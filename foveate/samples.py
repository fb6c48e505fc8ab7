"""A user's own data: a folder of images and videos beside a `questions.jsonl`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from foveate.engines.errors import DataError, reason_of
from foveate.runtime import Request

QUESTIONS = "questions.jsonl"
_EXAMPLE = '{"image": "images/1.png", "question": "What is this?", "answer": "a cat", "type": "object"}'


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A question about an image or a video, with its right answer.

    Attributes:
        question: the user's text.
        answer: the one right answer.
        image: path of the image; in the file relative to its folder.
        video: path of the video, in place of an image.
        type: groups questions in a report; may be left out.
        fps, frame_rule: which frames of the video the question is about, as in `Request`; left out, those that the model's
            authors take.
    """

    question: str
    answer: str
    image: str = ""
    video: str = ""
    type: str = ""
    fps: float | None = None
    frame_rule: str | None = None

    @property
    def source(self) -> str:
        """Path of the image or video."""
        return self.image or self.video

    def request(self, **options: Any) -> Request:
        """The question as a request; `options` are those of `Request.ask`."""
        sampling = {"fps": self.fps, "frame_rule": self.frame_rule}
        return Request.ask(self.question, self.image or (), videos=self.video or (), **(sampling | options))

    def answered_by(self, text: str) -> bool:
        """Whether an answer is right: the same text but for case, surrounding space and a closing full stop."""
        return _plain(text) == _plain(self.answer)


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").casefold()


def read_samples(folder: Path) -> list[Sample]:
    """The lines of a folder's `questions.jsonl`, with the paths of their images.

    Raises:
        DataError: there is no such file, it is empty, a line is broken, or an image is missing or outside of the folder.
    """
    file = folder / QUESTIONS
    if not file.is_file():
        raise DataError(f"{file} does not exist. Expected a folder with {QUESTIONS}, a line like {_EXAMPLE} each.")
    samples = [
        _read(line, folder, f"{file}, line {number}")
        for number, line in enumerate(file.read_bytes().splitlines(), start=1)
        if line.strip()
    ]
    if not samples:
        raise DataError(f"{file} is empty, expected a question a line, like {_EXAMPLE}.")
    return samples


def _read(line: bytes, folder: Path, where: str) -> Sample:
    try:
        sample = msgspec.json.decode(line, type=Sample)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{where}: {reason_of(error)}. A line looks like {_EXAMPLE}.") from error
    if not sample.question.strip() or not sample.answer.strip():
        raise DataError(f"{where}: the question or the answer is empty. A line looks like {_EXAMPLE}.")
    if bool(sample.image) == bool(sample.video):
        raise DataError(f"{where}: expected an image or a video, one of them. A line looks like {_EXAMPLE}.")
    file = folder / sample.source
    kind = "image" if sample.image else "video"
    if not file.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{where}: {kind} '{sample.source}' leaves the folder. Put the {kind}s beside {QUESTIONS}.")
    if not file.is_file():
        raise DataError(f"{where}: {kind} '{file}' does not exist. Name it relative to {folder}.")
    return msgspec.structs.replace(sample, **{kind: str(file)})
