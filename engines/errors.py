"""Everything foveate raises on purpose.

A message states the fact, what was expected and the remedy, in one line. The command line prints it and exits
with code 2; any other exception is a bug.
"""


class FoveateError(Exception):
    """Base of every error that foveate raises on purpose."""


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
    """A backend is missing, or cannot load or run a graph."""


class RequestError(FoveateError):
    """A request cannot be served as it stands: image, prompt, budget or sampling."""
