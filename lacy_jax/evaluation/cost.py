"""What texts cost, in tokens and floating-point operations of model and partner, against their quality.

The model processes every token of a text once (thanks to its KV cache), and so does a partner that is one of our models.
FLOPs are counted analytically (`models.accounting`) for one forward pass, a third of training. Any other partner has
tokens and seconds, but no FLOPs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import ml_collections
import numpy as np

from lacy_jax.cascade import Generation, Partner, Prompt
from lacy_jax.cascade.partners.metering import Meter
from lacy_jax.config import changed
from lacy_jax.evaluation.kept import Kept, key_of
from lacy_jax.evaluation.run_texts import gate_calibration, gate_of, generate_texts
from lacy_jax.formatting import number, percent
from lacy_jax.models import forward_flops
from lacy_jax.run_files import SAMPLES_FOLDER
from lacy_jax.training.run import Run

BUDGETS = (0.0, 0.05, 0.10, 0.22, 0.40, 1.0)
"""Call budgets of the curve, from the model alone to the partner writing all that it can."""

PARTNER_ALONE = "partner-alone"
"""Name of the samples file with the texts that the partner wrote alone."""

Judge = Callable[[Sequence[Generation], str], dict[str, Any]]
"""(texts, name of their file) -> figures; the curve shows "quality"."""


def cost_of(generations: Sequence[Generation], run: Run, meter: Meter) -> dict[str, Any]:
    """Means per text, JSON-safe; `meter` counted the partner's work for these texts.

    Returns:
      "tokens": generated; "partner_tokens": the partner's share of them (in the model's tokens); "calls";
      "model_tokens_read": tokens of prompt and text; "model_flops";
      "partner_tokens_processed": read or written by the partner, in its own tokens, or None if unknown;
      "partner_flops": None if the partner is not one of our models; "flops": the sum, None if the partner's are unknown;
      "partner_seconds"; "exchanges"; "failures".
    """
    n = max(len(generations), 1)
    lengths = [
        len(run.tokenizer.with_prefix(run.tokenizer.encode(g.prompt))) + len(g.tokens) for g in generations
    ]
    own = sum(forward_flops(run.model_config, length) for length in lengths) / n
    processed = meter.tokens if meter.tokens or not meter.asked else None
    spent = meter.flops if meter.flops or not meter.asked else None
    return {
        "tokens": sum(len(g.tokens) for g in generations) / n,
        "partner_tokens": sum(g.origins.count("partner") for g in generations) / n,
        "calls": sum(g.calls for g in generations) / n,
        "model_tokens_read": sum(lengths) / n,
        "model_flops": own,
        "partner_tokens_processed": None if processed is None else processed / n,
        "partner_flops": None if spent is None else spent / n,
        "flops": None if spent is None else own + spent / n,
        "partner_seconds": meter.seconds / n,
        "exchanges": meter.exchanges,
        "failures": sum(g.partner_failures for g in generations),
    }


def cost_curve(
    run: Run,
    config: ml_collections.ConfigDict,
    prompts: Sequence[Prompt],
    partner: Partner,
    judge: Judge,
    *,
    partner_run: Run | None = None,
    kept: Kept | None = None,
    about: Any = "",
) -> dict[str, Any]:
    """Quality and cost of texts at each call budget of `BUDGETS`.

    Args:
      config: `generate.gate` and the other fields of the group; the budget is set here.
      partner_run: the run behind a checkpoint partner, which also writes alone, as the other end of the curve.
      kept: the finished rows of an interrupted curve.
      about: what the rows depend on besides run, config and prompts (judge, knowledge); JSON-safe.

    Returns:
      "gate", "partner", "prompts"; "rows" [{"budget", "who": "model alone" | "cascade" | "partner alone",
      "call_share", **figures of `judge`, **`cost_of`}], by budget.
    """
    gate = gate_of(run, config)
    scores = gate_calibration(run, config, gate)

    def row_of(budget: float, who: str) -> dict[str, Any]:
        alone = who == "partner alone"
        writer = partner_run if alone and partner_run else run
        asked = partner if who == "cascade" else None
        written = generate_texts(
            writer,
            changed(config, {"generate.budget": 0.0 if alone else budget}),
            prompts,
            asked,
            out=run.workdir / SAMPLES_FOLDER / f"{PARTNER_ALONE}.jsonl" if alone else None,
            scores=scores if asked else None,
        )
        shares = [text.call_share for text in written.texts]
        row = {
            "budget": budget,
            "who": who,
            "call_share": float(np.mean(shares)) if shares else None,
            **judge(written.texts, written.path.name.removesuffix(".jsonl")),
            **cost_of(written.texts, writer, written.meter),
        }
        if alone:  # The writer's tokens and FLOPs are the partner's.
            row |= {
                "call_share": 1.0,
                "partner_tokens": row["tokens"],
                "partner_tokens_processed": row["model_tokens_read"],
                "partner_flops": row["model_flops"],
                "model_tokens_read": 0.0,
                "model_flops": 0.0,
            }
        return row

    points = [(budget, "cascade" if budget > 0 else "model alone") for budget in BUDGETS]
    points += [(1.0, "partner alone")] if partner_run is not None else []
    settings = [run.step, config.generate.to_dict(), config.seed, partner.name, about]
    asked = [prompt.text for prompt in prompts]
    rows = []
    for budget, who in points:
        key = key_of(budget, who, settings, asked)
        row = kept.get(key) if kept else None
        if row is None:
            row = row_of(budget, who)
            if kept:
                kept.put(key, row)
        rows.append(row)
    if kept:
        kept.done()
    return {"gate": gate, "partner": partner.name, "prompts": len(prompts), "rows": rows}


def cost_table(result: dict[str, Any]) -> str:
    """The curve as text."""
    lines = [
        f"gate {result['gate']}, partner {result['partner']}, {result['prompts']} texts; per text:",
        f"{'':15}{'budget':>8}{'realised':>10}{'quality':>10}{'tokens':>8}{'calls':>7}{'model FLOPs':>13}{'partner FLOPs':>15}{'partner s':>11}",
    ]
    for row in result["rows"]:
        lines.append(
            f"{row['who']:15}{percent(row['budget']):>8}{percent(row['call_share']):>10}{percent(row['quality']):>10}"
            f"{row['tokens']:>8.1f}{row['calls']:>7.1f}{number(row['model_flops']):>13}"
            f"{number(row['partner_flops']) if row['partner_flops'] is not None else '–':>15}"
            f"{row['partner_seconds']:>11.3f}"
        )
    judge = next((row["judge"] for row in result["rows"] if row.get("judge")), None)
    return "\n".join([*lines, *([f"judge: {judge}"] if judge else [])])
