"""How the lead of `lacy` over `ntp` with its best gate grows: three model sizes, two lengths of training, real text.

    python experiments/growth.py --workdir=runs/growth          # all of it; a second call goes on
    python experiments/growth.py --workdir=runs/growth --only=table

Each point trains `ntp` and `lacy` as experiments/wiki_comparison.py does (its `--cpu --brief`): openings of Wikipedia biographies,
the gate chosen on 40 held-out people, then texts about 100 people of the training text and 100 others, BM25 over documents
as partner at a call budget of 22 %. Three leads, `lacy` minus `ntp`: FActScore without the length penalty; facts right on held-out
text if the truth is filled in at 22 % of the positions (each with the gate that is best at it); AUROC of wrong facts.
A plane, lead = a + b log10(parameters) + c log10(tokens), is fitted to each by least squares, and what it predicts for the paper's
334M model after 50B tokens is printed with its 95 % interval (Student's t; with one seed the residuals stand for the seeds' noise).

`get_config` arg: as experiments/wiki_comparison.py.

Cost: about three hours of one CPU core; labels by a real parser another quarter of an hour. Results, not what one would hope
for: docs/results/growth.md.
"""

from __future__ import annotations

import argparse
import itertools
import pathlib
import runpy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from lacy_jax import files
from lacy_jax.errors import DataError, LacyError
from lacy_jax.formatting import aligned
from lacy_jax.report.run_record import ALONE

SIZES = ("1m", "2m", "6m")
EPOCHS = ("0.15", "0.45")
POLICIES = ("ntp", "lacy")
BUDGET = "0.22"
PAPER = (334e6, 50e9)
"""Parameters and tokens of arXiv:2602.12005."""
_COMPARISON = runpy.run_path(str(pathlib.Path(__file__).parent / "wiki_comparison.py"))
get_config = _COMPARISON["get_config"]


def main(argv: list[str] | None = None) -> int:
    """Every point, smallest first; then the table, the fits, and WORKDIR/growth.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/growth"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time, each in its own process")
    parser.add_argument("--parser", default="", help="folder of a spaCy pipeline for the labels")
    parser.add_argument("--only", choices=("table",), help="only this part")
    options = parser.parse_args(argv)
    common = [f"--workdir={options.workdir}", f"--policies={','.join(POLICIES)}", f"--seeds={options.seeds}"]
    common += ["--cpu", "--brief", f"--jobs={options.jobs}", f"--parser={options.parser}"]
    for epochs, size in itertools.product(EPOCHS, SIZES):
        if options.only is None:
            code = _COMPARISON["main"]([*common, f"--size={size}", f"--epochs={epochs}"])
            if code:
                return int(code)
    try:
        cells = [
            files.read_json(path, "a finished cell")
            for path in sorted(options.workdir.glob("cells/*/*.json"))
        ]
        result = growth(cells)
    except LacyError as error:
        print(f"growth: {error}", file=sys.stderr)
        return 2
    files.write_json(options.workdir / "growth.json", result)
    print(growth_table(result))
    return 0


def growth(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Leads of `lacy` over `ntp` by size and length of training, and a plane through each kind of lead.

    Args:
      cells: records of experiments/wiki_comparison.py, several sizes and lengths of training.

    Returns:
      JSON-safe: "points" [{"parameters", "tokens", "seed", "ntp", "lacy", "lead": {measure: value}}], "fits" {measure:
      {"intercept", "per_decade_of_parameters", "per_decade_of_tokens", "at_paper", "fitted"}}, each a list [estimate, low, high],
      95 %, "fitted" one for each point; low and high are None if there are not more points than coefficients.

    Raises:
      DataError: the points do not span a plane.
    """
    found: dict[tuple[int, int, int], dict[str, Mapping[str, Any]]] = {}
    for cell in cells:
        place = (cell["parameters"], cell["tokens"], cell["seed"])
        found.setdefault(place, {})[cell["policy"]] = measures(cell)
    points = []
    for (parameters, tokens, seed), both in sorted(found.items()):
        if set(POLICIES) <= set(both):
            lead = {name: both["lacy"][name] - both["ntp"][name] for name in both["ntp"]}
            points.append({"parameters": parameters, "tokens": tokens, "seed": seed, **both, "lead": lead})
    places = np.log10([[point["parameters"], point["tokens"]] for point in points])
    if len(points) < 3 or np.linalg.matrix_rank(places - places.mean(0), tol=1e-6) < 2:
        raise DataError(
            f"{len(points)} points with both {' and '.join(POLICIES)}: too few to fit growth over size and tokens; "
            "run the experiment without --only"
        )
    fits = {
        name: plane(places, np.asarray([point["lead"][name] for point in points]))
        for name in points[0]["lead"]
    }
    return {"points": points, "fits": fits}


