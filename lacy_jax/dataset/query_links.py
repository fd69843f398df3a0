"""What the factual tokens of a dataset come from, for a query head: a number of an entry per token, and the entries' vectors.

The numbers are an extra of the dataset (`extras.py`). The vectors, and for each entry the numbers of those most like it, lie
beside it; `query.json` is written last and says which encoder made the vectors. `cascade.linking` writes all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32, Int32

from lacy_jax import files
from lacy_jax.dataset.extras import fingerprint_of
from lacy_jax.errors import DataError
from lacy_jax.objectives import QueryTargets
from lacy_jax.typed_json import from_json

QUERY_ENTRY = "query_entry"
"""The extra: the number of the entry that a token's span was taken from, from 1; 0 = none is known."""
ADVICE = "write them with `lacy index --index=FOLDER --link --config.dataset.path={path}`"
_ABOUT, _VECTORS, _NEGATIVES = "query.json", "query-vectors.npy", "query-negatives.npy"


@dataclasses.dataclass(frozen=True)
class QueryAbout:
    """What `query.json` says.

    Attributes:
      encoder: name of the encoder of the vectors. dim: their length.
      entries: how many there are. negatives: how many others are named for each.
    """

    encoder: str
    dim: int
    entries: int
    negatives: int


class QueryLinks:
    """The linked entries of a dataset.

    Attributes:
      about: see `QueryAbout`.
      fingerprint: hash of the vectors.

    Raises:
      DataError: there are none, or they are damaged.
    """

    def __init__(self, path: epath.PathLike):
        self.path = path = epath.Path(path)
        advice = ADVICE.format(path=path)
        if not files.exists(path / _ABOUT):
            raise DataError(f"dataset {path}: its facts are not linked to the entries of an index; {advice}")
        try:
            self.about = from_json(QueryAbout, files.read_json(path / _ABOUT, "query links"))
            rows, local = self.about.entries + 1, files.is_local(path)
            self._vectors = files.read_array(
                path / _VECTORS,
                "vectors of the query links",
                np.float16,
                (rows, self.about.dim),
                mapped=local,
            )
            self._negatives = files.read_array(
                path / _NEGATIVES, "query links", np.int32, (rows, self.about.negatives), mapped=local
            )
        except (ValueError, DataError) as error:
            raise DataError(f"dataset {path}: {error}; {advice}") from error
        self.fingerprint = fingerprint_of(self._vectors.reshape(-1))

    def targets(self, linked: Int32[np.ndarray, "B T"]) -> QueryTargets:
        """The entries of each row, and in the places left over those that are most like them.

        Raises:
          DataError: a number is not one of an entry.
        """
        if linked.max(initial=0) > self.about.entries or linked.min(initial=0) < 0:
            raise DataError(
                f"dataset {self.path}: numbers of entries that it does not have; {ADVICE.format(path=self.path)}"
            )
        entries = np.zeros((len(linked), places_of(linked.shape[1])), np.int32)
        for row, own in zip(entries, linked, strict=True):
            stated = np.unique(own[own > 0])
            like_them = self._negatives[stated].T.reshape(-1)  # The nearest of each first.
            wanted = [n for n in dict.fromkeys([*stated.tolist(), *like_them.tolist()]) if n][: len(row)]
            row[: len(wanted)] = wanted
        return QueryTargets(entries, self._vectors[entries].astype(np.float32))  # type: ignore[arg-type]


def places_of(seq_len: int) -> int:
    """Entries that a row has room for: one for eight tokens, in sixteens, so that any mesh splits them evenly."""
    return -(-seq_len // 128) * 16


def write_links(
    path: epath.PathLike,
    encoder: str,
    vectors: Float32[np.ndarray, "N Q"],
    negatives: Int32[np.ndarray, "N H"],
) -> None:
    """Store the entries that the numbers of `QUERY_ENTRY` mean; the dataset is linked from then on.

    Args:
      vectors, negatives: of entry 1, 2, ...; the negatives are numbers of entries, 0 = none.

    Raises:
      LacyError: they cannot be written.
    """
    path = epath.Path(path)
    nobody = np.zeros((1, vectors.shape[1]), np.float16)
    files.write_array(path / _VECTORS, np.concatenate([nobody, vectors.astype(np.float16)]))
    padded = np.concatenate([np.zeros((1, negatives.shape[1]), np.int32), negatives.astype(np.int32)])
    files.write_array(path / _NEGATIVES, padded)
    about: dict[str, Any] = dataclasses.asdict(
        QueryAbout(encoder, vectors.shape[1], len(vectors), negatives.shape[1])
    )
    files.write_json(path / _ABOUT, about)


def forget_links(path: epath.PathLike) -> None:
    """Call a dataset not linked, while its links are written anew."""
    (epath.Path(path) / _ABOUT).unlink(missing_ok=True)
