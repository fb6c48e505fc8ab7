"""The tokenizer path with real vocabularies, Qwen's and Llama 3's: prompts, forged control tokens, streamed text.

Llama 2's, which Vicuna has too, is of another kind: characters that it lacks are a token for each byte.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from foveate.engines import PromptEntry
from foveate.runtime.prompt import PromptEncoder
from foveate.runtime.text import TextStream
from models.downloads import LLAMA_2, LLAMA_3, LLAMA_3_CONFIG, QWEN, QWEN_CONFIG, NpmFile
from models.scenes.checkpoint import CHAT_TEMPLATE
from tests.downloads import npm_file

# As Meta publishes the prompt format of Llama 3, with a placeholder for images.
LLAMA_3_TEMPLATE = (
    "{% for message in messages %}{% if loop.first %}<|begin_of_text|>{% endif %}"
    "<|start_header_id|>{{ message['role'] }}<|end_header_id|>\n\n"
    "{% if message['content'] is string %}{{ message['content'] | trim }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|reserved_special_token_0|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


@dataclass(frozen=True, repr=False)
class Facts:
    """What is published of a vocabulary; `config` is its tokenizer_config.json."""

    source: NpmFile
    config: NpmFile
    template: str
    image_token: str
    control: dict[str, int]


FACTS = {
    "qwen": Facts(
        QWEN,
        QWEN_CONFIG,
        CHAT_TEMPLATE,
        "<|image_pad|>",
        {
            "<|endoftext|>": 151643,
            "<|im_start|>": 151644,
            "<|im_end|>": 151645,
            "<|vision_start|>": 151652,
            "<|vision_end|>": 151653,
            "<|image_pad|>": 151655,
            "<|video_pad|>": 151656,
        },
    ),
    "llama_3": Facts(
        LLAMA_3,
        LLAMA_3_CONFIG,
        LLAMA_3_TEMPLATE,
        "<|reserved_special_token_0|>",
        {
            "<|begin_of_text|>": 128000,
            "<|end_of_text|>": 128001,
            "<|reserved_special_token_0|>": 128002,
            "<|start_header_id|>": 128006,
            "<|end_header_id|>": 128007,
            "<|eot_id|>": 128009,
        },
    ),
}


@dataclass(frozen=True, repr=False)
class Vocabulary:
    """One of them, as the runtime and as transformers read it."""

    facts: Facts
    tokenizer: Tokenizer
    encoder: PromptEncoder
    transformers: Any

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def whole(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def expected(self, messages: Any, template: str | None = None) -> list[int]:
        """transformers' token ids of a chat."""
        chat = {"chat_template": template or self.facts.template, "add_generation_prompt": True}
        ids: list[int] = self.transformers.apply_chat_template(messages, tokenize=True, return_dict=True, **chat)["input_ids"]
        return ids

    def control_tokens(self, messages: Any) -> list[int]:
        special = {id for id, token in self.tokenizer.get_added_tokens_decoder().items() if token.special}
        return [id for id in self.encoder.encode(messages).input_ids.tolist() if id in special]


@pytest.fixture(scope="module", params=FACTS)
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    from transformers import PreTrainedTokenizerFast

    facts = FACTS[request.param]
    file = str(npm_file(facts.source))
    tokenizer = Tokenizer.from_file(file)
    bos = json.loads(npm_file(facts.config).read_text(encoding="utf-8"))["bos_token"]
    expected = PreTrainedTokenizerFast(tokenizer_file=file, bos_token=bos)
    return Vocabulary(facts, tokenizer, PromptEncoder(entry(facts, facts.template), tokenizer), expected)


def entry(facts: Facts, template: str) -> PromptEntry:
    return PromptEntry(
        chat_template=template, image_token=facts.image_token, video_token=None, eos_token_ids=(0,), pad_token_id=0
    )


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


IMAGE = {"type": "image"}
TEXTS = (
    "What is on the sofa? It's 12345 miles, naïve café — coöperate.",
    "你好，世界！这张图片里有什么？蘇東坡「赤壁賦」",
    "日本語のカタカナとひらがな、漢字。한국어 문장입니다.",
    "मानक हिन्दी वर्ण, ภาษาไทย, العربية ‏עברית",
    "🦊🐻 👨‍👩‍👧‍👦 👩🏽‍🚀 🏳️‍🌈 🇯🇵🇧🇷 ❤️‍🔥 1️⃣",
    "e\u0301 n\u0303 Z̷̢͗ą̴͠l̶̳̆g̸̥̈ơ ﬁ ½ ① 𝒳 𠮷 𓀀 \u200b\ufeff",
    "def f(x):\n\treturn  x ** 2   # ok\r\n\r\n    \n",
    "\U0010ffff \u0000 \ue000 �",
)


def test_special_tokens_have_their_published_ids(vocabulary: Vocabulary) -> None:
    for token, token_id in vocabulary.facts.control.items():
        assert vocabulary.tokenizer.token_to_id(token) == token_id
        assert vocabulary.encode(f"a{token}b")[1] == token_id
        assert vocabulary.whole([token_id]) == ""


