"""Cells of a comparison read back: pairing, seeds, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest

from lacy_jax import files
from lacy_jax.errors import DataError
from lacy_jax.studies.seed_study import seed_study, seed_table


def _cell(folder, policy, seed, supported, gate="margin", size="2m", facts=4):
    rows = [
        {
            "group": "seen", "partner": partner, "gate": used, "budget": 0.22, "call_share": 0.2,
            "verdicts": [[max(0, int(count) - less), facts] for count in supported],
        }
        for partner, used, less in (("alone", "alone", 1), ("documents", gate, 0), ("documents", "random", 1))
    ]  # fmt: skip
    path = folder / f"{size}-{policy}-{seed}.json"
    record = {
        "policy": policy, "seed": seed, "size": size, "gate": gate, "rows": rows, "valid": {"nll": 3.0 + seed / 10},
        "leakage": {"all": {"questions": 10, "share": 0.1}},
        "held_out": {"gates": {"margin": {"wrong_fact_auroc": 0.7 + seed / 10}, "random": {"wrong_fact_auroc": 0.5}}},
    }  # fmt: skip
    files.write_json(path, record)
    return path


def test_policies_are_compared_with_the_gate_that_each_chose(tmp_path):
    cells = [
        _cell(tmp_path, "lacy", seed, [3, 3, 4, 3], gate)
        for seed, gate in ((0, "call_margin"), (1, "call_prob"))
    ]
    cells += [_cell(tmp_path, "ntp", seed, [1, 1, 2, 1]) for seed in range(2)]
    result = seed_study(cells, "lacy")
    rows = {(row["policy"], row["partner"], row["gate"]): row for row in result["rows"]}
    lacy, ntp = (rows[policy, "documents", "best"] for policy in ("lacy", "ntp"))
    assert lacy["score"] == pytest.approx(13 / 16)
    assert lacy["by_seed"] == pytest.approx([13 / 16] * 2)
    assert lacy["difference"] is None
    assert ntp["difference"] == pytest.approx(0.5)
    assert ntp["difference_ci"] == pytest.approx([0.5, 0.5]), "the same gap for every person and seed"
    assert rows["lacy", "documents", "random"]["score"] == pytest.approx(9 / 16)
    assert (lacy["supported"], lacy["facts"]) == (pytest.approx(13 / 4), 4)
    assert result["policies"]["lacy"]["gates"] == ["call_margin", "call_prob"]
    text = seed_table(result)
    assert text.index("documents, gate best") < text.index("alone; seen people")
    assert "facts  3.25 of  4.00" in text
    assert "margin 0.700 0.800" in text
    assert "random 0.5" not in text
    assert "nll 3.000 3.100; call_margin call_prob; leakage 10.0 % 10.0 %" in text.replace("\xa0", " ")


def test_seeds_that_differ_widen_the_interval(tmp_path):
    r = np.random.default_rng(0)
    people = r.integers(0, 5, 60)
    same = [_cell(tmp_path, "lacy", seed, people) for seed in range(3)]
    apart = [
        _cell(tmp_path, "loss", seed, np.clip(people + shift, 0, 4)) for seed, shift in enumerate((-1, 0, 1))
    ]
    width = {
        row["policy"]: row["score_ci"][1] - row["score_ci"][0]
        for row in seed_study(same + apart, "lacy")["rows"]
        if row["partner"] == "documents" and row["gate"] == "best"
    }
    assert width["loss"] > 1.2 * width["lacy"]


def test_texts_without_facts_count_in_neither_sum(tmp_path):
    cell = _cell(tmp_path, "lacy", 0, [2, 0], facts=4)
    record = files.read_json(cell, "cell")
    for row in record["rows"]:
        row["verdicts"].append([0, 0])
    files.write_json(cell, record)
    row = next(row for row in seed_study([cell], "lacy")["rows"] if row["partner"] == "documents")
    assert row["score"] == pytest.approx(0.25)


def test_cells_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(DataError, match="no finished cells"):
        seed_study([], "lacy")
    cells = [_cell(tmp_path, "lacy", 0, [1, 2]), _cell(tmp_path, "lacy", 1, [1, 2, 3])]
    with pytest.raises(DataError, match="different people"):
        seed_study(cells, "lacy")
    with pytest.raises(DataError, match="different sizes"):
        seed_study([cells[0], _cell(tmp_path, "lacy", 1, [1, 2], size="8m")], "lacy")
