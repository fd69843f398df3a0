"""Documents cut into windows, scored side by side, against plain logits; the statistics of one position."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cascade_fakes import make_model
from evaluated_runs import plain_document
from hypothesis import given
from hypothesis import strategies as st

from lacy_jax.objectives import TokenStatistics, head_statistics
from lacy_jax.objectives.scoring import score_documents, windows

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
    for ids, found in zip(texts, score_documents(model, texts, CONTEXT, rows=4), strict=True):
        assert all(len(leaf) == len(ids) - 1 for leaf in jax.tree.leaves(found))
        if len(ids) == 1:
            continue
        want = plain_document(model, ids, CONTEXT)
        np.testing.assert_array_equal(found.top1, want.pop("top1"))
        for name, values in want.items():
            np.testing.assert_allclose(getattr(found, name), values, rtol=1e-5, atol=5e-5, err_msg=name)


def test_a_document_does_not_depend_on_those_beside_it(model):
    texts = documents()
    together = score_documents(model, texts, CONTEXT, rows=4)
    for index in (0, 4, 5):
        (alone,) = score_documents(model, [texts[index]], CONTEXT, rows=4)
        jax.tree.map(np.testing.assert_array_equal, alone, together[index])


def test_no_documents_and_their_dtypes(model):
    assert score_documents(model, [], CONTEXT) == []
    (nothing,) = score_documents(model, [np.array([1])], CONTEXT)
    (something,) = score_documents(model, [np.array([1, 5])], CONTEXT, rows=4)
    for field in dataclasses.fields(TokenStatistics):
        assert getattr(nothing, field.name).dtype == getattr(something, field.name).dtype, field.name


def test_masked_pieces_and_ties():
    z = jnp.array([[1.0, 4.0, -jnp.inf, 4.0], [-jnp.inf, 2.0, -jnp.inf, -jnp.inf]])
    found = head_statistics(z, jnp.array([0.5, -1.0]))
    np.testing.assert_array_equal(found.top1, [1, 1])
    np.testing.assert_array_equal(found.max_z - found.second_z, [0.0, np.inf])
    p = np.exp([1.0, 4.0, 4.0]) / np.exp([1.0, 4.0, 4.0]).sum()
    np.testing.assert_allclose(found.entropy, [-(p * np.log(p)).sum(), 0.0], atol=1e-6)
