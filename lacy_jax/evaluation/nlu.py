"""Language understanding through lm-evaluation-harness, on local test sets."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from lacy_jax.errors import ConfigError, DataError
from lacy_jax.evaluation.harness_tasks import TASKS, write_tasks
from lacy_jax.evaluation.kept import Kept, key_of
from lacy_jax.models import Transformer
from lacy_jax.tokenizer import Tokenizer

_METRICS = ("acc", "acc_norm", "perplexity")


def run_nlu(
    model: Transformer,
    tokenizer: Tokenizer,
    data: epath.PathLike,
    folder: epath.PathLike,
    *,
    tasks: tuple[str, ...] = TASKS,
    limit: int = 0,
    batch_size: int = 16,
    kept: Kept | None = None,
    about: Any = "",
) -> dict[str, Any]:
    """Score the model alone on local variants of the tasks, one after the other.

    Args:
      data: folder of the test sets, see `harness_tasks.write_tasks`.
      folder: folder for the task files.
      tasks: names in `harness_tasks.TASKS`.
      limit: items per task (for BLiMP, per paradigm); 0 = all.
      kept: figures of the tasks that an interrupted run has finished.
      about: what else the figures depend on (the step of the run); JSON-safe.

    Returns:
      "harness": its version; "limit"; "tasks" {task: {"acc", "acc_stderr", "acc_norm", ..., "items", "right"}}, JSON-safe,
      where "right" has a 0 or 1 per item, in order, for comparisons paired over items;
      "acc_mean": the paper's mean, over ARC-Easy, HellaSwag, PIQA and Social IQA (None unless all were run).

    Raises:
      ConfigError: the harness is not installed.
      DataError: a test set is missing or damaged.
    """
    if importlib.util.find_spec("lm_eval") is None:
        raise ConfigError("the nlu suite needs lm-evaluation-harness: pip install 'lacy_jax[nlu]'")
    names = write_tasks(data, folder, tasks)
    import datasets
    import lm_eval
    from lm_eval.tasks import TaskManager

    from lacy_jax.evaluation.harness import LacyLM

    datasets.disable_progress_bars()  # There would be one per file, 67 for BLiMP, each for an instant.
    harness = f"lm_eval {lm_eval.__version__}"
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    wrapper = LacyLM(model, tokenizer, batch_size=batch_size)
    rows: dict[str, dict[str, Any]] = {}
    for name in names:
        key = key_of(name, limit, harness, tokenizer.hash, about)
        row = kept.get(key) if kept else None
        if row is None:
            found = lm_eval.simple_evaluate(
                model=wrapper, tasks=[name], task_manager=manager, limit=limit or None, bootstrap_iters=1000
            )
            if found is None:
                raise DataError(f"the harness gave no results for {name}")
            row = _row(found["results"][name], (found.get("n-samples") or {}).get(name))
            row["right"] = _right(found.get("samples") or {})
            row["items"] = row["items"] or len(row["right"])  # For a group the harness counts only its parts.
            if kept:
                kept.put(key, row)
        rows[name.removeprefix("lacy_")] = row
    if kept:
        kept.done()
    paper = [rows.get(task, {}).get("acc") for task in ("arc_easy", "hellaswag", "piqa", "social_iqa")]
    known = [value for value in paper if value is not None]
    return {
        "harness": harness,
        "limit": limit,
        "tasks": rows,
        "acc_mean": sum(known) / len(known) if len(known) == len(paper) else None,
    }


def nlu_table(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    lines = [
        f"{result['harness']}, CALL excluded"
        + (f", first {result['limit']} items" if result["limit"] else "")
    ]
    for task, row in result["tasks"].items():
        cells = [f"{name} {row[name]:.3f}" for name in _METRICS if row.get(name) is not None]
        lines.append(f"{task:14}{'  '.join(cells)}" + (f"  ({row['items']} items)" if row["items"] else ""))
    if result["acc_mean"] is not None:
        lines.append(f"mean accuracy of ARC-Easy, HellaSwag, PIQA, Social IQA: {result['acc_mean']:.3f}")
    return "\n".join(lines)


def _right(samples: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """ "0110...": a 1 for each right item; the parts of a group are in the order of their names."""
    items = (
        item for name in sorted(samples) for item in sorted(samples[name], key=lambda one: one["doc_id"])
    )
    return "".join(str(int(item["acc"])) for item in items if "acc" in item)


def _row(figures: Mapping[str, Any], samples: Mapping[str, Any] | None) -> dict[str, Any]:
    row: dict[str, Any] = {"items": None if samples is None else int(samples.get("effective", 0))}
    for metric in _METRICS:
        for key, name in ((f"{metric},none", metric), (f"{metric}_stderr,none", f"{metric}_stderr")):
            value = figures.get(key)
            if isinstance(value, int | float):
                row[name] = float(value)
    return row
