"""SentencePiece: training, encoding with exact character offsets, decoding; owner of the CALL id.

The base vocabulary is what the SentencePiece model holds (V pieces); `<CALL>` is id V, outside the model, so no
text can ever encode to it and an existing `.model` file works as it is.

Models trained here are unigram with byte fallback, digits split and the identity normaliser, keep every space
(`remove_extra_whitespaces=False`) and add no dummy prefix. `decode(encode(text)) == text` then holds for every
text, and `encode(a) + encode(b)` decodes to `a + b`, which is what appending a partner's text to generated text
needs. SentencePiece writes a space as U+2581 and so cannot tell the two apart; a literal U+2581 is encoded by its
three bytes instead. Existing models keep their own normaliser: their text may come back changed (NFKC, merged
spaces), and offsets still point into the original text.
"""

from __future__ import annotations

import collections
import hashlib
import io
import itertools
import os
import re
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import sentencepiece
from etils import epath
from sentencepiece import sentencepiece_model_pb2

from lacy_jax import files
from lacy_jax.errors import ConfigError, DataError, LacyError

CALL_PIECE = "<CALL>"
_SPACE = "\u2581"
_MAX_WORD = 256  # Characters.
_MAX_DISTINCT = 2_000_000
_SEED_WORDS = 30_000
_SEED_CHARACTERS = 800_000
_WORD = re.compile(rf" ?[^\s\0]{{1,{_MAX_WORD}}}| ")
_LETTERS = re.compile(r"\D+")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ASCII = frozenset(map(chr, range(0x21, 0x7F)))


