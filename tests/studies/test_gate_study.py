"""The study of gates and partners: what it writes, what it reuses, and how it pairs."""

from __future__ import annotations

import dataclasses

import pytest
from evaluated_runs import evaluation_config, save_run

from lacy_jax.cascade import FactTablePartner, Generation, Prompt, read_generations, write_generations
from lacy_jax.corpus import Document, World
from lacy_jax.dataset import build_dataset
from lacy_jax.evaluation.factscore import KnowledgeSource
from lacy_jax.studies.gate_study import Setting, gate_study, study_table
from lacy_jax.training import load_run

PEOPLE = [f"{first} Bell" for first in ("Ada", "Cy", "Dora", "Eve")]
BORN = "was a chemist. {} was born in Oslo."
GOOD, BAD = Setting("lacy", "call_margin", "table"), Setting("ntp", "entropy", "table")


@pytest.fixture
def knowledge(tmp_path):
    texts = [Document(name, f"{name} {BORN.format(name)}", name) for name in PEOPLE]
    return KnowledgeSource.build(tmp_path / "people.db", texts)


def _text(name: str, text: str) -> Generation:
    return Generation(
        id=name, prompt=name, text=text, tokens=[1, 2], pieces=["a", "b"], origins=["model", "partner"],
        gate_scores=[0.0, None], spans=[(0, 1, "model"), (1, len(text), "partner")], calls=1, call_share=0.5, budget=0.5,
        gate="entropy", budget_met=True, budget_note="", partner_failures=0, stopped="eos",
    )  # fmt: skip


def _study(tmp_path, knowledge, settings, runs=None, partners=None, **options):
    prompts = [Prompt(name, name) for name in PEOPLE]
    runs = runs or dict.fromkeys(("lacy", "ntp"))
    return gate_study(
        settings, runs, partners or {}, {"seen": prompts}, knowledge, tmp_path, reference=("lacy", "call_margin"),
        budget=0.5, **options,
    )  # fmt: skip


def test_judged_paired_and_told(tmp_path, knowledge):
    folder = tmp_path / "texts" / "seen"
    write_generations(
        folder / f"{GOOD.name}.jsonl", [_text(n, f" was born in Oslo. {n} was a chemist.") for n in PEOPLE]
    )
    write_generations(
        folder / f"{BAD.name}.jsonl", [_text(n, f" was born in Rome. {n} was a chemist.") for n in PEOPLE]
    )
    result = _study(tmp_path, knowledge, [GOOD, BAD])
    good, bad = result["rows"]
    assert (good["init_score"], bad["init_score"]) == (1.0, 0.5)
    assert (good["supported_per_text"], bad["supported_per_text"]) == (2.0, 1.0)
    assert good["call_share"] == 0.5
    assert good["difference"] is None  # The reference itself.
    assert bad["difference"] == 0.5
    assert bad["difference_ci"] == [0.5, 0.5]  # The same gap for each person.
    table = study_table(result)
    assert "judge: embedded" in table
    assert table.index("lacy + call_margin  ") < table.index("ntp + entropy")


def test_an_empty_text_counts_for_neither_side(tmp_path, knowledge):
    folder = tmp_path / "texts" / "seen"
    some = [_text(n, f" was born in Oslo. {n} was a chemist.") for n in PEOPLE]
    write_generations(
        folder / f"{GOOD.name}.jsonl", [dataclasses.replace(some[0], text="", prompt=""), *some[1:]]
    )
    write_generations(folder / f"{BAD.name}.jsonl", some)
    good, bad = _study(tmp_path, knowledge, [GOOD, BAD])["rows"]
    assert (good["answered"], bad["answered"]) == (3, 4)
    assert bad["difference"] == 0.0


def test_written_by_runs_once(tmp_path, knowledge, monkeypatch):
    build_dataset(evaluation_config("lacy", tmp_path / "dataset"), tmp_path / "dataset")
    config = evaluation_config("lacy", tmp_path / "dataset")
    config.generate.update({"max_new_tokens": 12, "batch_size": 4})
    save_run(tmp_path / "lacy", config, 0)
    runs = {"lacy": load_run(tmp_path / "lacy")}
    partners = {"table": (FactTablePartner(World(60, 0), "word"), "word")}
    settings = [Setting("lacy"), GOOD]
    first = _study(tmp_path, knowledge, settings, runs, partners)
    alone, called = (read_generations(tmp_path / "texts" / "seen" / f"{s.name}.jsonl") for s in settings)
    assert [text.prompt for text in alone] == PEOPLE
    assert {text.gate for text in called} == {"call_margin"}
    assert not any(text.calls for text in alone)
    assert first["rows"][1]["call_share"] == pytest.approx(sum(t.call_share for t in called) / 4)
    monkeypatch.setattr("lacy_jax.studies.gate_study.generate_texts", None)  # A second call writes nothing.
    assert _study(tmp_path, knowledge, settings, runs, partners) == first
