"""Gates: one score per position for how much the model needs help there; higher means more.

Validation, evaluation, calibration and decoding share this table. A score is computed from `HeadStatistics` of a position:
lse_V, the CALL logit c, the two largest base logits and the entropy of p_\\CALL. The paper (arXiv:2602.12005 §5.1)
thresholds c by rank; entropy and margin are after-the-fact gates that also work for a plain model. Only the rank of a
score matters, so no gate needs calibration. c - max z ranks well for every calling policy (with loss-based calls, c alone
is useless), and the margin is the better after-the-fact gate on a plain model; `AUTO` chooses between the two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from lacy_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class Gate:
    """One way to decide when to call.

    Attributes:
      name: as in the config field `generate.gate`.
      description: one line for help texts and reports.
      formula: see `score`; None for a gate that is not computed from the heads.
      needs: "call": a model that was trained to call. "noise": uniform random numbers. "fit": weights of the scores,
        fitted on validation text. "facts": a partner that knows where facts begin.
    """

    name: str
    description: str
    formula: Callable[[Any, Any], Any] | None = dataclasses.field(default=None, repr=False)
    needs: tuple[str, ...] = ()

    def score(self, head: Any, noise: Any = None) -> Any:
        """Scores, in the shape of the statistics.

        Args:
          head: `HeadStatistics` or `TokenStatistics`; numpy or JAX arrays of any shape.
          noise: uniform numbers in [0, 1) of that shape, for a gate that needs them.
        """
        assert self.formula is not None, f"gate {self.name} has no score"
        return self.formula(head, noise)


GATES: Registry[Gate] = Registry("gate", (
    Gate("auto", "call_margin for a model that was trained to call, margin for a plain one"),
    Gate("call_logit", "the CALL logit c (the paper)", lambda s, noise: s.call_logit, ("call",)),
    Gate("call_prob", "c - lse_V: ranks as p(CALL)", lambda s, noise: s.call_logit - s.lse, ("call",)),
    Gate("call_margin", "CALL logit minus the best other logit", lambda s, noise: s.call_logit - s.max_z, ("call",)),
    Gate("entropy", "entropy of the next token, without CALL", lambda s, noise: s.entropy),
    Gate("margin", "second-best minus best logit", lambda s, noise: s.second_z - s.max_z),
    Gate("random", "uniform noise: the baseline that a gate has to beat", lambda s, noise: noise, ("noise",)),
    Gate("calibrated", "probability of a wrong fact, by a weighting of all scores fitted on validation text", needs=("fit",)),
    Gate("oracle", "wherever a fact begins that the partner has, whatever the model knows: an upper bound", needs=("facts",)),
))  # fmt: skip

AUTO = {True: "call_margin", False: "margin"}
"""Whether the model was trained to call -> the gate that "auto" chooses."""


def resolve_gate(gate: str, uses_call: bool) -> str:
    """The gate that a config names, with "auto" resolved.

    Raises:
      ConfigError: an unknown gate.
    """
    name = GATES.named(gate).name
    return AUTO[uses_call] if name == "auto" else name


def scored_gates(uses_call: bool = True, noise: bool = True) -> list[str]:
    """Names of the gates that have a score, in order; those that need a trained CALL, or noise, only if it is given."""
    given = {"call": uses_call, "noise": noise}
    return [name for name, gate in GATES.items() if gate.formula and all(map(given.get, gate.needs))]
