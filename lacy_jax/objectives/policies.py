"""Delegation policies: which targets are delegated, learned or ignored (arXiv:2602.12005 §4, §5.1, §5.4).

Policies are entries of the registry `POLICIES`, and every loss uses the one function `delegation_mask`. A policy chooses
over the whole global batch from per-token quantities; it never sees logits or a model.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int32, UInt32

from lacy_jax.errors import ConfigError
from lacy_jax.objectives.selection import (
    fraction_of,
    from_sortable_bits,
    random_keys,
    select_largest,
    sortable_bits,
)
from lacy_jax.registry import Registry

IDK_UPPER_BOUND = 0.5
"""Largest share of target mass that `idk` moves to CALL: its paper's upper bound on the uncertainty factor."""

TokenLabels = Mapping[str, Array]
"""What is known about each token before the model sees it: arrays by name, a plain dict and so a pytree.

The same object goes from the record ([n], for its tokens) to the batch and the mask ([B, T], for the targets):
  factual: bool, states a fact.
  nongrammatical: bool, neither factual nor grammatical.
  judge: bool, flagged by an LLM judge.
  reference_nll: float32, nll under a reference model, nats.
Anything else that a dataset stores (`dataset.write_extra`) is passed along under its own name; a policy that lists the
name in `labels` reads it, and no code in between needs to know it.
"""


@dataclasses.dataclass(frozen=True)
class TokenSignals:
    """What a policy may look at.

    Attributes:
      nll, valid: [B, T] over the global batch.
      labels: the labels that the policy names.
      call_count, ignore_count: the numbers of targets that the rates ask for.
      rng, gap: a key for random choices and the gap to the top-1 logit, for policies that need them.
    """

    nll: Float[Array, "B T"]
    valid: Bool[Array, "B T"]
    labels: TokenLabels
    call_count: Int32[Array, ""]
    ignore_count: Int32[Array, ""]
    rng: Any = None
    gap: Any = None

    def label(self, name: str) -> Array:
        """A label [B, T] that the policy names in `Policy.labels`.

        Raises:
          ConfigError: the policy does not name it, so it is not known whether the dataset has it.
        """
        if name not in self.labels:
            raise ConfigError(
                f"a policy reads the label {name!r} without naming it: Policy(..., labels=({name!r},))"
            )
        return self.labels[name]

    def flagged(self, name: str) -> Bool[Array, "B T"]:
        """Valid targets with a label other than 0."""
        return self.valid & self.label(name).astype(bool)


@dataclasses.dataclass(frozen=True)
class Choice:
    """A policy's choice before validity is applied: `call` in [0, 1], `ignore`, and the score at the threshold."""

    call: Array
    ignore: Array | None = None
    threshold: Array | None = None


@dataclasses.dataclass(frozen=True)
class Policy:
    """One way to choose what is delegated.

    Attributes:
      name: as in the config field `objective.policy`.
      description: one line for help texts and reports.
      choose: makes the choice.
      labels: names of the `TokenLabels` that it reads.
      needs: other inputs beyond nll: "rng", "gap".
      uses_call: whether it trains CALL; if not, the CALL head gets no gradient.
      soft: CALL takes a share of a target instead of all of it, under the softmax over V+1 (`idk`).
    """

    name: str
    description: str
    choose: Callable[[TokenSignals], Choice] = dataclasses.field(repr=False)
    labels: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    uses_call: bool = True
    soft: bool = False


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Delegation:
    """The delegation mask; a constant for differentiation.

    Attributes:
      call: weight of the target CALL: 1 where delegated, 0 elsewhere; fractions for `idk`.
      learn: weight of the ground-truth target; call + learn is 1 on valid targets that are not ignored, else 0.
      threshold: ranking score of the last position delegated (skipped, for `rho_skip`), nats; 0 if the policy has
        no ranking or nothing was chosen, so that logs stay finite.
      count: number of targets with call > 0.
    """

    call: Float[Array, "B T"]
    learn: Float[Array, "B T"]
    threshold: Float[Array, ""]
    count: Int32[Array, ""]


def _top(keys: UInt32[Array, "B T"], eligible: Bool[Array, "B T"], count: Int32[Array, ""]) -> Choice:
    chosen, threshold = select_largest(keys, eligible, count)
    return Choice(chosen, threshold=jnp.where(jnp.any(chosen), from_sortable_bits(threshold), 0.0))


