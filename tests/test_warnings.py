"""Our own use of what its library calls deprecated is an error in the tests (`filterwarnings` of setup.cfg)."""

from __future__ import annotations

import warnings

import pytest


@pytest.mark.parametrize("category", [DeprecationWarning, PendingDeprecationWarning, FutureWarning])
def test_a_deprecation_in_our_code_is_an_error(category):
    with pytest.raises(category, match="old name"):
        warnings.warn_explicit("old name", category, "step.py", 1, module="lacy_jax.training.step")


def test_one_in_a_librarys_own_code_is_not():
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn_explicit("old name", DeprecationWarning, "model.py", 1, module="qwix._src.model")
    assert [str(one.message) for one in caught] == ["old name"]
