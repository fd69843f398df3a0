"""The host's side of decoding: a fixed number of rows, in which texts begin and end at any time.

The device writes (`engine.advance`) until rows call or a number of steps is over; the caller of the writer then asks
the partner and hands its answers back. Batches (`decoding.generate`) and the server (`lacy_jax.serving`) use the same
writer. A text depends on the model, its prompt, its options and the partner, but not on its row or its neighbours.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32

from lacy_jax.cascade import engine
from lacy_jax.cascade.boundary import Boundary
from lacy_jax.cascade.budget import BudgetController, make_controller
from lacy_jax.cascade.calibrated_gate import gate_weights
from lacy_jax.cascade.exchange import Standing
from lacy_jax.cascade.jobs import Job
from lacy_jax.cascade.partners.base import calls_anywhere
from lacy_jax.cascade.summary import generation_of
from lacy_jax.cascade.texts import Generation
from lacy_jax.models import Transformer, grow, init_cache
from lacy_jax.tokenizer import Tokenizer

MAX_CALL_TOKENS = 32
"""The most tokens one call may add, whatever the budget: a fixed shape, and a bound on a rambling partner."""
FEWER = 4
"""A server of 16 rows also has programs for the first 1 and the first 4 of them."""


def bucket(length: int, context: int) -> int:
    """Cache slots for rows of up to `length` tokens: few sizes, so few compilations."""
    step = 64 if length <= 512 else 512
    return min(-(-length // step) * step, context)


def _shape(array: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(
        array.shape, array.dtype, sharding=array.sharding if array.committed else None
    )


def _compile(function: Any, arguments: tuple[Any, ...]) -> None:
    function.lower(*arguments).compile()


@dataclasses.dataclass
class Row:
    """What only the host knows about a text that is being written.

    Attributes:
      calls: (first generated token, tokens) of each call. failures: calls that failed. silences: calls that the partner
        answered with nothing. unfit: calls whose answer was dropped, as not even one character fitted into the budget.
      asked: the partner has been asked and has not answered yet.
    """

    job: Job
    calls: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    failures: int = 0
    silences: int = 0
    unfit: int = 0
    asked: bool = False


class Writer:
    """Writes texts in `size` rows of up to `width` tokens.

    Attributes:
      rows: the texts by row. status, known: int32 [size], tokens: int32 [size, width], scores: float32 [size, width]: as
        they were after the last `advance`.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer, size: int, width: int):
        self.cfg, self.tokenizer, self.size = model.cfg, tokenizer, size
        self.boundary = Boundary.of(tokenizer)
        self._model = model.for_decoding()
        self._pieces = engine.pieces_of(self.boundary)
        self.rows: dict[int, Row] = {}
        nobody = jax.device_get(make_controller(0.0))
        nothing: dict[str, Any] = {
            "prompt_length": np.int32(1), "limit": np.int32(width), "gate": gate_weights("call_logit") * 0,
            "keys": jax.device_get(jax.random.key_data(jax.random.key(0))), "oracle": np.bool_(False),
            "temperature": np.float32(0), "top_k": np.int32(0), "top_p": np.float32(1), "anywhere": np.bool_(False), "endless": np.bool_(False),
        }  # fmt: skip
        # One entry a row; `admit` writes into them.
        self._options, self._controller = jax.tree.map(
            lambda value: np.stack([value] * size), (engine.RowOptions(**nothing), nobody)
        )
        self._sent: tuple[engine.RowOptions, BudgetController] | None = None
        self._begin(width)

    def _begin(self, width: int) -> None:
        self.width = width
        self.rows.clear()
        rows = engine.empty_rows(self.size, width, self.cfg.query_dim)
        self._cache, self._state = self._model.beside((init_cache(self.cfg, self.size, width), rows))
        self._no_answers()
        self._look()

    def _no_answers(self) -> None:
        self._new = np.zeros((self.size, MAX_CALL_TOKENS), np.int32)
        self._count = np.full(self.size, -1, np.int32)

    def _look(self) -> None:
        state = self._state
        found = jax.device_get((state.status, state.tokens, state.known, state.scores, state.queries))
        self.status, self.tokens, self.known, self.scores, self._queries = found

    def resize(self, width: int) -> None:
        """Make room for texts of `width` tokens and keep what is written; without any text, set exactly this width."""
        if not self.rows and width != self.width:
            self._begin(width)
        elif width > self.width:
            self._cache, self._state = grow(self._cache, width), engine.widen(self._state, width)
            self.width = width
            self._look()

    def admit(self, jobs: Mapping[int, Job]) -> None:
        """Begin texts in free rows: read all but the last token of their prompts."""
        tokens = np.zeros((self.size, self.width), np.int32)
        length, which = np.ones(self.size, np.int32), np.zeros(self.size, bool)
        for row, job in jobs.items():
            self.rows[row] = Row(job)
            tokens[row, : len(job.ids)] = job.ids
            length[row], which[row] = len(job.ids), True
            self._ask_for(row, job)
        if engine.read_apart(np.array([len(job.ids) - 1 for job in jobs.values()]), self.size):
            for row, job in jobs.items():
                self._cache = engine.prefill_row(self._model, self._cache, row, job.ids[:-1])
        else:
            stop = np.where(which, length - 1, 0)
            self._cache = engine.prefill(self._model, self._cache, tokens, np.zeros(self.size, int), stop)
        self._state = engine.place(self._state, which, tokens, length)
        self._look()

    def _ask_for(self, row: int, job: Job) -> None:
        """Put the options of a text into its row."""
        values: dict[str, Any] = {
            "prompt_length": len(job.ids), "limit": job.limit, "gate": job.calling.weights,
            "keys": jax.device_get(jax.random.key_data(job.key)), "oracle": job.calling.oracle,
            "temperature": job.temperature, "top_k": job.top_k, "top_p": job.top_p,
            "anywhere": calls_anywhere(job.calling.partner), "endless": job.endless,
        }  # fmt: skip

        def put(table: np.ndarray, value: np.ndarray) -> None:
            table[row] = value

        jax.tree.map(
            put, (self._options, self._controller), (engine.RowOptions(**values), job.calling.controller)
        )
        self._sent = None

    def advance(self, waiting: int, steps: int, *, few: bool = False) -> None:
        """Hand over the answers, then write until `waiting` rows wait, none runs, or `steps` steps are done.

        Args:
          few: leave out rows behind the last text, at one compilation for each power of `FEWER`.
        """
        arguments = self._arguments(waiting, steps, few)
        self._cache, self._state, allowance = engine.advance(*arguments)
        self._no_answers()
        self._look()
        self._allowance = np.asarray(allowance)

    def _arguments(self, waiting: int, steps: int, few: bool) -> tuple[Any, ...]:
        if self._sent is None:
            self._sent = jax.device_put((self._options, self._controller))
        options, controller = self._sent
        return (
            self._model, self._cache, self._state, (self._new, self._count), options, self._pieces, controller,
            (np.int32(waiting), np.int32(steps)), self._used() if few else None,
        )  # fmt: skip

    def compile_ahead(self) -> list[Callable[[], Any]]:
        """Compile what the first text alone needs, its reading and its writing side by side.

        Returns:
          What compiles the other programs that texts of this width need, one each, the likeliest first; for any thread.
        """

        def chunk(rows: int, size: int) -> tuple[np.ndarray, np.ndarray]:
            nothing = np.zeros(rows, int)
            return engine.cut_chunk(
                np.zeros((rows, self.width), np.int32), nothing, nothing, size, self.width
            )

        cache = jax.tree.map(_shape, self._cache)  # The arrays themselves are given away with the next step.
        model, _, *more, _ = self._arguments(1, 1, few=False)
        chunks, packed = engine.shapes(self.size, self.width)
        alone = [(engine.feed_row, (model, cache, 0, *chunk(1, size))) for size in chunks]
        several = [(engine.feed, (model, cache, *chunk(self.size, size), pack)) for size, pack in packed]
        firsts = [size if size < self.size else None for size in self.sizes]
        writing = [(engine.advance, (model, cache, *more, first)) for first in firsts]
        programs = [alone[0], writing[0], *writing[1:], *alone[1:], *several]
        compiles: list[Callable[[], Any]] = [functools.partial(_compile, *program) for program in programs]
        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(lambda compile_: compile_(), compiles[:2]))
        return compiles[2:]

    @property
    def sizes(self) -> list[int]:
        """Numbers of first rows that `advance` can do alone: powers of `FEWER`, and all rows."""
        found = [1]
        while found[-1] * FEWER < self.size:
            found.append(found[-1] * FEWER)
        return [*(count for count in found if count < self.size), self.size]

    def _used(self) -> int | None:
        """The fewest first rows that hold all texts; None = all rows."""
        needed = 1 + max(self.rows, default=0)
        count = next(count for count in self.sizes if count >= needed)
        return count if count < self.size else None

    def running(self) -> list[int]:
        """Rows that have not ended."""
        return [row for row in self.rows if self.status[row] <= engine.WAITING]

    def waiting(self) -> list[int]:
        """Rows that wait for the partner to be asked."""
        return [
            row for row, text in self.rows.items() if self.status[row] == engine.WAITING and not text.asked
        ]

    def written(self, row: int) -> np.ndarray:
        """int32 [n] prompt and text so far."""
        return self.tokens[row, : self.known[row]]

    def question(self, row: int) -> str:
        """What the partner is asked about a row: the whole text so far."""
        self.rows[row].asked = True
        return self.tokenizer.decode(self.written(row))

    def query(self, row: int) -> Float32[np.ndarray, " Q"] | None:
        """What a waiting row asks for, by the model's query head; None if it has no such head."""
        return None if self._queries is None else self._queries[row]

    def answer(self, row: int, reply: str | None) -> None:
        """Give a row the partner's continuation; "" = none, None = it failed. The row goes on at the next `advance`."""
        text = self.rows[row]
        text.asked = False
        self._count[row] = 0
        if reply is None:  # It goes on with its own token.
            text.failures += 1
            return
        answer = self.boundary.append(self.written(row), reply)
        ids = self.boundary.fit(answer, min(int(self._allowance[row]), MAX_CALL_TOKENS))
        self._new[row, : len(ids)], self._count[row] = ids, len(ids)
        if len(ids):
            text.calls.append((int(self.known[row]) - len(text.job.ids), len(ids)))
        elif len(answer):
            text.unfit += 1
        else:
            text.silences += 1

    def give_up(self, row: int) -> None:
        """Stop asking the partner for this text."""
        self._controller.budget[row] = 0.0
        self._sent = None

    def halt(self, rows: list[int]) -> None:
        """End rows where they are; they are free for other texts."""
        which = np.zeros(self.size, bool)
        which[rows] = True
        if (
            which & (self.status <= engine.WAITING)
        ).any():  # Most have ended by themselves, also on the device.
            self._state = engine.halt(self._state, which)
        self.status = np.where(which, engine.ENDED, self.status)
        for row in rows:
            self.rows.pop(row, None)
            self._count[row] = -1

    def generation(self, row: int, standing: Standing, new_tokens: int | None = None) -> Generation:
        """The text of a row, or its first `new_tokens` tokens."""
        text, start = self.rows[row], len(self.rows[row].job.ids)
        job, tokens = text.job, self.written(row)
        if new_tokens is not None:
            tokens = tokens[: start + new_tokens]
        left = len(tokens) - start
        calls = [(first, min(count, left - first)) for first, count in text.calls if first < left]
        stopped = {engine.ENDED: "eos", engine.FULL: "length"}.get(int(self.status[row]), "partner")
        if stopped == "length" and job.limit - start < job.new_tokens:
            stopped = "context"
        return generation_of(
            job.prompt,
            self.tokenizer,
            tokens=tokens,
            prompt_length=start,
            scores=self.scores[row],
            calls=calls,
            budget=job.calling.budget,
            gate=job.calling.gate,
            failures=text.failures,
            silences=text.silences,
            unfit=text.unfit,
            tokens_per_call=job.calling.tokens_per_call,
            gave_up=standing.gave_up,
            stopped=stopped,
        )
