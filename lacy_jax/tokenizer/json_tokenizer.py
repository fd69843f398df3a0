"""Byte-level BPE from a tokenizer.json (GPT-2, Llama 3, Qwen3, SmolLM2), behind the interface of our `Tokenizer`.

Imported models keep their tokenizer. `tokenizer.model` of a run or dataset holds either a SentencePiece model or the
JSON that `pack` makes; `Tokenizer.load` tells them apart by the first byte.

Text never encodes to a special token: "<|endoftext|>" in a document is plain characters, as with SentencePiece.
`decode(encode(text)) == text` unless the tokenizer normalises (Qwen: NFC) or its vocabulary lacks bytes. A character
that needs a missing byte is written as U+FFFD: `tokenizers` itself would drop it or replace it by the unknown token,
which is `<|endoftext|>` in public models.
"""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lacy_jax.errors import DataError, LacyError
from lacy_jax.tokenizer.specials import Specials
from lacy_jax.tokenizer.tokenizer import CALL_PIECE, SPACE, Tokenizer

_KEY = "lacy_tokenizer"
_VERSION = 2
_STAND_INS = ("\ufffd", "?", " ")
"""Replacements for a character that the vocabulary has no bytes for; the first that it can write is used."""


_MOST_RANGES = 5000
"""Ranges in one character class of a regular expression; the library below `tokenizers` allows 10,000."""


def pack(tokenizer_json: str, specials: Specials, source: str) -> bytes:
    """The content of one file that holds a tokenizer.json and the special ids that it does not name.

    Args:
      tokenizer_json: content of tokenizer.json.
      specials: the special ids.
      source: names the file in errors.

    Raises:
      DataError: not JSON.
    """
    value = _parse(tokenizer_json, source)
    packed = {_KEY: _VERSION, **specials.to_json(), "tokenizer": value}
    return json.dumps(packed, ensure_ascii=False, sort_keys=True).encode("utf-8")