class Tokenizer:
    """A SentencePiece model plus the CALL id. Picklable; equal model bytes give equal tokenizers.

    Attributes:
      vocab_size: V, the base vocabulary.
      call_id: V, the id of `<CALL>`; `total_size` is V + 1.
      bos_id, eos_id, pad_id: special ids; one that the model lacks falls back to another (bos to eos, eos to bos,
        pad to eos, and all to unk), so that -1 never reaches an array.
      hash: sha256 of the model bytes, 16 hex digits; names the tokenizer in dataset and run metadata.
      model_bytes: the serialised SentencePiece model.
      byte_fallback: whether unknown characters are written as bytes.
    """

    def __init__(self, model_bytes: bytes, source: str = "tokenizer model"):
        processor = sentencepiece.SentencePieceProcessor()
        try:
            loaded = bool(model_bytes) and processor.LoadFromSerializedProto(model_bytes)
        except (RuntimeError, ValueError, TypeError):
            loaded = False
        if not loaded or processor.vocab_size() == 0:
            raise DataError(
                f"{source}: not a SentencePiece model; give a .model file or leave tokenizer.path empty"
            )
        self._processor = processor
        self.model_bytes = model_bytes
        self.hash = hashlib.sha256(model_bytes).hexdigest()[:16]
        self.vocab_size: int = processor.vocab_size()
        self.call_id = self.vocab_size
        self.total_size = self.vocab_size + 1
        bos, eos, pad, unk = (processor.bos_id(), processor.eos_id(), processor.pad_id(), processor.unk_id())
        self.bos_id: int = _first_id(bos, eos, unk)
        self.eos_id: int = _first_id(eos, bos, unk)
        self.pad_id: int = _first_id(pad, eos, unk)
        self.unk_id: int = unk
        self._is_byte = np.array([processor.is_byte(i) for i in range(self.vocab_size)])
        self._is_control = np.array([processor.is_control(i) for i in range(self.vocab_size)])
        self.byte_fallback = int(self._is_byte.sum()) == 256
        self._dummy_prefix = processor.normalize("a").startswith(_SPACE)
        self._space_only = np.array(
            [not processor.id_to_piece(i).strip(_SPACE + " ") for i in range(self.vocab_size)]
        )

    @classmethod
    def load(cls, path: epath.PathLike) -> Tokenizer:
        """Read a `.model` file: a SentencePiece model, or an imported tokenizer (`lacy_jax.json_tokenizer`).

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
        if model_bytes[:1] == b"{":
            from lacy_jax.json_tokenizer import JsonTokenizer  # It builds on this class.

            return JsonTokenizer(model_bytes, source)
        return cls(model_bytes, source)

    def save(self, path: epath.PathLike) -> None:
        """Write the model file atomically."""
        files.write_bytes(path, self.model_bytes)

    def __getstate__(self) -> dict[str, Any]:
        return {"model_bytes": self.model_bytes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["model_bytes"])  # type: ignore[misc]

    def encode(self, text: str, *, continues: bool = False) -> np.ndarray:
        """Piece ids of `text`, int32 [n], without bos or eos.

        Args:
          text: any text; "<s>", "<CALL>" and the like in it are plain characters.
          continues: the text goes on from earlier text, as a partner's does: a model that puts a space before
            every text ("dummy prefix") does not put one here.

        Raises:
          DataError: the text has a lone surrogate, which is no character.
        """
        if not (continues and self._dummy_prefix):
            return self._encode(text, "numpy")
        # The dummy prefix goes before a marker, and both are cut off again.
        ids, _, ends = self.encode_with_offsets(_unused_character(self._processor, text) + text)
        return ids[ends > 1]

    def encode_with_offsets(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Piece ids with the characters each stands for.

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

    def _encode(self, text: str, kind: Literal["numpy", "offset_mapping"]) -> Any:
        """`kind` "numpy": ids; "offset_mapping": (ids, offsets [n, 2])."""
        stand_in = ""
        if _SPACE in text and self.byte_fallback:
            stand_in = _unused_character(self._processor, text)
            text = text.replace(_SPACE, stand_in)
        try:
            out = self._processor.encode(text, return_type=kind)
        except RuntimeError:
            _refuse_surrogates(text)
            raise
        ids = np.array(out if kind == "numpy" else out["ids"], np.int32)
        if stand_in:
            for start in self._find_bytes(ids, stand_in):
                ids[start : start + 3] = self._byte_ids(_SPACE)
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


def train_tokenizer(texts: Iterable[str], config: Any) -> bytes:
    """Train a SentencePiece unigram model; the same texts and config give the same bytes.

    SentencePiece would take its seed pieces from substrings that at least two *distinct* words share, however
    often each occurs: a frequent word without relatives ("was" in a small world) is then always split. The seeds
    come from `_seed_pieces` instead, where a word weighs as much as it occurs.

    Args:
      texts: documents; read once, at most `config.max_training_documents` of them.
      config: `config.tokenizer` of the run: vocab_size, byte_fallback, split_digits, normalization,
        character_coverage, bos_piece, eos_piece, pad_piece ("" = the model has none), max_training_documents.

    Returns:
      The serialised model (the content of a `.model` file).

    Raises:
      DataError: no text to train on, or a text with a lone surrogate.
      ConfigError: the vocabulary is too large or too small for the texts, or a field has a bad value.
    """
    words = _count_words(itertools.islice(texts, config.max_training_documents or None), config.normalization)
    if not any(word.strip() for word, _ in words):
        raise DataError("tokenizer training: the corpus has no text; check corpus.path")
    special: dict[str, Any] = {"unk_id": 0}
    for name, piece in (("bos", config.bos_piece), ("eos", config.eos_piece), ("pad", config.pad_piece)):
        special[f"{name}_id"] = (
            sum(value >= 0 for key, value in special.items() if key.endswith("_id")) if piece else -1
        )
        if piece:
            special[f"{name}_piece"] = piece
    letters = {character for word, _ in words for character in word}
    out = io.BytesIO()
    with tempfile.TemporaryDirectory() as folder:
        seeds = os.path.join(folder, "seeds.tsv")
        _write_seeds(seeds, _seed_pieces(words, config))
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=(f"{word}\t{count}" for word, count in words),
                input_format="tsv",
                seed_sentencepieces_file=seeds,
                model_writer=out,
                model_type="unigram",
                vocab_size=config.vocab_size,
                byte_fallback=config.byte_fallback,
                split_digits=config.split_digits,
                normalization_rule_name=config.normalization,
                character_coverage=config.character_coverage,
                # In a text of few characters the coverage alone would turn a rare capital into bytes.
                required_chars="".join(sorted(letters & _ASCII)),
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                max_sentence_length=8 * _MAX_WORD,
                shuffle_input_sentence=False,
                num_threads=16,  # a constant: sums over threads must not depend on the machine
                minloglevel=3,
                **special,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise _training_error(error, config) from error
    model = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())  # type: ignore[attr-defined]
    model.trainer_spec.ClearField("seed_sentencepieces_file")  # A random path: equal runs, equal bytes.
    return model.SerializeToString(deterministic=True)


def _training_error(error: Exception, config: Any) -> ConfigError:
    """SentencePiece's message, turned into the field to change."""
    message = " ".join(str(error).split())
    if limit := re.search(r"value <= (\d+)", message):
        why = f"the corpus supports at most {limit[1]} pieces; set it to that or less, or train on more text"
        return ConfigError(f"config.tokenizer.vocab_size = {config.vocab_size}: {why}")
    if needed := re.search(r"(?i)vocabulary size is smaller than required_chars\.? \d+ vs (\d+)", message):
        why = f"the single characters, bytes and specials alone need {needed[1]}; raise it or lower tokenizer.character_coverage"
        return ConfigError(f"config.tokenizer.vocab_size = {config.vocab_size}: {why}")
    return ConfigError(f"config.tokenizer: SentencePiece could not train: {message}")