def _none(s: TokenSignals) -> Choice:
    return Choice(jnp.zeros_like(s.valid))


def _lacy(s: TokenSignals) -> Choice:
    return _top(sortable_bits(s.nll), s.flagged("factual"), s.call_count)


def _hardest(s: TokenSignals) -> Choice:
    return _top(sortable_bits(s.nll), s.valid, s.call_count)


def _random(s: TokenSignals) -> Choice:
    return Choice(select_largest(random_keys(s.rng, s.nll.shape), s.valid, s.call_count)[0])


def _random_factual(s: TokenSignals) -> Choice:
    return Choice(select_largest(random_keys(s.rng, s.nll.shape), s.flagged("factual"), s.call_count)[0])


def _judge(s: TokenSignals) -> Choice:
    return Choice(s.flagged("judge"))


def _lowest_excess(s: TokenSignals, count: Int32[Array, ""]) -> Choice:
    # Complemented keys rank in reverse: the largest keys belong to the lowest excess loss.
    chosen, threshold = select_largest(~sortable_bits(s.nll - s.label("reference_nll")), s.valid, count)
    return Choice(chosen, threshold=jnp.where(jnp.any(chosen), from_sortable_bits(~threshold), 0.0))


def _rho(s: TokenSignals) -> Choice:
    return _lowest_excess(s, s.call_count)


def _rho_skip(s: TokenSignals) -> Choice:
    skipped = _lowest_excess(s, s.ignore_count)
    return Choice(jnp.zeros_like(s.valid), skipped.call, skipped.threshold)


def _spacy_ref(s: TokenSignals) -> Choice:
    return _top(sortable_bits(s.label("reference_nll")), s.flagged("factual"), s.call_count)


def _lacy_ignorefacts(s: TokenSignals) -> Choice:
    called = _lacy(s)
    return dataclasses.replace(called, ignore=s.flagged("factual") & ~called.call)


def _lacy_ignore(s: TokenSignals) -> Choice:
    called = _lacy(s)
    facts = s.flagged("factual") & ~called.call
    # The remaining facts count towards ignore_rate, so that called + ignored stay at call_rate + ignore_rate.
    left = s.ignore_count - jnp.sum(facts, dtype=jnp.int32)
    neither = s.flagged("nongrammatical") & ~s.flagged("factual")
    hard, _ = select_largest(sortable_bits(s.nll), neither, jnp.maximum(left, 0))
    return dataclasses.replace(called, ignore=facts | hard)


def _idk(s: TokenSignals) -> Choice:
    """IDK-tuning (arXiv:2412.06676): where the top-1 over V+1 is wrong, CALL gets Pi * (1 - p(target) / p(top-1)).

    The loss adds its false-positive term where the top-1 is right. Deviations from that paper: the share is a constant
    for differentiation, and training starts from scratch instead of from a pretrained model.
    """
    return Choice(IDK_UPPER_BOUND * -jnp.expm1(-s.gap))


_FACTUAL, _REFERENCE = ("factual",), ("reference_nll",)
POLICIES: Registry[Policy] = Registry("policy", (
    Policy("ntp", "plain next-token prediction, nothing delegated", _none, uses_call=False),
    Policy("lacy", "factual and hardest for the model now", _lacy, _FACTUAL),
    Policy("loss", "uniformly random positions; CALL learns a constant logit", _random, needs=("rng",)),
    Policy("judge", "positions flagged by an LLM judge", _judge, ("judge",)),
    Policy("rho", "lowest excess loss over a reference model, delegated", _rho, _REFERENCE),
    Policy(
        "rho_skip", "original Rho-1: lowest excess loss gets no gradient", _rho_skip, _REFERENCE, uses_call=False
    ),
    Policy("spacy", "factual positions drawn at random", _random_factual, _FACTUAL, ("rng",)),
    Policy("spacy_ref", "factual and hardest for a reference model", _spacy_ref, _FACTUAL + _REFERENCE),
    Policy("lacy_ignorefacts", "lacy, no gradient on the remaining facts", _lacy_ignorefacts, _FACTUAL),
    Policy(
        "lacy_ignore", "lacy, no gradient on the remaining facts nor on the hardest non-grammatical targets",
        _lacy_ignore, ("factual", "nongrammatical"),
    ),
    Policy("hardest", "hardest targets, factual or not", _hardest),
    Policy(
        "idk", "soft: target mass moves to CALL where the top-1 is wrong (arXiv:2412.06676)", _idk,
        needs=("gap",), soft=True,
    ),
))  # fmt: skip


