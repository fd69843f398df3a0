"""Continuous batching: one thread owns the rows of a `Writer`; texts join and leave while others are written.

Everything from outside reaches the thread through its inbox: new texts, cancellations, answers of partners. The thread
reports back through callbacks.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import functools
import itertools
import math
import queue
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lacy_jax.cascade.partners.base import Partner
from lacy_jax.cascade.writer import Writer
from lacy_jax.errors import LacyError, PartnerError
from lacy_jax.models import Transformer
from lacy_jax.serving.asking import Asker, Question, Replies, Reply
from lacy_jax.serving.metrics import Metrics
from lacy_jax.serving.tickets import Busy, ShuttingDown, Ticket, Update
from lacy_jax.tokenizer import Tokenizer

STEPS = 8
"""The fewest tokens written between two looks at the inbox."""
LOOK_S = 0.025
"""Seconds between two looks, if that is more tokens and no text waits for its partner or its first tokens: a new or
cancelled text waits about as long, and telling of each few tokens takes as much time as writing them."""
MOST_STEPS = 64
TELL_S, LONGEST_TELL_S = 0.01, 0.25
"""Seconds between two updates of a streamed text, after its first tokens, for each text being written: to tell of one costs
server and client together about as much as to write a few tokens of it. And the most seconds, however many there are.
"""
WAITING_SHARE = 0.5
"""The thread also looks there once this share of the texts being written calls."""
NARROWEST = 512
"""The cache has this many slots times a power of two, or the context's length: few widths, so few compilations."""


