"""Made-up runs of the quickstart's shape: enough to draw every part of a report, in no time."""

from __future__ import annotations

import json
import pathlib

import numpy as np

from lacy_jax.config import get_default_config, to_json
from lacy_jax.corpus import World
from lacy_jax.evaluation import calls, world_facts
from lacy_jax.studies.comparison import paired_differences
from lacy_jax.training.validation import TokenScores

WORLD = World(people=50, seed=3)
METHODS = {"ntp": 0.2, "ntp+entropy": 0.55, "ntp+margin": 0.66, "loss": 0.74, "lacy": 0.94}


def make_scores(seed=0, n=4000, skill=4.0) -> TokenScores:
    """Tokens of which a quarter are factual; the CALL logit knows of wrong facts with `skill`."""
    rng = np.random.default_rng(seed)
    factual = rng.random(n) < 0.25
    wrong = rng.random(n) < np.where(factual, 0.7, 0.2)
    max_z = rng.normal(8, 1, n)
    lse = max_z + rng.gamma(2.0, 0.3, n) + wrong
    called = factual & wrong & (rng.random(n) < 0.8)
    return TokenScores(
        nll=np.where(wrong, rng.gamma(3.0, 1.5, n), rng.gamma(1.0, 0.3, n)).astype(np.float32),
        call_logit=(rng.normal(3, 1.5, n) + skill * (factual & wrong)).astype(np.float32),
        lse=lse.astype(np.float32),
        max_z=max_z.astype(np.float32),
        second_z=(max_z - rng.gamma(2.0, np.where(wrong, 0.5, 2.0), n)).astype(np.float32),
        entropy=(rng.gamma(2.0, 0.5, n) + wrong).astype(np.float32),
        top1_correct=~wrong,
        factual=factual,
        called=called,
        learned=~called,
    )


def make_generation(index, truth, budget, rng, variant=0):
    """A biography in which a share `truth` of the facts is right, some of them lent by the partner."""
    document, prompt = WORLD.text(index, variant), WORLD.prompt(index, variant)
    text, at = prompt, len(prompt)
    spans: list[list] = []

    def write(piece, who):
        nonlocal text
        start = len(text) - len(prompt)
        text += piece
        spans.append([start, start + len(piece), who])

    for fact in document.facts:
        write(document.text[at : fact.start], "model")
        if budget and rng.random() < truth:
            write(fact.value, "partner")
        else:
            person = WORLD.people[index if rng.random() < truth else int(rng.integers(50))]
            write(person.attributes[fact.attribute], "model")
        at = fact.end
    write(document.text[at:], "model")
    origins = [who for start, end, who in spans for _ in range(1 + (end - start) // 4)]
    return {
        "id": str(index), "prompt": prompt, "text": text[len(prompt) :], "spans": spans, "origins": origins,
        "tokens": list(range(len(origins))), "budget_met": True, "partner_failures": 0,
    }  # fmt: skip


def make_samples(people=12):
    rng = np.random.default_rng(0)
    return {
        name: [make_generation(i, truth, 0.0 if name == "ntp" else 0.22, rng) for i in range(people)]
        for name, truth in METHODS.items()
    }


def make_results(samples):
    scored = {
        name: {**world_facts.score_world(texts, WORLD), "params": 812_544, "tokens": 1_843_200}
        for name, texts in samples.items()
    }
    by_budget = {}
    for budget in (0.05, 0.1, 0.22):
        rng = np.random.default_rng(1)
        share = {name: 0.2 + (truth - 0.2) * budget / 0.22 for name, truth in METHODS.items()}
        texts = {
            n: [make_generation(i, share[n], budget * (n != "ntp"), rng) for i in range(8)] for n in METHODS
        }
        by_budget[f"{budget:g}"] = {
            name: {
                **world_facts.score_world(found, WORLD),
                "call_share": budget * 0.97 if name != "ntp" else 0.0,
            }
            for name, found in texts.items()
        }
    judged = {
        name: [world_facts.judge_text(text, WORLD) for text in texts] for name, texts in samples.items()
    }
    differences = paired_differences(judged)
    return {"budget": 0.22, "runs": scored, "differences": differences, "by_budget": by_budget}


def make_run(folder: pathlib.Path, policy: str, *, evaluation=True, samples=None) -> pathlib.Path:
    """A run directory as `lacy train` leaves it."""
    folder.mkdir(parents=True)
    config = get_default_config()
    config.objective.policy = policy
    config.corpus.people, config.corpus.world_seed = WORLD.size, WORLD.seed
    (folder / "config.json").write_text(to_json(config))
    session = {
        "start_step": 0, "started": "2026-01-02T03:04:05Z", "command": f"lacy train --workdir={folder.name}",
        "lacy_jax": "0.1.0", "git": {"commit": "0123abc", "changed": True}, "python": "3.11.2", "platform": "Linux",
        "packages": {"jax": "0.10.2", "flax": "0.12.8"}, "devices": {"platform": "cpu", "kind": "cpu", "count": 1},
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps([session]))
    rng = np.random.default_rng(len(policy))
    offset = {"ntp": 0.0, "loss": 0.3, "lacy": -0.1}.get(policy, 0.0)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(10, 451, 10):
            nll = 1.0 + 6 * np.exp(-step / 90) + offset + 0.03 * rng.normal()
            row = {
                "step": step, "split": "train", "loss": nll * (0.8 if policy == "lacy" else 1), "nll_all": nll,
                "nll_factual": nll + 2, "nll_other": nll - 0.5, "nll_learned": nll - 0.2, "nll_called": nll + 3,
                "factual_rate": 0.24 + 0.01 * rng.normal(), "call_rate": 0.0 if policy == "ntp" else 0.15,
                "threshold": 1.5 + offset, "p_call": 0.0 if policy == "ntp" else 0.15 + 0.05 * rng.random(),
                "grad_norm": 1.0 + rng.random(), "learning_rate": 3e-3 * step / 450, "tokens_per_s": 21_000.0,
                "mfu": 0.31, "input_wait_share": 0.01, "total_tokens": step * 4096.0, "total_learned_tokens": step * 3500.0,
            }  # fmt: skip
            file.write(json.dumps(row) + "\n")
            if step % 150 == 0:
                valid = {
                    "nll": nll + 0.05,
                    "nll_factual": nll + 2,
                    "nll_other": nll - 0.4,
                    "wrong_fact_auroc/margin": 0.9,
                }
                file.write(json.dumps({"step": step, "split": "valid", **valid}) + "\n")
    if evaluation:
        scores, base = make_scores(skill=5.0 if policy == "lacy" else 2.0), make_scores(seed=0, skill=0.0)
        figures = calls.call_figures(scores, [1000] * 4, policy != "ntp", baseline=base)
        (folder / "evaluation.json").write_text(json.dumps({"policy": policy, **figures}))
    if samples:
        (folder / "samples").mkdir()
        lines = "".join(json.dumps(line) + "\n" for line in samples)
        (folder / "samples" / "450-call_margin-0.22.jsonl").write_text(lines)
    return folder