@pytest.mark.parametrize("words", TEXTS)
def test_honest_prompts_give_the_tokens_of_transformers(vocabulary: Vocabulary, words: str) -> None:
    for messages in (
        [{"role": "user", "content": words}],
        [{"role": "system", "content": "Be short."}, user(text("left"), IMAGE, text("right"), IMAGE, text(words))],
        [user(IMAGE, text(words)), {"role": "assistant", "content": f"  {words}\n"}, user(text("And now?"))],
    ):
        assert vocabulary.encoder.encode(messages).input_ids.tolist() == vocabulary.expected(messages)


@pytest.mark.parametrize("words", TEXTS)
def test_prompts_are_those_of_the_published_template(vocabulary: Vocabulary, words: str) -> None:
    """That of the package's tokenizer_config.json; Llama 3's asks for a `bos_token`, which its written-out form has inside."""
    published = json.loads(npm_file(vocabulary.facts.config).read_text(encoding="utf-8"))["chat_template"]
    messages = [{"role": role, "content": words} for role in ("system", "user", "assistant", "user")]
    template = vocabulary.facts.template if "bos_token" in published else published
    encoder = PromptEncoder(entry(vocabulary.facts, template), vocabulary.tokenizer)
    assert encoder.encode(messages).input_ids.tolist() == vocabulary.expected(messages, published)


def test_a_prompt_written_out(vocabulary: Vocabulary) -> None:
    """Against token ids put together by hand, independent of any template."""
    control = vocabulary.facts.control
    got = vocabulary.encoder.encode([{"role": "user", "content": "Hi"}]).input_ids.tolist()
    if "<|im_start|>" in control:
        start, end, newline = control["<|im_start|>"], control["<|im_end|>"], vocabulary.encode("\n")
        expected = [start, *vocabulary.encode("user\nHi"), end, *newline, start, *vocabulary.encode("assistant\n")]
    else:
        header, close = control["<|start_header_id|>"], control["<|end_header_id|>"]
        user_turn = [header, *vocabulary.encode("user"), close, *vocabulary.encode("\n\nHi"), control["<|eot_id|>"]]
        opened = [header, *vocabulary.encode("assistant"), close, *vocabulary.encode("\n\n")]
        expected = [control["<|begin_of_text|>"], *user_turn, *opened]
    assert got == expected


@settings(max_examples=60)
@given(words=st.text(max_size=30).filter(lambda words: "<|" not in words))  # control tokens stay text here: tested below
def test_any_text_gives_the_tokens_of_transformers(vocabulary: Vocabulary, words: str) -> None:
    messages = [user(IMAGE, text(words))]
    assert vocabulary.encoder.encode(messages).input_ids.tolist() == vocabulary.expected(messages)


PIECES = [*FACTS["qwen"].control, *FACTS["llama_3"].control, "<|im_", "end|>", "<|", "|>", "<", " ", "\n", "user", "你", "🦊"]


@settings(max_examples=100)
@given(texts=st.lists(st.lists(st.sampled_from(PIECES), max_size=8).map("".join), min_size=1, max_size=3))
def test_no_text_becomes_a_control_token(vocabulary: Vocabulary, texts: list[str]) -> None:
    messages = [{"role": "system", "content": texts[0]}, user(IMAGE, *map(text, texts))]
    honest = [{"role": "system", "content": "x"}, user(IMAGE, *(text("x") for _ in texts))]
    assert vocabulary.control_tokens(messages) == vocabulary.control_tokens(honest)
    read = vocabulary.tokenizer.decode(vocabulary.encoder.encode(messages).input_ids.tolist(), skip_special_tokens=False)
    assert "".join(texts) in read  # nothing is lost


def test_every_control_token_typed_by_a_user_stays_text(vocabulary: Vocabulary) -> None:
    added = vocabulary.tokenizer.get_added_tokens_decoder().values()
    honest = vocabulary.control_tokens([user(text("x"))])
    for token in (token.content for token in added if token.special):
        assert vocabulary.control_tokens([user(text(f"say {token} now"))]) == honest, token


def streamed(vocabulary: Vocabulary, ids: list[int]) -> list[str]:
    return stream_of(vocabulary.tokenizer, ids)


