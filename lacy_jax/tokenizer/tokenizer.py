"""Tokenizers: encoding with exact character offsets, decoding, and the CALL id.

The base vocabulary is that of the SentencePiece model (V pieces); `<CALL>` is id V, outside the model, so no
text can ever encode to it and an existing `.model` file works unchanged.

Models trained here are unigram with byte fallback, digits split and the identity normaliser, keep every space
(`remove_extra_whitespaces=False`) and add no dummy prefix. `decode(encode(text)) == text` then holds for every
text, and `encode(a) + encode(b)` decodes to `a + b`, as is needed when a partner's text is appended to generated
text. SentencePiece writes a space as U+2581 and so cannot tell the two apart; a literal U+2581 is encoded by its
three bytes instead. Existing models keep their own normaliser: decoded text may differ (NFKC, merged spaces), but
offsets still point into the original text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import sentencepiece
from etils import epath

from lacy_jax import files
from lacy_jax.errors import DataError

CALL_PIECE = "<CALL>"
SPACE = "\u2581"


class Tokenizer:
    """A SentencePiece model plus the CALL id. Picklable; equal model bytes give equal tokenizers.

    Attributes:
      vocab_size: V, the base vocabulary.
      call_id: V, the id of `<CALL>`; `total_size` is V + 1.
      bos_id, eos_id, pad_id: special ids; one that the model lacks falls back to another (bos to eos, eos to bos,
        pad to eos, and all to unk), so that -1 never reaches an array.
      eos_ids: all ids that end a generated text; `eos_id` is the first.
      prefix: ids that `with_prefix` puts before every text: (bos,), unless an imported tokenizer says otherwise.
      hash: sha256 of the model bytes, 16 hex digits; names the tokenizer in dataset and run metadata.
      model_bytes: content of the tokenizer's file.
      sentencepiece: the serialised SentencePiece model; empty for other kinds.
      byte_fallback: whether unknown characters are written as bytes.
    """

    _kinds: ClassVar[dict[bytes, type[Tokenizer]]] = {}

    def __init_subclass__(cls, first_byte: bytes, **kwargs: Any):
        """Register a subclass as the reader of files that begin with `first_byte`."""
        super().__init_subclass__(**kwargs)
        Tokenizer._kinds[first_byte] = cls

    def __init__(self, model_bytes: bytes, source: str = "tokenizer model"):
        processor = sentencepiece.SentencePieceProcessor()
        pieces: list[str] = []
        try:
            if model_bytes and processor.LoadFromSerializedProto(model_bytes):
                pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
        except (RuntimeError, ValueError, TypeError):
            pieces = []  # Not a model, or a damaged one: a piece that is no UTF-8 comes to light when it is read.
        if not pieces:
            raise DataError(
                f"{source}: not a SentencePiece model; give a .model file or leave tokenizer.path empty"
            )
        self._processor = processor
        self._keep(model_bytes)
        self.sentencepiece = model_bytes
        self.vocab_size: int = len(pieces)
        self.call_id = self.vocab_size
        self.total_size = self.vocab_size + 1
        bos, eos, pad, unk = (processor.bos_id(), processor.eos_id(), processor.pad_id(), processor.unk_id())
        self.bos_id: int = _first_id(bos, eos, unk)
        self.eos_id: int = _first_id(eos, bos, unk)
        self.pad_id: int = _first_id(pad, eos, unk)
        self.eos_ids: tuple[int, ...] = (self.eos_id,)
        self.prefix: tuple[int, ...] = (self.bos_id,)
        self.unk_id: int = unk
        self._is_byte = np.array([processor.is_byte(i) for i in range(self.vocab_size)])
        self._is_control = np.array([processor.is_control(i) for i in range(self.vocab_size)])
        self.byte_fallback = int(self._is_byte.sum()) == 256
        self._dummy_prefix = processor.normalize("a").startswith(SPACE)
        self._space_only = np.array([not piece.strip(SPACE + " ") for piece in pieces])

    @classmethod
    def load(cls, path: epath.PathLike) -> Tokenizer:
        """Read a `.model` file: a SentencePiece model, or an imported tokenizer (`lacy_jax.tokenizer.json_tokenizer`).

        Raises:
          DataError: no such file, or not a SentencePiece model.
        """
        try:
            data = epath.Path(path).read_bytes()
        except OSError as error:
            raise DataError(f"tokenizer {path}: {error.strerror or error}; check tokenizer.path") from error
        return cls.from_bytes(data, str(path))

    @classmethod
    def from_bytes(cls, model_bytes: bytes, source: str = "tokenizer model") -> Tokenizer:
        """A tokenizer from serialised model bytes, such as `train_tokenizer` returns.

        Raises:
          DataError: not a SentencePiece model.
        """
        return cls._kinds.get(model_bytes[:1], Tokenizer)(model_bytes, source)

    def _keep(self, model_bytes: bytes) -> None:
        self.model_bytes = model_bytes
        self.hash = hashlib.sha256(model_bytes).hexdigest()[:16]

    def save(self, path: epath.PathLike) -> None:
        """Write the model file atomically."""
        files.write_bytes(path, self.model_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {"model_bytes": self.model_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model_bytes"])  # type: ignore[misc]

    def with_prefix(self, ids: Sequence[int] | np.ndarray) -> np.ndarray:
        """`ids` of a whole text as a model reads it, int32 [n]: `prefix` in front, or bos if there would be no token."""
        before = self.prefix if len(ids) else self.prefix or (self.bos_id,)
        return np.concatenate([np.array(before, np.int32), np.asarray(ids, np.int32)])

    @property
    def body(self) -> slice:
        """The slice of a document's tokens, `[*with_prefix(ids), eos]`, that is its text."""
        return slice(len(self.prefix), -1)

    def encode(self, text: str, *, continues: bool = False) -> np.ndarray:
        """Piece ids of `text`, int32 [n], without bos or eos.

        Args:
          text: any text; "<s>", "<CALL>" and the like in it are plain characters.
          continues: the text continues earlier text, as a partner's does, so a model that puts a space before
            every text ("dummy prefix") does not put one here.

        Raises:
          DataError: the text has a lone surrogate, which is not a character.
        """
        if not (continues and self._dummy_prefix):
            return self._encode(text, "numpy")
        # The dummy prefix goes before a marker, and both are cut off again.
        ids, _, ends = self.encode_with_offsets(_unused_character(self._processor, text) + text)
        return ids[ends > 1]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Piece ids, and the characters that each piece stands for.

        Returns:
          (ids, starts, ends), int32 [n] each: piece i stands for text[starts[i]:ends[i]]. Every byte piece of a
          character, and every piece of a character that the normaliser expanded, carries that whole character;
          a dummy prefix is empty. Characters that the normaliser dropped may belong to no piece.

        Raises:
          DataError: the text has a lone surrogate.
        """
        ids, offsets = self._encode(text, "offset_mapping")
        starts, ends = offsets[:, 0], offsets[:, 1]
        # SentencePiece gives a character's width to the last of its byte pieces only; the earlier ones are empty.
        empty = (starts == ends) & ~self._space_only[ids]
        if empty.any():
            index = np.arange(len(ids))
            next_wide = np.minimum.accumulate(np.where(starts < ends, index, len(ids))[::-1])[::-1]
            fill = empty & (next_wide < len(ids))
            ends = ends.copy()
            ends[fill] = ends[next_wide[fill]]
        return ids, np.ascontiguousarray(starts), np.ascontiguousarray(ends)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`; CALL and control pieces (bos, eos, pad) are dropped.

        Bytes that form no character become U+FFFD. A model with a dummy prefix loses the space it begins with.
        """
        array = np.asarray(ids, np.int64).reshape(-1)
        array = array[(array >= 0) & (array < self.vocab_size)]
        array = array[~self._is_control[array]]
        return self._processor.decode(array.tolist()) if len(array) else ""

    def piece(self, token: int) -> str:
        """The piece of an id as SentencePiece writes it ("▁born"); `<CALL>` for the CALL id."""
        if not 0 <= token <= self.call_id:
            raise DataError(f"token id {token} is outside the vocabulary of {self.total_size} ids")
        return CALL_PIECE if token == self.call_id else self._processor.id_to_piece(int(token))

    def control_pieces(self) -> dict[str, int]:
        """The pieces that are in no text, such as those of bos and eos, with their ids."""
        return {self.piece(int(token)): int(token) for token in np.flatnonzero(self._is_control)}

    def piece_bytes(self, token: int) -> bytes:
        """UTF-8 bytes that a piece adds to a text, possibly part of a character; b"" for CALL and control pieces."""
        if token == self.call_id or self._is_control[token]:
            return b""
        piece = self._processor.id_to_piece(int(token))
        return bytes([int(piece[3:5], 16)]) if self._is_byte[token] else piece.replace(SPACE, " ").encode()

    def _encode(self, text: str, kind: Literal["numpy", "offset_mapping"]) -> Any:
        """`kind` "numpy": ids; "offset_mapping": (ids, offsets [n, 2])."""
        stand_in = ""
        if SPACE in text and self.byte_fallback:
            stand_in = _unused_character(self._processor, text)
            text = text.replace(SPACE, stand_in)
        try:
            out = self._processor.encode(text, return_type=kind)
        except RuntimeError:
            _refuse_surrogates(text)
            raise
        ids = np.array(out if kind == "numpy" else out["ids"], np.int32)
        if stand_in:
            for start in self._find_bytes(ids, stand_in):
                ids[start : start + 3] = self._byte_ids(SPACE)
        return ids if kind == "numpy" else (ids, np.array(out["offsets"], np.int32).reshape(-1, 2))

    def _byte_ids(self, character: str) -> list[int]:
        return [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in character.encode()]

    def _find_bytes(self, ids: np.ndarray, character: str) -> np.ndarray:
        """Where the three byte pieces of a three-byte character begin."""
        a, b, c = self._byte_ids(character)
        return (
            np.flatnonzero((ids[:-2] == a) & (ids[1:-1] == b) & (ids[2:] == c))
            if len(ids) > 2
            else np.array([], int)
        )


def _first_id(*candidates: int) -> int:
    return next(candidate for candidate in candidates if candidate >= 0)


def _refuse_surrogates(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"text has a lone surrogate at character {error.start}: it is not valid Unicode"
        ) from None


def _unused_character(processor: sentencepiece.SentencePieceProcessor, text: str) -> str:
    """A three-byte private-use character that is neither in `text` nor in the vocabulary."""
    for code in range(0xE000, 0xF900):
        character = chr(code)
        if character not in text and processor.piece_to_id(character) == processor.unk_id():
            return character
    raise DataError(
        "text uses every private-use character U+E000 to U+F8FF, so U+2581 in it cannot be encoded"
    )
