"""Methods side by side in the synthetic world, where every stated fact can be judged.

Data, steps, seed, people, partner and call budgets are the same; methods differ in the delegation policy that a model was
trained with and in the gate that calls the partner.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

import ml_collections
from etils import epath

from lacy_jax import files
from lacy_jax.config import changed
from lacy_jax.corpus import world_of
from lacy_jax.dataset import build_dataset
from lacy_jax.errors import ConfigError
from lacy_jax.evaluation.evaluate import evaluate_run
from lacy_jax.evaluation.run_texts import (
    gate_calibration,
    generate_texts,
    make_partner,
    make_prompts,
)
from lacy_jax.evaluation.world_facts import JudgedText, compare_texts, judge_text, truth_figures
from lacy_jax.formatting import percent
from lacy_jax.models import count_params
from lacy_jax.report.page import report_command
from lacy_jax.run_files import DATASET_FOLDER, RESULTS_FILE
from lacy_jax.training import load_run, train

BASELINE = "ntp"


@dataclasses.dataclass(frozen=True)
class Method:
    """A method of the comparison.

    Attributes:
      name: its row ("ntp+margin").
      config: the run's config; methods with the same policy share one trained model.
      gate: the gate that decides when to call; None = the model writes alone.
    """

    name: str
    config: ml_collections.ConfigDict
    gate: str | None


def compare(
    methods: Sequence[Method], workdir: epath.PathLike, budgets: Sequence[float], budget: float | None = None
) -> dict[str, Any]:
    """Prepare, train, evaluate, generate, judge and report; finished steps are not repeated.

    Args:
      methods: their configs must agree in corpus, tokenizer, labels and dataset.
      workdir: gets dataset/, one run directory per policy, results.json and report.html.
      budgets: call budgets, as shares of the generated tokens.
      budget: the budget of the headline figures; default the largest.

    Returns:
      The content of results.json: "budget"; "runs" {method: figures of `truth_figures`, "params", "tokens" (trained on),
      "gate"}; "differences", see `paired_differences`; "by_budget" {budget: {method: figures}}.

    Raises:
      LacyError: any step failed.
    """
    workdir = epath.Path(workdir)
    budget = max(budgets) if budget is None else budget
    dataset = workdir / DATASET_FOLDER
    placed = [changed(method.config, {"dataset.path": str(dataset)}) for method in methods]
    build_dataset(placed[0], dataset)
    configs = {config.objective.policy: config for config in placed}
    for policy, config in configs.items():
        _say(f"train {policy}")
        train(config, workdir / policy)
    for policy in configs:
        _say(f"evaluate {policy}")
        evaluate_run(
            workdir / policy, baseline=workdir / BASELINE if BASELINE in configs else None, batches=16
        )

    world = world_of(methods[0].config.corpus)
    if world is None:
        raise ConfigError(
            "a comparison judges texts by the world's table, so it needs config.corpus.kind = 'world'"
        )
    table: dict[float, dict[str, Any]] = {share: {} for share in budgets}
    at_budget: dict[str, list[JudgedText]] = {}
    for method in methods:
        run = load_run(workdir / method.config.objective.policy)
        config = configs[method.config.objective.policy]
        prompts, partner = make_prompts(run, config), make_partner(config) if method.gate else None
        scores = gate_calibration(run, config, method.gate) if method.gate else None
        about = {
            "params": count_params(run.model_config),
            "tokens": config.train.steps * config.input.batch_size * config.input.seq_len,
            "gate": method.gate,
        }
        figures: dict[str, Any] = {}
        judged: list[JudgedText] = []
        for share in budgets:
            if method.gate or not figures:  # The budget does not matter to a model alone.
                _say(f"generate {method.name}" + (f" at {share:.0%}" if method.gate else ""))
                at = changed(config, {"generate.gate": method.gate or "auto", "generate.budget": share})
                texts = generate_texts(run, at, prompts, partner, scores=scores).texts
                judged = [judge_text(text, world) for text in texts]
                figures = {**truth_figures(judged), **about}
            table[share][method.name] = figures
            if share == budget:
                at_budget[method.name] = judged
    results = {
        "budget": budget,
        "runs": table[budget],
        "differences": paired_differences(at_budget),
        "by_budget": {f"{share:g}": row for share, row in table.items()},
    }
    files.write_json(workdir / RESULTS_FILE, results)
    _say(f"report {report_command([workdir])}")
    return results


def paired_differences(texts: dict[str, list[JudgedText]]) -> dict[str, Any]:
    """The last method compared with each of the others, over the same people.

    Returns:
      "reference", the name of the last method, and "rows" {other: figures of `compare_texts`, last minus other}.
    """
    *others, reference = texts
    rows = {name: compare_texts(texts[reference], texts[name]) for name in others}
    return {"reference": reference, "rows": rows}


def comparison_table(results: dict[str, Any]) -> str:
    """The results as text: true share, true facts per text and realised call share at each budget."""
    lines = []
    for share, row in results["by_budget"].items():
        lines.append(f"call budget {float(share):.0%}")
        lines.append(
            f"  {'method':14}{'true share':>12}{'95 % interval':>18}{'true/text':>11}{'stated/text':>13}{'calls':>8}"
        )
        for name, f in row.items():
            low, high = f["true_fact_share_ci"] or (None, None)
            lines.append(
                f"  {name:14}{percent(f['true_fact_share']):>12}{percent(low) + ' to ' + percent(high):>18}"
                f"{f['true_facts_per_text']:>11.2f}{f['stated_facts_per_text']:>13.2f}{percent(f['call_share']):>8}"
            )
    return "\n".join(lines)


def _say(line: str) -> None:
    print(f"== {line}", file=sys.stderr, flush=True)
