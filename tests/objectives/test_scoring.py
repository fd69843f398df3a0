"""Documents cut into windows, scored side by side, against plain logits; the statistics of one position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade_fakes import make_model
from evaluated_runs import plain_document
from hypothesis import given
from hypothesis import strategies as st

from lacy_jax.objectives import TokenStatistics, head_statistics
from lacy_jax.objectives.scoring import score_documents, scorer, windows

CONTEXT, VOCAB = 64, 300


@given(length=st.integers(1, 400), context=st.integers(1, 70))
def test_every_token_but_the_first_is_a_target_once(length, context):
    found = windows(length, context)
    assert [i for start, stop in found for i in range(start + 1, stop)] == list(range(1, length))
    assert all(1 <= stop - start - 1 <= context for start, stop in found)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request):
    return make_model(VOCAB, context=CONTEXT, dtype=request.param)


def documents(seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, VOCAB, n).astype(np.int32) for n in (200, 1, 2, 65, 33, 40, 64, 7, 129)]


def test_documents_of_any_length_are_those_of_plain_logits(model):
    texts = documents()
    # The place in a row changes the order of attention's sums, and with it a last bit of bfloat16 here and there.
    close = 5e-5 if model.cfg.dtype == jnp.float32 else 2e-2
    found = score_documents(scorer(model), texts, CONTEXT, rows=4)
    for ids, one in zip(texts, found, strict=True):
        assert all(len(leaf) == len(ids) - 1 for leaf in jax.tree.leaves(one))
        if len(ids) == 1:
            continue
        want = plain_document(model, ids, CONTEXT)
        np.testing.assert_array_equal(one.top1, want.pop("top1"))
        for name, values in want.items():
            np.testing.assert_allclose(getattr(one, name), values, rtol=1e-5, atol=close, err_msg=name)


@given(
    lengths=st.lists(st.integers(1, 150), max_size=20),
    context=st.sampled_from([32, 40, 64]),
    rows=st.integers(1, 5),
)
def test_packing_loses_nothing_and_mixes_nothing(lengths, context, rows):
    """A made-up scorer that gives back what it was shown: each token arrives once, with its place and its neighbours."""

    def show(tokens, targets, positions, segment_ids):
        assert tokens.shape[0] <= rows
        assert tokens.shape[1] <= context
        filled = segment_ids > 0
        first = filled & (np.diff(segment_ids, prepend=0) != 0)
        assert (positions[first] == 0).all()
        goes_on = filled[:, 1:] & (segment_ids[:, 1:] == segment_ids[:, :-1])
        assert (np.diff(positions)[goes_on] == 1).all()
        assert (tokens[:, 1:] == targets[:, :-1])[goes_on].all()
        values = (tokens, targets, positions, positions, positions)
        return TokenStatistics(*(v.astype(np.float32) for v in values), targets, positions, positions)

    texts = [1000 * i + np.arange(n, dtype=np.int32) for i, n in enumerate(lengths)]
    for ids, one in zip(texts, score_documents(show, texts, context, rows=rows), strict=True):
        np.testing.assert_array_equal(one.lse, ids[:-1])
        np.testing.assert_array_equal(one.top1, ids[1:])
        np.testing.assert_array_equal(one.nll, np.arange(len(ids) - 1) % context)


def test_masked_pieces_and_ties():
    z = jnp.array([[1.0, 4.0, -jnp.inf, 4.0], [-jnp.inf, 2.0, -jnp.inf, -jnp.inf]])
    found = head_statistics(z, jnp.array([0.5, -1.0]))
    np.testing.assert_array_equal(found.top1, [1, 1])
    np.testing.assert_array_equal(found.max_z - found.second_z, [0.0, np.inf])
    p = np.exp([1.0, 4.0, 4.0]) / np.exp([1.0, 4.0, 4.0]).sum()
    np.testing.assert_allclose(found.entropy, [-(p * np.log(p)).sum(), 0.0], atol=1e-6)
