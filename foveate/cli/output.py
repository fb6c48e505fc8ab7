"""What a command says: to people as text and tables, to programs as JSON."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import click
import msgspec
from rich.console import Console, RenderableType

from foveate.cli.files import check_output, write_output
from foveate.engines import MachineError

STDOUT = Path("-")
_PIPE_WIDTH = 200


class Output:
    """Where the results of a command go.

    Args:
        json_file: where to write them as JSON. With `STDOUT` nothing else goes to standard output.

    Raises:
        OptionError: the file could not be written.
    """

    def __init__(self, json_file: Path | None = None) -> None:
        self._json_file = json_file
        self._quiet = json_file == STDOUT
        if not self._quiet:
            check_output("--json", json_file)
        self.console = open_console()

    def say(self, text: str = "", end: str = "\n") -> None:
        """Text as it is: an answer, a path."""
        if not self._quiet:
            _write(text + end)

    def show(self, *parts: RenderableType) -> None:
        """Sentences and tables, as wide as the terminal, one below the other."""
        for part in () if self._quiet else parts:
            with _standard_output():
                plain = isinstance(part, str)
                self.console.print(part, soft_wrap=plain and not self.console.is_terminal, highlight=False, markup=not plain)

    def finish(self, document: msgspec.Struct) -> None:
        """The same for programs.

        Raises:
            MachineError: the file can't be written.
        """
        if self._json_file is None:
            return
        content = msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n"
        if self._quiet:
            _write(content.decode())
        else:
            write_output(self._json_file, content)


class _Console(Console):
    """One that leaves it to the command line what a reader that went away means."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


def open_console() -> Console:
    """Standard output. Where nothing limits a line, no row needs a second one."""
    console = _Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def _write(text: str) -> None:
    with _standard_output():
        click.echo(text, nl=False)


@contextmanager
def _standard_output() -> Iterator[None]:
    """Says that it can't be written, but for a reader that went away, which is its right."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        leave_standard_output()
        fact = error.strerror or error
        raise MachineError(f"standard output can't be written: {fact}. Free some space, or send it elsewhere.") from error


def leave_standard_output() -> None:
    """Lets go what is still to be written, so that Python does not fail over it when it ends."""
    with suppress(OSError, ValueError):  # in tests it is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
