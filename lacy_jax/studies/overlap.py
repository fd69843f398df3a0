"""Do runs delegate the same tokens? Overlap of the tokens that two models would delegate on the same held-out text."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from lacy_jax.config import changed, reading_one_dataset
from lacy_jax.errors import ConfigError
from lacy_jax.evaluation.detectors import finite, top_share
from lacy_jax.evaluation.evaluate import score_run
from lacy_jax.evaluation.run_texts import SAMPLING_SEED
from lacy_jax.formatting import Table, aligned
from lacy_jax.objectives import GATES, get_policy
from lacy_jax.training import load_run
from lacy_jax.training.validation import TokenScores, validation_metrics

GATE = "call_margin"
MASKS = {
    "mask": "the tokens that the policy would delegate in each batch",
    "calls": f"the same number of tokens with the highest {GATE} of all",
}
FIGURES = ("nll", "nll_factual", "nll_other", f"wrong_fact_auroc/{GATE}", f"wrong_fact_ap/{GATE}")


def overlap_study(groups: Mapping[str, Sequence[epath.PathLike]], batches: int = 0) -> dict[str, Any]:
    """Compare runs that differ in one setting, with several seeds per value, on the same held-out batches.

    Two seeds of one value differ as well, so the effect of the setting is how much less two values share than two seeds.

    Args:
      groups: value -> run directories. All runs share dataset, policy (one that uses CALL) and call rate.
      batches: number of validation batches; 0 = the whole split.

    Returns:
      JSON-safe: "tokens", "call_rate"; "runs" {value: `FIGURES` of each run}; "overlap" {mask in `MASKS`: {"value" or
      "value / value": Jaccard index of each pair of runs}}.

    Raises:
      ConfigError: the runs differ in dataset, policy or call rate, or the policy does not use CALL.
    """
    scores: dict[str, list[TokenScores]] = {}
    asked: set[tuple[str, str, float]] = set()
    for value, workdirs in groups.items():
        for workdir in workdirs:
            run = load_run(workdir)
            c = run.config.objective
            asked.add((str(run.config.dataset.path), c.policy, c.call_rate))
            if len(asked) > 1 or not get_policy(c.policy).uses_call:
                raise ConfigError(
                    f"{workdir}: runs are compared token by token, so they need the same dataset and call rate, and the same policy, "
                    f"which must use CALL; got {' and '.join(str(one) for one in sorted(asked))}"
                )
            config = changed(reading_one_dataset(run.config, run.workdir, None), {"seed": SAMPLING_SEED})
            scores.setdefault(value, []).append(score_run(run, config, batches)[0])
    ((_, _, rate),) = asked
    masks = {name: {value: [_mask(name, s, rate) for s in each] for value, each in scores.items()} for name in MASKS}  # fmt: skip
    figures = {value: [_figures(s) for s in each] for value, each in scores.items()}
    return {
        "tokens": len(next(iter(scores.values()))[0]),
        "call_rate": rate,
        "runs": figures,
        "overlap": {name: dict(_overlaps(mask)) for name, mask in masks.items()},
    }


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Tokens in both masks [n] bool, divided by tokens in either; nan if both are empty."""
    either = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / either if either else float("nan")


def overlap_table(result: dict[str, Any]) -> str:
    """The study as text: mean and range over seeds, and over pairs of runs."""
    figures = [
        (value, *(_range([run[name] for run in runs]) for name in FIGURES))
        for value, runs in result["runs"].items()
    ]
    pairs = list(result["overlap"]["mask"])
    overlaps = [(pair, *(_range(result["overlap"][mask][pair]) for mask in MASKS)) for pair in pairs]
    about = (
        f"{result['tokens']:,} held-out tokens, call rate {result['call_rate']:.0%}; mean (lowest to highest)"
    )
    first = Table("Runs", ("runs", *FIGURES), tuple(figures), about)
    second = Table("Overlap of what is delegated (Jaccard)", ("runs", *MASKS), tuple(overlaps), "")
    return "\n\n".join(
        "\n".join([table.title, *aligned([table.head, *table.rows]), *filter(None, [table.note])])
        for table in (first, second)
    )


def _mask(name: str, scores: TokenScores, rate: float) -> np.ndarray:
    return (
        scores.called.astype(bool)
        if name == "mask"
        else top_share(np.asarray(GATES[GATE].score(scores)), rate)
    )


def _figures(scores: TokenScores) -> dict[str, float | None]:
    found = validation_metrics(scores, uses_call=True)
    return {name: finite(found.get(name, np.nan)) for name in FIGURES}


def _overlaps(masks: dict[str, list[np.ndarray]]) -> Iterator[tuple[str, list[float | None]]]:
    for value, own in masks.items():
        yield value, [finite(jaccard(a, b)) for a, b in itertools.combinations(own, 2)]
    for one, other in itertools.combinations(masks, 2):
        pairs = itertools.product(masks[one], masks[other])
        yield f"{one} / {other}", [finite(jaccard(a, b)) for a, b in pairs]


def _range(values: Sequence[float | None]) -> str:
    kept = [value for value in values if value is not None]
    return f"{np.mean(kept):.3f} ({min(kept):.3f} to {max(kept):.3f})" if kept else "–"
