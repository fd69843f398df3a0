"""The cells of experiments/wiki_comparison.py, and the labels of policy `judge`."""

from __future__ import annotations

import argparse
import pathlib
import runpy
import types

import pytest

from lacy_jax.errors import LacyError

COMPARISON = runpy.run_path(
    str(pathlib.Path(__file__).resolve().parents[2] / "experiments" / "wiki_comparison.py")
)


def test_what_is_no_policy_of_its_own_is_one_with_a_difference():
    config = COMPARISON["get_config"]
    lacy, full, ntp, equal = (
        config(f"{name},6m,seed=2") for name in ("lacy", "lacy_full", "ntp", "ntp_equal")
    )
    assert [c.objective.policy for c in (lacy, full, ntp, equal)] == ["lacy", "lacy", "ntp", "ntp"]
    assert [c.objective.call_objective for c in (lacy, full)] == ["renormalised", "full"]
    assert equal.train.steps == round(ntp.train.steps * (1 - lacy.objective.call_rate))
    assert full.train.steps == lacy.train.steps == ntp.train.steps
    assert {c.seed for c in (lacy, full, ntp, equal)} == {2}
    assert config("rho").objective.reference == "dataset"


@pytest.mark.parametrize(("trained", "judged"), [(2, 0), (0, 2)])
def test_labels_of_an_annotator_are_made_once_and_their_failure_ends_the_comparison(
    tmp_path, monkeypatch, trained, judged
):
    asked = []

    def command(name, status):
        return types.SimpleNamespace(main=lambda args: asked.append((name, args)) or status)

    scope = COMPARISON["annotate"].__globals__
    options = argparse.Namespace(workdir=tmp_path, smoke=False)
    monkeypatch.setitem(scope, "read_metadata", lambda path: types.SimpleNamespace(extras=("judge",)))
    COMPARISON["annotate"](options)
    assert not asked
    monkeypatch.setitem(scope, "read_metadata", lambda path: types.SimpleNamespace(extras=()))
    monkeypatch.setitem(scope, "annotator", command("annotator", trained))
    monkeypatch.setitem(scope, "cli", command("judge", judged))
    with pytest.raises(LacyError, match="no labels for policy judge"):
        COMPARISON["annotate"](options)
    assert [name for name, _ in asked] == ["annotator", "judge"][: 1 if trained else 2]
    if not trained:
        assert f"--judge=annotator:{tmp_path / 'annotator.npz'}" in asked[1][1]
        assert f"--out={tmp_path / 'annotator.npz'}" in asked[0][1]
