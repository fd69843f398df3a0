"""Policies over several seeds: the cells of a comparison, read back, with intervals over seeds and people.

A cell is one policy trained with one seed: a JSON file with "policy", "seed", "gate" (chosen on held-out people), "rows"
(see `gate_study.verdict_counts`: "group", "gate", "partner", "budget", "call_share", "verdicts"), "valid" and "leakage".
"""

from __future__ import annotations

import collections
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

from lacy_jax import files
from lacy_jax.errors import DataError
from lacy_jax.evaluation.detectors import bootstrap_seeds_and_units, finite
from lacy_jax.formatting import percent
from lacy_jax.report.run_record import ALONE
from lacy_jax.studies.gate_study import supported_shares

BEST = "best"
"""The gate that a cell chose on held-out people, whichever it is."""


def seed_study(cells: Sequence[pathlib.Path], reference: str) -> dict[str, Any]:
    """Compare the policies of finished cells.

    Args:
      cells: JSON files, all of one size and one set of people.
      reference: the policy that the others are compared with, in the same group, with the same partner and budget, each
        with its own chosen gate.

    Returns:
      JSON-safe: "reference", "policies" {policy: {"seeds", "gates", "nll", "leakage", "auroc": {gate: of wrong facts on
      held-out text, by seed}}}, "rows" [{"group", "partner", "gate", "budget", "policy", "score", "score_ci", "by_seed",
      "supported" and "facts" (per text), "call_share", "difference", "difference_ci": reference minus this}]; scores are
      FActScore without the length penalty.

    Raises:
      DataError: no cells, or cells that were asked about different people.
    """
    if not cells:
        raise DataError("no finished cells: nothing to compare yet")
    records = [files.read_json(cell, "a finished cell") for cell in cells]
    if len({record["size"] for record in records}) > 1:
        raise DataError(f"cells of different sizes in one folder: {', '.join(cell.stem for cell in cells)}")
    found: dict[tuple[str, str, str, float], dict[str, list[dict[str, Any]]]] = collections.defaultdict(
        lambda: collections.defaultdict(list)
    )
    for record in records:
        for row in record["rows"]:
            gate = BEST if row["gate"] == record["gate"] else row["gate"]
            place = (row["group"], row["partner"], gate, row["budget"])
            found[place][record["policy"]].append(row)
    rows = []
    for place, policies in found.items():
        counts = {name: _stacked(place, seeds) for name, seeds in policies.items()}
        for name, seeds in policies.items():
            rows.append(
                {
                    **dict(zip(("group", "partner", "gate", "budget"), place)),
                    "policy": name,
                    "call_share": statistics.fmean(row["call_share"] for row in seeds),
                    **_facts(seeds),
                    **_figures(counts, name, reference),
                }
            )
    return {"reference": reference, "policies": _policies(records), "rows": rows}


def _facts(seeds: Sequence[dict[str, Any]]) -> dict[str, float]:
    supported, facts = np.concatenate([row["verdicts"] for row in seeds]).mean(0)
    return {"supported": float(supported), "facts": float(facts)}


def _stacked(place: Sequence[Any], seeds: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    if len({len(row["verdicts"]) for row in seeds}) > 1:
        raise DataError(f"cells were asked about different people: {place}")
    shares, answered = zip(*(supported_shares(row["verdicts"]) for row in seeds))
    return np.stack(shares), np.stack(answered)


def _figures(counts: dict[str, tuple[np.ndarray, np.ndarray]], name: str, reference: str) -> dict[str, Any]:
    shares, answered = counts[name]
    score = bootstrap_seeds_and_units(shares, answered)
    own: dict[str, Any] = {
        "score": finite(score.estimate),
        "score_ci": score.ends,
        "by_seed": [finite(np.divide(*pair)) for pair in zip(shares.sum(1), answered.sum(1))],
        "difference": None,
        "difference_ci": None,
    }
    if name != reference and reference in counts:
        gap = bootstrap_seeds_and_units(*counts[reference], shares, answered)
        own |= {"difference": finite(gap.estimate), "difference_ci": gap.ends}
    return own


def _policies(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    grouped: dict[str, list[dict[str, Any]]] = collections.defaultdict(list)
    for record in records:
        grouped[record["policy"]].append(record)
    return {
        name: {
            "seeds": sorted(record["seed"] for record in own),
            "gates": [record["gate"] for record in own],
            "nll": [record["valid"].get("nll") for record in own],
            "leakage": {
                group: [record["leakage"][group]["share"] for record in own]
                for group in own[0]["leakage"]
                if all(group in record["leakage"] for record in own)
            },
            "auroc": {
                gate: [record["held_out"]["gates"][gate]["wrong_fact_auroc"] for record in own]
                for gate in own[0]["held_out"]["gates"]
                if gate not in ("random", "oracle")
            },
        }
        for name, own in grouped.items()
    }


def seed_table(result: dict[str, Any]) -> str:
    """The comparison as text: by group, partner, gate and budget, best first."""
    lines = [
        f"FActScore without the length penalty, mean over seeds (95 % over seeds and people); difference: {result['reference']} "
        "minus the row, each with the gate chosen on held-out people"
    ]
    places = dict.fromkeys(
        tuple(row[key] for key in ("partner", "gate", "budget", "group")) for row in result["rows"]
    )
    for place in sorted(
        places, key=lambda place: (place[0] != "documents", place[0], place[1], -place[2], place[3])
    ):
        partner, gate, budget, group = place
        rows = [
            row
            for row in result["rows"]
            if all(row[key] == value for key, value in zip(("partner", "gate", "budget", "group"), place))
        ]
        head = "alone" if partner == ALONE else f"{partner}, gate {gate}, budget {percent(budget)}"
        lines += ["", f"{head}; {group} people"]
        lines += [_line(row) for row in sorted(rows, key=lambda row: -(row["score"] or 0.0))]
    lines += ["", "nll, gates chosen, and leakage of all questions, by seed"]
    for name, own in result["policies"].items():
        nll = " ".join(f"{value:.3f}" for value in own["nll"])
        leaked = " ".join(percent(value) for value in own["leakage"].get("all", ()))
        lines.append(f"  {name:18} nll {nll}; {' '.join(own['gates'])}; leakage {leaked or 'not measured'}")
    lines += ["", "AUROC of wrong facts on held-out text, by seed"]
    for name, own in result["policies"].items():
        gates = (f"{gate} {' '.join(f'{v:.3f}' for v in values)}" for gate, values in own["auroc"].items())
        lines.append(f"  {name:18} {'; '.join(gates)}")
    return "\n".join(lines)


def _line(row: dict[str, Any]) -> str:
    def ends(interval: Sequence[float] | None) -> str:
        return "" if interval is None else f" ({percent(interval[0])} to {percent(interval[1])})"

    gap = "" if row["difference"] is None else f"  {percent(row['difference'])}{ends(row['difference_ci'])}"
    seeds = " ".join(percent(value) for value in row["by_seed"])
    return (
        f"  {row['policy']:18}{percent(row['score']):>8}{ends(row['score_ci']):22}  seeds {seeds:24}"
        f"  facts {row['supported']:5.2f} of {row['facts']:5.2f}  calls {percent(row['call_share']):>6}{gap}"
    )
