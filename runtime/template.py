"""Chat templates: compiled and rendered as transformers does it, with the author of every character."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from foveate.engines import BundleError, RequestError
from foveate.runtime.authorship import TEMPLATE, Authored, join, plain, run, without_origins

MAX_CHARACTERS = 1 << 24
"""Most characters, or items of a list, that a template may make at once: more than any model reads."""
_MAX_POWER_BITS = 1 << 12


class ChatTemplate:
    """A compiled chat template.

    Args:
        source: jinja.
        control: finds control tokens; its group 1 is the token.

    Raises:
        BundleError: the template is not valid.
    """

    def __init__(self, source: str, control: re.Pattern[str]) -> None:
        environment = _Environment(control)
        try:
            tree = environment.parse(source)
            self._template = environment.from_string(_Joins(environment).visit(tree))
        except Exception as error:  # a template is a stranger's program: deep nesting, huge numbers, what it folds
            raise BundleError(
                f"the bundle's chat template is not valid: {_describe(error)}. Export the bundle again."
            ) from error

    def render(self, messages: Sequence[Mapping[str, Any]], named: Mapping[str, str]) -> Authored:
        """The prompt, with the turn of the assistant opened.

        Args:
            messages: the chat, its texts as `Authored`.
            named: tokens that the template may name.

        Raises:
            RequestError: the template refuses the messages, fails at them, or treats them in a way that hides who wrote what.
        """
        now = datetime.now()
        variables = {**named, "tools": None, "documents": None, "add_generation_prompt": True, "strftime_now": now.strftime}
        try:
            expected = self._template.render(**variables, messages=without_origins(messages))
            rendered = self._template.render(**variables, messages=messages)
        except Exception as error:  # as above
            raise RequestError(
                f"the bundle's chat template refuses the messages: {_describe(error)}. Change their roles, order or form."
            ) from error
        if plain(rendered) != expected:
            raise RequestError(
                "the bundle's chat template treats the messages in a way that hides who wrote what. Use a simpler one."
            )
        return rendered if isinstance(rendered, Authored) else Authored.of(rendered, TEMPLATE)


class _Environment(ImmutableSandboxedEnvironment):
    """As transformers sets it up: sandboxed, blocks leave no whitespace. What makes new text goes through `run`."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, control: re.Pattern[str]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=["jinja2.ext.loopcontrols", _Generation],
            finalize=self._to_text,
        )
        self._control = control
        self.filters["tojson"] = _to_json
        self.filters = {name: self._tracked(function) for name, function in self.filters.items()}
        self.filters["concat_texts"] = self._concat_texts
        self.globals |= {"raise_exception": _refuse, "dict": _Dict(), "namespace": _Namespace}

    @staticmethod
    def concat(texts: Iterable[str]) -> str:
        """What blocks, macros and the whole template are put together with."""
        pieces, length = [], 0
        for text in texts:
            length += len(text)
            _check_size(length)
            pieces.append(text)
        return join(pieces)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        text = getattr(function, "__self__", None)
        if not isinstance(text, str) or not self.is_safe_callable(function):
            return super().call(context, function, *args, **kwargs)
        given = {name: value for name, value in kwargs.items() if name not in ("_loop_vars", "_block_vars")}  # jinja's own
        return run(getattr(str, function.__name__), (text, *args), given, self._control, lists=True)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _check_operands(operator, left, right)
        if operator == "+" and isinstance(left, str) and isinstance(right, str):
            return join((left, right))
        return self._run(self.binop_table[operator], (left, right), {})

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        if super().wrap_str_format(value) is None:
            return None
        wrap = super().wrap_str_format

        def format_text(text: str, *args: Any, **kwargs: Any) -> str:
            method = wrap(getattr(plain(text), value.__name__))
            assert method is not None
            return method(*args, **kwargs)

        return lambda *args, **kwargs: self._run(format_text, (value.__self__, *args), kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Authored) and attr in ("encode", "maketrans", "translate"):
            return False  # they lead out of text and back again
        return super().is_safe_attribute(obj, attr, value)

    def _run(self, function: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> Any:
        args = tuple(args)
        made = run(function, args, kwargs, self._control)
        listed = isinstance(made, Authored) and function is not _to_json and any(map(_has_parts, (*args, *kwargs.values())))
        return made.as_listed() if listed else made

    def _tracked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(function)
        def tracked(*args: Any, **kwargs: Any) -> Any:
            return self._run(function, args, kwargs)

        return tracked

    def _to_text(self, value: Any) -> Any:
        """What is written for a list or a dict, whose own form of text would forget the origins."""
        return self._run(str, (value,), {}) if isinstance(value, list | tuple | dict) else value

    def _concat_texts(self, values: Iterable[Any]) -> str:
        return self.concat(str(self._to_text(value)) for value in values)


class _Joins(NodeTransformer):
    """Makes `a ~ b` a filter, which the environment can look after."""

    def __init__(self, environment: jinja2.Environment) -> None:
        self._environment = environment

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802  (jinja2 finds it by this name)
        self.generic_visit(node)
        made = nodes.Filter(nodes.List(node.nodes), "concat_texts", [], [], None, None)
        return made.set_lineno(node.lineno).set_environment(self._environment)


class _Generation(Extension):
    """`{% generation %}`, with which templates mark what the assistant wrote, for training; here its body is all there is."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it as of an instance)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)  # a scope of its own

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Dict:
    """`dict` of a template: the class itself would give access to its attributes."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


class _Namespace(Namespace):
    """`namespace` of a template, without names that start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # noqa: N805, RUF100  (so that a template may set `self`)
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _has_parts(value: Any) -> bool:
    """Whether a value is the content of a message as a list of parts, or a tuple with one."""
    if isinstance(value, tuple):
        return any(map(_has_parts, value))
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "type" in item for item in value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace can't have the attribute {name!r}, which starts with an underscore")


def _check_operands(operator: str, left: Any, right: Any) -> None:
    """Refuses what would take the memory or the time of the machine."""
    sizes = [len(value) if isinstance(value, str | bytes | list | tuple) else None for value in (left, right)]
    if operator == "+" and None not in sizes:
        _check_size(sum(size for size in sizes if size))
    if operator == "*":
        for size, times in ((sizes[0], right), (sizes[1], left)):
            if size is not None and isinstance(times, int):
                _check_size(size * times)
    if operator == "**" and isinstance(left, int) and isinstance(right, int) and left.bit_length() * right > _MAX_POWER_BITS:
        raise OverflowError(f"a number has more than {_MAX_POWER_BITS} bits")


def _check_size(size: int) -> None:
    if size > MAX_CHARACTERS:
        raise OverflowError(f"a text or list has more than {MAX_CHARACTERS} characters or items")


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """transformers' filter, with its signature: jinja's own escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _describe(error: Exception) -> str:
    """An error of jinja says what is wrong; one of Python needs its name too."""
    text = " ".join(str(error).split())
    return text if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: {text}".removesuffix(": ")
