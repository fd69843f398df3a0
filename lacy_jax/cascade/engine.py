"""The jitted part of decoding: many rows, some writing, some being fed, some waiting for a partner.

A row is a buffer of tokens of which the first `known` are written and the first `fed` have been through the
model. One step feeds every running row its next token; a row that has thereby caught up decides: call the
partner (it then waits), or write the model's own next token. Prompt and partner tokens are simply known
tokens that are not fed yet, so rows that read and rows that write share every step, and shapes never change.

All loops run on the device until a row needs the host. Rows do not interact: what a row becomes does not
depend on the rows beside it.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lacy_jax.cascade import gates
from lacy_jax.cascade.budget import BudgetController, BudgetState, record_decision, record_tokens
from lacy_jax.models import Cache, Transformer
from lacy_jax.objectives import head_statistics

RUNNING, WAITING, ENDED, FULL = 0, 1, 2, 3
"""Row status: writing or being fed; waiting for the partner; ended by eos; at its token limit."""
CHUNKS = (8, 32, 256)
"""Tokens of a row fed at once: few shapes, so few compilations. A partner mostly has less than 8 to read."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["tokens", "known", "fed", "status", "candidate", "need", "scores", "budget"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Rows:
    """State of B rows.

    Attributes:
      tokens: int32 [B, M] prompt and generated tokens; only the first `known` mean anything.
      known: int32 [B]. fed: int32 [B] tokens in the KV cache; fed < known while the row runs.
      status: int32 [B], one of the constants above.
      candidate: int32 [B] the model's own next token of a waiting row.
      need: int32 [B] bytes missing of the last character, as `Boundary` counts them; no call inside a character.
      scores: float32 [B, M] gate score of the decision about the i-th generated token; NaN where none was
        made.
      budget: spending, and the scores as the controller saw them.
    """

    tokens: Int[Array, "B M"]
    known: Int[Array, " B"]
    fed: Int[Array, " B"]
    status: Int[Array, " B"]
    candidate: Int[Array, " B"]
    need: Int[Array, " B"]
    scores: Float[Array, "B M"]
    budget: BudgetState


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=[
        "prompt_length",
        "limit",
        "keys",
        "gate",
        "oracle",
        "temperature",
        "top_k",
        "anywhere",
        "banned",
        "ends",
        "lead",
        "tail",
        "inner",
        "begins",
        "opens",
    ],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class Fixed:
    """What does not change while a batch is written; arrays, so that no value of it causes a compilation.

    Attributes:
      prompt_length, limit: int32 [B] tokens of the prompt, and the most tokens a row may hold.
      keys: [B] random keys, one per prompt. gate: float32 [G] weights of the
        scores of `gates.gate_scores`. oracle: bool [], offer every word the budget allows, whatever the score.
      temperature: float32 [], 0 = greedy. top_k: int32 [], 0 = off.
      anywhere: bool [], calls may be made inside a word too.
      banned: bool [V] pieces that are never written (bos, pad). ends: bool [V] those that end a text.
      lead, tail, inner, begins, opens: of `Boundary`.
    """

    prompt_length: Int[Array, " B"]
    limit: Int[Array, " B"]
    keys: Array
    gate: Float[Array, " G"]
    oracle: Bool[Array, ""]
    temperature: Float[Array, ""]
    top_k: Int[Array, ""]
    anywhere: Bool[Array, ""]
    banned: Bool[Array, " V"]
    ends: Bool[Array, " V"]
    lead: Int[Array, " V"]
    tail: Int[Array, " V"]
    inner: Bool[Array, " V"]
    begins: Bool[Array, " V"]
    opens: Bool[Array, " V"]


@functools.partial(jax.jit, static_argnames="pack", donate_argnames="cache")
def feed(
    model: Transformer,
    cache: Cache,
    tokens: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    pack: int | None,
) -> Cache:
    """Run S tokens of each row through the model; positions beyond the cache are padding, `pack` as in `decode`."""
    return model.decode(tokens, positions, cache, pack)[1]


def prefill(
    model: Transformer, cache: Cache, tokens: np.ndarray, start: np.ndarray, stop: np.ndarray
) -> Cache:
    """Feed tokens[b, start[b]:stop[b]] of every row, in chunks of fixed sizes.

    Args:
      tokens: int32 [B, M]. start, stop: int [B]; a row with start >= stop is left alone.
    """
    start = start.copy()
    while (left := int((stop - start).max(initial=0))) > 0:
        size = next((size for size in CHUNKS if left <= size), CHUNKS[-1])
        chunk, positions = cut_chunk(tokens, start, stop, size, cache.max_len)
        cache = feed(model, cache, chunk, positions, packing(positions, cache.max_len))
        start = np.minimum(start + size, np.maximum(stop, start))
    return cache


