"""The command line: `foveate export`, `foveate generate` and the others."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import Any

import click

from foveate.engines.errors import FoveateError
from foveate.engines.system.edges import ended_by_signals, translated

_COMMANDS = {
    "export": "foveate.cli.export:export_command",
    "build": "foveate.cli.build:build_command",
    "inspect": "foveate.cli.inspect:inspect_command",
    "check": "foveate.cli.check:check_command",
    "generate": "foveate.cli.generate:generate_command",
    "scorer": "foveate.cli.scorer:scorer_command",
    "profile": "foveate.cli.profile:profile_command",
    "bench": "foveate.cli.bench:bench_command",
    "evaluate": "foveate.cli.evaluate:evaluate_command",
    "serve": "foveate.cli.serve:serve_command",
    "demo": "foveate.cli.demo:demo_command",
}
_READER_LEFT = 128 + 13
"""What a shell shows for a program that SIGPIPE ended."""


class _Commands(click.Group):
    """A group that imports a command when it is asked for, and prints foveate's own errors as one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module, _, name = _COMMANDS[cmd_name].partition(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with ended_by_signals(), translated():
                return super().invoke(ctx)
        except FoveateError as error:
            flags = _flags(self.get_command(ctx, ctx.invoked_subcommand or ""), error.options)
            _fail(f"{error}{f' ({flags})' if flags else ''}")
        except BrokenPipeError:
            from foveate.cli.output import leave_standard_output

            leave_standard_output()
            sys.exit(_READER_LEFT)


def _fail(message: str) -> None:
    """One line, whatever the message has in it."""
    with suppress(OSError):  # nobody may be there to read it
        click.echo(f"Error: {' '.join(message.split())}", err=True)
    sys.exit(2)


def _flags(command: click.Command | None, options: tuple[str, ...]) -> str:
    """The flags of a command, or of its own commands, that set these options: a library's error names no flag."""
    if isinstance(command, click.Group):
        found = [_flags(own, options) for own in command.commands.values()]
        return next(filter(None, found), "")
    flags = dict(_named(command)) if command else {}
    return ", ".join(dict.fromkeys(flags[name] for name in options if name in flags))


def _named(command: click.Command) -> Iterator[tuple[str, str]]:
    """The names that the library has for a command's options, and their flags."""
    from foveate.cli.command import Option

    for parameter in command.params:
        if isinstance(parameter, Option):
            yield from ((name, parameter.flag) for name in (parameter.name or "", *parameter.also))


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="foveate")
def main() -> None:
    """Deploy multimodal LLMs with only the visual tokens that matter for the question."""
