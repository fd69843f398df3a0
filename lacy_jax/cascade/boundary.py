"""Where a partner's text meets generated tokens: what is appended is text and comes out as text.

Tokens that are in the KV cache stay. If the joined text encodes to the existing tokens and then some, those
are the new tokens (the segmentation that training saw); else the partner's text is encoded on its own, as a
continuation; else by bytes. Each way is checked by decoding: old tokens + new tokens must give old text +
new text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lacy_jax.tokenizer import Tokenizer

WINDOW = 24
"""Tokens before the boundary that are encoded again. Pieces do not reach across words, so a word would do."""


class Boundary:
    """Appends text to tokens; knows which pieces begin words and which are bytes of a character.

    Attributes:
      lead: int32 [V] bytes that the character begun by this byte piece still lacks; 0 for all other pieces.
      tail: bool [V] the piece is a byte inside a character.
      begins: bool [V] the piece begins a word, or is of a script that writes no spaces.
      opens: bool [V] a word may begin right after this piece: it ends in a space, an opening mark and the
        like.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.lead = np.zeros(tokenizer.vocab_size, np.int32)
        self.tail = np.zeros(tokenizer.vocab_size, bool)
        self._byte_ids = np.full(256, -1, np.int32)
        self.begins = np.zeros(tokenizer.vocab_size, bool)
        self.opens = np.zeros(tokenizer.vocab_size, bool)
        self._special = {tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id}
        for token in range(tokenizer.vocab_size):
            piece = tokenizer.piece(token)
            if token in self._special:
                self.opens[token] = True  # The text begins here.
            else:
                self.begins[token] = piece[0] == "\u2581" or not _goes_on(piece[0])
                self.opens[token] = not _goes_on(piece[-1])
            if len(piece) != 6 or not piece.startswith("<0x"):
                continue
            # A character that has no piece is of no known script.
            self.opens[token] = self.begins[token] = True
            byte = int(piece[3:5], 16)
            self._byte_ids[byte] = token
            self.lead[token] = (
                3 if 0xF0 <= byte < 0xF8 else 2 if 0xE0 <= byte < 0xF0 else int(0xC2 <= byte < 0xE0)
            )
            self.tail[token] = 0x80 <= byte < 0xC0

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

    def fit(self, ids: np.ndarray, room: int) -> np.ndarray:
        """The first words of `ids` that take at most `room` tokens: half a number would be another number.

        Of a first word that is longer alone, its first whole characters.
        """
        if len(ids) <= room:
            return ids
        after = ids[1 : room + 1]  # Bytes count as beginnings elsewhere, and may be inside a word.
        ends = np.flatnonzero(self.begins[after] & ~np.isin(after, self._byte_ids)) + 1
        return self.whole_characters(ids[: ends[-1]] if ends.size else ids[:room])

    def whole_characters(self, ids: np.ndarray) -> np.ndarray:
        """`ids` without the bytes of an unfinished character at their end."""
        need = safe = 0
        for index, token in enumerate(ids):
            need = max(need - 1, 0) if self.tail[token] else int(self.lead[token])
            safe = index + 1 if need == 0 else safe
        return ids[:safe]

    def _window_start(self, ids: np.ndarray) -> int:
        """Where the window begins: at a piece that starts a word, so that encoding it again gives the same
        pieces.
        """
        for start in range(max(len(ids) - WINDOW, 0), len(ids)):
            if start and self.tokenizer.piece(int(ids[start])).startswith("\u2581"):
                return start
        return int(len(ids) > 0 and int(ids[0]) in self._special)

    def _gives(self, ids: np.ndarray, new: np.ndarray, text: str) -> bool:
        return self.tokenizer.decode(np.concatenate([ids, new])) == text


def _goes_on(character: str) -> bool:
    """Whether the word (and the mark that ends it) goes on with this character without a space between."""
    return (character.isalnum() and ord(character) < 0x2E80) or character in ".,;:!?'’”)]}%"
