"""The estimated and the actual cost of requests to a server, and the guard that limits both.

Only the server's model knows how many tokens a text has. The estimate is made for tokenizers that give each digit a token
(Qwen 3, SmolLM2), which need the most tokens: it is 0.99 to 1.05 times their count on the prompts of `lacy judge`, 1.3
times that of Llama 3 and up to 1.5 times that of GPT-2 (203 prompts from English Wikipedia). The estimate does not include
a model's reasoning; the actual cost uses the server's own counts.
"""

from __future__ import annotations

import dataclasses
import math
import re
import threading
from collections.abc import Iterable
from typing import Any

from lacy_jax.errors import ConfigError, PartnerError

_PIECE = re.compile(r"[^\W\d_]+|\d|[^\w\s]|_")
_REQUEST_TOKENS = 10  # Tokens that a chat template adds to a message.


class TooExpensive(PartnerError):
    """The requests have reached the cost limit."""


@dataclasses.dataclass
class Estimate:
    """The estimate for a job: requests, how many of them are cached, and the tokens and cost of the others."""

    requests: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    cost: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """The estimate as a JSON-safe dict, without "cost" if there are no prices."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def count_tokens(text: str) -> int:
    """An estimate of the number of tokens of a text, too high rather than too low."""
    tokens = 0.0
    for piece in _PIECE.findall(text):
        if not piece.isascii():
            tokens += len(piece.encode("utf-8", "surrogatepass")) / 2.5
        elif piece.isalpha():
            tokens += math.ceil(len(piece) / 8)
        else:
            tokens += 1.2 if piece.isdigit() else 1.6
    return math.ceil(tokens)


class PriceGuard:
    """Limits the cost of a job: by the estimate before it starts, and by the actual cost while it runs.

    Args:
      prices: "IN,OUT" per 1M prompt and answer tokens; "" = unknown.
      max_cost: limit in the currency of the prices; 0 = no limit.

    Raises:
      ConfigError: a value is not a price or a limit, or there is a limit without prices.
    """

    def __init__(self, prices: str = "", max_cost: float = 0.0):
        try:
            self._prices = [float(price) for price in prices.split(",")] if prices else [0.0, 0.0]
            known = len(self._prices) == 2 and all(0.0 <= price < math.inf for price in self._prices)
        except ValueError:
            known = False
        if not known:
            raise ConfigError(f"--prices={prices}: expected two numbers, such as 0.15,0.60")
        if not 0.0 <= max_cost < math.inf:
            raise ConfigError(f"--max-cost={max_cost:g}: expected a number, 0 for no limit")
        if max_cost and not prices:
            raise ConfigError("--max-cost needs --prices=IN,OUT, per 1M prompt and answer tokens")
        self.max_cost, self._known, self.spent = max_cost, bool(prices), 0.0
        self._lock = threading.Lock()

    def estimate(self, asked: Iterable[tuple[str, str, bool]]) -> Estimate:
        """The estimate for requests given as (prompt, longest possible answer, whether the answer is cached)."""
        found = Estimate()
        for prompt, answer, cached in asked:
            found.requests += 1
            found.cached += cached
            if not cached:
                found.prompt_tokens += count_tokens(prompt) + _REQUEST_TOKENS
                found.answer_tokens += count_tokens(answer)
        if self._known:
            found.cost = round(self._price(found.prompt_tokens, found.answer_tokens), 4)
        return found

    def allow(self, estimate: Estimate) -> None:
        """Raise ConfigError if an estimate exceeds the limit."""
        if self.max_cost and (estimate.cost or 0.0) > self.max_cost:
            raise ConfigError(f"the estimate of {estimate.cost:g} exceeds --max-cost={self.max_cost:g}")

    def check(self) -> None:
        """Raise TooExpensive if the limit is reached."""
        if self.max_cost and self.spent >= self.max_cost:
            raise TooExpensive(
                f"the requests so far have cost {self.spent:.4g}: --max-cost={self.max_cost:g}"
            )

    def bill(self, prompt: str, answer: str, prompt_tokens: int, answer_tokens: int) -> None:
        """Count the cost of one answer; token counts that the server does not give (0) are estimated."""
        if not self._known:
            return
        price = self._price(
            prompt_tokens or count_tokens(prompt) + _REQUEST_TOKENS, answer_tokens or count_tokens(answer)
        )
        with self._lock:
            self.spent += price

    def _price(self, prompt_tokens: int, answer_tokens: int) -> float:
        return (self._prices[0] * prompt_tokens + self._prices[1] * answer_tokens) / 1e6
