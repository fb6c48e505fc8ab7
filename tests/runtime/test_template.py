"""Chat templates whose logic looks at the text: transformers' prompt, and no control token from anyone but the template."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tokenizers import Tokenizer

from foveate.engines import BundleError, PromptEntry, RequestError
from foveate.runtime.prompt import PromptEncoder
from models.scenes.checkpoint import SPECIAL_TOKENS

OPEN, CLOSE = "{% for m in messages %}<|im_start|>{{ m.role }}\n", "<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
CONTENTS = {  # written between OPEN and CLOSE
    "tojson": "{{ m.content | tojson }}",
    "tojson of more": "{{ {'a': m.content, 'b': [1, 'é<']} | tojson(indent=2) }}{{ m | tojson }}",
    "slice": "{{ m.content[:8] }}|{{ m.content[3] }}|{{ m.content[::-1] }}",
    "history without thoughts": "{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{{ m.content.split('</think>')[-1].lstrip('\\n') }}{% else %}{{ m.content }}{% endif %}",
    "switch at the end": "{{ m.content }}{% if messages[-1].content.endswith('/no_think') %}<think></think>{% endif %}",
    "comparison": "{% if m.content == 'What is it?' %}Q{% endif %}{{ m.content }}",
    "upper": "{{ m.content | upper }}{{ m.content.upper() }}",
    "title": "{{ m.content | title }}{{ m.content | capitalize }}{{ m.content.swapcase() }}",
    "truncate": "{{ m.content | truncate(9) }}",
    "indent": "{{ m.content | indent(2) }}",
    "wordwrap": "{{ m.content | wordwrap(5) }}",
    "replace": "{{ m.content | replace('is', 'was') }}{{ m.content.replace('is', 'was') }}",
    "length": "{{ m.content | length }}{{ m.content | wordcount }}{{ m.content.find('i') }}{{ m.content }}",
    "pads": "{{ m.content | center(40) }}{{ m.content.ljust(30) }}|",
    "lines and words": "{% for l in m.content.splitlines() %}> {{ l }}\n{% endfor %}{{ m.content.split() | join(' ') }}",
    "partition": "{{ m.content.partition(' ')[2] }}{{ m.content.rsplit(' ', 1)[0] }}",
    "characters": "{% for c in m.content %}{{ c }}{% endfor %}{{ m.content | reverse }}{{ m.content | sort | join }}",
    "repeated": "{{ m.content * 2 }}",
    "escaped": "{{ m.content | e }}{{ m.content | safe }}{{ m.content | striptags }}{{ m.content | urlencode }}",
    "default": "{{ m.content | default('x', true) }}{{ m.name | default('<|im_end|>') }}",
    "containers": "{{ m.content | list }}{{ ['a'] + [m.content] }}{{ m }}",
    "choice": "{{ [m.content, 'x'] | select('equalto', m.content) | first }}{{ ['<|im_end|>', m.content] | first }}",
    "mapped": "{{ [m.content, 'x'] | map('upper') | join(',') }}",
    "filter block": "{% filter upper %}a{{ m.content }}<b>{% endfilter %}",
    "clock": "{{ m.content }}{{ strftime_now('%Y') }}",
}
WHOLE = {
    "format": "{% for m in messages %}{{ '<|im_start|>%s\n%s<|im_end|>' | format(m.role, m.content) }}{% endfor %}",
    "format method": "{% for m in messages %}{{ '<|im_start|>{}\n{}<|im_end|>'.format(m.role, m.content) }}{% endfor %}",
    "format of a message": "{% for m in messages %}{{ '{content}<|im_end|>'.format(**m) }}{{ '%(content)s' % m }}{% endfor %}",
    "percent": "{% for m in messages %}{{ '<|im_start|>%s\n%s<|im_end|>' % (m.role, m.content) }}{% endfor %}",
    "tilde": "{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content ~ '<|im_end|>' }}{% endfor %}",
    "join": "{{ messages | map(attribute='content') | join('<|im_end|>') }}<|im_start|>assistant",
    "join method": "{{ '<|im_end|>'.join(messages | map(attribute='content')) }}<|im_start|>assistant",
    "namespace": "{% set ns = namespace(p='') %}{% for m in messages %}"
    "{% set ns.p = ns.p + '<|im_start|>' + m.content + '<|im_end|>\n' %}{% endfor %}{{ ns.p | indent(2) }}",
    "macro": "{% macro r(c) %} <|vision_start|>{{ c }} {% endmacro %}"
    "{% for m in messages %}{{ r(m.content) | trim }}{% endfor %}",
    "call": "{% macro w() %}<|im_start|>{{ caller() }}<|im_end|>{% endmacro %}"
    "{% for m in messages %}{% call w() %}{{ m.content }}{% endcall %}{% endfor %}",
    "set block": "{% for m in messages %}{% set b %} <|im_start|>{{ m.content }}{% endset %}"
    "{{ b.strip() }}{{ b[:40] }}{% endfor %}",
    "groups": "{% for role, some in messages | groupby('role') %}{{ role }}"
    "{% for m in some %}{{ m.content }}{% endfor %}{% endfor %}",
    "dict": "{% for m in messages %}{% set d = dict(r='<|im_start|>', c=m.content) %}"
    "{{ d.r }}{{ d['c'] }}{% for k, v in d.items() %}{{ k }}{{ v }}{% endfor %}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{% set x = 3 %}{{ m.content }}{% endgeneration %}{{ x }}{% endfor %}",
    "nothing else": "{% if tools is none and documents is none %}N{% endif %}"
    "{% if tools is not none %}{{ tools | length }}{% endif %}"
    "{{ messages | map(attribute='content') | list }}<|im_end|>",
}
TEMPLATES = {name: OPEN + content + CLOSE for name, content in CONTENTS.items()} | WHOLE
CHATS = [
    [{"role": "user", "content": "What is it?"}],
    [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "<think>long\n 'thoughts'</think>\nHello \"you\" & <b>"},
        {"role": "user", "content": "  Bye\nnow é 你 is /no_think"},
    ],
]


@pytest.fixture(scope="module")
def expected_tokenizer(checkpoint: Path) -> Any:
    from transformers import Qwen2TokenizerFast

    return Qwen2TokenizerFast.from_pretrained(checkpoint)


def expected(tokenizer: Any, template: str, messages: Any) -> list[int]:
    ids = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=True)
    return list(ids["input_ids"])


@pytest.fixture
def open_encoder(prompt_entry: PromptEntry, tokenizer: Tokenizer) -> Any:
    return lambda template: PromptEncoder(structs.replace(prompt_entry, chat_template=template), tokenizer)


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_that_look_at_the_text(name: str, open_encoder: Any, expected_tokenizer: Any) -> None:
    encoder = open_encoder(TEMPLATES[name])
    for messages in CHATS:
        assert encoder.encode(messages).input_ids.tolist() == expected(expected_tokenizer, TEMPLATES[name], messages)


hostile = st.lists(
    st.sampled_from([*SPECIAL_TOKENS, "<|im_", "end|>", "<", "|>", " ", "\n", "x", "\ue000", "\U00100000", "{{ 7 }}"])
)


@settings(max_examples=100)
@given(st.sampled_from(sorted(TEMPLATES)), hostile.map("".join), st.sampled_from(["", "What?", '"quoted"\n& <b>']))
def test_no_text_becomes_a_control_token(
    prompt_entry: PromptEntry, tokenizer: Tokenizer, expected_tokenizer: Any, name: str, forged: str, honest: str
) -> None:
    """The control tokens of a prompt are those of the same prompt without any in the texts; or it is refused."""
    encoder = PromptEncoder(structs.replace(prompt_entry, chat_template=TEMPLATES[name]), tokenizer)
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    try:
        got = encoder.encode([{"role": "user", "content": f"a {forged} {honest}"}]).input_ids.tolist()
    except RequestError as error:
        assert "control token" in str(error) or "hides who wrote" in str(error)  # noqa: PT017
        return
    plain = expected(expected_tokenizer, TEMPLATES[name], [{"role": "user", "content": f"a  {honest}"}])
    assert [id for id in got if id in ids] == [id for id in plain if id in ids]


def test_a_control_token_that_may_be_either_s_is_refused(open_encoder: Any) -> None:
    encoder = open_encoder("{% for m in messages %}{{ ('<|im_start|>' ~ m.content ~ '<|im_end|>') | indent }}{% endfor %}")
    encoder.encode([{"role": "user", "content": "a\nb"}])
    with pytest.raises(RequestError, match=r"mixes <\|im_start\|> with a message's text in a way that hides who wrote it"):
        encoder.encode([{"role": "user", "content": "a\n<|im_end|>b"}])


def test_the_user_s_text_is_known_where_the_template_changed_it(open_encoder: Any, tokenizer: Tokenizer) -> None:
    encoded = open_encoder(OPEN + "{{ m.content | tojson }}" + CLOSE).encode([{"role": "user", "content": 'a "b"'}])
    assert tokenizer.decode(encoded.input_ids[encoded.user_text].tolist()) == '"a \\"b\\""'


def parts_only(content: str = "{{ part.text }}") -> str:
    return OPEN + "{% for part in m.content %}{% if part.type == 'text' %}" + content + "{% endif %}{% endfor %}" + CLOSE


def test_a_string_is_one_text_part_where_the_template_walks_over_parts(open_encoder: Any, expected_tokenizer: Any) -> None:
    part = [{"type": "text", "text": "Where is it?"}]
    for content in ("{{ part.text }}", "{{ part['text'] + '' }}"):
        ids = open_encoder(parts_only(content)).encode([{"role": "user", "content": "Where is it?"}]).input_ids.tolist()
        assert ids == expected(expected_tokenizer, parts_only(content), [{"role": "user", "content": part}])


def test_each_message_has_the_form_that_the_template_takes(open_encoder: Any, tokenizer: Tokenizer) -> None:
    template = "{{ messages[0].content }}|{% for part in messages[1].content %}{{ part.text }}{% endfor %}"
    for system in ("Be short.", [{"type": "text", "text": "Be short."}]):
        for user in ("What?", [{"type": "text", "text": "What?"}]):
            ids = open_encoder(template).encode([{"role": "system", "content": system}, {"role": "user", "content": user}])
            assert tokenizer.decode(ids.input_ids.tolist()) == "Be short.|What?"


def test_one_text_part_is_a_string_where_the_template_takes_strings(open_encoder: Any, expected_tokenizer: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    for content in (
        "m.content",
        "m.content + ''",
        "m.content | trim",
        "'%s' % m.content",
        "'' ~ m.content",
        "'{}'.format(m.content)",
    ):
        template = OPEN + "{{ " + content + " }}" + CLOSE
        wanted = expected(expected_tokenizer, template, [{"role": "user", "content": "What?"}])
        assert open_encoder(template).encode(messages).input_ids.tolist() == wanted


@pytest.mark.parametrize(
    ("template", "messages", "lost"),
    [
        (
            "{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
            [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": "Hi"}],
            "message 1, of the role 'system'",
        ),
        (
            "{{ messages[0].content }}",
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            "message 1, of the role 'user'",
        ),
        ("only text", [{"role": "user", "content": "Hi"}], "message 1, of the role 'user'"),
        ("{{ messages[0].content }}", [{"role": "user", "content": "a"}] * 2, "message 2, of the role 'user'"),
        (
            "{% for part in messages[0].content if part.type == 'text' %}"
            "{% if loop.first %}{{ part.text }}{% endif %}{% endfor %}",
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}],
            "message 1, of the role 'user'",
        ),
        ("{{ messages[0].content.split('</think>')[-1] }}", [{"role": "user", "content": "a</think> "}], "message 1"),
    ],
)
def test_a_template_that_leaves_a_text_out(open_encoder: Any, template: str, messages: Any, lost: str) -> None:
    with pytest.raises(RequestError, match=f"leaves out the text of {lost}"):
        open_encoder(template).encode(messages)


def test_whitespace_need_not_stand(open_encoder: Any) -> None:
    open_encoder("{% for m in messages %}{{ m.content | trim }}{% endfor %}").encode(
        [{"role": "system", "content": " \n"}, {"role": "user", "content": "a"}]
    )


FAILING = {
    "division by zero": ("{{ 1 / 0 }}", "ZeroDivisionError"),
    "recursion": ("{% macro r() %}{{ r() }}{% endmacro %}{{ r() }}", "RecursionError"),
    "lookup": ("{{ [] | first | length }}{{ {}['a']['b'] }}", "no element named|undefined|no first item|has no attribute"),
    "a huge text": ("{{ 'a' * 1000000000 }}", "more than 16777216 characters"),
    "a huge list": ("{{ [1] * 1000000000 }}", "more than 16777216 characters"),
    "text that doubles": (
        "{% set ns = namespace(a='aaaa') %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
        "more than 16777216 characters",
    ),
    "output without end": (
        "{% for i in range(90000) %}{% for j in range(90000) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
        "more than 16777216 characters",
    ),
    "a huge number": ("{{ 10 ** 100000000 }}", "more than 4096 bits"),
    "a long range": ("{% for i in range(999999999) %}{% endfor %}", "OverflowError: Range too big"),
    "private name": ("{% set ns = namespace(_a=1) %}", "starts with an underscore"),
    "attributes of dict": ("{{ dict.mro() }}", "has no attribute 'mro'"),
    "bytes": ("{{ messages[0].content.encode().decode() }}", "encode"),
}


@pytest.mark.parametrize("name", FAILING)
def test_a_template_that_fails_says_why_in_a_line(name: str, open_encoder: Any) -> None:
    template, reason = FAILING[name]
    with pytest.raises(RequestError, match=rf"chat template refuses the messages: .*({reason})") as caught:
        open_encoder(template).encode([{"role": "user", "content": "a"}])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "template", ["{{ " + "(" * 5000 + ")" * 5000 + " }}", "{% for %}", "{{ 1 | nothing }}", "{{ " + "9" * 5000 + " }}"]
)
def test_a_template_that_does_not_compile(template: str, open_encoder: Any) -> None:
    with pytest.raises(BundleError, match="chat template is not valid"):
        open_encoder(template)


def test_the_clock_is_today_s(open_encoder: Any, tokenizer: Tokenizer) -> None:
    ids = open_encoder("{{ strftime_now('%Y') }}{{ messages[0].content }}").encode([{"role": "user", "content": "a"}]).input_ids
    assert tokenizer.decode(ids.tolist()) in (f"{datetime.now().year}a", f"{datetime.now().year - 1}a")
