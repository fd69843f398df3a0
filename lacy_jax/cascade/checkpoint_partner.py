"""Another run of ours as partner: a language model with its own tokenizer and its own KV cache."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Int

from lacy_jax.cascade.engine import prefill
from lacy_jax.cascade.partner import check_reach, cut, first_span
from lacy_jax.errors import PartnerError
from lacy_jax.models import Cache, Transformer, init_cache
from lacy_jax.tokenizer import Tokenizer

STEPS = {"token": 1, "word": 8, "span": 20}
"""Tokens written ahead per call."""
REST_OF_CHARACTER = 3
"""Tokens that may be missing of a character whose first byte is the one token asked for."""


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _write_ahead(
    graphdef: Any,
    steps: int,
    state: Any,
    cache: Cache,
    last: Int[Array, " B"],
    position: Int[Array, " B"],
    banned: Array,
) -> tuple[Cache, Int[Array, "B K"]]:
    """`steps` greedy tokens after each row's last token."""
    model = nnx.merge(graphdef, state)

    def step(carry: tuple[Cache, Array, Array], _: None) -> tuple[tuple[Cache, Array, Array], Array]:
        cache, token, position = carry
        hidden, cache = model.decode(token[:, None], position[:, None], cache)
        z, _ = model.logits(hidden[:, 0])
        token = jnp.argmax(jnp.where(banned, -jnp.inf, z), axis=-1).astype(jnp.int32)
        return (cache, token, jnp.minimum(position + 1, cache.max_len)), token

    (cache, _, _), tokens = jax.lax.scan(step, (cache, last, position), None, length=steps)
    return cache, tokens.T


class CheckpointPartner:
    """Greedy continuations by a trained model.

    The KV cache holds `rows` texts; a text that goes on from one of them (whoever wrote the addition) is read
    only from where it differs. A text longer than the model's context is read from its end.

    Args:
      model, tokenizer: the partner's own; the tokenizer may differ from the caller's, as only text is
        exchanged.
      reach: "token" (the paper: one partner token), "word", or "span" (`first_span`).
      rows: texts kept; more than that at once are served in groups.
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
        self._steps = STEPS[reach]
        self._room = model.cfg.max_seq_len - max(self._steps, 1 + REST_OF_CHARACTER)
        if self._room < 2:
            raise PartnerError(
                f"partner {name}: its context of {model.cfg.max_seq_len} tokens is too short to be asked"
            )
        self.cfg = model.cfg
        self._graphdef, self._state = nnx.split(model)
        self._cache = init_cache(model.cfg, rows, model.cfg.max_seq_len)
        self._held: list[np.ndarray] = [np.zeros(0, np.int32)] * rows
        self._banned = np.zeros(tokenizer.vocab_size, bool)
        self._banned[[i for i in (tokenizer.bos_id, tokenizer.pad_id) if i != tokenizer.eos_id]] = True

    def complete(self, texts: Sequence[str]) -> list[str]:
        """See `Partner.complete`; "" where the model would end the text."""
        rows = len(self._held)
        groups = [texts[start : start + rows] for start in range(0, len(texts), rows)]
        return [answer for group in groups for answer in self._complete_group(group)]

    def _complete_group(self, texts: Sequence[str]) -> list[str]:
        ids = [self._read(text) for text in texts]
        slots, shared = self._assign(ids)
        width = self._cache.max_len
        tokens = np.zeros((len(self._held), width), np.int32)
        start, stop = np.zeros(len(tokens), int), np.zeros(len(tokens), int)
        last, position = np.zeros(len(tokens), np.int32), np.full(len(tokens), width, np.int32)
        for text, slot, common in zip(ids, slots, shared, strict=True):
            tokens[slot, : len(text)] = text
            start[slot], stop[slot] = common, len(text) - 1
            last[slot], position[slot] = text[-1], len(text) - 1
        cache = prefill(self._graphdef, self._state, self._cache, tokens, start, stop)
        self._cache, written = _write_ahead(
            self._graphdef, self._steps, self._state, cache, last, position, self._banned
        )
        new = np.asarray(written)
        if self.reach == "token" and self._unfinished([new[slot] for slot in slots], ids):
            self._cache, rest = _write_ahead(
                self._graphdef,
                REST_OF_CHARACTER,
                self._state,
                self._cache,
                new[:, -1],
                np.minimum(position + 1, width),
                self._banned,
            )
            new = np.concatenate([new, np.asarray(rest)], axis=1)
        for text, slot in zip(ids, slots, strict=True):
            self._held[slot] = np.concatenate([text, new[slot, :-1]])
        return [self._answer(text, new[slot]) for text, slot in zip(ids, slots, strict=True)]

    def _unfinished(self, new: list[np.ndarray], ids: list[np.ndarray]) -> bool:
        """Whether any of the answers lacks bytes of its character; an end of the text does not."""
        return any(
            added[0] != self.tokenizer.eos_id and not self._answer(text, added)
            for text, added in zip(ids, new, strict=True)
        )

    def _read(self, text: str) -> np.ndarray:
        ids = np.concatenate([[self.tokenizer.bos_id], self.tokenizer.encode(text)]).astype(np.int32)
        return ids if len(ids) <= self._room else np.concatenate([ids[:1], ids[-(self._room // 2) :]])

    def _assign(self, ids: list[np.ndarray]) -> tuple[list[int], list[int]]:
        """A slot for each text, the one that shares most with it, and how many tokens of it need no reading."""
        free = set(range(len(self._held)))
        slots, shared = [], []
        for text in ids:
            common = {slot: _common_prefix(self._held[slot], text) for slot in free}
            # Nothing in common beyond bos: take the slot that holds least.
            slot = max(
                free,
                key=lambda s: (common[s], -len(self._held[s])) if common[s] > 1 else (0, -len(self._held[s])),
            )
            free.remove(slot)
            slots.append(slot)
            shared.append(min(common[slot], len(text) - 1))
        return slots, shared

    def _answer(self, ids: np.ndarray, new: np.ndarray) -> str:
        ends = np.flatnonzero(new == self.tokenizer.eos_id)
        new = new[: ends[0]] if ends.size else new
        before = len(self.tokenizer.decode(ids))
        if self.reach == "token":
            for count in range(1, len(new) + 1):
                text = self.tokenizer.decode(np.concatenate([ids, new[:count]]))[before:]
                if text and not text.endswith("\ufffd"):
                    return text
            return ""
        text = self.tokenizer.decode(np.concatenate([ids, new]))[before:].rstrip("\ufffd")
        return first_span(text) if self.reach == "span" else cut(text, "word")


def _common_prefix(a: np.ndarray, b: np.ndarray) -> int:
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if differ.size else size
