"""Tokenizers: training and using SentencePiece, byte-level BPE from a tokenizer.json, and the CALL id."""

from lacy_jax.tokenizer.chat_template import ChatTemplate
from lacy_jax.tokenizer.json_tokenizer import JsonTokenizer
from lacy_jax.tokenizer.specials import Specials, with_specials
from lacy_jax.tokenizer.tokenizer import CALL_PIECE, Tokenizer
from lacy_jax.tokenizer.training import train_tokenizer

__all__ = [
    "CALL_PIECE",
    "ChatTemplate",
    "JsonTokenizer",
    "Specials",
    "Tokenizer",
    "train_tokenizer",
    "with_specials",
]
