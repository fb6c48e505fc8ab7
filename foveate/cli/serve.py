"""`foveate serve`: bundles behind OpenAI's API."""

from __future__ import annotations

import logging
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from foveate.cli.command import Need, always, command, when
from foveate.cli.documents import Serving
from foveate.cli.files import check_exists
from foveate.cli.options import PATH, SessionChoice, json_option, session_options
from foveate.cli.output import Output
from foveate.engines import DataError, OptionError, needed_package
from foveate.runtime import ImageLimits, VideoLimits, load
from foveate.runtime.scheduler import EngineOptions

if TYPE_CHECKING:
    from foveate.serve import Served

_NICE = 10 if sys.platform == "linux" else 0
"""Keeps the longest gap between the tokens of an answer below three times the median while a picture is seen."""
SLO = Need(
    lambda given: given["ttft_slo_ms"] is not None,
    "no time to first token is set that would shrink budgets",
    "Set --ttft-slo-ms",
)


@command("serve")
@always("bundles", nargs=-1, required=True, metavar="[NAME=]BUNDLE...")
@always("--host", default="127.0.0.1", show_default=True, help="Where to listen; 0.0.0.0 lets other machines in.")
@always("--port", default=8000, show_default=True, help="0 for any that is free, which is printed.")
@always("--slots", default=EngineOptions.slots, show_default=True, help="Answers that grow side by side, of each bundle.")
@always(
    "--slot-tokens",
    "tokens_per_slot",
    type=int,
    help="Most tokens of a prompt and its answer.  [default: 4096, or the model's]",
)
@always("--max-waiting", default=EngineOptions.max_waiting, show_default=True, help="Requests that may wait; others get a 429.")
@always(
    "--prefill-tokens",
    default=EngineOptions.prefill_tokens,
    show_default=True,
    help="Of a prompt, between two tokens of others.",
)
@always("--prefix-reuse/--no-prefix-reuse", default=True, show_default=True, help="Keep the KV of prompts that begin alike.")
@always(
    "--ttft-slo-ms",
    type=float,
    help="Under load, keep fewer visual tokens of requests with keep 'auto', so that they begin by then; see 'profile --save'.",
)
@when(
    SLO,
    "--min-retained",
    default=EngineOptions.min_retained,
    show_default=True,
    help="But so many that this share of the right answers stays.",
)
@always("--allow-host", "allow_hosts", multiple=True, metavar="HOST", help="Fetch images and videos from it; repeatable.")
@always("--allow-folder", "allow_folders", multiple=True, type=PATH, help="Read file:// addresses below it; repeatable.")
@always("--api-key-file", type=PATH, help="Keys, one a line; a request has to bring one of them.")
@always("--max-body", "max_body_bytes", default=64 * 1024**2, show_default=True, help="Bytes of a request.")
@always(
    "--max-held",
    "max_held_bytes",
    default=512 * 1024**2,
    show_default=True,
    help="Bytes of all requests that are not answered.",
)
@always("--max-images", default=64, show_default=True, help="Images, videos and frames of a request.")
@always("--max-pixels", type=int, also=("limits", "video_limits"), help="Refuse images and frames with more pixels.")
@always("--max-frames", default=VideoLimits.max_frames, show_default=True, help="Frames that the model may see of a video.")
@always("--vision-threads", type=int, help="CPU threads that look at pictures while others decode.  [default: as --threads]")
@always(
    "--vision-nice",
    default=_NICE,
    show_default=True,
    help="Niceness of those threads, 0 to 19: with more of it growing answers are slowed less, and pictures take longer.",
)
@always("--drain-seconds", default=30.0, show_default=True, help="How long running requests may go on after SIGTERM or Ctrl-C.")
@always(
    "--stuck-after", "stuck_after_s", default=60.0, show_default=True, help="Seconds without progress until /ready says no."
)
@session_options()
@json_option
def serve_command(
    bundles: tuple[str, ...],
    host: str,
    port: int,
    slots: int,
    tokens_per_slot: int | None,
    max_waiting: int,
    prefill_tokens: int,
    prefix_reuse: bool,
    ttft_slo_ms: float | None,
    min_retained: float,
    allow_hosts: tuple[str, ...],
    allow_folders: tuple[Path, ...],
    api_key_file: Path | None,
    max_body_bytes: int,
    max_held_bytes: int,
    max_images: int,
    max_pixels: int | None,
    max_frames: int,
    vision_threads: int | None,
    vision_nice: int,
    drain_seconds: float,
    stuck_after_s: float,
    session: SessionChoice,
    json_file: Path | None,
) -> None:
    """Serve BUNDLES to clients of OpenAI's API, and a page to try them at /."""
    output = Output(json_file)
    with needed_package("it serves", "serve"):
        from foveate.serve import Served, ServeOptions, make_app
        from foveate.serve.server import JsonLines, address_of, listen, run
    for folder in allow_folders:
        check_exists("--allow-folder", folder, "folder")
    named = name_bundles(bundles)
    engine_options = EngineOptions(slots, tokens_per_slot, max_waiting, prefill_tokens, prefix_reuse, ttft_slo_ms, min_retained)
    options = ServeOptions(
        allow_hosts=allow_hosts,
        allow_folders=allow_folders,
        api_keys=read_keys(api_key_file),
        max_body_bytes=max_body_bytes,
        max_held_bytes=max_held_bytes,
        max_images=max_images,
        drain_seconds=drain_seconds,
        stuck_after_s=stuck_after_s,
    )
    images = ImageLimits() if max_pixels is None else ImageLimits(max_pixels=max_pixels)
    videos = VideoLimits(max_frames=max_frames, max_pixels=max_pixels or VideoLimits.max_pixels)
    _log_to_stderr(JsonLines())
    with ExitStack() as stack:
        served: list[Served] = []
        for name, folder in named.items():
            pipe = stack.enter_context(
                load(
                    folder,
                    session.backend,
                    session.options,
                    limits=images,
                    video_limits=videos,
                    vision_backend=session.vision_backend,
                    vision_threads=vision_threads,
                    vision_nice=vision_nice,
                )
            )
            served.append(Served(name, pipe, stack.enter_context(pipe.engine(engine_options)), folder))
        found = stack.enter_context(listen(host, port))
        address = address_of(found)

        def begun() -> None:
            output.say(f"Serving {', '.join(named)} at {address}")
            output.finish(Serving(url=address, models=tuple(named)))

        app = make_app(served, options)
        stack.callback(app.state.server.sources.close)
        run(app, found, begun)


def name_bundles(given: tuple[str, ...]) -> dict[str, Path]:
    """Bundles by what clients call them: NAME=PATH, or the name of their folder without `.bundle`.

    Raises:
        OptionError: two have the same name, or one has none.
    """
    named: dict[str, Path] = {}
    for text in given:
        name, equals, path = text.partition("=")
        if not equals or "/" in name:
            path = text
            name = Path(text).resolve().name.removesuffix(".bundle")
        if not name or not path or not name.isprintable():
            raise OptionError(f"BUNDLE is '{text}', expected a folder or NAME=FOLDER. Write it like small=x.bundle.")
        if name in named:
            raise OptionError(f"two bundles are called '{name}'. Name one of them: other={path}.")
        named[name] = Path(path)
    return named


def read_keys(path: Path | None) -> tuple[str, ...]:
    """The keys of a file, one a line; lines that begin with # say nothing.

    Raises:
        DataError: there is no such file, or no key in it.
    """
    if path is None:
        return ()
    check_exists("--api-key-file", path)
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise DataError(f"--api-key-file is '{path}', which has no key. Write one a line.")
    return keys


def _log_to_stderr(lines: logging.Formatter) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(lines)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("foveate.serve").setLevel(logging.INFO)
