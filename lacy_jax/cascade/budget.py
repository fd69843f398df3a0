"""The call budget: the partner writes a fixed share of the tokens, where the gate's scores are highest.

Every sequence has its own controller state, so what is written does not depend on the batch it was written
in. At a decision (a position the model is about to write) the score's rank in a running distribution is
compared with the share of decisions that should call. The specification, with b = budget, n = tokens
generated so far, s = how many of these the partner wrote, H = the most tokens that will be generated, balance
e = b n - s:

- START: the distribution begins with calibration scores, walked through as text: the rank of a score is the
  share of decisions that would call if its value were the threshold and every call consumed a typical call's
  tokens. They count as `PRIOR_WEIGHT` observations. Without calibration the first observations are the
  sequence's own.
- ADAPTATION: the target share is sigmoid(logit(b) + (e - OFFSET of a call) / max(GAIN b, 1)); a share of
  tokens becomes a share of decisions through the tokens per call seen so far. Facts come in bursts: a budget
  that made every call delay the next one would refuse the second date of a sentence and pay for a pronoun later.
- NEVER OVER by more than `slack` tokens at any moment, nor by more than the tolerance max(1, 1 % of H) at H. If the
  text of a call is too long for that, it is cut between words; if its first word alone is too long, between characters.
- NEVER UNDER by more than `slack` tokens at any moment, nor by more than the tolerance at H, as long as the partner has
  something to say: beyond that a call is forced, whatever the score. The one exception is a character that takes
  several tokens: a call that falls due inside it waits for its end (3 tokens at most, 3 b of balance), and if the next
  character of an answer takes more tokens than are left (4 at most), nothing is written. So up to 3 tokens more at H.
- So at H >= 100 tokens the realised budget is within 1 point of the target on any stream of scores. A text
  that ends by itself after n tokens is within 100 slack / n points, where slack = max(8, 1.5 c, 1 % of n) tokens for
  calls of c tokens. Up to c = 5.3 that is 16 points at n = 50 and 4 at n = 200; for the 6.5 tokens of the synthetic
  world's partner it is 19.5 and 4.9. These are bounds for adversarial scores; scores in random order meet the budget
  on average.
- TIES are broken by a low-discrepancy sequence, so a constant stream of scores spends its budget evenly.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from lacy_jax.errors import ConfigError

SLACK = 8.0  # Every sequence may be this many tokens ahead of or behind its budget on the way; see `slack`.
SLACK_CALLS = 1.5  # The same, in typical calls.
GAIN = 25.0  # A balance of GAIN b tokens changes the odds of a call by a factor e.
OFFSET = 0.15  # The balance is kept behind by this share of a call; 0 would spend too much on average.
PRIOR_WEIGHT = 100.0  # Observations the calibration scores stand for.
GRID = 512  # Points that describe the calibration scores: a fixed shape, so that nothing is compiled anew.
_GOLDEN = 0.6180339887498949


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["written", "spent", "calls", "scores"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class BudgetState:
    """Spending of B sequences.

    Attributes:
      written: int32 [B] tokens generated so far, by model and partner.
      spent: int32 [B] how many of these the partner wrote.
      calls: int32 [B] calls that returned text.
      scores: float32 [B, H] gate score of the decision about the i-th generated token; NaN where none was
        made.
    """

    written: Int[Array, " B"]
    spent: Int[Array, " B"]
    calls: Int[Array, " B"]
    scores: Float[Array, "B H"]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["budget", "tokens_per_call", "prior_weight", "grid", "rank_above", "rank_from"],
    meta_fields=[],
)
@dataclasses.dataclass(frozen=True)
class BudgetController:
    """Decides calls; a pytree, so that it runs inside the jitted decoding loop. Every array may have a leading axis B.

    Attributes:
      budget: float32 [] or [B] target share of generated tokens.
      tokens_per_call: float32 [] typical tokens of a call, before the sequence has made any.
      prior_weight: float32 [] observations the calibration stands for; 0 = none.
      grid: float32 [GRID] ascending score values; rank_above, rank_from: float32 [GRID] share of decisions
        that call at the threshold "> grid" and ">= grid".
    """

    budget: Array
    tokens_per_call: Array
    prior_weight: Array
    grid: Float[Array, " G"]
    rank_above: Float[Array, " G"]
    rank_from: Float[Array, " G"]

    def init(self, batch: int, capacity: int) -> BudgetState:
        """State of `batch` sequences that may generate up to `capacity` tokens."""
        zero = jnp.zeros((batch,), jnp.int32)
        return BudgetState(zero, zero, zero, jnp.full((batch, capacity), jnp.nan, jnp.float32))

    def balance(self, state: BudgetState) -> Float[Array, " B"]:
        """e = b n - s, tokens; positive = behind the budget."""
        return self.budget * state.written - state.spent

    def allowance(self, state: BudgetState, horizon: Int[Array, " B"]) -> Int[Array, " B"]:
        """The most tokens a call may add now without breaking the upper bounds.

        Args:
          horizon: int32 [B], the most tokens each sequence will generate (H).
        """
        tolerance = jnp.maximum(1.0, 0.01 * horizon)
        on_the_way = (self._slack(state) + self.balance(state)) / jnp.maximum(1.0 - self.budget, 1e-6)
        in_the_end = tolerance + self.budget * horizon - state.spent
        room = jnp.minimum(jnp.minimum(on_the_way, in_the_end) + 1e-4, horizon - state.written)
        return jnp.where(self.budget > 0, jnp.floor(jnp.maximum(room, 0.0)), 0.0).astype(jnp.int32)

    def decide(
        self, state: BudgetState, scores: Float[Array, " B"], horizon: Int[Array, " B"]
    ) -> Bool[Array, " B"]:
        """Whether each sequence calls at the decision with these scores (not yet in `state`)."""
        per_call = self.mean_call(state)
        # A call is paid for at once and earned back slowly.
        ahead = self.balance(state) - OFFSET * (1.0 - self.budget) * per_call
        share = jax.nn.sigmoid(_logit(self.budget) + ahead / jnp.maximum(GAIN * self.budget, 1.0))
        rate = share / (share + per_call * (1.0 - share))
        allowance = self.allowance(state, horizon)
        wanted = (self.rank(state, scores) < rate) & (allowance >= jnp.floor(per_call))
        return (wanted | self.forced(state, horizon)) & (allowance >= 1) & (self.budget > 0)

    def forced(self, state: BudgetState, horizon: Int[Array, " B"]) -> Bool[Array, " B"]:
        """Whether a call must be made whatever the score, to keep a lower bound."""
        behind = jnp.minimum(
            self._slack(state) - 1.0,
            jnp.maximum(1.0, 0.01 * horizon) - 1.0 + 0.5 * (1.0 - self.budget) * (horizon - state.written),
        )
        return (self.balance(state) > behind) & (self.budget > 0)

    def mean_call(self, state: BudgetState) -> Float[Array, " B"]:
        """Tokens per call of the sequence so far, averaged together with two typical calls."""
        return (2.0 * self.tokens_per_call + state.spent) / (2.0 + state.calls)

    def _slack(self, state: BudgetState) -> Float[Array, " B"]:
        return slack(state.written, self.tokens_per_call)

    def rank(self, state: BudgetState, scores: Float[Array, " B"]) -> Float[Array, " B"]:
        """Share of decisions that need help more than these, in [0, 1]; ties broken evenly."""
        scores = jnp.nan_to_num(scores, nan=-jnp.inf)[:, None]
        above = jnp.sum(state.scores > scores, axis=1)
        equal = jnp.sum(state.scores == scores, axis=1)
        seen = jnp.sum(~jnp.isnan(state.scores), axis=1)
        u = jnp.mod(0.5 + _GOLDEN * seen, 1.0)
        low, high = self._prior_rank(scores[:, 0])
        own = 1.0 / (
            1.0 + self.prior_weight
        )  # The decision itself; without calibration there is nothing else at the start.
        total = self.prior_weight + seen + own
        return (self.prior_weight * (low + u * (high - low)) + above + u * (equal + own)) / total

    def _prior_rank(self, scores: Float[Array, " B"]) -> tuple[Array, Array]:
        """Bounds of the rank among the calibration scores; they differ where scores tie."""
        own = self.grid.ndim - 1  # 0: one distribution for all rows, 1: each has its own.

        def in_row(table: Array, index: Array) -> Array:
            index = jnp.clip(index, 0, self.grid.shape[-1] - 1)
            return jnp.take_along_axis(table, index[:, None], axis=1)[:, 0] if own else table[index]

        def place(side: str) -> Array:
            find = functools.partial(jnp.searchsorted, side=side)
            return jax.vmap(find)(self.grid, scores) if own else find(self.grid, scores)

        left, right = place("left"), place("right")
        tied = right > left
        low = jnp.where(tied, in_row(self.rank_above, right - 1), in_row(self.rank_from, left))
        low = jnp.where(~tied & (left >= self.grid.shape[-1]), 0.0, low)
        high = jnp.where(tied, in_row(self.rank_from, left), in_row(self.rank_above, left - 1))
        high = jnp.where(~tied & (left == 0), 1.0, high)
        return low, jnp.maximum(low, high)


def slack(written: Array | int, tokens_per_call: Array | float) -> Array:
    """Tokens that a sequence of `written` tokens may be ahead of or behind its budget; `tokens_per_call` is typical."""
    return jnp.maximum(jnp.maximum(SLACK, SLACK_CALLS * tokens_per_call), 0.01 * written)


def _logit(p: Array) -> Array:
    p = jnp.clip(p, 1e-6, 1.0 - 1e-6)
    return jnp.log(p) - jnp.log1p(-p)


def record_decision(state: BudgetState, rows: Bool[Array, " B"], scores: Float[Array, " B"]) -> BudgetState:
    """Remember the scores of the decisions just made, in `rows`, about token number `state.written`."""
    slot = jnp.where(rows, state.written, state.scores.shape[1])  # Out of range = dropped.
    kept = state.scores.at[jnp.arange(slot.shape[0]), slot].set(
        jnp.nan_to_num(scores, nan=-jnp.inf), mode="drop"
    )
    return dataclasses.replace(state, scores=kept)


def record_tokens(state: BudgetState, own: Int[Array, " B"], partner: Int[Array, " B"]) -> BudgetState:
    """Count tokens just added: `own` by the model, `partner` by one call each (0 = no call)."""
    return dataclasses.replace(
        state,
        written=state.written + own + partner,
        spent=state.spent + partner,
        calls=state.calls + (partner > 0),
    )


def make_controller(
    budget: float, tokens_per_call: float = 3.0, calibration_scores: np.ndarray | None = None
) -> BudgetController:
    """A controller for one budget.

    Args:
      budget: share of generated tokens the partner may write, in [0, 1].
      tokens_per_call: typical tokens of a call (>= 1), until a sequence has made some of its own.
      calibration_scores: [N] gate scores of held-out text in reading order, or None.

    Raises:
      ConfigError: budget or tokens_per_call out of range, or calibration scores that are empty or not
        numbers.
    """
    if not 0.0 <= budget <= 1.0:
        raise ConfigError(
            f"call budget {budget}: must be in [0, 1], the share of generated tokens a partner may write"
        )
    if not tokens_per_call >= 1.0:
        raise ConfigError(f"tokens_per_call = {tokens_per_call}: must be at least 1")
    if calibration_scores is None:
        grid = above = at_least = np.zeros(GRID, np.float32)
        weight = 0.0
    else:
        grid, above, at_least = _describe(np.asarray(calibration_scores, np.float64).ravel(), tokens_per_call)
        weight = PRIOR_WEIGHT
    numbers = [jnp.float32(x) for x in (budget, tokens_per_call, weight)]
    return BudgetController(*numbers, *(jnp.asarray(x, jnp.float32) for x in (grid, above, at_least)))


def _describe(scores: np.ndarray, tokens_per_call: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Score values, denser towards the top, and the share of decisions that would call with each as the threshold."""
    if scores.size == 0 or np.isnan(scores).any():
        raise ConfigError("calibration scores must be a non-empty array of numbers without NaN")
    tail = np.geomspace(min(1.0, 1.0 / scores.size), 1.0, GRID // 2)
    levels = np.sort(np.concatenate([1.0 - tail, np.linspace(0.0, 1.0, GRID - GRID // 2)]))
    # By index: np.quantile turns the -inf that stands for "never here" into NaN.
    index = np.clip(np.ceil(levels * scores.size).astype(int) - 1, 0, scores.size - 1)
    grid = np.sort(scores)[index].astype(np.float32)
    scores = scores.astype(np.float32)
    step = max(round(tokens_per_call), 1)
    above = np.empty(GRID)
    at_least = np.empty(GRID)
    for value in np.unique(grid):
        above[grid == value] = _decision_share(scores > value, step)
        at_least[grid == value] = _decision_share(scores >= value, step)
    # Skipping can make the simulated share wobble by a token; a rank has to fall as the score rises.
    at_least = np.maximum.accumulate(np.maximum(at_least, above)[::-1])[::-1]
    above = np.minimum(np.maximum.accumulate(above[::-1])[::-1], at_least)
    return grid, above, at_least


def _decision_share(hot: np.ndarray, step: int) -> float:
    """Share of decisions that call when each call consumes `step` positions of the text that `hot` describes."""
    positions = np.flatnonzero(hot)
    if step == 1 or positions.size == hot.size:
        return positions.size / hot.size if step == 1 else 1.0
    after = np.searchsorted(positions, positions + step).tolist()
    calls = index = 0
    while index < len(after):
        calls += 1
        index = after[index]
    return calls / max(hot.size - calls * (step - 1), calls, 1)