def get_policy(policy: str | Policy) -> Policy:
    """Look up a policy.

    Raises:
      ConfigError: no policy has that name; names the nearest.
    """
    return policy if isinstance(policy, Policy) else POLICIES.named(policy)


_HOW_TO_GET = {
    "judge": "the dataset has no judge labels: build it with an LLM judge's labels",
    "reference_nll": "no reference nll: set objective.reference to 'dataset' or the run directory of a model",
    "nongrammatical": "the dataset has no non-grammatical labels: build it with a labeller that makes them",
    "rng": "draws positions at random and needs a key: pass rng",
    "gap": "needs the gap to the top-1 logit: pass gap",
}


@jax.named_scope("mask")
def delegation_mask(
    policy: str | Policy,
    *,
    nll: Float[Array, "B T"],
    weights: Array,
    labels: TokenLabels,
    call_rate: float,
    ignore_rate: float = 0.15,
    rng: jax.Array | None = None,
    gap: Float[Array, "B T"] | None = None,
) -> Delegation:
    """The delegation mask C of a global batch (arXiv:2602.12005 §4), exact and layout-invariant.

    k = floor(call_rate * N) targets are delegated, where N is the number of valid targets. If there are fewer than k
    candidates, all of them are delegated; of ties at the threshold, the earliest in row-major order. For given inputs
    the result does not depend on how the arrays are sharded, and no [B, T] array is gathered. Gradients stop here.

    Args:
      policy: a name in `POLICIES`, or a Policy.
      nll: [B, T] float32, lse_V - z[target], nats.
      weights: [B, T] bool or float; targets with weight > 0 are valid.
      labels: the targets' labels by name, such as {"factual": facts}; labels that the policy does not name are not
        read.
      call_rate: share of the valid targets to delegate, in [0, 1), a Python number; `judge` and `idk` do not use it.
      ignore_rate: for `lacy_ignore`, the share ignored, including the remaining facts; for `rho_skip`, the share skipped.
      rng: for `loss` and `spacy`, the key of this batch.
      gap: for `idk`, [B, T] float >= 0: largest logit of V+1 minus z[target], nats; 0 where the top-1 is right.

    Raises:
      ConfigError: the policy is unknown, an input that it needs is missing, or a rate is outside [0, 1).
    """
    chosen_policy = get_policy(policy)
    given = {**labels, "rng": rng, "gap": gap}
    for name in (*chosen_policy.labels, *chosen_policy.needs):
        if given.get(name) is None:
            why = _HOW_TO_GET.get(name, f"no {name} labels: add them with lacy_jax.dataset.write_extra")
            raise ConfigError(f"objective.policy = {chosen_policy.name!r}: {why}")
    for field, rate in (("call_rate", call_rate), ("ignore_rate", ignore_rate)):
        if not 0 <= rate < 1:
            raise ConfigError(f"objective.{field} = {rate!r}: must be in [0, 1)")
    valid = weights > 0
    total = jnp.sum(valid, dtype=jnp.int32)
    signals = TokenSignals(
        nll=lax.stop_gradient(nll),
        valid=valid,
        labels={name: lax.stop_gradient(labels[name]) for name in chosen_policy.labels},
        call_count=fraction_of(call_rate, total),
        ignore_count=fraction_of(ignore_rate, total),
        rng=rng,
        gap=None if gap is None else lax.stop_gradient(gap),
    )
    choice = chosen_policy.choose(signals)
    kept = valid if choice.ignore is None else valid & ~choice.ignore
    call = jnp.where(valid, choice.call.astype(jnp.float32), 0.0)
    learn = jnp.where(kept, 1.0 - call, 0.0)
    threshold = jnp.float32(0.0) if choice.threshold is None else choice.threshold
    return Delegation(call, learn, threshold, jnp.sum(call > 0, dtype=jnp.int32))