class Scheduler:
    """Writes the texts of all clients.

    Args:
      rows: texts written side by side. queue_limit: texts that may wait for a row.
      metrics: the counters to update.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        *,
        rows: int = 16,
        queue_limit: int = 64,
        metrics: Metrics | None = None,
    ):
        self.model, self.tokenizer = model, tokenizer
        self.rows, self.queue_limit = rows, queue_limit
        self.metrics = metrics or Metrics()
        self._context = model.cfg.max_seq_len
        self._writer = Writer(model, tokenizer, rows, min(NARROWEST, self._context))
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._queue: collections.deque[Ticket] = collections.deque()
        self._at: dict[int, Ticket] = {}
        self._askers: dict[int, Asker] = {}
        self._admission = threading.Lock()
        self._pending = 0  # Texts accepted and not finished.
        self._seconds = 1.0  # That a text spends in its row, a running mean.
        self._step_s = LOOK_S  # That the last step took.
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Texts accepted and not finished: in rows and in the queue."""
        return self._pending

    def submit(self, tickets: Sequence[Ticket]) -> None:
        """Accept texts to be written: all of them or none.

        Raises:
          Busy: the queue has no room for them. ShuttingDown: it takes no more.
        """
        with self._admission:
            if self._closing:
                raise ShuttingDown("the server is shutting down")
            if self._pending + len(tickets) > self.rows + self.queue_limit:
                waits = max(self._pending - self.rows, 0) / self.rows
                raise Busy(
                    f"{self._pending} texts are being written or wait; no room for {len(tickets)} more",
                    max(1, math.ceil(waits * self._seconds)),
                )
            self._pending += len(tickets)
        self._inbox.put(lambda: self._queue.extend(tickets))

    def compile_ahead(self) -> concurrent.futures.Future[list[Callable[[], Any]]]:
        """Compile what a text alone needs before the next is taken; gives what compiles the rest (`Writer.compile_ahead`)."""
        rest: concurrent.futures.Future[list[Callable[[], Any]]] = concurrent.futures.Future()

        def work() -> None:
            try:
                rest.set_result(self._writer.compile_ahead())
            except Exception as error:
                rest.set_exception(error)

        self._inbox.put(work)
        return rest

    def cancel(self, ticket: Ticket) -> None:
        """Drop this text, as nobody waits for it; its row becomes free after the next few tokens of the others."""
        self._inbox.put(lambda: self._cancel(ticket))

    def close(self, wait_s: float = 0.0) -> None:
        """Take no more texts; after `wait_s` seconds, end those that are still being written as they are."""
        with self._admission:
            self._closing = True
        self._inbox.put(lambda: None)
        self._thread.join(wait_s)
        self._inbox.put(self._hand_back)
        self._thread.join()

    # -- in the thread -------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not (self._closing and self._pending == 0 and self._inbox.empty()):
            try:
                self._take()
                self._admit()
                if self._at:
                    self._write()
                    self._ask()
                    self._report()
            except Exception as error:  # A bug of ours ends the current texts, but no later ones.
                traceback.print_exc(file=sys.stderr)
                self._fail(LacyError(f"internal error: {type(error).__name__}"))
        for asker in self._askers.values():
            asker.close()

    def _take(self) -> None:
        """Handle everything in the inbox; if there is nothing to write, wait for something."""
        idle = all(self._writer.rows[row].asked for row in self._at) and not (self._queue and not self._at)
        until = time.monotonic() + self._step_s
        while True:
            left = max(until - time.monotonic(), 0.0)
            block = idle or (left > 0 and self._answer_is_near())
            try:
                self._inbox.get(block, (0.05 if self._at else None) if idle else left)()
            except queue.Empty:
                return
            idle = False

    def _answer_is_near(self) -> bool:
        """Whether a partner that takes less than a step has not answered yet: its texts would stand still for many steps."""
        waiting = (self._at[row] for row, text in self._writer.rows.items() if text.asked)
        return any(self._asker(ticket.job.calling.partner).seconds < self._step_s for ticket in waiting)

    def _admit(self) -> None:
        now = time.monotonic()
        for ticket in [t for t in self._queue if t.deadline <= now]:
            self._queue.remove(ticket)
            self._end(ticket, error=Busy("no row became free in time", max(1, math.ceil(self._seconds))))
        free = [row for row in range(self.rows) if row not in self._at]
        new = {row: self._queue.popleft() for row in free[: len(self._queue)]}
        self.metrics.waiting.set(len(self._queue))
        if not new:
            return
        longest = max(t.job.limit for t in [*new.values(), *self._at.values()])
        width = NARROWEST << max(math.ceil(math.log2(longest / NARROWEST)), 0)
        self._writer.resize(min(width, self._context))
        for row, ticket in new.items():
            ticket.row, ticket.began = row, now
            ticket.given = len(self.tokenizer.decode(ticket.job.ids))
            self._at[row] = ticket
        self._writer.admit({row: ticket.job for row, ticket in new.items()})

    def _write(self) -> None:
        asked = sum(row.asked for row in self._writer.rows.values())
        running = len(self._at) - asked
        patient = not asked and all(ticket.told or not ticket.streams for ticket in self._at.values())
        steps = min(max(STEPS, int(LOOK_S / self._step_s)), MOST_STEPS) if patient else STEPS
        before, started = self._writer.known, time.monotonic()
        self._writer.advance(asked + max(1, int(WAITING_SHARE * running)), steps, few=True)
        taken = max(int((self._writer.known - before).max()), 1)
        self._step_s = max(time.monotonic() - started, 1e-6) / taken
        self.metrics.rows.set(len(self._at))

    def _ask(self) -> None:
        questions: dict[Asker, list[Question]] = collections.defaultdict(list)
        for row in self._writer.waiting():
            ticket = self._at[row]
            asked = ticket, self._writer.question(row), self._writer.query(row)
            questions[self._asker(ticket.job.calling.partner)].append(asked)
        for asker, some in questions.items():
            asker.ask(some)

    def _asker(self, partner: Partner | None) -> Asker:
        assert partner is not None  # Without a partner the budget is 0 and nobody waits.
        if id(partner) not in self._askers:
            self._askers[id(partner)] = Asker(partner, 2 * self.rows, self._answered)
        return self._askers[id(partner)]

    def _answered(self, replies: Replies, seconds: float, tokens: float) -> None:
        """Called in a partner's thread; seconds of the exchange, tokens per text."""
        for _ in replies:
            self.metrics.partner_seconds.observe(seconds)
            self.metrics.partner_tokens.inc(tokens)
        self._inbox.put(functools.partial(self._answer_all, replies, tokens))

    def _answer_all(self, replies: Replies, tokens: float) -> None:
        for ticket, reply in replies:
            self._answer(ticket, reply, tokens)

    def _answer(self, ticket: Ticket, reply: Reply, tokens: float) -> None:
        if self._at.get(ticket.row) is not ticket:
            return  # Cancelled meanwhile.
        ticket.partner_tokens += tokens
        failure = reply if isinstance(reply, PartnerError) else None
        outcome = "failed" if failure or reply is None else "answered" if reply else "silent"
        self.metrics.calls.labels(outcome).inc()
        if ticket.stop_on_failure and (failure or reply is None):
            error = failure or PartnerError("the partner has no answer to this text")
            self._end(ticket, error=error)
            self._leave(ticket)
            return
        self._writer.answer(ticket.row, None if failure else reply)  # type: ignore[arg-type]
        ticket.standing = ticket.standing.after(failure)
        if ticket.standing.gave_up:
            self._writer.give_up(ticket.row)

    def _report(self) -> None:
        now = time.monotonic()
        running = set(self._writer.running())
        pause = seconds_between_updates(len(self._at))
        for row, ticket in list(self._at.items()):
            ended = row not in running
            late = not ended and ticket.deadline <= now
            due = ticket.streams and ticket.told_at + pause <= now
            if ended or late or due or ticket.stops:
                self._tell(ticket, ended or late, "time" if late else "", due)

    def _tell(self, ticket: Ticket, ended: bool, why: str = "", due: bool = False) -> None:
        """Report what is new if that is `due`, and the end, which may be a stop string; at the end, free the row."""
        row, prompt = ticket.row, len(ticket.job.ids)
        tokens = self._writer.written(row)
        if not ended and len(tokens) - prompt == ticket.told:
            return
        text = self.tokenizer.decode(tokens)[ticket.given :]
        found = min(((text.find(s), s) for s in ticket.stops if s in text), default=None)
        if found is None and not ended:
            if due:
                ticket.told, ticket.told_at = len(tokens) - prompt, time.monotonic()
                ticket.tell(self._so_far(ticket, text[: len(text) - _held_back(text, ticket.stops)], tokens))
            return
        count = len(tokens) - prompt
        if found is not None:
            text = text[: found[0]]
            count = next(
                n for n in itertools.count()
                if n == count or len(self.tokenizer.decode(tokens[: prompt + n])) - ticket.given >= len(text)
            )  # fmt: skip
        generation = self._writer.generation(row, ticket.standing, count)
        if found is not None or why:
            spans = [(a, min(b, len(text)), who) for a, b, who in generation.spans if a < len(text)]
            generation = dataclasses.replace(generation, text=text, spans=spans, stopped=why or "stop")
        last = self._so_far(ticket, generation.text, tokens[: prompt + count])
        stop = found[1] if found else ""
        self._end(ticket, dataclasses.replace(last, generation=generation, stop=stop))
        self._leave(ticket)

    def _so_far(self, ticket: Ticket, text: str, tokens: np.ndarray) -> Update:
        own = tokens[len(ticket.job.ids) :].copy()
        scores = self._writer.scores[ticket.row, : len(own)].copy()
        calls = tuple((a, n) for a, n in self._writer.rows[ticket.row].calls if a < len(own))
        return Update(text, own, calls, scores, partner_tokens=ticket.partner_tokens)

    def _end(self, ticket: Ticket, update: Update | None = None, error: LacyError | None = None) -> None:
        with self._admission:
            self._pending -= 1
        last = update or Update("", np.zeros(0, np.int32), error=error)
        if last.generation is not None:
            self.metrics.text_ended(last.generation)
            self._seconds += 0.1 * (time.monotonic() - ticket.began - self._seconds)
        ticket.tell(last)

    def _leave(self, ticket: Ticket) -> None:
        if self._at.get(ticket.row) is ticket:
            del self._at[ticket.row]
            self._writer.halt([ticket.row])

    def _cancel(self, ticket: Ticket) -> None:
        if ticket in self._queue:
            self._queue.remove(ticket)
        elif self._at.get(ticket.row) is ticket:
            self._leave(ticket)
        else:
            return
        self.metrics.cancelled.inc()
        with self._admission:
            self._pending -= 1

    def _fail(self, error: LacyError) -> None:
        tickets = list(self._at.values())
        self._at.clear()
        self._writer = Writer(self.model, self.tokenizer, self.rows, min(NARROWEST, self._context))
        for ticket in tickets:
            self._end(ticket, error=error)

    def _hand_back(self) -> None:
        """Return what is written so far to all who wait."""
        for ticket in list(self._at.values()):
            self._tell(ticket, True, "shutdown")
        while self._queue:
            self._end(self._queue.popleft(), error=ShuttingDown("the server is shutting down"))


def seconds_between_updates(texts: int) -> float:
    """Of each streamed text, while so many texts are written."""
    return min(TELL_S * texts, LONGEST_TELL_S)


def _held_back(text: str, stops: Sequence[str]) -> int:
    """How many characters at the end may still change: an unfinished character, or the beginning of a stop string."""
    most = len(text) - len(text.rstrip("\ufffd"))
    for stop in stops:
        most = max(most, *(n for n in range(len(stop)) if text.endswith(stop[:n])))
    return most
