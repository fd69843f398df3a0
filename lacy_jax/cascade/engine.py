"""The jitted part of decoding: many rows, some writing, some being fed, some waiting for a partner.

A row is a buffer of tokens of which the first `known` are written and the first `fed` have been through the
model. One step feeds every running row its next token. A row whose known tokens have all been fed then decides: call
the partner (and wait), or write the model's own next token. Prompt and partner tokens are simply known tokens that
are not fed yet, so rows that read and rows that write share every step, and shapes never change.

All loops run on the device until a row needs the host. Rows do not interact: the text of a row does not depend on the
rows beside it.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt32

from lacy_jax.cascade import gates
from lacy_jax.cascade.boundary import Boundary
from lacy_jax.cascade.budget import BudgetController, BudgetState, record_decision, record_tokens
from lacy_jax.cascade.sampling import noise, sample
from lacy_jax.models import Cache, DecodingModel
from lacy_jax.objectives import head_statistics

RUNNING, WAITING, ENDED, FULL = 0, 1, 2, 3
"""Row status: writing or being fed; waiting for the partner; ended by eos; at its token limit."""
CHUNKS = (8, 16, 32, 256)
"""Tokens of a row fed at once: few shapes, so few compilations. A partner usually has fewer than 8 to read."""
PARTS = (0.25, 0.375, 0.5)
"""Parts of a chunk to which its tokens may be packed."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Rows:
    """State of B rows.

    Attributes:
      tokens: int32 [B, M] prompt and generated tokens; only the first `known` mean anything.
      known: int32 [B]. fed: int32 [B] tokens in the KV cache; fed < known while the row runs.
      status: int32 [B], one of the constants above.
      candidate: int32 [B] the model's own next token of a waiting row.
      need: int32 [B] bytes missing in the last character, as `Boundary` counts them; no call inside a character.
      scores: float32 [B, M] gate score of the decision about the i-th generated token; NaN where none was
        made.
      budget: spending, and the scores as the controller saw them.
      queries: float32 [B, Q] what a waiting row asks for, if the model has a query head; else None.
    """

    tokens: Int[Array, "B M"]
    known: Int[Array, " B"]
    fed: Int[Array, " B"]
    status: Int[Array, " B"]
    candidate: Int[Array, " B"]
    need: Int[Array, " B"]
    scores: Float[Array, "B M"]
    budget: BudgetState
    queries: Float[Array, "B Q"] | None = None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RowOptions:
    """What was asked for each row; all arrays, so that a new value never causes a compilation.

    Attributes:
      prompt_length, limit: int32 [B] tokens of the prompt, and the most tokens a row may hold.
      keys: uint32 [B, K] data of random keys, one per prompt. gate: float32 [B, G] weights of the scores from
        `gates.gate_scores`. oracle: bool [B], ask at every word the budget allows, whatever the score.
      temperature: float32 [B], 0 = greedy. top_k: int32 [B], 0 = off. top_p: float32 [B], 1 = off.
      anywhere: bool [B], calls may also be made inside a word. endless: bool [B], the model may not end the text.
    """

    prompt_length: Int[Array, " B"]
    limit: Int[Array, " B"]
    keys: UInt32[Array, "B K"]
    gate: Float[Array, "B G"]
    oracle: Bool[Array, " B"]
    temperature: Float[Array, " B"]
    top_k: Int[Array, " B"]
    top_p: Float[Array, " B"]
    anywhere: Bool[Array, " B"]
    endless: Bool[Array, " B"]

    @property
    def horizon(self) -> Int[Array, " B"]:
        """The most tokens each row may generate."""
        return self.limit - self.prompt_length


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pieces:
    """The vocabulary, [V] each.

    Attributes:
      banned: bool, never written (bos, pad). ends: bool, ends a text.
      lead, tail, inner, begins, opens: as in `Boundary`.
    """

    banned: Bool[Array, " V"]
    ends: Bool[Array, " V"]
    lead: Int[Array, " V"]
    tail: Int[Array, " V"]
    inner: Bool[Array, " V"]
    begins: Bool[Array, " V"]
    opens: Bool[Array, " V"]


def pieces_of(boundary: Boundary) -> Pieces:
    """The tables of a tokenizer."""
    tokenizer = boundary.tokenizer
    banned, ends = np.zeros((2, tokenizer.vocab_size), bool)
    ends[list(tokenizer.eos_ids)] = True
    banned[[tokenizer.bos_id, tokenizer.pad_id]] = True
    known = ("lead", "tail", "inner", "begins", "opens")
    tables = {name: jnp.asarray(getattr(boundary, name)) for name in known}
    return Pieces(jnp.asarray(banned & ~ends), jnp.asarray(ends), **tables)


