"""A partner that wraps another one and counts what it was asked and how long it took."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float32

from lacy_jax.cascade.partners.base import Partner


@dataclasses.dataclass
class Meter:
    """Counts over all exchanges so far.

    Attributes:
      exchanges: times the partner was asked. asked: texts it was asked about. unanswered: how many of these failed.
        silent: texts for which it had nothing to say.
      seconds: wall time spent waiting for it.
      tokens: read and written by the partner, where it counts them (a checkpoint, a completions server); else 0.
      flops: floating-point operations for them, where it counts them (a checkpoint); else 0.
      characters_read: characters of all texts it was given, counted each time. characters_written: of its answers.
    """

    exchanges: int = 0
    asked: int = 0
    unanswered: int = 0
    silent: int = 0
    seconds: float = 0.0
    tokens: int = 0
    flops: float = 0.0
    characters_read: int = 0
    characters_written: int = 0


class MeteredPartner(Partner):
    """Passes everything on to `partner` and counts it in `meter`; one call at a time."""

    def __init__(self, partner: Partner, meter: Meter | None = None):
        self.partner, self.meter = partner, meter or Meter()
        self.name, self.reach, self.by_query = partner.name, partner.reach, partner.by_query

    def complete(self, texts: Sequence[str]) -> Sequence[str | None]:
        """See `Partner.complete`; an exchange that fails is counted, with all its texts unanswered."""
        return self._counted(texts, lambda: self.partner.complete(texts))

    def complete_by_query(
        self, texts: Sequence[str], queries: Float32[np.ndarray, "n Q"]
    ) -> Sequence[str | None]:
        """See `Partner.complete_by_query`; counted like `complete`."""
        return self._counted(texts, lambda: self.partner.complete_by_query(texts, queries))

    def asked_by(self, head: str) -> None:
        """Passed on to the partner."""
        self.partner.asked_by(head)

    def _counted(self, texts: Sequence[str], ask: Callable[[], Sequence[str | None]]) -> Sequence[str | None]:
        started = time.monotonic()
        self.meter.exchanges += 1
        self.meter.asked += len(texts)
        self.meter.characters_read += sum(map(len, texts))
        tokens, flops = self.partner.used()
        answers: Sequence[str | None] = [None] * len(texts)
        try:
            answers = ask()
        finally:
            self.meter.seconds += time.monotonic() - started
            now = self.partner.used()
            self.meter.tokens += now[0] - tokens
            self.meter.flops += now[1] - flops
            self.meter.unanswered += sum(answer is None for answer in answers)
            self.meter.silent += sum(answer == "" for answer in answers)
            self.meter.characters_written += sum(len(answer or "") for answer in answers)
        return answers

    def typical_texts(self) -> list[str]:
        """The partner's typical texts."""
        return self.partner.typical_texts()

    def expect(self, prompts: Sequence[str], new_tokens: int) -> None:
        """Passed on to the partner."""
        self.partner.expect(prompts, new_tokens)

    def only_facts(self) -> MeteredPartner:
        """The partner's `only_facts`, counted by the same meter."""
        return MeteredPartner(self.partner.only_facts(), self.meter)

    def used(self) -> tuple[int, float]:
        """What the partner counts."""
        return self.partner.used()

    def close(self) -> None:
        """Close the partner."""
        self.partner.close()
