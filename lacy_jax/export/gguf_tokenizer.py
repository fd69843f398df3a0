"""The tokenizer of a GGUF file, in and out.

GGUF keeps a vocabulary with its merges or scores, not a pipeline; the rule that cuts a text into words is only named.
`gpt2` is byte-level BPE and becomes a tokenizer.json; `llama` is SentencePiece's BPE and becomes a SentencePiece model.
What GGUF cannot express (a unigram model, a normaliser) is refused by name: llama.cpp would cut texts differently from
training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from lacy_jax.errors import ConfigError, DataError
from lacy_jax.export.extras import require
from lacy_jax.tokenizer import CALL_PIECE, JsonTokenizer, Specials, Tokenizer, with_specials
from lacy_jax.tokenizer.json_tokenizer import pack

KEY = "tokenizer.ggml."
# Types of pieces, which GGUF took over from SentencePiece.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)
_BPE = 2
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTES_ONLY = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
_GPT2 = {**_BYTES_ONLY, "use_regex": True}


def _split(pattern: str) -> list[dict[str, Any]]:
    step = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [step, _BYTES_ONLY]


_LLAMA3 = "llama-bpe"
_CUTS: dict[str, list[dict[str, Any]]] = {
    "gpt-2": [_GPT2],
    "smollm": [{"type": "Digits", "individual_digits": True}, _GPT2],
    _LLAMA3: _split(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_TAIL}"),
    "qwen2": _split(rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_TAIL}"),
}
"""Pre-tokenisers by their GGUF name, as in the tokenizer.json of the models that they are named after."""
_SAME = {
    "olmo": "gpt-2", "starcoder": "smollm", "refact": "smollm", "llama3": _LLAMA3, "llama-v3": _LLAMA3,
    "deepseek-r1-qwen": "qwen2",
}  # fmt: skip


def read_tokenizer(fields: Mapping[str, Any], source: str) -> Tokenizer:
    """The tokenizer of a file.

    Args:
      fields: all its metadata, by name.
      source: names the file in errors.

    Raises:
      DataError: its kind is neither `gpt2` nor `llama`, or it is damaged or has an unsupported feature (named).
    """

    def field(name: str, otherwise: Any = None) -> Any:
        return fields.get(KEY + name, otherwise)

    kind, pieces = field("model"), field("tokens")
    if kind not in ("gpt2", "llama"):
        raise DataError(f"{source}: a tokenizer of kind {kind!r} is not supported, only gpt2 and llama")
    if not isinstance(pieces, list) or len(set(pieces)) != len(pieces):
        raise DataError(f"{source}: the tokenizer's pieces are missing, or two are the same")
    types = field("token_type") or [_NORMAL] * len(pieces)
    if len(types) != len(pieces):
        raise DataError(f"{source}: {len(pieces)} pieces, but {len(types)} types of pieces")
    if field("add_eos_token"):
        raise DataError(
            f"{source}: its tokenizer ends every text (add_eos_token): nothing could go on from one"
        )
    eos = [t for name in ("eos", "eot", "eom") if (t := field(f"{name}_token_id")) is not None]
    bos = field("bos_token_id", eos[0] if eos else None)
    if bos is None:
        raise DataError(f"{source}: neither bos_token_id nor eos_token_id is given")
    eos = list(dict.fromkeys(eos or [bos]))
    pre = field("pre", "gpt-2" if fields.get("general.architecture") == "gpt2" else None)
    adds = field("add_bos_token", kind == "llama" or _SAME.get(pre, pre) == _LLAMA3)  # As in llama.cpp.
    specials = Specials(bos, tuple(eos), field("padding_token_id", eos[0]), (bos,) if adds else ())
    if kind == "gpt2":
        content = _tokenizer_json(pieces, types, field("merges") or [], pre, source)
        return Tokenizer.from_bytes(pack(content, specials, source), source)
    if field("precompiled_charsmap"):
        raise DataError(f"{source}: a tokenizer of kind llama with a normaliser is not supported")
    return _sentencepiece(pieces, types, field("scores"), specials, field("add_space_prefix", True), source)


def _tokenizer_json(pieces: list[str], types: list[int], merges: list[str], pre: Any, source: str) -> str:
    cuts = _CUTS.get(_SAME.get(pre, pre))
    if cuts is None:
        known = ", ".join((*_CUTS, *_SAME))
        raise DataError(f"{source}: pre-tokeniser {pre!r} is not supported; expected one of {known}")
    added = [
        {"id": token, "content": piece, "special": kind != _USER_DEFINED, "normalized": False,
         "single_word": False, "lstrip": False, "rstrip": False}
        for token, (piece, kind) in enumerate(zip(pieces, types, strict=True))
        if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED)
    ]  # fmt: skip
    model = {
        "type": "BPE",
        "vocab": {piece: token for token, piece in enumerate(pieces)},
        "merges": [merge.split(" ", 1) for merge in merges],
        "ignore_merges": _SAME.get(pre, pre) == _LLAMA3,
    }
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": added,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": cuts},
            "decoder": _BYTES_ONLY,
            "model": model,
        }
    )


def _sentencepiece(
    pieces: list[str], types: list[int], scores: Any, specials: Specials, prefix_space: bool, source: str
) -> Tokenizer:
    if not isinstance(scores, list) or len(scores) != len(pieces):
        raise DataError(
            f"{source}: a tokenizer of kind llama needs a score for each of its {len(pieces)} pieces"
        )
    proto = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    for piece, kind, score in zip(pieces, types, scores, strict=True):
        proto.pieces.add(piece=piece, score=score, type=kind)
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    trainer.model_type, trainer.vocab_size = _BPE, len(pieces)
    trainer.byte_fallback = _BYTE in types
    trainer.bos_id, trainer.eos_id, trainer.pad_id = specials.bos, specials.eos[0], -1
    trainer.bos_piece, trainer.eos_piece = pieces[specials.bos], pieces[specials.eos[0]]
    if _UNKNOWN in types:
        trainer.unk_id = types.index(_UNKNOWN)
        trainer.unk_piece = pieces[trainer.unk_id]
    normalizer.name, normalizer.add_dummy_prefix = "identity", prefix_space
    normalizer.remove_extra_whitespaces, normalizer.escape_whitespaces = False, True
    return with_specials(Tokenizer.from_bytes(proto.SerializeToString(), source), specials, source)


def write_tokenizer(writer: Any, tokenizer: Tokenizer, with_call: bool) -> None:
    """Add a tokenizer to a file that is being written.

    Args:
      writer: a `gguf.GGUFWriter`.
      with_call: whether `<CALL>` is id V, a control piece.

    Raises:
      ConfigError: GGUF cannot express it; the error names the reason.
    """
    if isinstance(tokenizer, JsonTokenizer):
        pieces, types = _from_json(writer, tokenizer)
    else:
        pieces, types = _from_sentencepiece(writer, tokenizer, with_call)
    writer.add_token_list([*pieces, *[CALL_PIECE] * with_call])
    writer.add_token_types([*types, *[_CONTROL] * with_call])
    if tokenizer.prefix not in ((), (tokenizer.bos_id,)):
        raise ConfigError(
            f"the tokenizer puts {len(tokenizer.prefix)} ids before a text: GGUF has no place for them"
        )
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_pad_token_id(tokenizer.pad_id)
    for add, token in zip(
        (writer.add_eot_token_id, writer.add_eom_token_id), tokenizer.eos_ids[1:], strict=False
    ):
        add(token)
    if len(tokenizer.eos_ids) > 3:
        raise ConfigError(f"{len(tokenizer.eos_ids)} ids end a text: GGUF has places for three")
    writer.add_add_bos_token(bool(tokenizer.prefix))
    writer.add_add_eos_token(False)


def _from_json(writer: Any, tokenizer: JsonTokenizer) -> tuple[list[str], list[int]]:
    """(pieces, types) of byte-level BPE; merges and the pre-tokeniser's name go to the writer."""
    value = json.loads(tokenizer.backend_json)
    cleaning = value.get("normalizer") or {}
    steps = cleaning.get("normalizers", [cleaning] if cleaning else [])
    steps = steps[: len(steps) - bool(tokenizer.missing)]  # Our own stand-in for characters without bytes.
    if steps:
        raise ConfigError(
            f"the tokenizer has the normaliser {steps[0].get('type')}: GGUF has no place for it"
        )
    name = _name_of(value.get("pre_tokenizer") or {})
    backend = require("tokenizers").Tokenizer.from_str(tokenizer.backend_json)
    added = {token: what.special for token, what in backend.get_added_tokens_decoder().items()}
    pieces = [
        f"[PAD{token}]" for token in range(tokenizer.vocab_size)
    ]  # Ids without a piece, as llama.cpp names them.
    types = [_UNUSED] * tokenizer.vocab_size
    for piece, token in backend.get_vocab(with_added_tokens=True).items():
        kind = _NORMAL if token not in added else _CONTROL if added[token] else _USER_DEFINED
        pieces[token], types[token] = piece, kind
    merges = [m if isinstance(m, str) else " ".join(m) for m in value["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_merges(merges)
    return pieces, types


def _name_of(cutting: dict[str, Any]) -> str:
    """The name in GGUF of a tokenizer.json's pre-tokeniser."""
    steps = [_essence(step) for step in cutting.get("pretokenizers", [cutting])]
    for name, known in _CUTS.items():
        if steps == [_essence(step) for step in known]:
            return name
    raise ConfigError(
        f"the tokenizer cuts texts by {', '.join(str(s[0]) for s in steps)} in a way that GGUF has no name for "
        f"(known: {', '.join(_CUTS)})"
    )


def _essence(step: dict[str, Any]) -> tuple[Any, ...]:
    """The settings of a pre-tokeniser's step that change how a text is cut."""
    pattern = (step.get("pattern") or {}).get("Regex")
    regex = step.get("use_regex", True) if step.get("type") == "ByteLevel" else None
    return step.get("type"), pattern, regex, step.get("individual_digits"), bool(step.get("add_prefix_space"))


def _from_sentencepiece(writer: Any, tokenizer: Tokenizer, with_call: bool) -> tuple[list[str], list[int]]:
    """(pieces, types) of a SentencePiece model; scores and the space in front go to the writer."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.sentencepiece)  # type: ignore[attr-defined]
    if proto.trainer_spec.model_type != _BPE:
        raise ConfigError(
            "the tokenizer is no BPE (models trained here are unigram): llama.cpp has no unigram with byte fallback, so it "
            "would cut texts otherwise than training did; use --format=hf"
        )
    spec = proto.normalizer_spec
    if spec.precompiled_charsmap or spec.remove_extra_whitespaces:
        raise ConfigError("the tokenizer has a normaliser of its own: GGUF has no place for it")
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_scores([*(piece.score for piece in proto.pieces), *[0.0] * with_call])
    writer.add_add_space_prefix(spec.add_dummy_prefix)
    if tokenizer.unk_id >= 0:
        writer.add_unk_token_id(tokenizer.unk_id)
    return [piece.piece for piece in proto.pieces], [piece.type for piece in proto.pieces]