@jax.jit
def place(rows: Rows, which: Bool[Array, " B"], tokens: Int[Array, "B M"], length: Int[Array, " B"]) -> Rows:
    """Begin new texts in the rows `which`: prompts of `length` tokens; `prefill` has read all but the last of them."""
    zero = jnp.zeros_like(length)
    nothing = jnp.full(tokens.shape, jnp.nan, jnp.float32)
    new = Rows(
        tokens=tokens, known=length, fed=length - 1, status=zero + RUNNING, candidate=zero, need=zero,
        scores=nothing, budget=BudgetState(zero, zero, zero, nothing),
        queries=rows.queries,
    )  # fmt: skip
    return jax.tree.map(lambda a, b: jnp.where(which.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, rows)


def empty_rows(size: int, width: int, query_dim: int = 0) -> Rows:
    """Rows that hold nothing and have ended; `query_dim` as of the model."""
    zero, nothing = jnp.zeros(size, jnp.int32), jnp.full((size, width), jnp.nan, jnp.float32)
    return Rows(
        tokens=jnp.zeros((size, width), jnp.int32), known=zero + 1, fed=zero, status=zero + ENDED,
        candidate=zero, need=zero, scores=nothing, budget=BudgetState(zero, zero, zero, nothing),
        queries=jnp.zeros((size, query_dim), jnp.float32) if query_dim else None,
    )  # fmt: skip


def widen(rows: Rows, width: int) -> Rows:
    """The same rows with room for `width` tokens."""
    more = [(0, 0), (0, width - rows.tokens.shape[1])]

    def pad(a: Array) -> Array:
        return jnp.pad(a, more, constant_values=0 if a.dtype == jnp.int32 else jnp.nan) if a.ndim > 1 else a

    padded = jax.tree.map(pad, dataclasses.replace(rows, queries=None))
    return dataclasses.replace(padded, queries=rows.queries)


@jax.jit
def halt(rows: Rows, which: Bool[Array, " B"]) -> Rows:
    """End the rows `which` where they are."""
    return dataclasses.replace(rows, status=jnp.where(which, ENDED, rows.status))


@functools.partial(jax.jit, static_argnames="pack", donate_argnames="cache")
def feed(
    model: DecodingModel,
    cache: Cache,
    tokens: Int[Array, "B S"],
    positions: Int[Array, "B S"],
    pack: int | None,
) -> Cache:
    """Run S tokens of each row through the model; positions beyond the cache are padding; `pack` as in `decode`."""
    return model.decode(tokens, positions, cache, pack)[1]


def prefill(
    model: DecodingModel, cache: Cache, tokens: np.ndarray, start: np.ndarray, stop: np.ndarray
) -> Cache:
    """Feed tokens[b, start[b]:stop[b]] of every row, in chunks of fixed sizes.

    Args:
      tokens: int32 [B, M]. start, stop: int [B]; a row with start >= stop is left alone.
    """
    start = start.copy()
    while (left := int((stop - start).max(initial=0))) > 0:
        size = chunk_for(left)
        chunk, positions = cut_chunk(tokens, start, stop, size, cache.max_len)
        cache = feed(model, cache, chunk, positions, packing(positions, cache.max_len))
        start = np.minimum(start + size, np.maximum(stop, start))
    return cache


@functools.partial(jax.jit, donate_argnames="cache")
def feed_row(
    model: DecodingModel, cache: Cache, row: Array, tokens: Int[Array, "1 S"], positions: Int[Array, "1 S"]
) -> Cache:
    """`feed` for the row with this number; touches only its part of the cache."""
    own = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, row, 1), cache)
    own = model.decode(tokens, positions, own)[1]
    return jax.tree.map(lambda a, b: jax.lax.dynamic_update_slice_in_dim(a, b, row, 0), cache, own)


def prefill_row(model: DecodingModel, cache: Cache, row: int, tokens: np.ndarray) -> Cache:
    """`prefill` one row with all of `tokens`, int32 [n]; the computation does not depend on what other rows read."""
    start = 0
    while start < len(tokens):
        size = chunk_for(len(tokens) - start)
        begin, end = np.array([start]), np.array([len(tokens)])
        cache = feed_row(model, cache, row, *cut_chunk(tokens[None], begin, end, size, cache.max_len))
        start += size
    return cache


