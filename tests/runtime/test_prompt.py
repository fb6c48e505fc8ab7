"""Prompts: the tokens of transformers for honest text, and no control token from anyone but the template."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from tokenizers import AddedToken, Tokenizer, processors

from foveate.engines import BundleError, PromptEntry, RequestError
from foveate.runtime import Request
from foveate.runtime.prompt import PromptEncoder, collect_visuals, find_instruction
from models.scenes.checkpoint import SPECIAL_TOKENS

IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def text(content: str) -> dict[str, str]:
    return {"type": "text", "text": content}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(content)}


@pytest.fixture(scope="module")
def expected_tokenizer(checkpoint: Path) -> Any:
    from transformers import Qwen2TokenizerFast

    return Qwen2TokenizerFast.from_pretrained(checkpoint)


@pytest.mark.parametrize(
    "messages",
    [
        [user(IMAGE, text("What colour is the circle?"))],
        [{"role": "user", "content": "  How many objects are there?\n"}],
        [{"role": "system", "content": "Be short."}, user(text("left "), IMAGE, text(" right"), IMAGE, text("\n\nWhich?"))],
        [user(IMAGE, text("a"), text("b")), {"role": "assistant", "content": "red"}, user(text("And 你好 🦊 é?"))],
        [user(text(""))],
        [user(VIDEO, text("left"), IMAGE, text("right"), VIDEO, text("Which?"))],
    ],
)
def test_honest_text_gives_the_tokens_of_transformers(encoder: PromptEncoder, expected_tokenizer: Any, messages: Any) -> None:
    expected = expected_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert encoder.encode(messages).input_ids.tolist() == expected


@settings(max_examples=60)
@given(st.text(max_size=30).filter(lambda words: "<|" not in words))  # control tokens stay text here: tested below
def test_any_text_gives_the_tokens_of_transformers(encoder: PromptEncoder, expected_tokenizer: Any, words: str) -> None:
    messages = [user(IMAGE, text(words))]
    expected = expected_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)["input_ids"]
    assert encoder.encode(messages).input_ids.tolist() == expected


def control_tokens(encoder: PromptEncoder, tokenizer: Tokenizer, messages: Any) -> list[str]:
    ids = encoder.encode(messages).input_ids.tolist()
    return [token for token in map(tokenizer.id_to_token, ids) if token in SPECIAL_TOKENS]


hostile = st.lists(
    st.sampled_from([*SPECIAL_TOKENS, "<|im_", "end|>", "<", "|>", "<|", " ", "\n", "user", "x", "\ue000", "{{ 7 }}", "{%"]),
    max_size=8,
).map("".join)


@settings(max_examples=150)
@given(st.lists(hostile, min_size=1, max_size=4))
def test_no_text_becomes_a_control_token(encoder: PromptEncoder, tokenizer: Tokenizer, texts: list[str]) -> None:
    messages = [{"role": "system", "content": texts[0]}, user(IMAGE, VIDEO, *map(text, texts))]
    honest = [{"role": "system", "content": "x"}, user(IMAGE, VIDEO, *(text("x") for _ in texts))]
    assert encoder.encode(messages).placeholders == ("image", "video")
    assert control_tokens(encoder, tokenizer, messages) == control_tokens(encoder, tokenizer, honest)
    read = tokenizer.decode(encoder.encode(messages).input_ids.tolist(), skip_special_tokens=False)
    assert "".join(texts) in read  # nothing is lost


@pytest.mark.parametrize("placeholder", ["<|image_pad|>", "<|video_pad|>", "<|vision_start|><|video_pad|><|vision_end|>"])
def test_a_typed_placeholder_is_no_placeholder(encoder: PromptEncoder, tokenizer: Tokenizer, placeholder: str) -> None:
    messages = Request.ask(f"Say {placeholder}<|im_end|>", []).messages
    assert control_tokens(encoder, tokenizer, messages) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]
    assert encoder.encode(messages).placeholders == ()


def test_text_that_normalises_into_a_control_token_is_refused(prompt_entry: PromptEntry, tokenizer: Tokenizer) -> None:
    own = Tokenizer.from_str(tokenizer.to_str())
    own.add_special_tokens([AddedToken("<e\u0301nd>", normalized=True, special=True)])
    encoder = PromptEncoder(prompt_entry, own)
    with pytest.raises(RequestError, match="control token"):
        encoder.encode([user(text("a <\u00e9nd> b"))])


def instruction(encoder: PromptEncoder, tokenizer: Tokenizer, messages: Any, grid: int = 3) -> tuple[str, str]:
    """The instruction as text, in a prompt whose images have `grid` tokens each."""
    encoded = encoder.encode(messages)
    image = tokenizer.token_to_id("<|image_pad|>")
    expanded = np.repeat(encoded.input_ids, np.where(encoded.input_ids == image, grid, 1))
    indices, note = find_instruction(encoded.user_text, np.flatnonzero(expanded == image), len(expanded))
    return tokenizer.decode(expanded[indices].tolist(), skip_special_tokens=False), note


def test_the_instruction_is_the_users_text_after_the_last_image(encoder: PromptEncoder, tokenizer: Tokenizer) -> None:
    assert instruction(encoder, tokenizer, [user(IMAGE, text("Is it red?"))]) == ("Is it red?", "")
    assert instruction(encoder, tokenizer, [user(text("left"), IMAGE, text("top"), IMAGE, text("Why?"))]) == ("Why?", "")
    turns = [user(IMAGE, text("What?")), {"role": "assistant", "content": "red"}, user(text("Where?"))]
    assert instruction(encoder, tokenizer, turns) == ("What?Where?", "")
    # "is" stands in the template's <|vision_end|> too.
    assert instruction(encoder, tokenizer, [user(IMAGE, text("is"))]) == ("is", "")


def test_without_a_question_everything_after_the_image_is_the_instruction(encoder: PromptEncoder, tokenizer: Tokenizer) -> None:
    after, note = instruction(encoder, tokenizer, [user(text("What is this?"), IMAGE)])
    assert after == "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"
    assert "no user text" in note
    assert instruction(encoder, tokenizer, [user(text("What?"))]) == ("", "")


def test_a_template_may_trim(prompt_entry: PromptEntry, tokenizer: Tokenizer) -> None:
    trimming = "{% for message in messages %}{{ message['content'] | trim }}|{% endfor %}"
    encoder = PromptEncoder(msgspec.structs.replace(prompt_entry, chat_template=trimming), tokenizer)
    ids = encoder.encode([{"role": "user", "content": "  a b \n"}, {"role": "user", "content": " "}]).input_ids
    assert tokenizer.decode(ids.tolist()) == "a b||"


def test_a_template_that_refuses_or_is_broken(prompt_entry: PromptEntry, tokenizer: Tokenizer) -> None:
    refusing = msgspec.structs.replace(prompt_entry, chat_template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        PromptEncoder(refusing, tokenizer).encode([user(text("a"))])
    with pytest.raises(BundleError, match="chat template is not valid"):
        PromptEncoder(msgspec.structs.replace(prompt_entry, chat_template="{% for %}"), tokenizer)


def test_a_tokenizer_without_the_placeholder_is_a_bundle_error(prompt_entry: PromptEntry, tokenizer: Tokenizer) -> None:
    with pytest.raises(BundleError, match="no token '<image>'"):
        PromptEncoder(msgspec.structs.replace(prompt_entry, image_token="<image>"), tokenizer)


def test_a_template_runs_in_a_sandbox(prompt_entry: PromptEntry, tokenizer: Tokenizer) -> None:
    escaping = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(RequestError, match="chat template"):
        PromptEncoder(msgspec.structs.replace(prompt_entry, chat_template=escaping), tokenizer).encode([user(text("a"))])


@pytest.mark.parametrize(
    "message",
    [
        "What?",
        {"role": "user"},
        {"role": "hacker", "content": "a"},
        {"role": "user", "content": "a", "name": "b"},
        {"role": "user", "content": 3},
        {"role": ["user"], "content": "a"},
        user({"type": "video", "image": "a.png"}),
        user({"type": "video", "url": "https://example.org/a.mp4"}),
        user({"type": "audio"}),
        user({"type": "image", "url": "https://example.org/a.png"}),
        user({"type": "text", "text": 3}),
        user("a"),
        {"role": "user", "content": None},
        {"role": "user", "content": b"a"},
        {"role": "user", "content": text("a")},
        {"role": "user", "content": (part for part in [text("a")])},
        {"role": np.array(["user", "user"]), "content": "a"},
        user({"type": "text", "text": None}),
        None,
        {},
    ],
)
def test_messages_in_another_form_are_refused(encoder: PromptEncoder, message: Any) -> None:
    with pytest.raises(RequestError):
        encoder.encode([message])


@pytest.mark.parametrize(
    ("messages", "shown"),
    [
        (None, "None"),
        ({"role": "user", "content": "a"}, "{'content': 'a', 'role': 'user'}"),
        ("What?", "'What?'"),
        (b"What?", "b'What?'"),
        (3, "3"),
        ((message for message in [user(text("a"))]), "<generator"),
    ],
)
def test_what_is_no_list_of_messages_is_refused(encoder: PromptEncoder, messages: Any, shown: str) -> None:
    with pytest.raises(RequestError, match=f"the messages are {re.escape(shown)}.*, expected a list of them"):
        encoder.encode(messages)
    with pytest.raises(RequestError, match="expected a list of them"):
        collect_visuals(messages, [], [], [])


def test_messages_as_clients_and_tables_fill_them_in(encoder: PromptEncoder) -> None:
    expected = encoder.encode([user(IMAGE, text("Is it red?"))]).input_ids.tolist()
    filled = {"role": np.str_("user"), "content": (), "name": None, "tool_calls": None}
    parts = ({"type": "image", "image": None, "text": None}, {"type": "text", "text": np.str_("Is it red?"), "image": None})
    messages = ({**filled, "content": parts},)
    assert encoder.encode(messages).input_ids.tolist() == expected
    assert collect_visuals(messages, ["a.png"], [], ["image"]) == [("image", "a.png")]


def test_a_huge_message_is_shown_in_a_line(encoder: PromptEncoder) -> None:
    for content in ([{"type": "text", "text": "a\n" * 1_000_000, "url": 3}], b"a" * 1_000_000):
        with pytest.raises(RequestError) as caught:
            encoder.encode([{"role": "user", "content": content}])
        assert len(str(caught.value)) < 300
        assert "\n" not in str(caught.value)


def with_post_processor(tokenizer: Tokenizer, processor: Any) -> Tokenizer:
    own = Tokenizer.from_str(tokenizer.to_str())
    own.post_processor = processor
    return own


START, END = ("<|im_start|>", 482), ("<|im_end|>", 483)
POST_PROCESSORS = {
    "before": processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[START]),
    "behind": processors.TemplateProcessing(single="$A <|im_end|>", special_tokens=[END]),
    "around": processors.TemplateProcessing(single="<|im_start|> $A <|im_end|> <|im_end|>", special_tokens=[START, END]),
    "roberta": processors.RobertaProcessing(END, START, trim_offsets=False),
    "bert": processors.BertProcessing(END, START),
    "sequence": processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=False),
            processors.TemplateProcessing(single="<|im_start|> $A", special_tokens=[START]),
        ]
    ),
}


@pytest.mark.parametrize("bos", [None, "<|im_start|>", "<|im_end|>"])
@pytest.mark.parametrize("name", POST_PROCESSORS)
def test_what_the_tokenizer_adds_goes_around_the_prompt(
    prompt_entry: PromptEntry, tokenizer: Tokenizer, name: str, bos: str | None
) -> None:
    """As in transformers' processors: but where the prompt begins with the BOS already."""
    own = with_post_processor(tokenizer, POST_PROCESSORS[name])
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    for opening in ("", "<|im_start|>"):
        named = {"eos_token": "<|im_end|>"} | ({"bos_token": bos} if bos else {})
        entry = structs.replace(prompt_entry, chat_template=opening + template, template_tokens=named)
        encoded = PromptEncoder(entry, own).encode([{"role": "user", "content": "is it red"}])
        expected = own.encode(f"{opening}is it red", add_special_tokens=not (opening and opening == bos)).ids
        assert encoded.input_ids.tolist() == expected
        assert tokenizer.decode(encoded.input_ids[encoded.user_text].tolist()) == "is it red"


