"""Everything foveate raises on purpose.

A message states the fact, what was expected and the remedy, in one line. The command line prints it and exits
with code 2; any other exception is a bug. Whose fault it is, the class says:

    FoveateError
      RequestError          the caller's: one request can't be served as it stands
      OptionError           the user's: an option of a function or command is unusable, or contradicts another one
      DataError             the user's: a folder of questions or labels is missing or broken
      BundleError           the bundle's: it can't be read or trusted
      ExportError           the checkpoint's: it can't be exported
        ParityError         a graph differs from it
      LabelError            labels can't be made or read
      ScorerError           a scorer can't be trained or read
      BackendError          the backend's: it can't load or run a graph, or gave values that are none
      MachineError          the machine's: memory, disk, rights
      MissingPackageError   a package is not installed
      BusyError             nobody's: too much waits already, or no more is taken; it may work later
      CancelledError        the caller's: it was told to end
      DeadlineError         nobody's: it was not done in the time that the caller gave it
"""

from __future__ import annotations

import reprlib

_LONGEST_MESSAGE = 2_000
"""Characters. A message that holds a user's value may be as long as that; its start and its end say what matters."""
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 200


def shorten(value: object, most: int = 120) -> str:
    """A user's value for a message, its middle left out where it has more than that many characters."""
    text = str(value)
    if len(text) <= most:
        return text
    kept = most // 2
    return f"{text[:kept]} [... {len(text) - 2 * kept} characters ...] {text[-kept:]}"


def shown(value: object) -> str:
    """A value as code, in one short line, for a message; of one with very many parts most are left out."""
    return shorten(" ".join(_REPR.repr(value).split()), 80)


def reason_of(error: BaseException) -> str:
    """What a library says, in one line: it may quote a user's file at any length."""
    return shorten(" ".join(str(error).split()), 400)


class FoveateError(Exception):
    """Base of every error that foveate raises on purpose.

    Args:
        message: fact, expectation, remedy. It names no flag of a command: the library has none.
        options: fields or arguments that the remedy speaks of; the command line adds the flags that set them.
    """

    def __init__(self, message: str = "", *, options: tuple[str, ...] = ()) -> None:
        super().__init__(shorten(message, _LONGEST_MESSAGE))
        self.options = options


class RequestError(FoveateError):
    """A request cannot be served as it stands: messages, images, videos, budget, sampling. The caller can mend it."""


class OptionError(FoveateError):
    """An option of a function or command is unknown, out of range, without effect or contradicts another one."""


class DataError(FoveateError):
    """A user's folder of questions, images or results is missing, broken or holds something else."""


class BundleError(FoveateError):
    """A bundle cannot be read, written or trusted."""


class ExportError(FoveateError):
    """A checkpoint cannot be exported."""


class ParityError(ExportError):
    """An exported graph differs from its reference by more than the tolerance."""


class LabelError(FoveateError):
    """Relevance labels cannot be made or read."""


class ScorerError(FoveateError):
    """A scorer cannot be trained, read or put into a bundle."""


class BackendError(FoveateError):
    """A backend cannot load or run a graph, or a graph gave values that are none (NaN)."""


class MachineError(FoveateError):
    """The machine lacks something: memory, disk space, the right to write."""


class MissingPackageError(FoveateError):
    """A package is not installed; the message says how to get it."""


class BusyError(FoveateError):
    """A request is not taken now: too many wait, or the engine drains. The same request may be taken later."""


class CancelledError(FoveateError):
    """A request was cancelled before its answer was done."""


class DeadlineError(FoveateError):
    """A request was not answered in the time that it was given."""
