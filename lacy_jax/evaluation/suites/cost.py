"""Suite cost: quality of the cascade's texts against their cost, at several call budgets and for the partner alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lacy_jax.cascade import Generation, get_partner
from lacy_jax.corpus import World, world_of
from lacy_jax.errors import ConfigError
from lacy_jax.evaluation import cost, factscore
from lacy_jax.evaluation.factscore import pipeline
from lacy_jax.evaluation.kept import Kept
from lacy_jax.evaluation.run_texts import make_partner, make_prompts
from lacy_jax.evaluation.suites.factscore import served
from lacy_jax.evaluation.suites.suite import (
    DEMONSTRATIONS,
    JUDGE,
    KNOWLEDGE,
    LIMIT,
    SERVER,
    SPLITTER,
    SUITES,
    Figures,
    Reported,
    Request,
    Suite,
    rows_of,
)
from lacy_jax.evaluation.world_facts import score_world
from lacy_jax.formatting import Table, number, percent, with_interval
from lacy_jax.run_files import FACTSCORE_FOLDER
from lacy_jax.training.run import Run, load_run


def _run(request: Request) -> Figures:
    run, config = request.run()
    kind, _, where = config.generate.partner.partition(":")
    partner_run = load_run(where) if kind == "checkpoint" else None
    if partner_run is None:
        partner = make_partner(config)
    else:
        partner = get_partner(
            config.generate.partner,
            reach=config.generate.partner_reach,
            load_run=lambda _: partner_run,
            rows=config.generate.batch_size,
        )
    if partner is None:
        raise ConfigError("config.generate.partner = 'none': the suite cost needs a partner")
    prompts = make_prompts(run, config)[: request[LIMIT] or None]
    judge = _world_judge(world) if (world := world_of(config.corpus)) else _text_judge(run, request)
    return cost.cost_curve(
        run,
        config,
        prompts,
        partner,
        judge,
        partner_run=partner_run,
        kept=Kept(run.workdir / "cost"),
        about=[request[JUDGE], request[SPLITTER], request[KNOWLEDGE]],
    )


def _world_judge(world: World) -> cost.Judge:
    def judge(texts: Sequence[Generation], name: str) -> dict[str, Any]:
        figures = score_world(texts, world)
        return {
            "judge": "the world's table",
            "quality": figures["true_fact_share"],
            "quality_ci": figures["true_fact_share_ci"],
            "facts_per_text": figures["stated_facts_per_text"],
        }

    return judge


def _text_judge(run: Run, request: Request) -> cost.Judge:
    folder = run.workdir / FACTSCORE_FOLDER
    knowledge = pipeline.open_knowledge(
        request.need(KNOWLEDGE, "the articles to judge the texts by, a JSONL corpus with titles"), folder
    )
    splitter, decider = served(request)

    def judge(texts: Sequence[Generation], name: str) -> dict[str, Any]:
        figures = factscore.run_factscore(
            pipeline.entries_of_generations(texts),
            knowledge,
            out=folder / f"cost-{name}.jsonl",
            splitter=splitter,
            judge=decider,
        )
        return {
            "judge": figures["judge"],
            "quality": figures["init_score"],
            "quality_ci": figures["init_score_ci"],
            "facts_per_text": figures["facts_per_text"],
        }

    return judge


def _table(reported: Reported) -> Table:
    rows = tuple(
        (
            name,
            str(row.get("who")),
            percent(row.get("budget")),
            percent(row.get("call_share")),
            with_interval(row.get("quality"), row.get("quality_ci")),
            number(row.get("tokens")),
            number(row.get("calls")),
            number(row.get("model_flops")),
            number(row.get("partner_flops")),
            number(row.get("partner_seconds")),
            str(row.get("judge")),
        )
        for name, figures in reported
        for row in rows_of(figures)
    )
    head = ("run", "who writes", "call budget", "realised", "supported facts", "tokens", "calls", "model FLOPs", "partner FLOPs", "partner seconds", "judge")  # fmt: skip
    note = "Per text. FLOPs are counted analytically; – if the size of the partner's model is unknown."
    return Table("Cost against quality", head, rows, note)


SUITES.add(
    Suite(
        "cost",
        "quality against tokens and floating-point operations of model and partner",
        _run,
        cost.cost_table,
        options=(LIMIT, KNOWLEDGE, JUDGE, SPLITTER, DEMONSTRATIONS, *SERVER),
        table=_table,
    )
)
