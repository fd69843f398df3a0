"""How similar to a model's query an entry must be for its value to be given: found on held-out text, kept in the index.

A query head is trained to rank entries where a fact is asked for; where none is, it is nearest to something all the same. What
tells the two apart differs from head to head and from index to index, so the least cosine is found for the two together: on
documents whose spans are linked to entries, where a linked span begins (a fact is asked for) against places where none is. Of
those, the ones at which the model is nearest to calling count, as many as facts are asked for: elsewhere nobody would be asked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Bool, Float

from lacy_jax.cascade.boundary import Boundary
from lacy_jax.cascade.dense_index import SEARCHES, DenseIndex
from lacy_jax.cascade.entries import context_of, spans_of
from lacy_jax.cascade.partners.index import ANYTHING, COUNT, about_subject, value_for
from lacy_jax.dataset.query_links import QUERY_ENTRY
from lacy_jax.errors import DataError
from lacy_jax.models import Transformer
from lacy_jax.objectives import GATES, head_statistics
from lacy_jax.tokenizer import Tokenizer

if TYPE_CHECKING:  # TFDS takes a second to import.
    from lacy_jax.dataset.records import Record

PLACES = 2000
"""Places of each kind that are looked at."""
ASKED = 2.0
"""How many calls for a fact there are to one where none is asked for: 2.1 in the synthetic world (docs/results/query_head.md)."""
FEWEST = 20
"""With fewer right answers no least similarity is found."""


@dataclasses.dataclass(frozen=True)
class LeastSimilarity:
    """What was found for one search.

    Attributes:
      least: the least cosine; None if there were fewer than `FEWEST` right answers.
      asked: places where a fact is asked for. right, kept: how many of them are answered right without it, and with it.
      idle: places where none is. silent, silenced: at how many of them nothing is said without it, and with it.
    """

    least: float | None
    asked: int
    right: int
    kept: int
    idle: int
    silent: int
    silenced: int

    def __str__(self) -> str:
        if self.least is None:
            return f"too few right answers ({self.right} of {self.asked}) for a least similarity"
        return (
            f"least similarity {self.least:.3f}: keeps {self.kept} of {self.right} right answers to {self.asked} facts; "
            f"silent at {self.silenced} instead of {self.silent} of {self.idle} places where none is asked for"
        )


@dataclasses.dataclass(frozen=True)
class _Place:
    """A place of a text: the text before it, what the model asks there, and the value that stands there, "" = no fact."""

    text: str
    query: Float[np.ndarray, " Q"]
    value: str


def find_least(
    index: DenseIndex,
    model: Transformer,
    tokenizer: Tokenizer,
    records: Iterable[Record],
    places: int = PLACES,
) -> dict[str, LeastSimilarity]:
    """The least similarity of each search by the model's query head; `index_writer.keep_least` keeps it.

    Args:
      index: the index that will be asked.
      model: with a query head.
      records: held-out documents with the label `QUERY_ENTRY`; of long ones the model's context is read.
      places: how many of each kind are enough.

    Raises:
      DataError: no linked span is in them, or the index has vectors of another length.
    """
    found = _places(model, tokenizer, records, places)
    if not any(place.value for place in found):
        raise DataError(
            f"index {index.folder}: none of the held-out documents has a span that is linked to an entry"
        )
    return {by: _least_of(index, by, found) for by, how in SEARCHES.items() if how.vectors == "head"}


def best_threshold(
    similar: Float[np.ndarray, " n"], right: Bool[np.ndarray, " n"], idle: Bool[np.ndarray, " n"]
) -> float:
    """The threshold with the largest sum of two shares: of the right answers, those at least so similar, which counts `ASKED` times,
    and of the idle places, those less so (Youden's index, weighted). Of equal ones the least.

    Args:
      similar: of what would be answered; -inf where nothing would be.
      right, idle: what each place is.
    """
    candidates = np.unique(similar[right])
    kept = np.array([(similar[right] >= least).mean() for least in candidates])
    silenced = np.array([(similar[idle] < least).mean() if idle.any() else 0.0 for least in candidates])
    return float(candidates[np.argmax(ASKED * kept + silenced)])


def _least_of(index: DenseIndex, by: str, places: Sequence[_Place]) -> LeastSimilarity:
    queries = np.stack([place.query for place in places])
    found = index.search([context_of(place.text) for place in places], COUNT, by, queries)
    similar, right = np.full(len(places), -np.inf), np.zeros(len(places), bool)
    idle = np.array([not place.value for place in places])
    for at, (place, near) in enumerate(zip(places, found, strict=True)):
        if answer := value_for(place.text, near, ANYTHING).strip():
            similar[at] = about_subject(place.text, near)[0].similarity
            right[at] = answer == place.value
    least = best_threshold(similar, right, idle) if right.sum() >= FEWEST else None
    over = similar >= (ANYTHING if least is None else least)
    return LeastSimilarity(
        least,
        asked=int((~idle).sum()),
        right=int(right.sum()),
        kept=int((right & over).sum()),
        idle=int(idle.sum()),
        silent=int((idle & ~np.isfinite(similar)).sum()),
        silenced=int((idle & ~over).sum()),
    )


def _places(model: Transformer, tokenizer: Tokenizer, records: Iterable[Record], most: int) -> list[_Place]:
    """Places where a linked span begins, and as many of each document's others where a word begins, nearest to a call."""

    @nnx.jit
    def ask(model: Transformer, tokens: Any) -> tuple[Any, Any]:
        hidden = model(tokens, jnp.arange(tokens.shape[1])[None], jnp.ones_like(tokens))
        head = head_statistics(*model.logits(hidden))
        return model.queries(hidden), GATES["call_margin"].score(head, jnp.zeros_like(head.lse))

    boundary, width = Boundary.of(tokenizer), model.cfg.max_seq_len
    asked: list[_Place] = []
    idle: list[_Place] = []
    for record in records:
        tokens = np.full(
            (1, width), tokenizer.pad_id, np.int32
        )  # Causal: what follows the text does not matter.
        ids = np.asarray(record.tokens[:width], np.int32)
        tokens[0, : len(ids)] = ids
        linked = np.asarray(record.labels[QUERY_ENTRY])
        spans = [span for span in spans_of(record, tokenizer) if 1 < span[0] < width and linked[span[0]]]
        if not spans:
            continue
        queries, gate = (np.asarray(a)[0] for a in ask(model, tokens))
        # Place t is before token t: what the model asks there comes from the token before.
        gate = np.roll(gate[: len(ids)], 1)
        begins = boundary.begins[ids] | np.roll(boundary.opens[ids], 1)
        free = begins & ~np.asarray(record.labels["factual"][: len(ids)]).astype(bool)
        # Before a digit stands a piece that is only a space: no fact begins there, nor is the place without one.
        starts = {start: value for start, _, _, value in spans}
        spaces = [at - 1 for at in starts if tokenizer.piece_bytes(int(ids[at - 1])) == b" "]
        free[[0, 1, *starts, *spaces]] = False
        near = sorted(np.flatnonzero(free).tolist(), key=lambda at: (-gate[at], at))[: len(starts)]
        for places, chosen in ((asked, starts), (idle, dict.fromkeys(near, ""))):
            places += [
                _Place(tokenizer.decode(ids[:at]), queries[at - 1], value) for at, value in chosen.items()
            ]
        if min(len(asked), len(idle)) >= most:
            break
    return [*asked[:most], *idle[:most]]