def cut_chunk(
    tokens: np.ndarray, start: np.ndarray, stop: np.ndarray, size: int, max_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """The next `size` tokens of each row up to `stop`, and their positions; padding stands at `max_len`."""
    positions = start[:, None] + np.arange(size)
    kept = positions < stop[:, None]
    chunk = np.take_along_axis(tokens, np.where(kept, positions, 0), axis=1)
    return chunk, np.where(kept, positions, max_len).astype(np.int32)


def packing(positions: np.ndarray, max_len: int) -> int | None:
    """What `decode` may pack a chunk to: a quarter of it, if that holds its tokens; two shapes a chunk, no more."""
    quarter, real = positions.size // 4, int(np.sum(positions < max_len))
    return quarter if quarter >= max(real, 8) else None


@functools.partial(jax.jit, static_argnames="sample", donate_argnames="cache")
def advance(
    model: Transformer,
    sample: bool,
    cache: Cache,
    rows: Rows,
    answers: tuple[Array, Array],
    fixed: Fixed,
    controller: BudgetController,
    stop: tuple[Array, Array],
) -> tuple[Cache, Rows, Array]:
    """Take the partner's answers in, then step until enough rows wait, none runs, or the step limit.

    Args:
      sample: False compiles the greedy choice only.
      answers: (tokens int32 [B, K], count int32 [B]) for waiting rows: count tokens the partner wrote, 0 = it
        has nothing to say and the row goes on with its own token, -1 = no answer to this row.
      stop: int32 [] each: rows that have to wait before the host is asked, and the most steps.

    Returns:
      The cache, the rows, and int32 [B] the most tokens a partner may write in each row now.
    """
    rows = _take_answers(rows, answers, fixed)

    def goes_on(carry: tuple[Cache, Rows, Array]) -> Array:
        _, rows, steps = carry
        running, waiting = jnp.sum(rows.status == RUNNING), jnp.sum(rows.status == WAITING)
        return (running > 0) & (waiting < stop[0]) & (steps < stop[1])

    def step(carry: tuple[Cache, Rows, Array]) -> tuple[Cache, Rows, Array]:
        cache, rows, steps = carry
        running = rows.status == RUNNING
        position = jnp.where(running, rows.fed, cache.max_len)  # Beyond the cache = not fed.
        token = jnp.take_along_axis(
            rows.tokens, jnp.minimum(rows.fed, rows.tokens.shape[1] - 1)[:, None], axis=1
        )
        hidden, cache = model.decode(token, position[:, None], cache)
        z, c = model.logits(hidden[:, 0])
        rows = dataclasses.replace(rows, fed=rows.fed + running)
        return (
            cache,
            _decide(rows, running & (rows.fed == rows.known), z, c, sample, fixed, controller),
            steps + 1,
        )

    cache, rows, _ = jax.lax.while_loop(goes_on, step, (cache, rows, jnp.int32(0)))
    return cache, rows, controller.allowance(rows.budget, fixed.limit - fixed.prompt_length)


def _decide(
    rows: Rows,
    deciding: Bool[Array, " B"],
    z: Float[Array, "B V"],
    c: Float[Array, " B"],
    sample: bool,
    fixed: Fixed,
    controller: BudgetController,
) -> Rows:
    """Rows that have caught up call the partner or write their own next token.

    No call is made inside a character. One that is due there waits for its end: the model then writes only pieces that
    go on with the character, so that it is whole after three tokens at most.
    """
    scores = gates.gate_scores(head_statistics(z, c), _noise(fixed.keys, rows.known))
    scores = jnp.sum(jnp.where(fixed.gate != 0, scores * fixed.gate, 0.0), axis=-1)
    horizon = fixed.limit - fixed.prompt_length
    inside = rows.need > 0
    due = controller.forced(rows.budget, horizon) & inside
    z = jnp.where(fixed.banned, -jnp.inf, z)
    z = jax.lax.cond(jnp.any(due), lambda: _finishing(z, jnp.where(due, rows.need, 0), fixed), lambda: z)
    token = jnp.argmax(z, axis=-1).astype(jnp.int32)
    if sample:
        keys = jax.vmap(jax.random.fold_in)(fixed.keys, rows.known)
        token = jnp.where(fixed.temperature > 0, _sample(keys, z, fixed.temperature, fixed.top_k), token)
    last = jnp.take_along_axis(rows.tokens, rows.known[:, None] - 1, axis=1)[:, 0]
    at_word = fixed.begins[token] | fixed.opens[last] | fixed.anywhere
    wanted = jnp.where(at_word, scores, -jnp.inf)
    calls = controller.decide(rows.budget, wanted, horizon)
    calls = jnp.where(fixed.oracle, at_word & (controller.allowance(rows.budget, horizon) > 0), calls)
    calls &= deciding & ~inside
    slot = jnp.where(deciding, rows.budget.written, rows.scores.shape[1])
    kept = rows.scores.at[jnp.arange(slot.shape[0]), slot].set(scores, mode="drop")
    rows = dataclasses.replace(rows, scores=kept, budget=record_decision(rows.budget, deciding, wanted))
    rows = dataclasses.replace(rows, candidate=jnp.where(deciding, token, rows.candidate))
    rows = dataclasses.replace(rows, status=jnp.where(calls, WAITING, rows.status))
    return _write_candidate(rows, deciding & ~calls, fixed)


def _write_candidate(rows: Rows, which: Bool[Array, " B"], fixed: Fixed) -> Rows:
    """Append the model's own token, or end the text where that is eos."""
    ends = which & fixed.ends[rows.candidate]
    writes = which & ~ends
    known = rows.known + writes
    status = jnp.where(
        ends, ENDED, jnp.where(writes, jnp.where(known >= fixed.limit, FULL, RUNNING), rows.status)
    )
    slot = jnp.where(writes, rows.known, rows.tokens.shape[1])
    tokens = rows.tokens.at[jnp.arange(slot.shape[0]), slot].set(rows.candidate, mode="drop")
    need = jnp.where(writes, _bytes_needed(rows.need, rows.candidate, fixed), rows.need)
    budget = record_tokens(rows.budget, writes.astype(jnp.int32), jnp.zeros_like(known))
    return dataclasses.replace(rows, tokens=tokens, known=known, status=status, need=need, budget=budget)


def _take_answers(rows: Rows, answers: tuple[Array, Array], fixed: Fixed) -> Rows:
    """Append what the partner wrote; a row it had nothing for goes on with its own token."""
    new, count = answers
    count = jnp.where(rows.status == WAITING, count, -1)
    added = jnp.maximum(count, 0)
    offsets = jnp.arange(new.shape[1])
    slot = jnp.where(offsets < added[:, None], rows.known[:, None] + offsets, rows.tokens.shape[1])
    tokens = rows.tokens.at[jnp.arange(slot.shape[0])[:, None], slot].set(new, mode="drop")
    known = rows.known + added
    status = jnp.where(count > 0, jnp.where(known >= fixed.limit, FULL, RUNNING), rows.status)
    budget = record_tokens(rows.budget, jnp.zeros_like(added), added)
    rows = dataclasses.replace(rows, tokens=tokens, known=known, status=status, budget=budget)
    return _write_candidate(rows, count == 0, fixed)


def _bytes_needed(need: Array, token: Array, fixed: Fixed) -> Array:
    return jnp.where(fixed.inner[token], jnp.maximum(need - fixed.tail[token], 0), fixed.lead[token])


def _finishing(z: Float[Array, "B V"], need: Int[Array, " B"], fixed: Fixed) -> Float[Array, "B V"]:
    """Logits where `need` bytes of a character are missing (0 = as they are): only of pieces that go on with it, and leave
    no other one unfinished.
    """
    left = need[:, None] - fixed.tail
    goes_on = (fixed.tail > 0) & jnp.where(fixed.inner, left >= 0, (left == 0) & (fixed.lead == 0))
    return jnp.where(goes_on | (need[:, None] == 0), z, -jnp.inf)


def _noise(keys: Array, position: Int[Array, " B"]) -> Float[Array, " B"]:
    """Uniform [0, 1) numbers that depend on the prompt and the position only: not on batch, steps or other rows.

    MurmurHash3's finaliser: the gate "random" needs no more, and it compiles in no time.
    """
    x = jax.random.key_data(keys)[:, -1] ^ (position.astype(jnp.uint32) * jnp.uint32(0x9E3779B9))
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return ((x ^ (x >> 16)) >> 8).astype(jnp.float32) / jnp.float32(1 << 24)


def _sample(keys: Array, z: Float[Array, "B V"], temperature: Array, top_k: Array) -> Int[Array, " B"]:
    """Draw from softmax(z / temperature), from the `top_k` largest if that is not 0."""
    descending = -jnp.sort(-z, axis=-1)
    last = jnp.where(top_k > 0, jnp.minimum(top_k, z.shape[-1]), z.shape[-1]) - 1
    threshold = jnp.take(descending, last, axis=-1)[:, None]
    scaled = jnp.where(z >= threshold, z / jnp.maximum(temperature, 1e-6), -jnp.inf)
    return jax.vmap(jax.random.categorical)(keys, scaled).astype(jnp.int32)
