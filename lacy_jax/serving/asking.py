"""Asks partners outside the decoding thread: a slow or dead one delays only the texts that wait for it."""

from __future__ import annotations

import math
import queue
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from lacy_jax.cascade.exchange import ask
from lacy_jax.cascade.partners.base import Partner
from lacy_jax.errors import LacyError, PartnerError

Reply = str | PartnerError | None
"""A reply to a text: a continuation, "" for none; None = no answer to this text; or why the exchange failed."""
Query = Float32[np.ndarray, " Q"] | None
"""What a text asks for, by the model's query head; None without one."""
Question = tuple[Any, str, Query]
"""What is passed back with the answer, and the text to be continued, with its query."""
Replies = list[tuple[Any, Reply]]
"""To each text of an exchange, with what it was asked about."""
_LAST_EXCHANGE_S = 2.0
"""How long the end waits for a partner's answer: a process that ends while a model of its own computes would abort."""
_RECENT = 5
"""The exchanges that tell how long the next will take: a single slow one among them says nothing."""


class Asker:
    """Asks one partner, in threads of its own.

    A partner that allows several threads is asked about each text separately; any other one about all waiting texts at
    once, one exchange after the other.

    Args:
      partner: who is asked.
      threads: how many exchanges at a time with a partner that allows several.
      answered: called by those threads after each exchange with (`about`, the reply) of its texts, its seconds, and its
        tokens per text. Tokens are those that the partner read and wrote since the last exchange: exact in sum, and per text
        if texts are asked one at a time.

    Attributes:
      seconds: what an exchange takes, the median of the last few; infinite before the first.
    """

    def __init__(self, partner: Partner, threads: int, answered: Callable[[Replies, float, float], None]):
        self.partner = partner
        self._answered = answered
        self._waiting: queue.SimpleQueue[Sequence[Question] | None] = queue.SimpleQueue()
        self.seconds = math.inf
        self._recent: deque[float] = deque(maxlen=_RECENT)
        self._counting = threading.Lock()
        self._counted = partner.used()[0]
        self._threads = [
            threading.Thread(target=self._run, name=f"partner-{number}", daemon=True)
            for number in range(threads if partner.parallel else 1)
        ]
        for thread in self._threads:
            thread.start()

    def ask(self, questions: Sequence[Question]) -> None:
        """Queue texts for the partner to continue."""
        for some in [[question] for question in questions] if self.partner.parallel else [questions]:
            self._waiting.put(some)

    def close(self) -> None:
        """End each thread after its current exchange; wait for that, but not for a partner that is slow."""
        for _ in self._threads:
            self._waiting.put(None)
        until = time.monotonic() + _LAST_EXCHANGE_S
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = list(first)
            while not self.partner.parallel and not self._waiting.empty():
                if (more := self._waiting.get()) is None:
                    self._waiting.put(None)
                    break
                batch += more
            started = time.monotonic()
            replies = self._exchange([text for _, text, _ in batch], [query for *_, query in batch])
            seconds = time.monotonic() - started
            with self._counting:
                used = self.partner.used()[0]
                tokens, self._counted = used - self._counted, used
                self._recent.append(seconds)
                self.seconds = statistics.median_low(self._recent)
            about = [about for about, *_ in batch]
            self._answered(list(zip(about, replies, strict=True)), seconds, tokens / len(batch))

    def _exchange(self, texts: list[str], queries: list[Query]) -> Sequence[Reply]:
        try:
            known = [query for query in queries if query is not None]
            return ask(self.partner, texts, np.stack(known) if known else None)
        except PartnerError as error:
            return [error] * len(texts)
        except LacyError as error:
            return [PartnerError(str(error))] * len(texts)
        except (
            Exception
        ) as error:  # A bug in somebody else's partner counts as its failure and must not end the thread.
            return [PartnerError(f"partner {self.partner.name}: {error!r}")] * len(texts)
