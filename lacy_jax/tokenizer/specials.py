"""Special ids that a tokenizer's own file does not give, or gives differently.

`tokenizer.model` of a run or dataset is one file. If a SentencePiece model's folder names other special ids than the
model itself (several ends of a text, no bos in front), both are stored as one JSON list: `SpecialSentencePiece`.
"""

from __future__ import annotations

import base64
import dataclasses
import json
from typing import Any

from lacy_jax.errors import DataError
from lacy_jax.tokenizer.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Specials:
    """Special ids.

    Attributes:
      bos: used where a text would otherwise have no token at all.
      eos: the ids that end a text, at least one; documents end with the first.
      pad: the padding id.
      prefix: ids put before every text, as the tokenizer's own post-processor does; often (bos,) or ().
    """

    bos: int
    eos: tuple[int, ...]
    pad: int
    prefix: tuple[int, ...]

    def to_json(self) -> dict[str, Any]:
        """The ids as JSON-safe values."""
        return {"bos": self.bos, "eos": list(self.eos), "pad": self.pad, "prefix": list(self.prefix)}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Specials:
        """Inverse of `to_json`; raises KeyError, TypeError or ValueError."""
        eos, prefix = (tuple(map(int, value[name])) for name in ("eos", "prefix"))
        return cls(int(value["bos"]), eos, int(value["pad"]), prefix)

    def give_to(self, tokenizer: Tokenizer, source: str) -> None:
        """Set the special ids of a tokenizer.

        Raises:
          DataError: an id is outside its vocabulary, or no id ends a text.
        """
        named = [("bos", self.bos), ("pad", self.pad), *(("eos", i) for i in self.eos)]
        for name, token in [*named, *(("prefix", i) for i in self.prefix)]:
            if not 0 <= token < tokenizer.vocab_size:
                raise DataError(
                    f"{source}: {name} id {token} is outside the vocabulary of {tokenizer.vocab_size} ids"
                )
        if not self.eos:
            raise DataError(f"{source}: no id ends a text")
        tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id = self.bos, self.eos[0], self.pad
        tokenizer.eos_ids, tokenizer.prefix = self.eos, self.prefix


def specials_of(tokenizer: Tokenizer) -> Specials:
    """The special ids of a tokenizer."""
    return Specials(tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id, tokenizer.prefix)


class SpecialSentencePiece(Tokenizer, first_byte=b"["):
    """A SentencePiece model with special ids other than its own; see `Tokenizer`.

    Raises:
      DataError: not what `with_specials` makes.
    """

    def __init__(self, model_bytes: bytes, source: str = "tokenizer model"):
        try:
            value, encoded = json.loads(model_bytes)
            specials, proto = Specials.from_json(value), base64.b64decode(encoded, validate=True)
        except (ValueError, KeyError, TypeError):
            raise DataError(f"{source}: neither a SentencePiece model nor an imported tokenizer") from None
        super().__init__(proto, source)
        specials.give_to(self, source)
        self._is_control[[specials.bos, specials.pad, *specials.eos, *specials.prefix]] = True
        self._keep(model_bytes)


def with_specials(tokenizer: Tokenizer, specials: Specials, source: str) -> Tokenizer:
    """A SentencePiece tokenizer with these special ids; the same object if it already has them.

    Raises:
      DataError: an id is outside its vocabulary.
    """
    if specials == specials_of(tokenizer):
        return tokenizer
    encoded = base64.b64encode(tokenizer.sentencepiece).decode("ascii")
    return Tokenizer.from_bytes(json.dumps([specials.to_json(), encoded]).encode("ascii"), source)
