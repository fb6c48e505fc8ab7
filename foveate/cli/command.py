"""Options that know when they have an effect, and commands that refuse one that has none.

    @command("generate")
    @always("--temperature", default=0.0)
    @when(SAMPLED, "--seed", type=int)

A parameter of a command is called like the argument or field of the library that it sets; `also` has further names for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import click
from click.core import ParameterSource

from foveate.engines.errors import OptionError

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
Given = Mapping[str, Any]
"""The values of a command's parameters, by name."""


@dataclass(frozen=True)
class Need:
    """What has to hold for a parameter to have an effect.

    Attributes:
        holds: true for the values of a command line with which it has one.
        fact: why it has none with the others; may name values in braces.
        remedy: how to give it one.
    """

    holds: Callable[[Given], object]
    fact: str
    remedy: str

    def check(self, name: str, given: Given) -> None:
        """Raises OptionError where the parameter of this name would be ignored."""
        if not self.holds(given):
            fact = self.fact.format_map(given)
            raise OptionError(f"{name} has no effect: {fact}. {self.remedy.format_map(given)}, or leave out {name}.")

    def __and__(self, other: Need) -> Need:
        """Both: the first that does not hold is what an error speaks of."""
        if ALWAYS in (self, other):
            return self if other is ALWAYS else other
        return _Both(self.holds, self.fact, self.remedy, other)


@dataclass(frozen=True)
class _Both(Need):
    """Two needs."""

    other: Need

    def check(self, name: str, given: Given) -> None:
        super().check(name, given)
        self.other.check(name, given)


ALWAYS = Need(lambda given: True, "", "")


class Option(click.Option):
    """An option with its need, and the names that the library has for it."""

    def __init__(self, *arguments: Any, need: Need, also: tuple[str, ...] = (), **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.need = need
        self.also = also

    @property
    def flag(self) -> str:
        """The long form; of a switch that is on by default, what turns it off."""
        return self.typed(self.default is not True)

    def typed(self, value: Any) -> str:
        """What the option was called on a command line that gave it this value."""
        return max(self.secondary_opts if self.secondary_opts and value is False else self.opts, key=len)


class Argument(click.Argument):
    """An argument with its need."""

    def __init__(self, *arguments: Any, need: Need, **attributes: Any) -> None:
        super().__init__(*arguments, **attributes)
        self.need = need

    @property
    def flag(self) -> str:
        return self.human_readable_name

    def typed(self, value: Any) -> str:
        """See `Option.typed`."""
        return self.flag


def when(need: Need, *names: str, **attributes: Any) -> Decorator:
    """A parameter that has an effect under a condition: an option, or an argument where its name has no dash."""
    if names[0].startswith("-"):
        return click.option(*names, cls=Option, need=need, **attributes)
    return click.argument(*names, cls=Argument, need=need, **attributes)


def always(*names: str, **attributes: Any) -> Decorator:
    """A parameter that always has an effect."""
    return when(ALWAYS, *names, **attributes)


class Command(click.Command):
    """A command that refuses what it would ignore."""

    def invoke(self, ctx: click.Context) -> Any:
        self.refuse_ignored(ctx)
        return super().invoke(ctx)

    def refuse_ignored(self, ctx: click.Context) -> None:
        """Raises OptionError where the command line has a parameter without effect."""
        for parameter in self.params:
            if ctx.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE:
                assert isinstance(parameter, Option | Argument)
                parameter.need.check(parameter.typed(ctx.params[parameter.name or ""]), ctx.params)


def command(name: str) -> Callable[[Callable[..., Any]], Command]:
    """Makes a command of a function."""
    return click.command(name, cls=Command)
