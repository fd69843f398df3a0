"""Appending a partner's text to generated tokens, so that the tokens decode to exactly the joined text.

Tokens that are in the KV cache stay. If the encoding of the joined text begins with the existing tokens, the rest of
it are the new tokens (the segmentation that training saw). Otherwise the partner's text is encoded on its own, as a
continuation; if that fails too, by bytes. Each way is checked by decoding: old tokens + new tokens must give old
text + new text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from lacy_jax.tokenizer import Tokenizer

WINDOW = 24
"""Tokens before the boundary that are encoded again. Pieces do not reach across words, so one word would be enough."""


class Boundary:
    """Appends text to tokens; knows which pieces begin words and which hold parts of characters.

    A piece of a byte-level vocabulary may begin inside a character, end inside one, or both. If a text lacked `need`
    bytes of its last character before a piece, then after it the text lacks `where(inner, max(need - tail, 0), lead)`.

    Attributes:
      lead: int32 [V] bytes that the last character of this piece still lacks; 0 for most pieces.
      tail: int32 [V] bytes inside a character that the piece begins with; 0 for most.
      inner: bool [V] the piece consists only of the bytes that `tail` counts.
      part: bool [V] the piece alone is not text: it begins or ends inside a character, or has a byte that occurs in no
        character.
      begins: bool [V] the piece begins a word, or belongs to a script without spaces.
      opens: bool [V] a word may begin right after this piece: it ends in a space, an opening mark or the like.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        size = tokenizer.vocab_size
        self.lead, self.tail = np.zeros(size, np.int32), np.zeros(size, np.int32)
        self.part, self.inner, self.begins, self.opens = np.zeros((4, size), bool)
        self._starts = np.zeros(
            size, bool
        )  # A word certainly begins here; `begins` is also true for many parts of characters.
        # A piece with a space in front; one with any text. CALL, which the last place stands for, has neither.
        self._spaced, self._stated = np.zeros((2, size + 1), bool)
        self._byte_ids = np.full(256, -1, np.int32)
        for token in range(size):
            data = tokenizer.piece_bytes(token)
            self._spaced[token] = tokenizer.piece(token).startswith("\u2581")
            self._stated[token] = bool(data)
            self.tail[token], self.lead[token] = _tail(data), _lead(data)
            self.inner[token] = len(data) == self.tail[token] > 0
            text = data.decode("utf-8", errors="replace")
            self.part[token] = part = text.encode() != data
            # A character without a piece of its own belongs to no known script.
            self.begins[token] = bool(data) and (part or text[0] == " " or not _goes_on(text[0]))
            self.opens[token] = part or not data or not _goes_on(text[-1])  # No data: the text begins here.
            self._starts[token] = self.begins[token] and (not part or text[0] == " ")
            if len(data) == 1 and (self._byte_ids[data[0]] < 0 or tokenizer.piece(token).startswith("<0x")):
                self._byte_ids[data[0]] = token
        if not (self.inner & (self.tail == 1)).any():
            self.lead[:] = 0  # No piece could finish a character, so decoding must not wait for one.

    @staticmethod
    @functools.lru_cache(maxsize=8)
    def of(tokenizer: Tokenizer) -> Boundary:
        """The boundary of a tokenizer, made once: its tables ask for every piece."""
        return Boundary(tokenizer)

    def append(self, ids: Sequence[int] | np.ndarray, added: str) -> np.ndarray:
        """Tokens that append the text `added` to the tokens `ids`.

        Args:
          ids: the text so far, special tokens allowed; ends on a whole character.
          added: text as the partner gave it, with its leading space if it starts a word.

        Returns: int32 [n] such that decode(ids + new) == decode(ids) + added. Only a tokenizer that cannot
          write a character of `added` (no byte fallback, or a normaliser that changes it) gives its nearest
          text instead.
        """
        if not added:
            return np.zeros(0, np.int32)
        ids = np.asarray(ids, np.int32)
        window = ids[self._window_start(ids) :]
        whole = self.tokenizer.decode(window) + added
        joined = self.tokenizer.encode(whole)
        if np.array_equal(joined[: len(window)], window) and self._gives(
            window, joined[len(window) :], whole
        ):
            return joined[len(window) :]
        alone = self.tokenizer.encode(added, continues=True)
        by_bytes = self._byte_ids[np.frombuffer(added.encode("utf-8"), np.uint8)]
        if (
            not self._gives(window, alone, whole)
            and by_bytes.min() >= 0
            and self._gives(window, by_bytes, whole)
        ):
            return by_bytes
        return alone

    def added_text(self, ids: np.ndarray, new: np.ndarray) -> str:
        """What the tokens `new` add to the text of `ids`: decode(ids + new) without decode(ids), by a window of `ids`."""
        window = ids[self._window_start(ids) :]
        return self.tokenizer.decode(np.concatenate([window, new]))[len(self.tokenizer.decode(window)) :]

    def fit(self, ids: np.ndarray, room: int) -> np.ndarray:
        """The first whole words of `ids` that fit into `room` tokens: half a number would be another number.

        If the first word alone is longer, its first whole characters; nothing if not even one fits.
        """
        if len(ids) <= room:
            return ids
        ends = np.flatnonzero(self._starts[ids[1 : room + 1]]) + 1
        return self.whole_characters(ids[: ends[-1]] if ends.size else ids[:room])

    def whole_characters(self, ids: np.ndarray) -> np.ndarray:
        """`ids` without the bytes of an unfinished character at their end."""
        need = safe = 0
        for index, token in enumerate(ids):
            need = max(need - int(self.tail[token]), 0) if self.inner[token] else int(self.lead[token])
            safe = index + 1 if need == 0 else safe
        return ids[:safe]

    def _window_start(self, ids: np.ndarray) -> int:
        """Where the window begins: at a piece that starts a word, so that encoding it again gives the same
        pieces.
        """
        first = max(len(ids) - WINDOW, 1)
        spaced = self._spaced[ids[first:]]
        if spaced.any():
            return first + int(spaced.argmax())
        stated = self._stated[ids]
        return int(stated.argmax()) if stated.any() else len(ids)  # The tokens before these have no text.

    def _gives(self, ids: np.ndarray, new: np.ndarray, text: str) -> bool:
        return self.tokenizer.decode(np.concatenate([ids, new])) == text


def _tail(data: bytes) -> int:
    """How many bytes at the start of `data` belong to a character that began before it; three at most."""
    return next((i for i, byte in enumerate(data[:4]) if not 0x80 <= byte < 0xC0), min(len(data), 3))


def _lead(data: bytes) -> int:
    """Bytes that the last character of `data` lacks."""
    for behind, byte in enumerate(data[:-4:-1]):  # No unfinished character has more than three bytes.
        if not 0x80 <= byte < 0xC0:
            size = 4 if 0xF0 <= byte < 0xF5 else 3 if 0xE0 <= byte < 0xF0 else 2 if 0xC2 <= byte < 0xE0 else 1
            return max(size - 1 - behind, 0)
    return 0


def _goes_on(character: str) -> bool:
    """Whether the word (and the mark that ends it) goes on with this character without a space between."""
    return (character.isalnum() and ord(character) < 0x2E80) or character in ".,;:!?'’”)]}%"