def added_ids(tokenizer_json: str, source: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer.json's own post-processor adds (before, after) a text.

    Raises:
      DataError: not a tokenizer.json. LacyError: the package `tokenizers` is missing.
    """
    found = _load(tokenizer_json, source).encode("a", add_special_tokens=True)
    own = [i for i, special in enumerate(found.special_tokens_mask) if not special]
    first, last = (own[0], own[-1]) if own else (len(found.ids), len(found.ids))
    return tuple(found.ids[:first]), tuple(found.ids[last + 1 :])


def other_kind(tokenizer_json: str, source: str) -> str:
    """The kind of a tokenizer.json that `JsonTokenizer` cannot read; "" for one that it can.

    Raises:
      DataError: not JSON.
    """
    return _other_kind(_parse(tokenizer_json, source))


def piece_ids(tokenizer_json: str, source: str) -> dict[str, int]:
    """All pieces of a tokenizer.json, including added ones, with their ids.

    Raises:
      DataError: not a tokenizer.json. LacyError: the package `tokenizers` is missing.
    """
    return _load(tokenizer_json, source).get_vocab(with_added_tokens=True)


class JsonTokenizer(Tokenizer, first_byte=b"{"):
    """See `Tokenizer`.

    Attributes:
      backend_json: the tokenizer.json, as text, without its post-processor.
      missing: bytes that occur in UTF-8 but not in the vocabulary.

    Raises:
      DataError: not what `pack` makes, or not byte-level BPE.
      LacyError: the package `tokenizers` is missing.
    """

    def __init__(self, model_bytes: bytes, source: str = "tokenizer model"):
        try:
            packed = json.loads(model_bytes)
            value, version = packed["tokenizer"], packed[_KEY]
            if version == 1:  # It knew only one end of a text, and put bos before every text.
                packed |= {"eos": [packed["eos"]], "prefix": [packed["bos"]]}
            specials = Specials.from_json(packed)
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{source}: neither a SentencePiece model nor an imported tokenizer") from None
        if version not in (1, _VERSION):
            raise DataError(f"{source}: imported tokenizer of version {version}, expected {_VERSION}")
        if other := _other_kind(value):
            raise DataError(
                f"{source}: {other} is not supported, only byte-level BPE (GPT-2, Llama 3, Qwen3)"
            )
        if refused := _refused(value):
            raise DataError(f"{source}: {refused} is not supported")
        # We add the prefix ourselves, and offsets must not be trimmed.
        value["post_processor"] = value["truncation"] = value["padding"] = None
        backend = _load(json.dumps(value, ensure_ascii=False), source)
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.missing = _missing(vocabulary, value["model"])
        if self.missing:
            value["normalizer"] = _with_stand_in(value.get("normalizer"), self.missing, source)
        self.backend_json = json.dumps(value, ensure_ascii=False)
        self._backend: Any = _load(self.backend_json, source) if self.missing else backend
        self._backend.encode_special_tokens = True
        self._keep(model_bytes)
        self.sentencepiece = b""
        self.vocab_size = max(vocabulary.values()) + 1
        self.call_id, self.total_size, self.unk_id = self.vocab_size, self.vocab_size + 1, -1
        specials.give_to(self, source)
        self.byte_fallback = not self.missing
        self._dummy_prefix = False
        self._bytes = [b""] * self.vocab_size
        added = backend.get_added_tokens_decoder()
        for piece, token in vocabulary.items():
            self._bytes[token] = piece.encode() if token in added else _bytes_of(piece, value["model"])
        self._special = {token for token, what in added.items() if what.special}
        # Only the first end of a text counts as special: a further one may be an ordinary piece ("!").
        self._special |= {self.bos_id, self.eos_id, self.pad_id, *self.prefix}
        self._is_control = np.array([token in self._special for token in range(self.vocab_size)])

    def encode(self, text: str, *, continues: bool = False) -> np.ndarray:
        """See `Tokenizer.encode`; nothing is ever added before a text, so `continues` changes nothing."""
        return self.encode_with_offsets(text)[0]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Tokenizer.encode_with_offsets`; every piece of a character carries the whole character."""
        try:
            found = self._backend.encode(text, add_special_tokens=False)
        except (UnicodeEncodeError, TypeError):
            raise DataError("text has a lone surrogate: it is not valid Unicode") from None
        offsets = np.array(found.offsets, np.int32).reshape(-1, 2)
        ids = np.array(found.ids, np.int32)
        return ids, np.ascontiguousarray(offsets[:, 0]), np.ascontiguousarray(offsets[:, 1])

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """See `Tokenizer.decode`."""
        found = np.asarray(ids, np.int64).reshape(-1)
        kept = (int(i) for i in found if 0 <= i < self.vocab_size and not self._is_control[i])
        return b"".join(self._bytes[i] for i in kept).decode("utf-8", errors="replace")

    def piece(self, token: int) -> str:
        """The piece of an id as SentencePiece would write it: U+2581 for a space, "<0xE2>" for a lone byte."""
        if not 0 <= token <= self.call_id:
            raise DataError(f"token id {token} is outside the vocabulary of {self.total_size} ids")
        if token == self.call_id:
            return CALL_PIECE
        if token in self._special:
            return self._backend.id_to_token(token) or f"<{token}>"
        data = self._bytes[token]
        if len(data) == 1 and data[0] >= 0x80:
            return f"<0x{data[0]:02X}>"
        return data.decode("utf-8", errors="replace").replace(" ", "\u2581") or f"<{token}>"

    def piece_bytes(self, token: int) -> bytes:
        """See `Tokenizer.piece_bytes`."""
        return b"" if token == self.call_id or self._is_control[token] else self._bytes[token]


def _parse(tokenizer_json: str, source: str) -> Any:
    try:
        value = json.loads(tokenizer_json)
    except ValueError as error:
        raise DataError(f"{source}: not JSON: {error}") from None
    if not isinstance(value, dict) or not isinstance(value.get("model"), dict):
        raise DataError(f"{source}: not a tokenizer.json: it has no model")
    return value


def _load(tokenizer_json: str, source: str) -> Any:
    try:
        tokenizers = importlib.import_module("tokenizers")
    except ImportError as error:
        raise LacyError(f"{source} needs the package tokenizers: pip install 'lacy_jax[export]'") from error
    try:
        return tokenizers.Tokenizer.from_str(tokenizer_json)
    except Exception as error:
        raise DataError(f"{source}: not a tokenizer.json: {error}") from error


def _steps(value: Any, name: str, inner: str) -> list[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or decoder, whether it is one step or a sequence."""
    step = value.get(name)
    found = step.get(inner) if isinstance(step, dict) and step.get("type") == "Sequence" else step
    steps = found if isinstance(found, list) else [found]
    return [one if isinstance(one, dict) else {"type": one} for one in steps if one is not None]


_FROM_BYTES = ("ByteFallback", "Fuse", "Replace")
"""Steps that may come before ByteLevel in a decoder: conversions from GGUF write them. They change no byte-level piece."""


def _other_kind(value: Any) -> str:
    """The kind of a tokenizer.json that is not byte-level BPE; "" for one that is."""
    model, decoders = value["model"], [s.get("type") for s in _steps(value, "decoder", "decoders")]
    if (
        model.get("type") == "BPE"
        and decoders[-1:] == ["ByteLevel"]
        and all(d in _FROM_BYTES for d in decoders[:-1])
    ):
        return ""
    return (
        f"a tokenizer.json of model {model.get('type')} and decoder {', '.join(map(str, decoders)) or None}"
    )


def _refused(value: Any) -> str:
    """The first setting of a byte-level tokenizer.json that is not supported; "" if there is none."""
    model = value["model"]
    for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            return f"{name} = {model[name]!r}"
    before = _steps(value, "pre_tokenizer", "pretokenizers")
    if any(step.get("add_prefix_space") for step in before):
        return "add_prefix_space"
    cleaning = _steps(value, "normalizer", "normalizers")
    if any(step.get("type") == "Prepend" for step in cleaning):
        return "a normalizer that adds something before a text"
    if not any(step.get("type") == "ByteLevel" for step in (*before, *cleaning)):
        return "a byte-level vocabulary without a ByteLevel pre-tokenizer"
    return ""


@functools.cache
def byte_table() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte -> the byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _bytes_of(piece: str, model: Any) -> bytes:
    """The bytes that a piece of the vocabulary adds to a text; a piece not in byte-level spelling stands for itself."""
    if model.get("byte_fallback") and len(piece) == 6 and piece.startswith("<0x"):
        return bytes([int(piece[3:5], 16)])
    table = byte_table()
    if all(character in table for character in piece):
        return bytes(table[character] for character in piece)
    return piece.replace(SPACE, " ").encode()


def _missing(vocabulary: dict[str, int], model: Any) -> frozenset[int]:
    """Bytes of UTF-8 that have no single-byte piece."""
    written = {byte for character, byte in byte_table().items() if character in vocabulary}
    if model.get("byte_fallback"):
        written |= {byte for byte in range(256) if f"<0x{byte:02X}>" in vocabulary}
    return frozenset({*range(0xC0), *range(0xC2, 0xF5)} - written)


def _with_stand_in(normalizer: Any, missing: frozenset[int], source: str) -> dict[str, Any]:
    """The normalizer, followed by a step that replaces every character that needs a missing byte."""
    stand_in = next((text for text in _STAND_INS if not missing & set(text.encode())), None)
    if stand_in is None:
        raise DataError(
            f"{source}: the vocabulary lacks {len(missing)} bytes, a space and '?' among them, so it cannot write text"
        )
    ranges = [f"\\x{{{first:X}}}-\\x{{{last:X}}}" for first, last in _unwritable(missing)]
    parts = ("".join(ranges[i : i + _MOST_RANGES]) for i in range(0, len(ranges), _MOST_RANGES))
    pattern = "|".join(f"[{part}]" for part in parts)
    step = {"type": "Replace", "pattern": {"Regex": pattern}, "content": stand_in}
    return {"type": "Sequence", "normalizers": [*_steps({"n": normalizer}, "n", "normalizers"), step]}


def _unwritable(missing: frozenset[int]) -> list[tuple[int, int]]:
    """Ranges (first, last) of the characters that have one of these bytes in their UTF-8."""
    lacks = np.isin(np.arange(256), list(missing))
    code = np.arange(0x110000)
    tail = [lacks[0x80 | (code >> shift & 0x3F)] for shift in (0, 6, 12)]
    one, two = lacks[code & 0x7F], lacks[0xC0 | (code >> 6 & 0x1F)] | tail[0]
    three = lacks[0xE0 | (code >> 12 & 0x0F)] | tail[1] | tail[0]
    four = lacks[0xF0 | (code >> 18)] | tail[2] | tail[1] | tail[0]
    found = np.select([code < 0x80, code < 0x800, code < 0x10000], [one, two, three], four)
    found[0xD800:0xE000] = False  # Surrogates are not characters.
    edges = np.flatnonzero(np.diff(np.concatenate([[False], found, [False]])))
    return [(int(first), int(end) - 1) for first, end in edges.reshape(-1, 2)]
