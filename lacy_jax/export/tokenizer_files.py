"""A SentencePiece model as the files that `transformers.AutoTokenizer` loads, with the same ids for every text.

How the pipeline of the `tokenizers` library matches SentencePiece:

- Pieces are written with a real space where SentencePiece writes U+2581. A literal U+2581 in a text is then an
  unknown character, written by its three bytes, as our `Tokenizer` does; no pre-tokeniser rewrites spaces.
- `tokenizers` looks *all* pieces up in the text, SentencePiece only normal ones. A literal "<0x41>" or "<s>" must
  not become the byte or control piece, so a pre-tokeniser cuts such literals in two.
- `<CALL>` is a special token with id V. `split_special_tokens` is on: special tokens are found in *ids* only, never
  in text, and "<CALL>", "<s>" in a text are plain characters.
- Every text begins with the tokenizer's prefix (mostly bos), as every training document did
  (`add_special_tokens=False` leaves it out).
"""

from __future__ import annotations

import re
from typing import Any

from etils import epath
from sentencepiece import sentencepiece_model_pb2

from lacy_jax import files
from lacy_jax.errors import DataError
from lacy_jax.export.extras import require
from lacy_jax.run_files import CHAT_TEMPLATE_FILE
from lacy_jax.tokenizer import CALL_PIECE, Tokenizer
from lacy_jax.tokenizer.json_tokenizer import JsonTokenizer

_SPACE = "\u2581"
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6
_UNIGRAM, _BPE = 1, 2


def write_tokenizer(
    folder: epath.PathLike,
    tokenizer: Tokenizer,
    max_length: int,
    with_call: bool = True,
    chat_template: str = "",
) -> None:
    """Write tokenizer.json, tokenizer_config.json, special_tokens_map.json, our own tokenizer.model, chat_template.jinja.

    Args:
      folder: exists.
      tokenizer: of the run.
      max_length: the model's context in tokens.
      with_call: False leaves CALL out.
      chat_template: "" = none. With one, special tokens are found in texts too: `transformers` renders a conversation
        as text, in which the marks of its turns must be found.

    Raises:
      DataError: `tokenizers` cannot express this kind of model.
    """
    folder = epath.Path(folder)
    backend = build(tokenizer, with_call)
    files.write_text(folder / "tokenizer.json", backend.to_str(pretty=True))
    names = {
        "bos_token": tokenizer.piece(tokenizer.bos_id),
        "eos_token": tokenizer.piece(tokenizer.eos_id),
        "pad_token": tokenizer.piece(tokenizer.pad_id),
    }
    if tokenizer.unk_id >= 0:
        names["unk_token"] = tokenizer.piece(tokenizer.unk_id)
    special = {**names, "additional_special_tokens": [CALL_PIECE] * with_call}
    files.write_json(folder / "special_tokens_map.json", special)
    config = {
        **special,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_length,
        "split_special_tokens": not chat_template,
        "clean_up_tokenization_spaces": False,
        "add_bos_token": tokenizer.prefix == (tokenizer.bos_id,),
        "model_input_names": ["input_ids", "attention_mask"],
        "padding_side": "right",
    }
    files.write_json(folder / "tokenizer_config.json", config)
    files.write_bytes(folder / "tokenizer.model", tokenizer.model_bytes)
    if chat_template:
        files.write_text(folder / CHAT_TEMPLATE_FILE, chat_template)


def build(tokenizer: Tokenizer, with_call: bool = True) -> Any:
    """The `tokenizers.Tokenizer` that gives the ids of `tokenizer`, with its prefix in front and CALL as id V.

    Raises:
      DataError: as `write_tokenizer`.
      LacyError: the package is missing.
    """
    tokenizers = require("tokenizers")
    if isinstance(tokenizer, JsonTokenizer):
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend_json)
    else:
        backend = _from_sentencepiece(tokenizers, tokenizer)
    if with_call:
        _add_call(tokenizers, backend, tokenizer)
    before = [tokenizer.piece(token) for token in tokenizer.prefix]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=[*before, "$A"],
        pair=[*before, "$A", *before, "$B:1"],
        special_tokens=list(zip(before, tokenizer.prefix, strict=True)),
    )
    backend.encode_special_tokens = True
    return backend


def _add_call(tokenizers: Any, backend: Any, tokenizer: Tokenizer) -> None:
    if CALL_PIECE in backend.get_vocab():
        raise DataError(
            f"tokenizer {tokenizer.hash} has a piece {CALL_PIECE} of its own: it cannot be exported"
        )
    backend.add_special_tokens([tokenizers.AddedToken(CALL_PIECE, special=True, normalized=False)])
    if backend.token_to_id(CALL_PIECE) != tokenizer.call_id:
        raise DataError(
            f"tokenizer {tokenizer.hash}: {CALL_PIECE} would get id {backend.token_to_id(CALL_PIECE)}, not "
            f"{tokenizer.call_id}: two pieces read the same once U+2581 is a space"
        )


