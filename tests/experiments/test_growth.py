"""The plane through the leads of experiments/growth.py."""

from __future__ import annotations

import itertools
import math
import pathlib
import runpy

import pytest

from lacy_jax.errors import DataError

GROWTH = runpy.run_path(str(pathlib.Path(__file__).resolve().parents[2] / "experiments" / "growth.py"))


def cell(policy: str, parameters: int, tokens: int, right: float) -> dict:
    """A finished cell whose every measure is `right`."""
    gate = {"wrong_fact_auroc": right, "factual_right": {"0.22": right}}
    better = {
        "wrong_fact_auroc": 1.0,
        "factual_right": {"0.22": 1.0},
    }  # Told the truth: no gate of the model.
    rows = [
        {"group": group, "partner": "documents", "gate": "entropy", "init_score": right}
        for group in ("seen", "unseen")
    ]
    rows.append({"group": "seen", "partner": "alone", "gate": "alone", "init_score": 0.9})
    return {
        "policy": policy, "parameters": parameters, "tokens": tokens, "seed": 0, "gate": "entropy", "rows": rows,
        "held_out": {"gates": {"entropy": gate, "oracle": better}},
    }  # fmt: skip


def test_a_plane_of_leads_is_found_and_carried_on_to_the_paper():
    cells = []
    for size, tokens in itertools.product((10**6, 10**7), (10**6, 10**7)):
        lead = 0.05 + 0.02 * (math.log10(size) - 6.5) - 0.01 * (math.log10(tokens) - 6.5)
        cells += [cell("ntp", size, tokens, 0.3), cell("lacy", size, tokens, 0.3 + lead)]
    cells.append(cell("lacy", 5, 5, 0.5))  # Its other half is not there yet.
    result = GROWTH["growth"](cells)
    assert len(result["points"]) == 4
    assert set(result["fits"]) == {"FActScore seen", "FActScore unseen", "facts right", "AUROC"}
    for fit in result["fits"].values():
        leads = [point["lead"]["AUROC"] for point in result["points"]]
        assert [fitted for fitted, *_ in fit["fitted"]] == pytest.approx(leads)
        assert fit["intercept"] == pytest.approx([0.05] * 3)
        assert fit["per_decade_of_parameters"] == pytest.approx([0.02] * 3)
        assert fit["per_decade_of_tokens"] == pytest.approx([-0.01] * 3)
        expected = 0.05 + 0.02 * (math.log10(334e6) - 6.5) - 0.01 * (math.log10(50e9) - 6.5)
        assert fit["at_paper"] == pytest.approx([expected] * 3)
    assert "+5.0 (+5.0 to +5.0)" in GROWTH["growth_table"](result)


def test_noise_widens_the_intervals_more_the_further_one_looks():
    cells = []
    for noise, (size, tokens) in zip((1, -1, 1, -1, 1, -1), itertools.product((1e6, 2e6, 6e6), (1e6, 4e6))):
        cells += [
            cell("ntp", int(size), int(tokens), 0.3),
            cell("lacy", int(size), int(tokens), 0.35 + 0.01 * noise),
        ]
    cells[-1]["rows"][0]["init_score"] += 0.02
    fit = GROWTH["growth"](cells)["fits"]["FActScore seen"]
    near, far = (high - low for _, low, high in (fit["intercept"], fit["at_paper"]))
    assert 0.01 < near < far


def test_points_on_a_line_are_refused():
    cells = [
        cell(policy, size, 884736, 0.3) for policy in ("ntp", "lacy") for size in (791296, 2115072, 6114304)
    ]
    with pytest.raises(DataError, match=r"3 points .* too few to fit"):
        GROWTH["growth"](cells)
    with pytest.raises(DataError, match="0 points"):
        GROWTH["growth"](cells[:1])