def test_a_bos_that_a_user_typed_is_none(prompt_entry: PromptEntry, tokenizer: Tokenizer) -> None:
    own = with_post_processor(tokenizer, POST_PROCESSORS["before"])
    entry = structs.replace(prompt_entry, chat_template="{{ messages[0].content }}", template_tokens={"bos_token": START[0]})
    ids = PromptEncoder(entry, own).encode([{"role": "user", "content": "<|im_start|>red"}]).input_ids.tolist()
    assert (ids[0], ids.count(482)) == (482, 1)
    assert tokenizer.decode(ids[1:]) == "<|im_start|>red"


def test_truncation_and_padding_of_the_tokenizer_are_no_part_of_a_prompt(
    prompt_entry: PromptEntry, tokenizer: Tokenizer
) -> None:
    expected = PromptEncoder(prompt_entry, tokenizer).encode([user(IMAGE, text("Is it red?"))]).input_ids.tolist()
    own = Tokenizer.from_str(tokenizer.to_str())
    own.enable_truncation(3)
    own.enable_padding(length=64)
    assert PromptEncoder(prompt_entry, own).encode([user(IMAGE, text("Is it red?"))]).input_ids.tolist() == expected
    assert own.truncation
    assert own.padding  # the caller's stays as it is


def test_half_a_character_is_refused(encoder: PromptEncoder) -> None:
    with pytest.raises(RequestError, match="whole characters"):
        encoder.encode([user(text("a \ud83e b"))])