def _count_words(texts: Iterable[str], normalization: str) -> list[tuple[str, int]]:
    """(word with the space before it, how often), most frequent first: all that SentencePiece reads of a text.

    Memory is bounded: of more than `_MAX_DISTINCT` words the rarest are forgotten on the way. Words of more than
    `_MAX_WORD` characters, as in scripts without spaces, are cut.
    """
    try:
        normalizer = sentencepiece.SentencePieceNormalizer(rule_name=normalization)
    except (RuntimeError, OSError):
        raise ConfigError(
            f"config.tokenizer.normalization = {normalization!r}: expected identity, nfkc, nmt_nfkc, nfkc_cf or nmt_nfkc_cf"
        ) from None
    counts: collections.Counter[str] = collections.Counter()
    floor = 1
    for text in texts:
        try:
            plain = text if normalization == "identity" else normalizer.normalize(text)
            plain.encode()
        except UnicodeEncodeError as error:
            raise DataError(
                f"tokenizer training: lone surrogate at character {error.start} of a text"
            ) from None
        counts.update(_WORD.findall(plain.replace(_SPACE, " ")))
        while len(counts) > _MAX_DISTINCT:
            floor += 1
            counts = collections.Counter({word: n for word, n in counts.items() if n >= floor})
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _seed_pieces(words: list[tuple[str, int]], config: Any) -> list[tuple[str, int]]:
    """(piece, occurrences times length) of the substrings that training starts from, best first.

    Substrings of the most frequent words, of 2 to 16 characters, counted as often as the words occur. One that is
    always part of the same longer one adds nothing and comes last, used only if the vocabulary needs it.
    """
    parts: collections.Counter[str] = collections.Counter()
    characters = 0
    for word, count in words[: max(_SEED_WORDS, 2 * config.vocab_size)]:
        word = word.replace(" ", _SPACE)
        for part in _LETTERS.findall(word) if config.split_digits else [word]:
            characters += 0 if part in parts else len(part)
            parts[part] += count
        if characters > _SEED_CHARACTERS:
            break
    least = 1 if characters < _SEED_CHARACTERS // 8 else 2
    reserved = {"<unk>", CALL_PIECE, config.bos_piece, config.eos_piece, config.pad_piece}
    maximal: dict[str, int] = {}
    others: dict[str, int] = {}
    shorter: dict[str, int] = {}
    for length in range(2, 17):
        found: collections.Counter[str] = collections.Counter()
        for part, count in parts.items():
            for i in range(len(part) - length + 1):
                piece = part[i : i + length]
                # A substring is as frequent as its own parts at best: what was rare is not extended.
                if length == 2 or (piece[:-1] in shorter and piece[1:] in shorter):
                    found[piece] += count
        shorter = {piece: count for piece, count in found.items() if count >= least}
        for piece, count in shorter.items():
            for inner in (piece[:-1], piece[1:]):
                if maximal.get(inner) == count:
                    others[inner] = maximal.pop(inner)
        maximal.update(shorter)

    def ranked(pieces: dict[str, int]) -> list[tuple[str, int]]:
        kept = [(p, n * len(p)) for p, n in pieces.items() if p not in reserved and not _BYTE.fullmatch(p)]
        return sorted(kept, key=lambda item: (-item[1], item[0]))

    seeds = ranked(maximal)
    return seeds + ranked(others) if len(seeds) < 4 * config.vocab_size else seeds


def _write_seeds(path: str, seeds: list[tuple[str, int]]) -> None:
    try:
        with open(path, "w", encoding="utf-8", newline="\n") as file:
            file.writelines(f"{piece}\t{score}\n" for piece, score in seeds)
    except OSError as error:
        raise LacyError(f"cannot write temporary {path}: {error.strerror or error}; set TMPDIR") from error