def measures(cell: Mapping[str, Any]) -> dict[str, float]:
    """Of one cell, shares: FActScore by group with the chosen gate, facts right at the budget, AUROC of wrong facts."""
    gates = {name: row for name, row in cell["held_out"]["gates"].items() if name not in ("random", "oracle")}
    scores = {
        f"FActScore {row['group']}": row["init_score"] or 0.0
        for row in cell["rows"]
        if row["partner"] != ALONE and row["gate"] == cell["gate"]
    }
    return {
        **scores,
        "facts right": max(row["factual_right"][BUDGET] for row in gates.values()),
        "AUROC": max(row["wrong_fact_auroc"] for row in gates.values()),
    }


def plane(places: np.ndarray, leads: np.ndarray) -> dict[str, Any]:
    """Least squares of leads, [n], over log10 of parameters and tokens, [n, 2]; see `growth` for what it returns."""
    centre = places.mean(0)
    design = np.column_stack([np.ones(len(leads)), places - centre])
    solution = np.linalg.lstsq(design, leads, rcond=None)[0]
    free = len(leads) - design.shape[1]
    error = float(np.sum((leads - design @ solution) ** 2)) / free if free else float("nan")
    spread = np.linalg.inv(design.T @ design)
    asked = np.vstack([np.eye(3), [1.0, *(np.log10(PAPER) - centre)], design])
    found = [_interval(row @ solution, row @ spread @ row * error, free) for row in asked]
    names = ("intercept", "per_decade_of_parameters", "per_decade_of_tokens", "at_paper")
    return {**dict(zip(names, found)), "fitted": found[len(names) :]}


def _interval(estimate: float, variance: float, free: int) -> list[float | None]:
    if not free:
        return [float(estimate), None, None]
    half = float(stats.t.ppf(0.975, free) * np.sqrt(variance))
    return [float(estimate), float(estimate) - half, float(estimate) + half]


def growth_table(result: dict[str, Any]) -> str:
    """The points, then the fits, in per cent or points."""
    names = list(result["fits"])
    head = ["parameters", "tokens", "seed", *(f"{name}: ntp, lacy, lead" for name in names)]
    rows = [head]
    for point in result["points"]:
        shown = [
            f"{100 * point['ntp'][name]:.1f}  {100 * point['lacy'][name]:.1f}  {100 * point['lead'][name]:+.1f}"
            for name in names
        ]
        rows.append([f"{point['parameters']:,}", f"{point['tokens']:,}", str(point["seed"]), *shown])
    labels = {
        "intercept": "lead in the middle",
        "per_decade_of_parameters": "per 10 x parameters",
        "per_decade_of_tokens": "per 10 x tokens",
        "at_paper": f"at {PAPER[0] / 1e6:.0f}M parameters, {PAPER[1] / 1e9:.0f}B tokens",
    }
    fits = [["lead in points (95 %)", *names]]
    for key, label in labels.items():
        fits.append([label, *(_shown(result["fits"][name][key]) for name in names)])
    return "\n".join([*aligned(rows), "", *aligned(fits)])


def _shown(interval: Sequence[float | None]) -> str:
    estimate, low, high = interval
    assert estimate is not None
    known = low is not None and high is not None
    return f"{100 * estimate:+.1f}" + (f" ({100 * low:+.1f} to {100 * high:+.1f})" if known else "")


if __name__ == "__main__":
    sys.exit(main())