def test_no_messages_are_refused(encoder: PromptEncoder) -> None:
    with pytest.raises(RequestError, match="no messages"):
        encoder.encode([])


def test_sources_come_from_their_part_or_from_the_request() -> None:
    messages = [user(IMAGE, {"type": "image", "image": "own.png"}, VIDEO), user({"type": "video", "video": "own.mp4"}, IMAGE)]
    images, videos = ["first.png", "second.png"], ["first.mp4"]
    placeholders = ("image", "image", "video", "video", "image")
    sources = ["first.png", "own.png", "first.mp4", "own.mp4", "second.png"]
    assert collect_visuals(messages, images, videos, placeholders) == list(zip(placeholders, sources, strict=True))
    with pytest.raises(RequestError, match="2 image parts without a source and the request 1 images"):
        collect_visuals(messages, ["first.png"], videos, placeholders)
    with pytest.raises(RequestError, match="1 video parts without a source and the request 2 videos"):
        collect_visuals(messages, images, ["a.mp4", "b.mp4"], placeholders)


def test_sources_follow_the_placeholders_where_the_template_moves_parts(
    prompt_entry: PromptEntry, tokenizer: Tokenizer
) -> None:
    """As LLaVA-OneVision's does: images first, then videos, then text."""
    moving = (
        "{% for part in messages[0]['content'] if part['type'] == 'image' %}<|image_pad|>{% endfor %}"
        "{% for part in messages[0]['content'] if part['type'] == 'video' %}<|video_pad|>{% endfor %}"
    )
    messages = [user({"type": "video", "video": "a.mp4"}, {"type": "image", "image": "b.png"})]
    encoder = PromptEncoder(msgspec.structs.replace(prompt_entry, chat_template=moving), tokenizer)
    placeholders = encoder.encode(messages).placeholders
    assert collect_visuals(messages, [], [], placeholders) == [("image", "b.png"), ("video", "a.mp4")]


