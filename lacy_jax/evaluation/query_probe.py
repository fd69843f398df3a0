"""A linear probe: do vectors that a model makes before it states a value already tell which value it is?

Deleting an entry leaves the model as it was, and so its queries. A ridge regression maps vectors to features of the values
(hashed groups of three letters, as in the probe of raeesiarya/HALOCoLMLM), and names the value whose features are nearest, among those
that the attribute has. It is fitted on some people and asked about others, in turn, so that it cannot remember the person. Chance is
1 / (values of the attribute). What the vectors say of people whom the model has read nothing about is the honest zero: there is
nothing to hold.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Int

from lacy_jax.cascade.stated import folded
from lacy_jax.corpus import Document
from lacy_jax.evaluation.detectors import bootstrap_ratio, finite
from lacy_jax.training.run import Run

FOLDS = 5
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
"""Of the ridge, times the mean variance of the vectors' numbers; chosen on a part of the people that it is fitted on."""
_FEATURES = 512


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """A vector, and the value that it was made before.

    Attributes:
      group: the person; all samples of one are in one fold. attribute, value: what is stated next.
    """

    group: str
    attribute: str
    value: str


def fact_vectors(
    run: Run, documents: Sequence[Document], rows: int = 20
) -> tuple[list[Sample], dict[str, Float[np.ndarray, "n D"]]]:
    """The facts of documents, and for each the model's vectors about it.

    Args:
      rows: documents read at once.

    Returns:
      The samples, and {"before": the hidden state from which the value's first token is predicted; "after": that of its last
      token, which has read it; "query": of the query head where "before" is, if the model has one}.
    """
    samples: list[Sample] = []
    found: dict[str, list[np.ndarray]] = {}
    asks = bool(run.model.cfg.query_dim)
    context = run.model.cfg.max_seq_len

    @jax.jit
    def read(model: Any, tokens: Any, segments: Any) -> Any:
        places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        hidden = model(tokens, places, segments)
        return hidden, model.queries(hidden) if asks else hidden

    for start in range(0, len(documents), rows):
        some = documents[start : start + rows]
        tokens, segments = np.zeros((2, rows, context), np.int32)
        encoded = [run.tokenizer.encode_with_offsets(document.text) for document in some]
        for row, (ids, _, _) in enumerate(encoded):
            own = run.tokenizer.with_prefix(ids)[:context]
            tokens[row, : len(own)], segments[row, : len(own)] = own, 1
        hidden, queries = (np.asarray(one, np.float32) for one in read(run.model, tokens, segments))
        for row, (document, (ids, _, ends)) in enumerate(zip(some, encoded, strict=True)):
            shift = len(run.tokenizer.with_prefix(ids)) - len(ids)
            for fact in document.facts:
                first = shift + int(np.searchsorted(ends, fact.start, side="right")) - 1
                last = shift + int(np.searchsorted(ends, fact.end, side="left"))
                if not 0 <= first < last < context:
                    continue
                samples.append(Sample(fact.subject, fact.attribute, fact.value))
                vectors = {"before": hidden[row, first], "after": hidden[row, last]}
                for name, vector in (vectors | ({"query": queries[row, first]} if asks else {})).items():
                    found.setdefault(name, []).append(vector)
    return samples, {name: np.stack(vectors) for name, vectors in found.items()}


def probe_figures(
    samples: Sequence[Sample], vectors: Float[np.ndarray, "n D"], seed: int = 0
) -> dict[str, Any]:
    """How often the probe names the right value of people it was not fitted on, JSON-safe: {"samples", "people", "chance",
    "first", "among_5", the last two with NAME_ci}; intervals (95 %, bootstrap) are over people.

    Args:
      vectors: one for each sample.

    Raises:
      ValueError: fewer people than folds.
    """
    people = list(dict.fromkeys(sample.group for sample in samples))
    if len(people) < FOLDS:
        raise ValueError(f"a probe needs {FOLDS} people or more, got {len(people)}")
    order = np.random.default_rng(seed).permutation(len(people))
    fold_of = {people[at]: place % FOLDS for place, at in enumerate(order.tolist())}
    folds = np.array([fold_of[sample.group] for sample in samples])
    values = _Values(samples)
    ranks = np.zeros(len(samples), np.int64)
    for fold in range(FOLDS):
        asked, tuned = folds == fold, folds == (fold + 1) % FOLDS
        tried = [np.mean(values.ranks(vectors, ~asked & ~tuned, tuned, penalty)) for penalty in PENALTIES]
        ranks[asked] = values.ranks(vectors, ~asked, asked, PENALTIES[int(np.argmin(tried))])
    group = np.array([people.index(sample.group) for sample in samples])
    total = np.bincount(group, minlength=len(people))
    figures: dict[str, Any] = {"samples": len(samples), "people": len(people), "chance": values.chance()}
    for name, most in (("first", 1), ("among_5", 5)):
        share = bootstrap_ratio(np.bincount(group, ranks < most, minlength=len(people)), total)
        figures |= {name: finite(share.estimate), f"{name}_ci": share.ends}
    return figures


class _Values:
    """The values of samples as features, and those that each might have been."""

    def __init__(self, samples: Sequence[Sample]):
        names = sorted({sample.attribute for sample in samples})
        self.attribute = np.array([names.index(sample.attribute) for sample in samples])
        known = [sorted({folded(s.value) for s in samples if s.attribute == name}) for name in names]
        self.candidates = [np.stack([_features(value) for value in some]) for some in known]
        self.right = np.array(
            [known[which].index(folded(s.value)) for which, s in zip(self.attribute, samples, strict=True)]
        )

    def chance(self) -> float:
        """Of naming the right value first without looking."""
        return float(np.mean([1.0 / len(self.candidates[which]) for which in self.attribute]))

    def ranks(
        self,
        vectors: Float[np.ndarray, "n D"],
        fitted: Bool[np.ndarray, " n"],
        asked: Bool[np.ndarray, " n"],
        penalty: float,
    ) -> Int[np.ndarray, " asked"]:
        """The rank, from 0, of the right value of each asked sample after a fit on others; equal scores rank behind."""
        x = np.array(vectors, np.float64)
        y = np.stack(
            [self.candidates[which][at] for which, at in zip(self.attribute, self.right, strict=True)]
        )
        means = np.zeros((len(self.candidates), y.shape[1]))
        for which in np.unique(self.attribute[fitted]):  # Which attribute it is says nothing of the value.
            own = self.attribute == which
            means[which] = y[own & fitted].mean(0)
            x[own] -= x[own & fitted].mean(0)
            y[own] -= means[which]
        gram = x[fitted].T @ x[fitted]
        ridge = penalty * np.trace(gram) / len(gram) + 1e-9
        weights = np.linalg.solve(gram + ridge * np.eye(len(gram)), x[fitted].T @ y[fitted])
        found = []
        for at, said in zip(np.flatnonzero(asked), x[asked] @ weights, strict=True):
            features = self.candidates[self.attribute[at]] - means[self.attribute[at]]
            scores = features @ said / np.maximum(np.linalg.norm(features, axis=1), 1e-9)
            found.append(int(np.sum(scores >= scores[self.right[at]])) - 1)
        return np.array(found, np.int64)


def _features(value: str) -> Float[np.ndarray, " F"]:
    """Counts of the groups of three letters of a value, hashed, scaled to length 1."""
    text = f"##{folded(value)}##"
    counts = np.zeros(_FEATURES)
    for at in range(len(text) - 2):
        counts[zlib.crc32(text[at : at + 3].encode()) % _FEATURES] += 1.0
    return np.asarray(counts / np.linalg.norm(counts))
