"""A user's own data: a folder of images beside a `questions.jsonl`."""

from __future__ import annotations

from pathlib import Path

import msgspec

from foveate.engines.errors import RequestError

QUESTIONS = "questions.jsonl"
_EXAMPLE = '{"image": "images/1.png", "question": "What is this?", "answer": "a cat", "type": "object"}'


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A question about an image, with its right answer.

    Attributes:
        image: path of the image; in the file relative to its folder.
        question: the user's text.
        answer: the one right answer.
        type: groups questions in a report; may be left out.
    """

    image: str
    question: str
    answer: str
    type: str = ""

    def answered_by(self, text: str) -> bool:
        """Whether an answer is right: the same text but for case, surrounding space and a closing full stop."""
        return _plain(text) == _plain(self.answer)


def _plain(text: str) -> str:
    return text.strip().removesuffix(".").casefold()


def read_samples(folder: Path) -> list[Sample]:
    """The lines of a folder's `questions.jsonl`, with the paths of their images.

    Raises:
        RequestError: there is no such file, it is empty, a line is broken, or an image is missing or outside of the folder.
    """
    file = folder / QUESTIONS
    if not file.is_file():
        raise RequestError(f"{file} does not exist. Expected a folder with {QUESTIONS}, a line like {_EXAMPLE} each.")
    samples = [
        _read(line, folder, f"{file}, line {number}")
        for number, line in enumerate(file.read_bytes().splitlines(), start=1)
        if line.strip()
    ]
    if not samples:
        raise RequestError(f"{file} is empty, expected a question a line, like {_EXAMPLE}.")
    return samples


def _read(line: bytes, folder: Path, where: str) -> Sample:
    try:
        sample = msgspec.json.decode(line, type=Sample)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestError(f"{where}: {error}. A line looks like {_EXAMPLE}.") from error
    if not sample.question.strip() or not sample.answer.strip():
        raise RequestError(f"{where}: the question or the answer is empty. A line looks like {_EXAMPLE}.")
    image = folder / sample.image
    if not image.resolve().is_relative_to(folder.resolve()):
        raise RequestError(f"{where}: image '{sample.image}' leaves the folder. Put the images beside {QUESTIONS}.")
    if not image.is_file():
        raise RequestError(f"{where}: image '{image}' does not exist. Name it relative to {folder}.")
    return msgspec.structs.replace(sample, image=str(image))
