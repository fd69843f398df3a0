"""tokenizer.json files as others write them: each kind of decoder, bytes that are missing, first tokens of all sorts."""

from __future__ import annotations

import functools
import io
import json
from typing import Any

from export_small import TEXTS

FUSED = {
    "type": "Sequence",
    "decoders": [
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": True},
    ],
}
"""What conversions from GGUF wrote."""
LLAMA2 = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0},
    ],
}


@functools.cache
def _trained() -> str:
    """Byte-level BPE of 290 ids: <|endoftext|> 0, <|start|> 1, <|end|> 2, <|pad|> 3."""
    import tokenizers

    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=["<|endoftext|>", "<|start|>", "<|end|>", "<|pad|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend.to_str()


def byte_level(
    *,
    decoder: Any = None,
    without: tuple[int, ...] = (),
    first: tuple[str, ...] = (),
    last: tuple[str, ...] = (),
) -> str:
    """A tokenizer.json of byte-level BPE.

    Args:
      decoder: instead of ByteLevel.
      without: bytes that the vocabulary lacks; their ids are left to pieces that no text has, and <|endoftext|> is the
        unknown token, as SmolLM2's is.
      first, last: special pieces that its post-processor puts before and after a text.
    """
    from lacy_jax.tokenizer.json_tokenizer import byte_table

    value = json.loads(_trained())
    value["decoder"] = decoder or value["decoder"]
    if without:
        names = {character for character, byte in byte_table().items() if byte in without}
        vocabulary = {
            f"[gone{i}]" if piece in names else piece: i for piece, i in value["model"]["vocab"].items()
        }
        merges = [m for m in value["model"]["merges"] if not names & set("".join(m))]
        value["model"] |= {"vocab": vocabulary, "merges": merges, "unk_token": "<|endoftext|>"}
    if first or last:
        ids = {piece: value["model"]["vocab"][piece] for piece in (*first, *last)}

        def special(piece: str) -> dict[str, Any]:
            return {"SpecialToken": {"id": piece, "type_id": 0}}

        one = [*map(special, first), {"Sequence": {"id": "A", "type_id": 0}}, *map(special, last)]
        value["post_processor"] = {
            "type": "TemplateProcessing",
            "single": one,
            "pair": [*one, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {p: {"id": p, "ids": [i], "tokens": [p]} for p, i in ids.items()},
        }
    return json.dumps(value, ensure_ascii=False)


def with_pieces(content: str, *pieces: tuple[bytes, bytes]) -> str:
    """A tokenizer.json of byte-level BPE with more pieces at its end, each made of two that are there."""
    from lacy_jax.tokenizer.json_tokenizer import byte_table

    letters = {byte: character for character, byte in byte_table().items()}
    value = json.loads(content)
    for parts in pieces:
        left, right = ("".join(letters[byte] for byte in part) for part in parts)
        value["model"]["vocab"][left + right] = len(value["model"]["vocab"])
        value["model"]["merges"].append([left, right])
    return json.dumps(value, ensure_ascii=False)


@functools.cache
def sentencepiece_bpe() -> bytes:
    """A SentencePiece BPE model of 340 pieces with a space before every text, as Llama 2's is."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=out,
        model_type="bpe",
        vocab_size=340,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=3,
    )
    return out.getvalue()


def sentencepiece_json(model: bytes, first: tuple[str, ...] = ("<s>",)) -> str:
    """The tokenizer.json that converters put beside a SentencePiece BPE model; added pieces may follow in it."""
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto.FromString(model)
    vocabulary = {piece.piece: i for i, piece in enumerate(proto.pieces)}
    special = [{"SpecialToken": {"id": piece, "type_id": 0}} for piece in first]
    return json.dumps(
        {
            "version": "1.0",
            "added_tokens": [],
            "normalizer": {"type": "Prepend", "prepend": "\u2581"},
            "decoder": LLAMA2,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [*special, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {p: {"id": p, "ids": [vocabulary[p]], "tokens": [p]} for p in first},
            },
            "model": {
                "type": "BPE",
                "vocab": vocabulary,
                "merges": [],
                "byte_fallback": True,
                "unk_token": "<unk>",
            },
        },
        ensure_ascii=False,
    )
