"""What the scheduler is asked for, a text that somebody waits for, and what it tells about it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np

from lacy_jax.cascade.exchange import Standing
from lacy_jax.cascade.jobs import Job
from lacy_jax.cascade.texts import Generation
from lacy_jax.errors import LacyError


class Busy(LacyError):
    """No room for more texts now; there may be some in `retry_after` seconds."""

    def __init__(self, message: str, retry_after: int):
        super().__init__(message)
        self.retry_after = retry_after


class ShuttingDown(LacyError):
    """The server takes no more texts."""


@dataclasses.dataclass(frozen=True)
class Update:
    """A text so far.

    Attributes:
      text: the text so far. Before the end, without a tail that may become a stop string or a whole character.
      tokens: int32 [n] all tokens so far, also those of that tail. calls: (first token, tokens) of each call.
      scores: float32 [n], NaN where no decision was made.
      generation: the whole text, at its end. stop: the string that ended it. error: why there is no text.
      partner_tokens: read and written by its partner, and by the partners of that one.
    """

    text: str
    tokens: np.ndarray
    calls: tuple[tuple[int, int], ...] = ()
    scores: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.float32))
    generation: Generation | None = None
    stop: str = ""
    error: LacyError | None = None
    partner_tokens: float = 0.0

    @property
    def over(self) -> bool:
        """Whether this is the last update."""
        return self.generation is not None or self.error is not None


@dataclasses.dataclass(eq=False)
class Ticket:
    """A text that somebody waits for.

    Attributes:
      job: what to write. stops: strings that end it, left out of the text. tell: called by the scheduler's thread.
      streams: call `tell` every few tokens, not only at the end.
      stop_on_failure: a partner's failure is an error of the text.
      deadline: time by `time.monotonic` at which the text ends as it is.
    """

    job: Job
    tell: Callable[[Update], None]
    stops: tuple[str, ...] = ()
    streams: bool = False
    stop_on_failure: bool = False
    deadline: float = math.inf
    row: int = -1
    standing: Standing = dataclasses.field(default_factory=Standing)
    given: int = 0  # Characters of the prompt.
    told: int = 0  # Tokens that were told of.
    told_at: float = -math.inf
    partner_tokens: float = 0.0
    began: float = 0.0
