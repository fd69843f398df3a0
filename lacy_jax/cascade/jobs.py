"""What is asked for: a text, its limits and sampling, and when it calls which partner."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from lacy_jax.cascade.budget import BudgetController, make_controller
from lacy_jax.cascade.calibrated_gate import CalibratedGate, gate_weights
from lacy_jax.cascade.dense_index import head_name
from lacy_jax.cascade.partners.base import Partner, needs_head
from lacy_jax.cascade.texts import Prompt
from lacy_jax.errors import ConfigError
from lacy_jax.models import Transformer, check_fits_context
from lacy_jax.objectives.gates import GATES, resolve_gate
from lacy_jax.tokenizer import Tokenizer

DEFAULT_TOKENS_PER_CALL = 3.0


@dataclasses.dataclass(frozen=True)
class Calling:
    """When a text calls, and which partner: one object for all texts with the same gate and partner.

    Attributes:
      gate: the gate's name. weights: float32 [G] for the gates' scores. partner: None = no partner.
      tokens_per_call: the typical number. controller: for the call budget of one text. budget: the call budget, 0
        without a partner.
    """

    gate: str
    weights: np.ndarray
    partner: Partner | None
    tokens_per_call: float
    controller: BudgetController
    budget: float = 0.0

    @property
    def oracle(self) -> bool:
        """Whether the partner decides, not a score."""
        return "facts" in GATES[self.gate].needs

    def at(self, budget: float) -> Calling:
        """The same with another budget.

        Raises:
          ConfigError: it is out of range.
        """
        make_controller(budget)
        asked = 0.0 if self.partner is None else budget
        spent: Any = np.float32(asked)
        controller = dataclasses.replace(self.controller, budget=spent)
        return dataclasses.replace(self, controller=controller, budget=asked)


def calling(
    tokenizer: Tokenizer,
    partner: Partner | None,
    gate: str | CalibratedGate,
    budget: float,
    calibration_scores: np.ndarray | None = None,
    tokens_per_call: float | None = None,
) -> Calling:
    """See `decoding.generate`, which has these arguments.

    Raises:
      ConfigError: an unknown gate, a partner that has no facts for the gate "oracle", a budget out of range.
    """
    name = "calibrated" if isinstance(gate, CalibratedGate) else resolve_gate(gate, uses_call=True)
    if "facts" in GATES[name].needs and partner is not None:
        partner = partner.only_facts()
    typical = _typical_tokens(partner, tokenizer) if tokens_per_call is None else tokens_per_call
    controller = jax.device_get(make_controller(0.0, typical, calibration_scores))
    weights = gate_weights(name if isinstance(gate, str) else gate)
    return Calling(name, weights, partner, typical, controller).at(budget)


@dataclasses.dataclass(frozen=True)
class Job:
    """One text to be written.

    Attributes:
      prompt: as given. ids: int32 [n] its tokens. limit: the most tokens it may have, prompt included.
      key: random key for sampling and for the gate "random". temperature: 0 = greedy. top_k: 0 = off. top_p: 1 = off.
      new_tokens: how many were asked for; fewer are written where the model's context ends.
      endless: the model may not end the text.
    """

    prompt: Prompt
    ids: np.ndarray
    limit: int
    key: jax.Array
    calling: Calling
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    new_tokens: int = 0
    endless: bool = False


def check_sampling(temperature: float, top_k: int, top_p: float) -> None:
    """Raises ConfigError for an option out of range."""
    if not 0.0 <= temperature < float("inf"):
        raise ConfigError(f"generate.temperature = {temperature}: must be 0 (greedy) or positive")
    if top_k < 0:
        raise ConfigError(f"generate.top_k = {top_k}: must be at least 0")
    if not 0.0 < top_p <= 1.0:
        raise ConfigError(f"generate.top_p = {top_p}: must be in (0, 1]")


def introduce(partner: Partner | None, model: Transformer) -> None:
    """Tell a partner that is asked by a query head which one it is.

    Raises:
      ConfigError: the model has none.
    """
    if partner is not None and partner.by_query:
        if not model.cfg.query_dim:
            raise needs_head(partner.name)
        partner.asked_by(head_name(model.query_head[...]))


def encode_prompt(prompt: Prompt, tokenizer: Tokenizer, model: Transformer) -> np.ndarray:
    """Tokens of a prompt, int32 [n].

    Raises:
      DataError: it leaves no room in the model's context.
    """
    ids = tokenizer.with_prefix(tokenizer.encode(prompt.text))
    check_fits_context(len(ids), model.cfg, 1, f"prompt {prompt.id!r}")
    return ids


def _typical_tokens(partner: Partner | None, tokenizer: Tokenizer) -> float:
    """Mean tokens of the partner's typical texts, if it has any."""
    typical = [] if partner is None else partner.typical_texts()
    lengths = [len(tokenizer.encode(text, continues=True)) for text in typical]
    return max(float(np.mean(lengths)), 1.0) if lengths else DEFAULT_TOKENS_PER_CALL