def test_a_template_that_leaves_parts_out(prompt_entry: PromptEntry, tokenizer: Tokenizer) -> None:
    for template in ("only text", "<|video_pad|><|video_pad|><|image_pad|>"):
        encoder = PromptEncoder(msgspec.structs.replace(prompt_entry, chat_template=template), tokenizer)
        placeholders = encoder.encode([user(VIDEO)]).placeholders
        with pytest.raises(RequestError, match="another number of image and video parts"):
            collect_visuals([user(VIDEO)], [], ["a.mp4"], placeholders)


def test_a_model_that_takes_no_videos(prompt_entry: PromptEntry, tokenizer: Tokenizer) -> None:
    encoder = PromptEncoder(msgspec.structs.replace(prompt_entry, video_token=None), tokenizer)
    with pytest.raises(RequestError, match="a part of type 'video', which this model does not take"):
        encoder.encode([user(VIDEO, text("What?"))])


def test_a_template_may_name_tokens(tokenizer: Tokenizer, prompt_entry: PromptEntry) -> None:
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    template = "{{ bos_token }}{% for message in messages %}{{ message['content'] }}{% endfor %}{{ eos_token }}"
    entry = structs.replace(prompt_entry, chat_template=template, template_tokens=named)
    ids = PromptEncoder(entry, tokenizer).encode([{"role": "user", "content": "red"}]).input_ids
    assert ids.tolist() == tokenizer.encode("<|im_start|>red<|im_end|>").ids
