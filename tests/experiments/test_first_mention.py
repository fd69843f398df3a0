"""The comparison of the two ways to count first mentions: the same tokens, in three groups."""

from __future__ import annotations

import dataclasses
import pathlib
import runpy

import numpy as np
import pytest

from lacy_jax.errors import LacyError
from lacy_jax.training.validation import TokenScores

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "experiments" / "first_mention.py"


def scores(factual, nll) -> TokenScores:
    """Of tokens of which every second is right, and whose CALL stands out where the nll is high."""
    nll = np.asarray(nll, np.float32)
    zero = np.zeros_like(nll)
    right = np.arange(len(nll)) % 2 == 0
    return TokenScores(nll, nll, zero, zero, zero - 1, zero, right, np.asarray(factual, bool), zero, zero)


def test_tokens_are_compared_by_what_is_a_fact_to_whom():
    compared = runpy.run_path(str(SCRIPT))["compared"]
    nll = [9, 8, 5, 4, 3, 2, 1, 0, 0, 0]
    document = scores([1, 1, 0, 0, 0, 0, 0, 0, 0, 0], nll)
    window = scores([1, 1, 1, 1, 0, 0, 0, 0, 0, 0], nll)
    found = compared(document, window)
    assert [found[f"{group}: share"] for group in ("first", "again", "other")] == pytest.approx(
        [0.2, 0.2, 0.6]
    )
    assert [found[f"{group}: nll"] for group in ("first", "again", "other")] == pytest.approx([8.5, 4.5, 1.0])
    assert found["first: called at 22%"] == 1.0 > found["again: called at 22%"] == 0.0
    assert found["facts per document right at 22%"] == 1.0
    assert found["facts per window right at 22%"] == pytest.approx(0.75)
    with pytest.raises(LacyError, match="not hold the same tokens"):
        compared(document, dataclasses.replace(window, nll=window.nll[::-1]))
