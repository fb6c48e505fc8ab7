"""Streaming text: whole characters, nothing twice, nothing lost, nothing past a stop string."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from foveate.runtime.text import Detokenizer, StopStrings, TextStream


def stream(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*map(detokenizer.push, ids), detokenizer.flush()]


@given(st.text(max_size=40))
def test_chunks_make_the_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


@given(st.lists(st.integers(0, 480), max_size=40))
def test_chunks_of_any_tokens_make_their_text(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Random tokens are full of bytes that are no UTF-8."""
    assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)


def test_a_character_is_never_split(tokenizer: Tokenizer) -> None:
    text = "你好 🦊 é"
    chunks = stream(tokenizer, tokenizer.encode(text).ids)
    assert len(chunks) > len(text)
    assert not any("\ufffd" in chunk for chunk in chunks)
    assert "".join(chunks) == "你好 🦊 é"


def test_special_tokens_are_skipped(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_to_id("<|im_start|>"), *tokenizer.encode("red").ids, tokenizer.token_to_id("<|im_end|>")]
    assert "".join(stream(tokenizer, ids)) == "red"


def test_words_of_a_sentencepiece_vocabulary_keep_their_spaces() -> None:
    tokenizer = Tokenizer(models.WordLevel({"▁red": 0, "▁circle": 1, "s": 2}, unk_token="s"))
    tokenizer.decoder = decoders.Metaspace()
    assert stream(tokenizer, [0, 1, 2, 0]) == ["red", " circle", "s", " red", ""]


def test_the_window_stays_small(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer)
    for token in tokenizer.encode("red circle " * 50).ids:
        detokenizer.push(token)
    assert len(detokenizer._context) + len(detokenizer._pending) <= 3


def cut(text: list[str], stop: list[str]) -> tuple[str, bool]:
    matcher, out = StopStrings(stop), ""
    for piece in text:
        out += matcher.push(piece)
        if matcher.found:
            return out, True
    return out + matcher.flush(), False


@given(st.text("ab", max_size=30), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_text_ends_before_the_first_complete_stop_string(text: str, stop: list[str]) -> None:
    out, found = cut(list(text), stop)
    ends = [text.find(string) + len(string) for string in stop if string in text]
    assert found == bool(ends)
    if found:
        first = min(ends)
        longest = max(len(string) for string in stop if text[:first].endswith(string))
        assert out == text[: first - longest]
    else:
        assert out == text


def test_a_possible_stop_string_is_held_back() -> None:
    matcher = StopStrings(["END"])
    assert [matcher.push("a E"), matcher.push("N"), matcher.push("T"), matcher.push("EN"), matcher.flush()] == [
        "a ",
        "",
        "ENT",
        "",
        "EN",
    ]


@pytest.mark.parametrize("pieces", [["red circle red"], ["red ", "cir", "cle", " red"]])
def test_the_stop_string_is_not_given_out(pieces: list[str]) -> None:
    assert cut(pieces, ["circle"]) == ("red ", True)


def test_a_stream_stops_within_a_token(tokenizer: Tokenizer) -> None:
    text = TextStream(tokenizer, ["irc"])
    out = ""
    for token in tokenizer.encode("red circle").ids:
        out += text.push(token)
        if text.stopped:
            break
    assert (out, text.stopped) == ("red c", True)
