"""Texts of single tokens, which may be parts of characters."""

from __future__ import annotations

import re
from functools import lru_cache

from tokenizers import Tokenizer

from foveate.serve.errors import HttpError

_BROKEN = "\N{REPLACEMENT CHARACTER}"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class TokenTexts:
    """The texts of a tokenizer's tokens.

    Args:
        tokenizer: the bundle's.

    Attributes:
        longest: characters of the longest token.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._bytes = _byte_alphabet()
        self.longest = max(map(len, tokenizer.get_vocab()))
        self.text = lru_cache(maxsize=1 << 16)(self._text)

    def _text(self, token: int) -> tuple[str, tuple[int, ...] | None]:
        """The text of a token, and its bytes; None where they can't be told."""
        text: str = self.tokenizer.decode([token], skip_special_tokens=False)
        name = self.tokenizer.id_to_token(token) or ""
        if _BROKEN not in text:
            return text, tuple(text.encode())
        if found := _BYTE.fullmatch(name):
            return text, (int(found[1], 16),)
        if name and all(character in self._bytes for character in name):
            return text, tuple(self._bytes[character] for character in name)
        return text, None

    def encode(self, text: str, special: bool) -> list[int]:
        """Token ids of a text. Control tokens that it spells are not plain text here. Other threads go on meanwhile: it is a
        batch of one."""
        ids: list[int] = self.tokenizer.encode_batch([text], add_special_tokens=special)[0].ids
        return ids

    def decode(self, tokens: list[int]) -> str:
        """The text of tokens, special ones among them. Other threads go on meanwhile.

        Raises:
            HttpError: there is no such token.
        """
        size = self.tokenizer.get_vocab_size()
        beyond = next((token for token in tokens if token >= size), None)
        if beyond is not None:
            fact = f"there is no token {beyond}, the model has 0 to {size - 1}. Take it out."
            raise HttpError(400, fact, "tokens", "invalid_value")
        text: str = self.tokenizer.decode_batch([tokens], skip_special_tokens=False)[0]
        return text


def _byte_alphabet() -> dict[str, int]:
    """The characters that stand for bytes in vocabularies of GPT-2's kind."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(byte): byte for byte in plain} | {chr(256 + index): byte for index, byte in enumerate(others)}