def chunk_for(left: int) -> int:
    """Tokens of a row that are fed at once where so many are left."""
    return next((size for size in CHUNKS if left <= size), CHUNKS[-1])


def cut_chunk(
    tokens: np.ndarray, start: np.ndarray, stop: np.ndarray, size: int, max_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """The next `size` tokens of each row up to `stop`, and their positions; padding has position `max_len`."""
    positions = start[:, None] + np.arange(size)
    kept = positions < stop[:, None]
    chunk = np.take_along_axis(tokens, np.where(kept, positions, 0), axis=1)
    return chunk, np.where(kept, positions, max_len).astype(np.int32)


def packing(positions: np.ndarray, max_len: int) -> int | None:
    """Size to which `decode` may pack a chunk: the smallest part of it that its tokens fit into, so there are only
    four shapes per chunk; None = as it is.
    """
    return _packed(positions.size, int(np.sum(positions < max_len)))


def _packed(size: int, real: int) -> int | None:
    return next((packed for part in PARTS if (packed := int(size * part)) >= max(real, 8)), None)


def shapes(rows: int, max_len: int) -> tuple[list[int], list[tuple[int, int | None]]]:
    """All that reading in `rows` rows of `max_len` slots may compile: the chunks of `feed_row`, and (chunk, pack) of `feed`."""
    chunks = [size for below, size in zip((0, *CHUNKS), CHUNKS, strict=False) if below < max_len]
    packs = {(size, _packed(rows * size, real)): None for size in chunks for real in range(rows * size + 1)}
    return chunks, list(packs)


def read_apart(lengths: np.ndarray, rows: int) -> bool:
    """Whether to read prompts of so many tokens one after the other and not side by side in `rows` rows: what computes less."""

    def fed(longest: int) -> int:
        return -(-longest // chunk_for(longest)) * chunk_for(longest)

    together = fed(int(lengths.max(initial=0))) * rows
    return sum(map(fed, lengths.tolist())) < (_packed(together, int(lengths.sum())) or together)


@functools.partial(jax.jit, static_argnames="first", donate_argnames="cache")
def advance(
    model: DecodingModel,
    cache: Cache,
    rows: Rows,
    answers: tuple[Array, Array],
    options: RowOptions,
    pieces: Pieces,
    controller: BudgetController,
    stop: tuple[Array, Array],
    first: int | None = None,
) -> tuple[Cache, Rows, Array]:
    """Take the partner's answers in, then step until enough rows wait, none runs, or the step limit.

    Args:
      answers: (tokens int32 [B, K], count int32 [B]) for waiting rows: count tokens the partner wrote, 0 = it
        has nothing to say and the row goes on with its own token, -1 = no answer to this row.
      stop: two int32 []: how many rows must wait before the host is asked, and the most steps.
      first: only the first so many rows; none behind them runs or waits. Fewer rows cost less.

    Returns:
      The cache, the rows, and int32 [B]: the most tokens a partner may write in each row now.
    """
    if first is not None:
        few = jax.tree.map(lambda a: a[:first], (cache, rows, answers, options, controller))
        own, done, allowance = advance(model, *few[:4], pieces, few[4], stop)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=0, axis=0)
        cache, rows = jax.tree.map(put, (cache, rows), (own, done))
        return cache, rows, put(jnp.zeros_like(rows.known), allowance)
    rows = _take_answers(rows, answers, options, pieces)

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
        deciding = running & (rows.fed == rows.known)
        if rows.queries is not None:
            asked = jnp.where(deciding[:, None], model.queries(hidden[:, 0]), rows.queries)
            rows = dataclasses.replace(rows, queries=asked)
        return cache, _decide(rows, deciding, z, c, options, pieces, controller), steps + 1

    cache, rows, _ = jax.lax.while_loop(goes_on, step, (cache, rows, jnp.int32(0)))
    return cache, rows, controller.allowance(rows.budget, options.horizon)


def _decide(
    rows: Rows,
    deciding: Bool[Array, " B"],
    z: Float[Array, "B V"],
    c: Float[Array, " B"],
    options: RowOptions,
    pieces: Pieces,
    controller: BudgetController,
) -> Rows:
    """Rows whose known tokens have all been fed call the partner or write their own next token.

    No call is made inside a character. A call that is due there waits for the character's end: the model then writes
    only pieces that continue the character, so that it is whole after three tokens at most.
    """
    scores = gates.gate_scores(head_statistics(z, c), noise(options.keys, rows.known))
    scores = jnp.sum(jnp.where(options.gate != 0, scores * options.gate, 0.0), axis=-1)
    horizon = options.horizon
    inside = rows.need > 0
    due = controller.forced(rows.budget, horizon) & inside
    z = jnp.where(pieces.banned | (pieces.ends & options.endless[:, None]), -jnp.inf, z)
    z = jax.lax.cond(jnp.any(due), lambda: _finishing(z, jnp.where(due, rows.need, 0), pieces), lambda: z)
    best = jnp.argmax(z, axis=-1).astype(jnp.int32)
    sampled = options.temperature > 0
    token = jax.lax.cond(
        jnp.any(sampled & deciding),
        lambda: jnp.where(
            sampled,
            sample(rows.known, z, options.keys, options.temperature, options.top_k, options.top_p),
            best,
        ),
        lambda: best,
    )
    last = jnp.take_along_axis(rows.tokens, rows.known[:, None] - 1, axis=1)[:, 0]
    at_word = pieces.begins[token] | pieces.opens[last] | options.anywhere
    wanted = jnp.where(at_word, scores, -jnp.inf)
    calls = controller.decide(rows.budget, wanted, horizon)
    calls = jnp.where(options.oracle, at_word & (controller.allowance(rows.budget, horizon) > 0), calls)
    calls &= deciding & ~inside
    slot = jnp.where(deciding, rows.budget.written, rows.scores.shape[1])
    kept = rows.scores.at[jnp.arange(slot.shape[0]), slot].set(scores, mode="drop")
    rows = dataclasses.replace(rows, scores=kept, budget=record_decision(rows.budget, deciding, wanted))
    rows = dataclasses.replace(rows, candidate=jnp.where(deciding, token, rows.candidate))
    rows = dataclasses.replace(rows, status=jnp.where(calls, WAITING, rows.status))
    return _write_candidate(rows, deciding & ~calls, options, pieces)


def _write_candidate(rows: Rows, which: Bool[Array, " B"], options: RowOptions, pieces: Pieces) -> Rows:
    """Append the model's own token; if it is eos, end the text."""
    ends = which & pieces.ends[rows.candidate]
    writes = which & ~ends
    known = rows.known + writes
    status = jnp.where(
        ends, ENDED, jnp.where(writes, jnp.where(known >= options.limit, FULL, RUNNING), rows.status)
    )
    slot = jnp.where(writes, rows.known, rows.tokens.shape[1])
    tokens = rows.tokens.at[jnp.arange(slot.shape[0]), slot].set(rows.candidate, mode="drop")
    need = jnp.where(writes, _bytes_needed(rows.need, rows.candidate, pieces), rows.need)
    budget = record_tokens(rows.budget, writes.astype(jnp.int32), jnp.zeros_like(known))
    return dataclasses.replace(rows, tokens=tokens, known=known, status=status, need=need, budget=budget)


def _take_answers(rows: Rows, answers: tuple[Array, Array], options: RowOptions, pieces: Pieces) -> Rows:
    """Append what the partner wrote; a row it had nothing for goes on with its own token."""
    new, count = answers
    count = jnp.where(rows.status == WAITING, count, -1)
    added = jnp.maximum(count, 0)
    offsets = jnp.arange(new.shape[1])
    slot = jnp.where(offsets < added[:, None], rows.known[:, None] + offsets, rows.tokens.shape[1])
    tokens = rows.tokens.at[jnp.arange(slot.shape[0])[:, None], slot].set(new, mode="drop")
    known = rows.known + added
    status = jnp.where(count > 0, jnp.where(known >= options.limit, FULL, RUNNING), rows.status)
    budget = record_tokens(rows.budget, jnp.zeros_like(added), added)
    rows = dataclasses.replace(rows, tokens=tokens, known=known, status=status, budget=budget)
    return _write_candidate(rows, count == 0, options, pieces)


def _bytes_needed(need: Array, token: Array, pieces: Pieces) -> Array:
    return jnp.where(pieces.inner[token], jnp.maximum(need - pieces.tail[token], 0), pieces.lead[token])


def _finishing(z: Float[Array, "B V"], need: Int[Array, " B"], pieces: Pieces) -> Float[Array, "B V"]:
    """Logits where `need` bytes of a character are missing (0 = unchanged): only pieces that continue that character
    and leave no other one unfinished stay possible.
    """
    left = need[:, None] - pieces.tail
    goes_on = (pieces.tail > 0) & jnp.where(pieces.inner, left >= 0, (left == 0) & (pieces.lead == 0))
    return jnp.where(goes_on | (need[:, None] == 0), z, -jnp.inf)
