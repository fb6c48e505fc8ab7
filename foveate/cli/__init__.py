"""The command line: `foveate export`, `foveate generate` and the others."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import click

from foveate.engines.edges import ended_by_signals, translated
from foveate.engines.errors import FoveateError

_COMMANDS = {
    "export": "foveate.cli.export:export_command",
    "build": "foveate.cli.build:build_command",
    "inspect": "foveate.cli.inspect:inspect_command",
    "check": "foveate.cli.check:check_command",
    "generate": "foveate.cli.generate:generate_command",
    "scorer": "foveate.cli.scorer:scorer_command",
    "profile": "foveate.cli.profile:profile_command",
    "evaluate": "foveate.cli.evaluate:evaluate_command",
    "demo": "foveate.cli.demo:demo_command",
}


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
            click.echo(f"Error: {error}{f' ({flags})' if flags else ''}", err=True)
            sys.exit(2)


def _flags(command: click.Command | None, options: tuple[str, ...]) -> str:
    """The flags of a command, or of its own commands, that set these options: a library's error names no flag."""
    if isinstance(command, click.Group):
        found = [_flags(own, options) for own in command.commands.values()]
        return next(filter(None, found), "")
    parameters = command.params if command else []
    flags = {parameter.name: parameter.opts[0] for parameter in parameters if isinstance(parameter, click.Option)}
    return ", ".join(flags[name] for name in options if name in flags)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="foveate")
def main() -> None:
    """Deploy multimodal LLMs with only the visual tokens that matter for the question."""
