"""Fixtures of the evaluation tests."""

from __future__ import annotations

import json

import fake_runs
import pytest


@pytest.fixture
def quickstart(tmp_path):
    """A folder like runs/quickstart: three runs and results.json."""
    samples = fake_runs.make_samples()
    for policy in ("ntp", "loss", "lacy"):
        fake_runs.make_run(tmp_path / "quickstart" / policy, policy, samples=samples[policy])
    results = fake_runs.make_results(samples)
    (tmp_path / "quickstart" / "results.json").write_text(json.dumps(results))
    return tmp_path / "quickstart"
