"""How a server is set up."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.engines import Bundle, OptionError
from foveate.runtime import Pipeline
from foveate.runtime.pipeline import TOKENIZER, open_tokenizer
from foveate.runtime.scheduler import Engine
from foveate.serve.sources import SourceLimits
from foveate.serve.tokens import TokenTexts

if TYPE_CHECKING:
    from foveate.serve.grammar import Grammars

DEFAULT_BODY_BYTES = 64 * 1024**2
DEFAULT_HELD_BYTES = 512 * 1024**2


@dataclass(frozen=True)
class ServeOptions:
    """What a server allows.

    Attributes:
        allow_hosts: from which images and videos may be fetched; none by default.
        allow_folders: from which `file://` addresses may be read; none by default.
        api_keys: one of which every request has to bring; empty for no keys.
        max_body_bytes: of a request.
        max_held_bytes: of all requests that are not answered yet: their bodies, and what was fetched for them.
        max_images: of a request, each frame that is given one by one among them.
        body_seconds: how long a client may take to send a body.
        drain_seconds: how long running requests may go on once the server is told to stop.
        stuck_after_s: how long nothing may move while work waits, before the server says that it is stuck.
        source_limits: of what is fetched.

    Raises:
        OptionError: a value out of its range.
    """

    allow_hosts: tuple[str, ...] = ()
    allow_folders: tuple[Path, ...] = ()
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    max_body_bytes: int = DEFAULT_BODY_BYTES
    max_held_bytes: int = DEFAULT_HELD_BYTES
    max_images: int = 64
    body_seconds: float = 60.0
    drain_seconds: float = 30.0
    stuck_after_s: float = 60.0
    source_limits: SourceLimits = field(default_factory=SourceLimits)

    def __post_init__(self) -> None:
        for name in ("max_body_bytes", "max_images", "body_seconds", "drain_seconds", "stuck_after_s"):
            value = getattr(self, name)
            if not value > 0:
                raise OptionError(
                    f"{name} is {value}, expected a number above 0. Leave it out for the default.", options=(name,)
                )
        if self.max_held_bytes < self.max_body_bytes:
            fact = f"max_held_bytes is {self.max_held_bytes}, expected room for one body of {self.max_body_bytes} bytes"
            raise OptionError(f"{fact}. Raise it, or lower the other.", options=("max_held_bytes", "max_body_bytes"))


@dataclass(frozen=True)
class Served:
    """A bundle that is served.

    Attributes:
        name: what `model` calls it.
        pipe: the loaded bundle.
        engine: that answers its requests.
        folder: of the bundle.
    """

    name: str
    pipe: Pipeline
    engine: Engine
    folder: Path

    @cached_property
    def texts(self) -> TokenTexts:
        """The texts of its tokens."""
        return TokenTexts(open_tokenizer(self._bundle))

    @cached_property
    def grammars(self) -> Grammars:
        """What answers can be held to.

        Raises:
            MissingPackageError: the package that reads grammars is not installed.
        """
        from foveate.serve.grammar import Grammars

        manifest = self.pipe.manifest
        return Grammars(self._bundle.file(TOKENIZER), manifest.decoder.vocab_size, manifest.prompt.eos_token_ids)

    @cached_property
    def slot_tokens(self) -> int:
        """Most tokens of one request."""
        stats = self.engine.stats()
        return stats.kv_tokens // stats.slots

    @cached_property
    def _bundle(self) -> Bundle:
        return Bundle.open(self.folder, verify=False)  # it was verified when it was loaded
