"""Training a SentencePiece model: count words in one pass, choose seed pieces, then run the library's unigram training.

Models trained here have byte fallback, split digits and the identity normaliser, keep every space and add no dummy
prefix, so that `Tokenizer` decodes every text exactly.
"""

from __future__ import annotations

import collections
import io
import itertools
import os
import re
import tempfile
from collections.abc import Iterable
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from lacy_jax.errors import ConfigError, DataError, LacyError, one_line
from lacy_jax.tokenizer.tokenizer import CALL_PIECE, SPACE

_MAX_WORD = 256  # Characters.
_MAX_DISTINCT = 2_000_000
_SEED_WORDS = 30_000
_SEED_CHARACTERS = 800_000
_WORD = re.compile(rf" ?[^\s\0]{{1,{_MAX_WORD}}}| ")
_LETTERS = re.compile(r"\D+")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ASCII = frozenset(map(chr, range(0x21, 0x7F)))


def train_tokenizer(texts: Iterable[str], config: Any) -> bytes:
    """Train a SentencePiece unigram model; the same texts and config give the same bytes.

    SentencePiece would choose seed pieces among substrings that at least two *distinct* words share, however often
    each occurs: a frequent word that shares none ("was" in a small world) would always be split. So the seeds come
    from `_seed_pieces`, which weighs each word by its frequency.

    Args:
      texts: documents; at most `config.max_training_documents` are read, once.
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
                # In a short text the coverage alone would turn a rare capital into bytes.
                required_chars="".join(sorted(letters & _ASCII)),
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                max_sentence_length=8 * _MAX_WORD,
                shuffle_input_sentence=False,
                num_threads=16,  # Constant, because sums over threads must not depend on the machine.
                minloglevel=3,
                **special,
            )
        except (RuntimeError, ValueError, OSError) as error:
            raise _training_error(error, config) from error
    model = sentencepiece_model_pb2.ModelProto.FromString(out.getvalue())  # type: ignore[attr-defined]
    model.trainer_spec.ClearField("seed_sentencepieces_file")  # A random path: equal runs, equal bytes.
    return model.SerializeToString(deterministic=True)


def _training_error(error: Exception, config: Any) -> ConfigError:
    """SentencePiece's error, turned into one that names the config field to change."""
    message = one_line(error)
    if limit := re.search(r"value <= (\d+)", message):
        why = f"the corpus supports at most {limit[1]} pieces; set it to that or less, or train on more text"
        return ConfigError(f"config.tokenizer.vocab_size = {config.vocab_size}: {why}")
    if needed := re.search(r"(?i)vocabulary size is smaller than required_chars\.? \d+ vs (\d+)", message):
        why = f"the single characters, bytes and specials alone need {needed[1]}; raise it or lower tokenizer.character_coverage"
        return ConfigError(f"config.tokenizer.vocab_size = {config.vocab_size}: {why}")
    return ConfigError(f"config.tokenizer: SentencePiece could not train: {message}")


def _count_words(texts: Iterable[str], normalization: str) -> list[tuple[str, int]]:
    """(word with the space before it, count), most frequent first: all that SentencePiece needs of the texts.

    Memory is bounded: beyond `_MAX_DISTINCT` words the rarest are dropped while counting. Words longer than
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
        counts.update(_WORD.findall(plain.replace(SPACE, " ")))
        while len(counts) > _MAX_DISTINCT:
            floor += 1
            counts = collections.Counter({word: n for word, n in counts.items() if n >= floor})
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _seed_pieces(words: list[tuple[str, int]], config: Any) -> list[tuple[str, int]]:
    """(piece, occurrences times length) of the substrings that training starts from, best first.

    These are substrings of 2 to 16 characters of the most frequent words, weighted by how often the words occur. A
    substring that only occurs inside one longer substring adds nothing: it comes last, and is used only if the
    vocabulary needs it.
    """
    parts: collections.Counter[str] = collections.Counter()
    characters = 0
    for word, count in words[: max(_SEED_WORDS, 2 * config.vocab_size)]:
        word = word.replace(" ", SPACE)
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
                # A substring is at most as frequent as its parts, so rare ones need not be extended.
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