def _from_sentencepiece(tokenizers: Any, tokenizer: Tokenizer) -> Any:
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.sentencepiece)  # type: ignore[attr-defined]
    kind = model.trainer_spec.model_type
    if kind not in (_UNIGRAM, _BPE) or model.trainer_spec.treat_whitespace_as_suffix:
        raise DataError(
            f"tokenizer {tokenizer.hash}: only SentencePiece models of type unigram and bpe with spaces before words "
            "can be exported"
        )
    pieces = [(_plain(piece.piece, piece.type), piece.score) for piece in model.pieces]
    fallback = tokenizer.byte_fallback
    if kind == _UNIGRAM:
        backend = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, tokenizer.unk_id, fallback))
    else:
        backend = tokenizers.Tokenizer(
            tokenizers.models.BPE(
                vocab={piece: i for i, (piece, _) in enumerate(pieces)},
                merges=_merges(model, pieces),
                unk_token=pieces[tokenizer.unk_id][0],
                byte_fallback=fallback,
                fuse_unk=True,
            )
        )
    backend.normalizer = tokenizers.normalizers.Sequence(_normalizers(tokenizers, model, fallback))
    literals = [piece.piece for piece in model.pieces if piece.type not in (_NORMAL, _USER_DEFINED)]
    if pattern := _cut_pattern(literals, {text for text, _ in pieces if len(text) == 1}):
        backend.pre_tokenizer = tokenizers.pre_tokenizers.Split(
            tokenizers.Regex(pattern), "merged_with_previous"
        )
    backend.decoder = tokenizers.decoders.Sequence(_decoders(tokenizers, model))
    users = [_plain(p.piece, p.type) for p in model.pieces if p.type == _USER_DEFINED]
    backend.add_tokens([tokenizers.AddedToken(piece, normalized=True) for piece in users])
    controls = [p.piece for p in model.pieces if p.type == _CONTROL]
    controls += [model.pieces[tokenizer.unk_id].piece] if tokenizer.unk_id >= 0 else []
    backend.add_special_tokens(
        [tokenizers.AddedToken(piece, special=True, normalized=False) for piece in controls]
    )
    return backend


def _plain(piece: str, kind: int) -> str:
    return piece.replace(_SPACE, " ") if kind in (_NORMAL, _USER_DEFINED) else piece


def _cut_pattern(literals: list[str], known: set[str]) -> str:
    """Regular expression for the places to cut texts, so that no word contains one of the pieces `literals`.

    Cuts are made only next to a `known` character: SentencePiece turns several unknown characters in a row into one
    <unk>, but a cut between them would give two.
    """
    alternatives = []
    for piece in literals:
        if re.fullmatch("<0x[0-9A-F]{2}>", piece):
            alternatives.append("<(?=0x[0-9A-F]{2}>)")
        elif len(piece) > 1:
            beside = (i for i in range(1, len(piece)) if known & {piece[i - 1], piece[i]})
            cut = next(beside, 1)
            alternatives.append(f"{re.escape(piece[:cut])}(?={re.escape(piece[cut:])})")
    return "|".join(dict.fromkeys(alternatives))


def _normalizers(tokenizers: Any, model: Any, fallback: bool) -> list[Any]:
    spec, normalizers, regex = model.normalizer_spec, tokenizers.normalizers, tokenizers.Regex
    steps = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps += [normalizers.Replace(regex(r"\A +| +\z"), ""), normalizers.Replace(regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(" "))
    if not fallback:  # SentencePiece cannot tell the two apart, and there are no bytes to write it with.
        steps.append(normalizers.Replace(_SPACE, " "))
    return steps


def _decoders(tokenizers: Any, model: Any) -> list[Any]:
    decoders = tokenizers.decoders
    steps = [decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return steps


def _merges(model: Any, pieces: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Pairs that make a piece, best piece first: SentencePiece merges the pair whose result scores highest."""
    normal = {text: score for (text, score), p in zip(pieces, model.pieces, strict=True) if p.type == _NORMAL}
    rank = {text: i for i, (text, _) in enumerate(pieces)}
    found = []
    for text, score in normal.items():
        for cut in range(1, len(text)):
            left, right = text[:cut], text[cut:]
            if left in normal and right in normal:
                found.append((-score, rank[left], rank[right], left, right))
    return [(left, right) for *_, left, right in sorted(found)]


def has_rules(tokenizer: Tokenizer) -> bool:
    """Whether the SentencePiece model rewrites characters (nmt_nfkc and the like) instead of keeping the text."""
    if isinstance(tokenizer, JsonTokenizer):
        return False
    model = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.sentencepiece)  # type: ignore[attr-defined]
    return bool(model.normalizer_spec.precompiled_charsmap)
