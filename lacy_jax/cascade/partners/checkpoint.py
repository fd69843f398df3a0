"""A language model as partner, with its own tokenizer and its own KV cache: another run of ours, or imported weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from lacy_jax.cascade.boundary import Boundary
from lacy_jax.cascade.engine import CHUNKS, cut_chunk, packing, prefill
from lacy_jax.cascade.partners.base import (
    CONNECTORS,
    MARKS,
    PARTNERS,
    Opening,
    Partner,
    PartnerKind,
    check_reach,
    cut,
    first_span,
)
from lacy_jax.errors import PartnerError
from lacy_jax.models import Cache, DecodingModel, Transformer, forward_flops, grow, init_cache
from lacy_jax.tokenizer import Tokenizer

STEPS = {"token": 4, "word": 8, "span": 20}
"""The most tokens written per call; fewer if the answer ends earlier. A character may be four bytes."""
FEW = 4
"""If no text has more new tokens than this, so many are read at once, which takes less time than `CHUNKS[0]` of them."""
WIDTH = 256
"""The cache's length is a multiple of this many tokens: few sizes, so few compilations."""
EXPECTED = 1.25
"""Most tokens of the partner expected per token of the caller; if there are more, the cache grows."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["banned", "last", "whole", "ends", "opens", "closes"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class _Pieces:
    """What a partner needs to know of its pieces, bool [V] each.

    Attributes:
      banned: never written (bos, pad). last: ends a text.
      whole: a complete answer by itself.
      ends: shows that the answer was complete before this piece. Pieces that leave this open do not count; they
        cost one more step.
      opens, closes: the same for two pieces in a row: one that opens a word after one that closes a phrase.
    """

    banned: Bool[Array, " V"]
    last: Bool[Array, " V"]
    whole: Bool[Array, " V"]
    ends: Bool[Array, " V"]
    opens: Bool[Array, " V"]
    closes: Bool[Array, " V"]


def _pieces(tokenizer: Tokenizer, boundary: Boundary, reach: str) -> _Pieces:
    """The table for one reach. A "token" is one piece, or the pieces of one character. A word ends where the next one
    begins (`cut`); a span ends there if the next word is in lower case or follows a mark (`first_span`).
    """
    names = [tokenizer.piece(token) for token in range(tokenizer.vocab_size)]
    opens = np.array([name.startswith("\u2581") for name in names])
    whole = ~boundary.part & (reach == "token")
    ends = whole | (opens & (reach == "word"))
    if reach == "span":
        for token in np.flatnonzero(opens):
            word = names[token][1:]
            goes_on = word[:1].isupper() or word[:1].isdigit() or any(c.startswith(word) for c in CONNECTORS)
            ends[token] = not goes_on
    banned, last = np.zeros((2, len(names)), bool)
    last[list(tokenizer.eos_ids)] = True
    banned[[tokenizer.bos_id, tokenizer.pad_id]] = True
    closes = np.array([name[-1:] in MARKS for name in names])
    return _Pieces(*(jnp.asarray(table) for table in (banned & ~last, last, whole, ends, opens, closes)))


@functools.partial(jax.jit, static_argnames=("steps", "pack"), donate_argnames="cache")
def _read_and_write(
    model: DecodingModel,
    steps: int,
    pack: int | None,
    cache: Cache,
    tokens: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    length: Int[Array, " B"],
    eos_id: Int[Array, ""],
    pieces: _Pieces,
) -> tuple[Cache, Int[Array, "B K"], Int[Array, " B"]]:
    """Read the rest of each text, then write up to `steps` greedy tokens after it.

    Args:
      tokens, positions, pack: as in `decode`.
      length: tokens of each row's text; 0 for a row without a question.

    Returns:
      The cache; the written tokens, followed by eos; how many each row has.
    """
    batch = jnp.arange(tokens.shape[0])

    def best(hidden: Array) -> Array:
        z, _ = model.logits(hidden)
        return jnp.argmax(jnp.where(pieces.banned, -jnp.inf, z), axis=-1).astype(jnp.int32)

    hidden, cache = model.decode(tokens, positions, cache, pack)
    last = jnp.argmax(positions == length[:, None] - 1, axis=1)  # Of a row that is not asked, the first.
    token, asked = best(hidden[batch, last]), length > 0
    written = jnp.full((tokens.shape[0], steps), eos_id).at[:, 0].set(jnp.where(asked, token, eos_id))
    open_ = asked & ~pieces.last[token] & ~pieces.whole[token]

    def goes_on(carry: tuple[Cache, Array, Array, Array]) -> Array:
        return jnp.any(carry[3])

    def step(carry: tuple[Cache, Array, Array, Array]) -> tuple[Cache, Array, Array, Array]:
        cache, written, count, open_ = carry
        before = written[batch, jnp.maximum(count - 1, 0)]
        position = jnp.where(open_, length + count - 1, cache.max_len)
        hidden, cache = model.decode(before[:, None], position[:, None], cache)
        token = best(hidden[:, 0])
        written = written.at[batch, jnp.where(open_, count, steps)].set(token, mode="drop")
        count = count + open_
        over = pieces.ends[token] | (pieces.opens[token] & pieces.closes[before]) | pieces.last[token]
        return cache, written, count, open_ & ~over & (count < steps)

    start = (cache, written, asked.astype(jnp.int32), open_)
    cache, written, count, _ = jax.lax.while_loop(goes_on, step, start)
    return cache, written, count


class CheckpointPartner(Partner):
    """Greedy continuations by a trained model.

    The KV cache holds `rows` texts; a text that continues one of them (whoever wrote the addition) is read only from
    where it differs. The cache is as long as needed, and grows with the texts. Of a text longer than the model's
    context only the end is read, from a place that moves forward by half a context at a time.

    Args:
      model, tokenizer: the partner's own; the tokenizer may differ from the caller's, as only text is
        exchanged.
      reach: "token" (the paper: one partner token), "word", or "span" (`first_span`).
      rows: texts kept; if more are asked about at once, they are served in groups.

    Attributes:
      tokens_used: tokens read and written so far. flops_used: floating-point operations for them.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        reach: str = "span",
        *,
        rows: int = 16,
        name: str = "checkpoint",
    ):
        self.name, self.tokenizer = name, tokenizer
        self.reach = check_reach(reach)
        self._room = model.cfg.max_seq_len - STEPS[reach]
        if self._room < 2:
            raise PartnerError(
                f"partner {name}: its context of {model.cfg.max_seq_len} tokens is too short to be asked"
            )
        self.cfg = model.cfg
        self._model = model.for_decoding()
        self._rows = rows
        self._cache: Cache | None = None
        self._held: list[np.ndarray] = [np.zeros(0, np.int32)] * rows
        self._last_used, self._exchanges = np.zeros(rows), 0
        self._boundary = Boundary.of(tokenizer)
        self._pieces = _pieces(tokenizer, self._boundary, reach)
        self.tokens_used, self.flops_used = 0, 0.0

    def used(self) -> tuple[int, float]:
        """See `Partner.used`."""
        return self.tokens_used, self.flops_used

    def expect(self, prompts: Sequence[str], new_tokens: int) -> None:
        """See `Partner.expect`; this saves compilations, since each growth of the cache needs a new one."""
        longest = max((len(self._read(prompt)) for prompt in prompts), default=1)
        self._make_room(longest + int(EXPECTED * new_tokens))

    def complete(self, texts: Sequence[str]) -> list[str]:
        """See `Partner.complete`; "" if the model would end the text."""
        rows = len(self._held)
        groups = [texts[start : start + rows] for start in range(0, len(texts), rows)]
        return [answer for group in groups for answer in self._complete_group(group)]

    def _complete_group(self, texts: Sequence[str]) -> list[str]:
        ids = [self._read(text) for text in texts]
        cache = self._make_room(max(map(len, ids)))
        slots, shared = self._assign(ids)
        width = cache.max_len
        tokens = np.zeros((len(self._held), width), np.int32)
        start, length = np.zeros((2, len(tokens)), np.int32)
        for text, slot, common in zip(ids, slots, shared, strict=True):
            tokens[slot, : len(text)] = text
            start[slot], length[slot] = common, len(text)
        size = FEW if np.max(length - start) <= FEW else CHUNKS[0]
        rest = np.maximum(start, length - size)
        cache = prefill(self._model, cache, tokens, start, rest)
        chunk, positions = cut_chunk(tokens, rest, length, size, width)
        self._cache, *written = _read_and_write(
            self._model, STEPS[self.reach], packing(positions, width), cache, chunk, positions, length,
            self.tokenizer.eos_id, self._pieces,
        )  # fmt: skip
        new, count = jax.device_get(written)
        for text, slot in zip(ids, slots, strict=True):
            held = np.concatenate([text, new[slot, : count[slot] - 1]])
            self._held[slot] = held
            self.tokens_used += len(held) - int(start[slot])
            self.flops_used += forward_flops(self.cfg, len(held)) - forward_flops(self.cfg, int(start[slot]))
        return [self._answer(text, new[slot]) for text, slot in zip(ids, slots, strict=True)]

    def _make_room(self, length: int) -> Cache:
        """The cache, long enough for texts of `length` tokens and an answer; its contents stay."""
        length = min(length + STEPS[self.reach], self.cfg.max_seq_len)
        if self._cache is None or self._cache.max_len < length:
            half_more = length if self._cache is None else max(length, self._cache.max_len * 3 // 2)
            size = min(-(-half_more // WIDTH) * WIDTH, self.cfg.max_seq_len)
            if self._cache is None:
                self._cache = self._model.beside(init_cache(self.cfg, self._rows, size))
            else:
                self._cache = grow(self._cache, size)
        return self._cache

    def _read(self, text: str) -> np.ndarray:
        own = self.tokenizer.encode(text)
        half = self._room // 2
        # By halves: the window stays where it is until the text has grown by half a context.
        dropped = max(-(-(len(self.tokenizer.prefix) + len(own) - self._room) // half), 0) * half
        return self.tokenizer.with_prefix(own[dropped:])

    def _assign(self, ids: list[np.ndarray]) -> tuple[list[int], list[int]]:
        """A slot for each text, and how many of its tokens need no reading.

        A text takes the slot that it shares most tokens with, if that is more than half of either; the rest get
        the slots that have been unused longest.
        """
        common = np.stack([_common_prefixes(self._held, text) for text in ids])
        lengths = np.array([len(held) for held in self._held])
        free = np.ones(len(self._held), bool)
        slots = [0] * len(ids)
        for index in np.argsort(-common.max(axis=1), kind="stable"):
            slot = int(np.argmax(np.where(free, common[index], -1)))
            if 2 * common[index, slot] <= min(len(ids[index]), lengths[slot]):
                slot = int(np.argmin(np.where(free, self._last_used, np.inf)))
            slots[index], free[slot] = slot, False
        self._exchanges += 1
        self._last_used[slots] = self._exchanges
        shared = [
            min(int(row[slot]), len(text) - 1) for row, slot, text in zip(common, slots, ids, strict=True)
        ]
        return slots, shared

    def _answer(self, ids: np.ndarray, new: np.ndarray) -> str:
        ends = np.flatnonzero(np.isin(new, self.tokenizer.eos_ids))
        new = new[: ends[0]] if ends.size else new
        if self.reach == "token":
            for count in range(1, len(new) + 1):
                text = self._boundary.added_text(ids, new[:count])
                if text and not text.endswith("\ufffd"):
                    return text
            return ""
        text = self._boundary.added_text(ids, new).rstrip("\ufffd")
        return first_span(text) if self.reach == "span" else cut(text, "word")


def _common_prefixes(held: list[np.ndarray], text: np.ndarray) -> np.ndarray:
    """int [len(held)]: how many leading tokens each shares with `text`."""
    table = np.full((len(held), len(text) + 1), -1, np.int32)  # The last column always differs, for argmin.
    for row, tokens in zip(table, held, strict=True):
        row[: min(len(tokens), len(text))] = tokens[: len(text)]
    return np.argmin(table == np.append(text, -2), axis=1)


def _open_run(where: str, opening: Opening) -> CheckpointPartner:
    if opening.load_run is None:
        raise opening.refuse("it cannot be opened here")
    return _partner(opening.load_run(where), opening)


def _open_folder(where: str, opening: Opening) -> CheckpointPartner:
    folder, _, context = where.partition("#")
    if opening.open_folder is None:
        raise opening.refuse("it cannot be opened here")
    if context and not (context.isdecimal() and int(context)):
        raise opening.refuse(f"#{context} is no number of tokens")
    return _partner(opening.open_folder(folder, int(context or 0)), opening)


def _partner(found: Any, opening: Opening) -> CheckpointPartner:
    return CheckpointPartner(
        found.model, found.tokenizer, opening.reach, rows=opening.rows, name=opening.spec
    )


PARTNERS.add(PartnerKind(
    "checkpoint", "checkpoint:RUN_DIR",
    "another run of ours, with its own tokenizer and an incrementally extended KV cache", _open_run,
))  # fmt: skip
PARTNERS.add(PartnerKind(
    "hf", "hf:PATH[#CONTEXT]",
    "a local Hugging Face folder or GGUF file (as `lacy import` reads them); #CONTEXT limits how much of a text it reads",
    _open_folder,
))  # fmt: skip
