"""Gates and partners compared on the same people at the same call budget, judged by FActScore.

Rows differ in the trained model, the gate or the partner. Differences are paired over people; each setting is compared
with the reference gate of the reference model with the same partner.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from lacy_jax import files
from lacy_jax.cascade import Generation, Partner, Prompt, read_generations
from lacy_jax.config import changed
from lacy_jax.evaluation.detectors import bootstrap_ratio_difference, finite
from lacy_jax.evaluation.factscore import KnowledgeSource, get_judge, get_splitter, run_factscore
from lacy_jax.evaluation.factscore.formats import output_path
from lacy_jax.evaluation.factscore.pipeline import EMBEDDED, entries_of_generations
from lacy_jax.evaluation.run_texts import generate_texts
from lacy_jax.formatting import percent
from lacy_jax.report.run_record import ALONE, Setting
from lacy_jax.run_files import FACTSCORE_FOLDER
from lacy_jax.training.run import Run


def gate_study(
    settings: Sequence[Setting],
    runs: Mapping[str, Run],
    partners: Mapping[str, tuple[Partner, str]],
    people: Mapping[str, Sequence[Prompt]],
    knowledge: KnowledgeSource,
    workdir: epath.PathLike,
    *,
    reference: tuple[str, str],
    budget: float,
    judge: str = EMBEDDED,
    splitter: str = EMBEDDED,
    demonstrations: str = "",
) -> dict[str, Any]:
    """Write and judge texts; existing texts are not written again, nor judged again by the same judge.

    Args:
      settings: what to compare.
      runs: the runs by the names in `settings`.
      partners: (partner, reach of its calls) by the names in `settings`.
      people: groups of prompts; a prompt's id is the title of the article that its text is judged by.
      workdir: gets texts/GROUP/SETTING.jsonl and factscore/GROUP/.
      reference: (model, gate) that the others are compared with, for each partner.
      budget: the call budget of all settings.
      judge, splitter, demonstrations: see `factscore.get_judge` and `get_splitter`.

    Returns:
      JSON-safe: "budget", "reference", "judge", "splitter", "people" {group: count}, "rows" [{"group", "model",
      "gate", "partner", "call_share", "supported_per_text", figures of `factscore.factscore_figures`, "difference",
      "difference_ci": reference minus this in the unpenalised score, paired over people}].
    """
    decider, divider = get_judge(judge), get_splitter(splitter, demonstrations)
    workdir = epath.Path(workdir)
    rows: list[dict[str, Any]] = []
    shares: dict[tuple[str, Setting], tuple[np.ndarray, np.ndarray]] = {}
    for group, prompts in people.items():
        for setting in settings:
            path = workdir / "texts" / group / f"{setting.name}.jsonl"
            texts = _texts(setting, runs[setting.model], partners, prompts, budget, path)
            entries = [
                dataclasses.replace(entry, topic=prompt.id)
                for entry, prompt in zip(entries_of_generations(texts), prompts, strict=True)
            ]
            figures = run_factscore(
                entries, knowledge, out=_judged(workdir, group, setting), splitter=divider, judge=decider,
                exact_titles=True,
            )  # fmt: skip
            shares[group, setting] = supported_shares(verdict_counts(workdir, group, setting))
            rows.append(
                {
                    "group": group,
                    **dataclasses.asdict(setting),
                    "call_share": float(np.mean([text.call_share for text in texts])),
                    "supported_per_text": figures["supported"] / max(figures["answered"], 1),
                    **figures,
                }
            )
            print(_line(rows[-1]), file=sys.stderr, flush=True)
    for row, (group, setting) in zip(rows, shares, strict=True):
        row |= _difference(shares, group, setting, reference, settings)
    return {
        "budget": budget,
        "reference": list(reference),
        "judge": decider.name,
        "splitter": divider.name,
        "people": {group: len(prompts) for group, prompts in people.items()},
        "rows": rows,
    }


def study_table(result: dict[str, Any]) -> str:
    """The rows as text, by group and partner, best first."""
    lines = [
        f"call budget {result['budget']:.0%}; judge: {result['judge']}; splitter: {result['splitter']}; "
        f"difference: {' + '.join(result['reference'])} minus the row, unpenalised, paired over people"
    ]
    for group, count in result["people"].items():
        for partner in dict.fromkeys(row["partner"] for row in result["rows"]):
            rows = [row for row in result["rows"] if (row["group"], row["partner"]) == (group, partner)]
            lines += ["", f"{count} {group} people, partner: {partner}", _HEADER]
            lines += [_line(row) for row in sorted(rows, key=lambda row: -(row["init_score"] or 0.0))]
    return "\n".join(lines)


_HEADER = f"{'':22}{'FActScore':>10}{'unpenalised':>13}{'supported/text':>16}{'facts/text':>12}{'calls':>8}  difference"


def _line(row: dict[str, Any]) -> str:
    name = row["model"] if row["gate"] == ALONE else f"{row['model']} + {row['gate']}"
    gap = row.get("difference")
    low, high = row.get("difference_ci") or (None, None)
    return (
        f"{name:22}{percent(row['score']):>10}{percent(row['init_score']):>13}{row['supported_per_text']:>16.2f}"
        f"{row['facts_per_text'] or 0.0:>12.2f}{percent(row['call_share']):>8}"
        + ("" if gap is None else f"  {percent(gap)} ({percent(low)} to {percent(high)})")
    )


def _texts(
    setting: Setting,
    run: Run,
    partners: Mapping[str, tuple[Partner, str]],
    prompts: Sequence[Prompt],
    budget: float,
    path: epath.Path,
) -> list[Generation]:
    if path.exists():
        return read_generations(path)
    partner, reach = partners[setting.partner] if setting.partner != ALONE else (None, "span")
    gate = setting.gate if partner else "auto"
    config = changed(
        run.config, {"generate.gate": gate, "generate.partner_reach": reach, "generate.budget": budget}
    )
    return generate_texts(run, config, prompts, partner, out=path).texts


def verdict_counts(workdir: epath.PathLike, group: str, setting: Setting) -> list[list[int]]:
    """[supported facts, facts with a verdict] of each text of a setting that `gate_study` has judged."""
    decisions = files.read_json(output_path(_judged(epath.Path(workdir), group, setting)), "scores")[
        "decisions"
    ]
    verdicts = [[fact["is_supported"] for fact in facts or ()] for facts in decisions]
    return [[own.count(True), len(own) - own.count(None)] for own in verdicts]


def _judged(workdir: epath.Path, group: str, setting: Setting) -> epath.Path:
    return workdir / FACTSCORE_FOLDER / group / f"{setting.name}.jsonl"


def supported_shares(counts: Sequence[Sequence[int]]) -> tuple[np.ndarray, np.ndarray]:
    """From `verdict_counts`: for each text the supported share of its facts (0 without facts), and whether it has any."""
    supported, facts = np.array(counts, float).T
    return supported / np.maximum(facts, 1), (facts > 0).astype(float)


def _difference(
    shares: Mapping[tuple[str, Setting], tuple[np.ndarray, np.ndarray]],
    group: str,
    setting: Setting,
    reference: tuple[str, str],
    settings: Sequence[Setting],
) -> dict[str, Any]:
    """The reference with the same partner (for a model alone, the reference's model alone) minus this setting."""
    model, gate = reference
    best = Setting(model) if setting.partner == ALONE else Setting(model, gate, setting.partner)
    if best == setting or best not in settings:
        return {"difference": None, "difference_ci": None}
    interval = bootstrap_ratio_difference(*shares[group, best], *shares[group, setting])
    return {
        "difference": finite(interval.estimate),
        "difference_ci": interval.ends,
    }
