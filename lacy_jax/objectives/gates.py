"""Gates: one score per position that says how much the model would like help there; higher = more in need of it.

One table for validation, evaluation, calibration and decoding. A score is computed from what the heads say of a position:
lse_V, the CALL logit c, the two largest base logits and the entropy of p_\\CALL (arXiv:2602.12005 §5.1 thresholds c by rank;
entropy and margin are the after-the-fact gates that a plain model can offer). Only the rank of a score matters, so no gate
needs calibration. c - max z is the one that ranks well for every calling policy (loss-based calls are useless by c alone),
and the margin is the better after-the-fact gate on a plain model: `AUTO`.
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
      formula: see `score`; None for a gate that is no score of the heads.
      needs: "call": means something only for a model that was trained to call. "noise": reads the uniform numbers.
        "fit": weights of the scores, fitted on validation text. "facts": a partner that knows where facts begin.
    """

    name: str
    description: str
    formula: Callable[[Any, Any], Any] | None = dataclasses.field(default=None, repr=False)
    needs: tuple[str, ...] = ()

    def score(self, head: Any, noise: Any = None) -> Any:
        """Scores, of the shape of what they are computed from.

        Args:
          head: what the heads say, as `TokenStatistics` has it; numpy or JAX arrays of any shape.
          noise: uniform numbers in [0, 1) of that shape, for a gate that needs them.
        """
        assert self.formula is not None, f"gate {self.name} is no score"
        return self.formula(head, noise)


GATES: Registry[Gate] = Registry("gate", (
    Gate("auto", "call_margin for a model that was trained to call, margin for a plain one"),
    Gate("call_logit", "the CALL logit c (the paper)", lambda s, noise: s.call_logit, ("call",)),
    Gate("call_prob", "c - lse_V: ranks as p(CALL)", lambda s, noise: s.call_logit - s.lse, ("call",)),
    Gate("call_margin", "CALL logit minus the best other logit", lambda s, noise: s.call_logit - s.max_z, ("call",)),
    Gate("entropy", "entropy of the next token, CALL left out", lambda s, noise: s.entropy),
    Gate("margin", "second-best minus best logit", lambda s, noise: s.second_z - s.max_z),
    Gate("random", "uniform noise: the floor that a gate has to clear", lambda s, noise: noise, ("noise",)),
    Gate("calibrated", "chance of a wrong fact: all scores weighed, fitted on validation text", needs=("fit",)),
    Gate("oracle", "wherever a fact begins that the partner holds, whatever the model knows: a bound", needs=("facts",)),
))  # fmt: skip

AUTO = {True: "call_margin", False: "margin"}
"""The gate meant by "auto", by whether the model was trained to call."""


def resolve_gate(gate: str, uses_call: bool) -> str:
    """The gate that a config means, "auto" resolved.

    Raises:
      ConfigError: an unknown gate.
    """
    name = GATES.named(gate).name
    return AUTO[uses_call] if name == "auto" else name


def scored_gates(uses_call: bool = True, noise: bool = True) -> list[str]:
    """Names of the gates that are scores, in order; without those that need a trained CALL, or noise."""
    given = {"call": uses_call, "noise": noise}
    return [name for name, gate in GATES.items() if gate.formula and all(map(given.get, gate.needs))]