def stream_of(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    stream = TextStream(tokenizer)
    return [*map(stream.push, ids), stream.flush()]


@pytest.mark.parametrize("words", TEXTS[:-1])
def test_streamed_characters_are_whole(vocabulary: Vocabulary, words: str) -> None:
    ids = vocabulary.encode(words)
    chunks = streamed(vocabulary, ids)
    assert "".join(chunks) == vocabulary.whole(ids)
    assert not any("\ufffd" in chunk for chunk in chunks)


def test_characters_of_several_tokens_come_with_their_last_token(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode("𓀀")
    assert len(ids) > 1
    assert streamed(vocabulary, ids) == [*[""] * (len(ids) - 1), "𓀀", ""]


def test_an_emoji_of_several_code_points_comes_code_point_by_code_point(vocabulary: Vocabulary) -> None:
    for words in ("👨‍👩‍👧‍👦", "🇯🇵", "👩🏽‍🚀", "e\u0323\u0301"):
        ids = vocabulary.encode(words)
        chunks = [chunk for chunk in streamed(vocabulary, ids) if chunk]
        assert len(chunks) > 1, words
        assert "".join(chunks) == vocabulary.whole(ids)


def test_an_answer_cut_within_a_character_ends_with_one_replacement_character(vocabulary: Vocabulary) -> None:
    ids = vocabulary.encode("a 𓀀")[:-1]
    chunks = streamed(vocabulary, ids)
    assert "".join(chunks) == vocabulary.whole(ids) == "a \ufffd"
    assert chunks[-1] == "\ufffd"


def test_control_tokens_are_not_streamed(vocabulary: Vocabulary) -> None:
    control = list(vocabulary.facts.control.values())
    family = vocabulary.encode("👨‍👩‍👧‍👦 red")
    assert "".join(streamed(vocabulary, [*control, *family, *control])) == "👨‍👩‍👧‍👦 red"


@settings(max_examples=150)
@given(words=st.text(max_size=40).filter(lambda words: "<|" not in words))  # a control token is no text
def test_text_to_tokens_to_stream_is_the_text(vocabulary: Vocabulary, words: str) -> None:
    ids = vocabulary.encode(words)
    chunks = streamed(vocabulary, ids)
    assert "".join(chunks) == vocabulary.whole(ids)
    normalizer = vocabulary.tokenizer.normalizer
    assert "".join(chunks) == (normalizer.normalize_str(words) if normalizer else words)
    if "\ufffd" not in words:
        assert not any("\ufffd" in chunk for chunk in chunks)


@settings(max_examples=150)
@given(data=st.data())
def test_any_tokens_stream_as_they_decode(vocabulary: Vocabulary, data: st.DataObject) -> None:
    """What a model may do: bytes that are no UTF-8."""
    largest = vocabulary.tokenizer.get_vocab_size() - 1
    ids = data.draw(st.lists(st.integers(0, 255) | st.integers(0, largest), max_size=30))
    assert "".join(streamed(vocabulary, ids)) == vocabulary.whole(ids)


@pytest.mark.parametrize(
    ("words", "stop", "before"),
    [
        ("One sentence. Another one. END of it", ". An", "One sentence"),
        ("答えは赤い四角形です。次の問題", "です。次", "答えは赤い四角形"),
        ("family 👨‍👩‍👧‍👦 end", "\u200d👧", "family 👨‍👩"),
        ("a 𓀀野家 b", "𓀀", "a "),
        ("line\n\nUser: more", "\nUser:", "line\n"),
    ],
)
def test_stop_strings_across_tokens(vocabulary: Vocabulary, words: str, stop: str, before: str) -> None:
    stream, out = TextStream(vocabulary.tokenizer, [stop]), ""
    for token_id in vocabulary.encode(words):
        out += stream.push(token_id)
        if stream.stopped:
            break
    assert (out, stream.stopped) == (before, True)


@settings(max_examples=100)
@given(data=st.data(), words=st.text("赤い四角 \n🦊👨\u200dae", min_size=1, max_size=20))
def test_any_stop_string_cuts_where_it_first_ends(vocabulary: Vocabulary, data: st.DataObject, words: str) -> None:
    whole = vocabulary.whole(vocabulary.encode(words))
    start = data.draw(st.integers(0, len(whole) - 1))
    stop = whole[start : data.draw(st.integers(start + 1, len(whole)))]
    stream, out = TextStream(vocabulary.tokenizer, [stop]), ""
    for token_id in vocabulary.encode(words):
        out += stream.push(token_id)
        if stream.stopped:
            break
    else:
        out += stream.flush()
    assert (out, stream.stopped) == (whole[: whole.index(stop)], True)


@pytest.fixture(scope="module")
def llama_2() -> Tokenizer:
    return Tokenizer.from_file(str(npm_file(LLAMA_2)))


@pytest.mark.parametrize("words", TEXTS[:-1])
def test_characters_of_byte_tokens_are_whole(llama_2: Tokenizer, words: str) -> None:
    chunks = stream_of(llama_2, llama_2.encode(words, add_special_tokens=False).ids)
    assert "".join(chunks) == words
    assert not any("\ufffd" in chunk for chunk in chunks)


@settings(max_examples=150)
@given(words=st.text(max_size=40).filter(lambda words: "<" not in words))
def test_byte_tokens_to_stream_is_the_text(llama_2: Tokenizer, words: str) -> None:
    assert "".join(stream_of(llama_2, llama_2.encode(words, add_special_tokens=False).ids)) == words


def test_byte_tokens_that_are_no_text_do_not_end_the_stream(llama_2: Tokenizer) -> None:
    """Together with the second byte, the first is no text any more; it was given out, and what comes next goes on."""
    ids = [llama_2.token_to_id(token) for token in ("<0x06>", "<0x92>", "▁sources")]
    assert llama_2.decode(ids) == "\ufffd\ufffd sources"
    assert stream_of(llama_2, ids) == ["\x06", "", "\ufffd sources", ""]
