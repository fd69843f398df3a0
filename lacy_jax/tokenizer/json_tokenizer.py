"""Byte-level BPE from a tokenizer.json (GPT-2, Llama 3, Qwen3), behind the interface of our `Tokenizer`.

Imported models bring their tokenizer along; one file, `tokenizer.model` of a run or dataset, holds either a
SentencePiece model or the JSON of `pack`. `Tokenizer.load` tells them apart by the first byte.

Special tokens are found in no text: "<|endoftext|>" in a document is plain characters, as with SentencePiece. Byte-level
BPE knows no unknown characters; `decode(encode(text)) == text` unless the tokenizer normalises (Qwen: NFC).
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from lacy_jax.errors import DataError, LacyError
from lacy_jax.tokenizer.tokenizer import CALL_PIECE, Tokenizer

_KEY = "lacy_tokenizer"


def pack(tokenizer_json: str, bos: int, eos: int, pad: int, source: str) -> bytes:
    """A tokenizer.json and the ids that it does not name, as one file's content.

    Args:
      tokenizer_json: content of tokenizer.json.
      bos, eos, pad: ids.
      source: names the file in errors.

    Raises:
      DataError: not JSON.
    """
    try:
        value = json.loads(tokenizer_json)
    except ValueError as error:
        raise DataError(f"{source}: not JSON: {error}") from None
    packed = {_KEY: 1, "bos": bos, "eos": eos, "pad": pad, "tokenizer": value}
    return json.dumps(packed, ensure_ascii=False, sort_keys=True).encode("utf-8")


class JsonTokenizer(Tokenizer, first_byte=b"{"):
    """See `Tokenizer`; `backend_json` is the tokenizer.json, as text.

    Raises:
      DataError: not what `pack` makes, or not byte-level BPE.
      LacyError: the package `tokenizers` is missing.
    """

    def __init__(self, model_bytes: bytes, source: str = "tokenizer model"):
        try:
            packed = json.loads(model_bytes)
            value, version = packed["tokenizer"], packed[_KEY]
            bos, eos, pad = int(packed["bos"]), int(packed["eos"]), int(packed["pad"])
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{source}: neither a SentencePiece model nor an imported tokenizer") from None
        if version != 1:
            raise DataError(f"{source}: imported tokenizer of version {version}, expected 1")
        _refuse_others(value, source)
        value["post_processor"] = None  # bos is put in front by us, and offsets must not be trimmed.
        value["truncation"] = value["padding"] = None
        self.backend_json = json.dumps(value, ensure_ascii=False)
        try:
            tokenizers = importlib.import_module("tokenizers")
        except ImportError as error:
            raise LacyError(
                f"{source} needs the package tokenizers: pip install 'lacy_jax[export]'"
            ) from error
        try:
            self._backend: Any = tokenizers.Tokenizer.from_str(self.backend_json)
        except Exception as error:
            raise DataError(f"{source}: not a tokenizer.json: {error}") from error
        self._backend.encode_special_tokens = True
        self.model_bytes = model_bytes
        self.hash = hashlib.sha256(model_bytes).hexdigest()[:16]
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.call_id, self.total_size = self.vocab_size, self.vocab_size + 1
        self.bos_id, self.eos_id, self.pad_id, self.unk_id = bos, eos, pad, -1
        for name, token in (("bos", bos), ("eos", eos), ("pad", pad)):
            if not 0 <= token < self.vocab_size:
                raise DataError(
                    f"{source}: {name} id {token} is outside the vocabulary of {self.vocab_size} ids"
                )
        self.byte_fallback = True
        self._dummy_prefix = False
        self._bytes = [b""] * self.vocab_size
        added = self._backend.get_added_tokens_decoder()
        for piece, token in vocabulary.items():
            self._bytes[token] = piece.encode() if token in added else bytes(map(_byte, piece))
        self._special = {token for token, what in added.items() if what.special} | {bos, eos, pad}
        self._is_control = np.array([token in self._special for token in range(self.vocab_size)])

    def encode(self, text: str, *, continues: bool = False) -> np.ndarray:
        """See `Tokenizer.encode`; nothing is ever put before a text, so `continues` changes nothing."""
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


def _refuse_others(value: Any, source: str) -> None:
    """Byte-level BPE only: its decoder joins bytes, nothing else."""
    model, decoder = (value.get("model") or {}), (value.get("decoder") or {})
    if model.get("type") != "BPE" or decoder.get("type") != "ByteLevel":
        raise DataError(
            f"{source}: a tokenizer.json of model {model.get('type')} and decoder {decoder.get('type')} is not supported, "
            "only byte-level BPE (GPT-2, Llama 3, Qwen3); give a folder with the SentencePiece tokenizer.model"
        )
    steps = value.get("pre_tokenizer") or {}
    if any(s.get("add_prefix_space") for s in steps.get("pretokenizers", [steps])):
        raise DataError(f"{source}: add_prefix_space is not supported")


@functools.cache
def _table() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte -> the byte."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + i): b for i, b in enumerate(others)}


def _byte(character: str) -> int:
    return _table()[character]
