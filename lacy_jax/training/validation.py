"""Validation: losses by class of token, and how well CALL detects what it should.

Scores and masks are computed per token on the devices; all figures from them are exact numpy on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array
from numpy.typing import ArrayLike

from lacy_jax import objectives
from lacy_jax.dataset.batch import Batch
from lacy_jax.objectives import GATES, POLICIES, scored_gates
from lacy_jax.training import sharding
from lacy_jax.training.state import ModelDefinition, random_key
from lacy_jax.training.step import score, with_reference


@dataclasses.dataclass(frozen=True)
class TokenScores:
    """The valid targets of some batches, each array [n], in reading order.

    Attributes:
      nll, call_logit, lse, max_z, second_z, entropy: as in `TokenStatistics`, float32.
      top1_correct: whether the model's most likely piece is the target.
      factual: label of the target.
      called, learned: whether the training policy would put weight on CALL / on the truth, with the batch as mini-batch.
    """

    nll: np.ndarray
    call_logit: np.ndarray
    lse: np.ndarray
    max_z: np.ndarray
    second_z: np.ndarray
    entropy: np.ndarray
    top1_correct: np.ndarray
    factual: np.ndarray
    called: np.ndarray
    learned: np.ndarray

    def __len__(self) -> int:
        return len(self.nll)


class Evaluator:
    """Scores a model on batches.

    Args:
      config: `objective` and `seed` are read.
      model: the model's definition.
      mesh: the mesh of its parameters and the batches.
      reference: definition of the frozen reference model, for policies that rank by one.
    """

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        model: ModelDefinition,
        mesh: Mesh,
        reference: ModelDefinition | None = None,
    ):
        self._mesh, self._policy = mesh, POLICIES[config.objective.policy]
        c, key = config.objective, random_key(config.seed, "validation")

        def columns(params: Any, batch: Batch, index: jax.Array, reference_params: Any) -> dict[str, Array]:
            found = score(model, params, batch, mesh, c.chunk)
            labels = with_reference(batch, reference, reference_params, mesh, c.chunk)
            mask = objectives.delegation_mask(
                self._policy,
                nll=found.nll,
                weights=batch.weights,
                labels=labels,
                call_rate=c.call_rate,
                ignore_rate=c.ignore_rate,
                rng=jax.random.fold_in(key, index),
                gap=found.gap,
            )
            return {
                **{field.name: getattr(found, field.name) for field in dataclasses.fields(found)},
                "top1_correct": found.top1 == batch.targets,
                "factual": batch.labels["factual"],
                "called": mask.call > 0,
                "learned": mask.learn > 0,
            }

        self._columns = jax.jit(columns)

    def collect(self, params: Any, batches: Iterable[Batch], reference_params: Any = None) -> TokenScores:
        """Scores of every valid target.

        Args:
          params: nested dict on the mesh.
          batches: host batches (this process's rows).
          reference_params: parameters of the reference model, if there is one.
        """
        names = [field.name for field in dataclasses.fields(TokenScores)]
        parts: list[dict[str, np.ndarray]] = []
        with jax.set_mesh(self._mesh):
            for index, host_batch in enumerate(batches):
                batch = sharding.put_batch(host_batch, self._mesh)
                columns = self._columns(params, batch, index, reference_params)
                valid = _on_host(batch.weights) > 0
                parts.append({name: _on_host(columns[name])[valid] for name in names})
        return TokenScores(
            **{n: np.concatenate([p[n] for p in parts]) if parts else np.zeros(0) for n in names}
        )

    def evaluate(
        self, params: Any, batches: Iterable[Batch], reference_params: Any = None
    ) -> dict[str, float]:
        """`validation_metrics` of `collect`."""
        return validation_metrics(self.collect(params, batches, reference_params), self._policy.uses_call)


def validation_metrics(scores: TokenScores, uses_call: bool) -> dict[str, float]:
    """Metrics of scored tokens; those over no tokens (no factual target, nothing called) are left out.

    Keys: `tokens`; `nll` of all targets, `nll_called`, `nll_learned`, `nll_factual`, `nll_other`, in nats;
    `top1_accuracy`, `top1_accuracy_factual`; `factual_rate`, `realised_call_rate` (of the training mask); and for the score
    of each gate G, `wrong_fact_auroc/G` and `wrong_fact_ap/G` as a detector of wrong facts, that is, targets that are
    factual and not the model's first choice; `mask_auroc/G` and `mask_ap/G` as a detector of the training mask.
    `wrong_fact_rate` is the share of wrong facts, which is the average precision of a random score.
    """
    s = scores
    if not len(s):
        return {"tokens": 0.0}
    factual, correct, called = (a.astype(bool) for a in (s.factual, s.top1_correct, s.called))
    wrong_fact = factual & ~correct
    classes = {
        "nll": np.ones(len(s), bool),
        "nll_factual": factual,
        "nll_other": ~factual,
        "nll_learned": s.learned.astype(bool),
    }
    if uses_call:
        classes["nll_called"] = called
    found = {
        "tokens": float(len(s)),
        "factual_rate": float(factual.mean()),
        "wrong_fact_rate": float(wrong_fact.mean()),
    }
    found |= {
        name: float(s.nll[which].mean(dtype=np.float64)) for name, which in classes.items() if which.any()
    }
    found["top1_accuracy"] = float(correct.mean())
    if factual.any():
        found["top1_accuracy_factual"] = float(correct[factual].mean())
    gates = {name: GATES[name].score(s) for name in scored_gates(uses_call, noise=False)}
    targets = {"wrong_fact": wrong_fact}
    if uses_call:
        found["realised_call_rate"] = float(called.mean())
        targets["mask"] = called
    for target, positive in targets.items():
        if positive.any() and not positive.all():
            for gate, score in gates.items():
                found[f"{target}_auroc/{gate}"] = auroc(score, positive)
                found[f"{target}_ap/{gate}"] = average_precision(score, positive)
    return found


def auroc(score: ArrayLike, positive: ArrayLike) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, with ties counting half. Exact.

    Args:
      score, positive: [n].

    Returns:
      In [0, 1]; nan if there are no positives or no negatives.
    """
    score, positive = np.asarray(score), np.asarray(positive, bool)
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return float("nan")
    from scipy import stats  # Takes a second or more to import, which a server has no use for.

    ranks = stats.rankdata(score)[positive].sum()  # Mann-Whitney: mid-ranks of the positives.
    return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def average_precision(score: ArrayLike, positive: ArrayLike) -> float:
    """Area under the precision-recall curve, as a step function over distinct thresholds without interpolation. Exact.

    See `auroc` for the arguments; nan without positives. A random score gets the share of positives.
    """
    score, positive = np.asarray(score), np.asarray(positive, bool)
    _, group = np.unique(-score, return_inverse=True)  # One group per distinct score, highest first.
    hits = np.bincount(group, weights=positive.astype(np.float64))
    if not hits.sum():
        return float("nan")
    precision = np.cumsum(hits) / np.cumsum(np.bincount(group))
    return float(np.sum(hits * precision) / hits.sum())


def _on_host(values: Any) -> np.ndarray:
    """The whole of a global array, on every process."""
    if jax.process_count() > 1:
        return np.asarray(multihost_utils.process_allgather(values, tiled=True))
    return np.asarray(values)
