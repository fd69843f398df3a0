"""Makes a `Generation` from the tokens of a finished row: text, origins, spans, whether the budget was met."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lacy_jax.cascade.texts import Generation, Prompt
from lacy_jax.tokenizer import Tokenizer


def generation_of(
    prompt: Prompt,
    tokenizer: Tokenizer,
    *,
    tokens: np.ndarray,
    prompt_length: int,
    scores: np.ndarray,
    calls: Sequence[tuple[int, int]],
    budget: float,
    gate: str,
    failures: int,
    silences: int,
    unfit: int,
    tokens_per_call: float,
    gave_up: str,
    stopped: str,
) -> Generation:
    """One generation.

    Args:
      tokens: int32 [n] prompt and continuation. prompt_length: tokens of the prompt.
      scores: float32 [>= n - prompt_length], NaN where no decision was made.
      calls: (first generated token, tokens) of each call. failures, silences: calls without an answer.
      unfit: calls whose answer was dropped because not even its first character fitted into the rest of the budget.
      tokens_per_call: the budget counts as met within this many tokens (or within those of a call of this text).
      gave_up: why the partner is no longer asked, or "".
    """
    written = tokens[prompt_length:]
    origins = ["model"] * len(written)
    for first, count in calls:
        origins[first : first + count] = ["partner"] * count
    spent = origins.count("partner")
    per_call = max([tokens_per_call, *(count for _, count in calls)])
    behind = budget * len(written) - spent
    met = abs(behind) <= max(0.01 * len(written), per_call, 1.0)
    return Generation(
        id=prompt.id,
        prompt=prompt.text,
        text=tokenizer.decode(tokens)[len(tokenizer.decode(tokens[:prompt_length])) :],
        tokens=written.tolist(),
        pieces=[tokenizer.piece(int(token)) for token in written],
        origins=origins,
        gate_scores=[float(s) if math.isfinite(s) else None for s in scores[: len(written)]],
        spans=_spans(tokenizer, tokens, prompt_length, origins),
        calls=len(calls),
        call_share=spent / len(written) if len(written) else 0.0,
        budget=budget,
        gate=gate,
        budget_met=met,
        budget_note="" if met else _why(budget, spent, len(written), failures, silences, unfit, gave_up),
        partner_failures=failures,
        stopped=stopped,
    )


def _spans(
    tokenizer: Tokenizer, tokens: np.ndarray, start: int, origins: list[str]
) -> list[tuple[int, int, str]]:
    """(start, end, origin) in characters; origins change only at whole characters, as no call is made inside one."""
    given = len(tokenizer.decode(tokens[:start]))
    spans: list[tuple[int, int, str]] = []
    at = 0
    for index, who in enumerate(origins):
        if index + 1 < len(origins) and origins[index + 1] == who:
            continue
        end = len(tokenizer.decode(tokens[: start + index + 1])) - given
        if end > at:
            spans.append((at, end, who))
            at = end
    return spans


def _why(
    budget: float, spent: int, tokens: int, failures: int, silences: int, unfit: int, gave_up: str
) -> str:
    """One line: how far the budget was missed, and the reason if known."""
    line = f"partner wrote {spent} of {tokens} tokens, the budget of {budget:.0%} is {budget * tokens:.0f}"
    if gave_up:
        return f"{line}: {gave_up}"
    if failures:
        return f"{line}: {failures} calls failed"
    if silences:
        return f"{line}: {silences} calls returned nothing"
    if unfit:
        return f"{line}: of {unfit} answers not one character fitted into the tokens left"
    return f"{line}: the text ended too early to even it out"
