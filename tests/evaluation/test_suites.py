"""`lacy evaluate --suite=...` end to end on a tiny run, its costs, and its place in the report."""

from __future__ import annotations

import json
import pathlib
import shutil

import pytest
from evaluated_runs import evaluation_config, save_run
from fake_runs import make_run
from test_leakage import ITEM, _archive

from lacy_jax import cli
from lacy_jax.cascade import FactTablePartner
from lacy_jax.cascade.partners.base import Partner
from lacy_jax.cascade.partners.metering import MeteredPartner
from lacy_jax.config import changed
from lacy_jax.corpus import World
from lacy_jax.dataset import build_dataset
from lacy_jax.errors import ConfigError, PartnerError
from lacy_jax.evaluation import cost, run_texts
from lacy_jax.evaluation.kept import Kept
from lacy_jax.evaluation.suites import SUITES, Request, all_options, run_suite
from lacy_jax.evaluation.suites.suite import DATA
from lacy_jax.models import flops_per_token
from lacy_jax.report.page import report_command
from lacy_jax.training import load_run

ADA = "Ada Bell (7 May 1956 – 3 June 2001) was a Norwegian chemist. She won the Polar Prize in 1990."


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run with the world's data, a folder of test sets, and a knowledge source."""
    folder = tmp_path_factory.mktemp("suites")
    build_dataset(evaluation_config("lacy", folder / "dataset"), folder / "dataset")
    for seed, name in enumerate(("lacy", "ntp")):
        config = evaluation_config(name, folder / "dataset")
        config.generate.update({"max_new_tokens": 16, "num_prompts": 3, "batch_size": 4, "partner": "world"})
        save_run(folder / name, config, seed)
    (folder / "popqa_1000_with_wikipedia_paragraphs.json").write_text(json.dumps([ITEM]))
    facts = [{"sub_label": "Ada Bell", "obj_label": "Oslo", "uuid": "1"}]
    patterns = [{"pattern": "[X] comes from [Y]."}]
    members = {"lama_trex/P19.jsonl": facts, "pararel_patterns/graphs_json_P19.jsonl": patterns}
    _archive(folder / "lama_trex.tar.xz", members)
    (folder / "people.jsonl").write_text(json.dumps({"title": "Ada Bell", "text": ADA}) + "\n")
    (folder / "texts.jsonl").write_text(
        json.dumps({"topic": "Ada Bell", "output": "Ada Bell was a chemist. She won the Nobel Prize."}) + "\n"
    )
    labelled = [
        {"text": "Ada Bell was a chemist.", "label": "S"},
        {"text": "Ada Bell was tall.", "label": "NS"},
    ]
    annotations = [{"text": "s", "human-atomic-facts": labelled}]
    (folder / "factscore_labeled").mkdir()
    record = {"topic": "Ada Bell", "output": "o", "annotations": annotations}
    (folder / "factscore_labeled" / "Some.jsonl").write_text(json.dumps(record) + "\n")
    return folder


def _lacy(capsys, *arguments):
    """(exit code, JSON printed, stderr) of a command."""
    code = cli.main([*map(str, arguments), "--json"])
    out = capsys.readouterr()
    return code, json.loads(out.out) if code == 0 else None, out.err


def test_factscore_of_given_texts_needs_no_run(folder, capsys):
    code, figures, _ = _lacy(
        capsys,
        "evaluate",
        "--suite=factscore",
        f"--texts={folder}/texts.jsonl",
        f"--knowledge={folder}/people.jsonl",
    )
    assert code == 0
    assert figures["judge"] == "embedded value matching, 3rd edition"
    assert (figures["supported"], figures["facts"]) == (1, 2)
    assert (folder / "factscore" / "texts_factscore_output.json").exists()


def test_facts_that_the_texts_bring_are_judged_as_they_are(folder, capsys):
    facts = [{"text": "Ada Bell was Norwegian."}, {"text": "Ada Bell was Danish."}]
    annotations = [{"text": "s", "model-atomic-facts": facts}]
    rows = [
        {"topic": "Ada Bell", "output": "s", "annotations": annotations},
        {"topic": "Ada Bell", "output": "I know nothing of her.", "annotations": None},
    ]
    (folder / "given.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, figures, _ = _lacy(capsys, "evaluate", "--suite=factscore", f"--texts={folder}/given.jsonl",
                             f"--knowledge={folder}/people.jsonl", "--splitter=given")  # fmt: skip
    assert code == 0
    assert (figures["splitter"], figures["supported"], figures["facts"]) == ("facts as given", 1, 2)
    assert figures["abstention_rate"] == 0.5


def test_factscore_of_a_run_about_entities(folder, capsys):
    (folder / "entities.txt").write_text("Ada Bell\nCy Dent\n")
    code, figures, _ = _lacy(
        capsys, "evaluate", "--suite=factscore", f"--workdir={folder}/lacy", f"--entities={folder}/entities.txt",
        f"--knowledge={folder}/people.jsonl",
    )  # fmt: skip
    assert code == 0
    assert (figures["texts"], figures["covered"]) == (2, 1)
    assert json.loads((folder / "lacy" / "evaluation_factscore.json").read_text()) == figures
    texts = [json.loads(line) for line in pathlib.Path(figures["texts_file"]).read_text().splitlines()]
    assert [text["topic"] for text in texts] == ["Ada Bell", "Cy Dent"]
    assert texts[0]["output"].startswith("Ada Bell")


def test_leakage_of_a_run(folder, capsys):
    code, figures, _ = _lacy(
        capsys,
        "evaluate",
        "--suite=leakage",
        f"--workdir={folder}/lacy",
        f"--data={folder}",
        f"--seen={folder}/people.jsonl",
    )
    assert code == 0
    assert figures["all"]["questions"] == 3
    assert set(figures["groups"]) == {
        "popqa qa", "popqa cloze", "trex cloze", "popqa qa seen", "popqa cloze seen", "trex cloze seen",
    }  # fmt: skip
    assert (folder / "lacy" / "evaluation_leakage.json").exists()


def test_the_judge_is_examined(folder, capsys):
    code, figures, _ = _lacy(
        capsys,
        "evaluate",
        "--suite=judge",
        f"--workdir={folder}/lacy",
        f"--data={folder}",
        f"--knowledge={folder}/people.jsonl",
    )
    assert code == 0
    assert figures["facts"] == 2
    assert figures["accuracy"] == 1.0


def test_the_judge_is_examined_without_a_run_and_leaves_nothing(folder, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, figures, _ = _lacy(
        capsys, "evaluate", "--suite=judge", f"--data={folder}", f"--knowledge={folder}/people.jsonl"
    )
    assert (code, figures["facts"]) == (0, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_cost_curve_goes_on_and_every_setting_has_its_own_files(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(cost, "BUDGETS", (0.0, 0.25))
    shutil.copytree(folder / "lacy", tmp_path / "lacy")
    run = load_run(tmp_path / "lacy")
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.generate.partner = f"checkpoint:{folder}/ntp"
        config.corpus.kind = "jsonl"
        config.dataset.path = str(folder / "dataset")
        config.generate.prompts = str(tmp_path / "prompts.jsonl")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Ada Bell", "id": "1"}\n')
    options = {"knowledge": f"{folder}/people.jsonl"}
    written = []
    generate_texts = cost.generate_texts

    def counted(run, config, *args, **kwargs):
        found = generate_texts(run, config, *args, **kwargs)
        written.append(found.path.name)
        if len(written) == 2:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(cost, "generate_texts", counted)
    with pytest.raises(KeyboardInterrupt):
        run_suite("cost", options, tmp_path / "lacy", config)
    result, _ = run_suite("cost", options, tmp_path / "lacy", config)
    names = ["alone-0.jsonl", "call_margin-25.jsonl", "partner-alone.jsonl"]
    assert written == [names[0], names[1], *names[1:]], "what was there is not written again"
    assert [row["who"] for row in result["rows"]] == ["model alone", "cascade", "partner alone"]
    assert sorted(path.name for path in (tmp_path / "lacy" / "factscore").glob("cost-*-*.jsonl")) == [
        f"cost-{name}" for name in names
    ]
    assert not list((tmp_path / "lacy").glob("*.partial.jsonl"))


def test_a_curve_stopped_among_its_texts_counts_what_all_of_them_took(folder, tmp_path, monkeypatch):
    """The partner's tokens are kept with the texts they went into: means are over the same texts."""
    monkeypatch.setattr(cost, "BUDGETS", (0.25,))

    def curve(workdir):
        shutil.copytree(folder / "lacy", workdir)
        run = load_run(workdir)
        partner = f"checkpoint:{folder}/ntp"
        config = changed(run.config, {"generate.partner": partner, "generate.batch_size": 1})
        return lambda: run_suite("cost", {}, workdir, config)[0]["rows"]

    whole = curve(tmp_path / "whole")()
    stopped = curve(tmp_path / "stopped")
    put, puts = Kept.put, []

    def interrupted(self, key, record):
        put(self, key, record)
        puts.append(key)
        if len(puts) == 2:  # Of three texts.
            raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stopped()
    monkeypatch.setattr(Kept, "put", put)
    for row, other in zip(whole, stopped(), strict=True):
        assert (row["tokens"], row["calls"], row["exchanges"]) == (
            other["tokens"],
            other["calls"],
            other["exchanges"],
        )
        # Anew it reads again what it had in its cache, such as the first token.
        assert other["partner_tokens_processed"] == pytest.approx(row["partner_tokens_processed"], abs=3)
        assert row["partner_tokens_processed"] > 6


def test_a_partner_that_was_given_up_stays_given_up(folder, tmp_path, monkeypatch):
    class Fails(FactTablePartner):
        def complete(self, texts):
            asked.append(len(texts))
            raise PartnerError("gone")

    shutil.copytree(folder / "lacy", tmp_path / "lacy")
    run = load_run(tmp_path / "lacy")
    config = changed(
        run.config, {"generate.batch_size": 1, "generate.num_prompts": 4, "generate.max_new_tokens": 64}
    )
    prompts = run_texts.make_prompts(run, config)

    def write(name):
        return run_texts.generate_texts(run, config, prompts, Fails(World(40)), out=tmp_path / name)

    asked: list[int] = []
    whole = write("whole.jsonl").texts
    assert len(asked) == 3
    asked.clear()
    put = Kept.put

    def interrupted(self, key, record):
        put(self, key, record)
        if len(asked) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Kept, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write("stopped.jsonl")
    monkeypatch.setattr(Kept, "put", put)
    again = write("stopped.jsonl")
    assert again.texts == whole
    assert 0 < again.before < 4
    assert len(asked) == 3, "asked again after it was given up"
    assert again.meter.exchanges == 3
    assert "given up" in again.texts[-1].budget_note


def test_samples_do_not_depend_on_the_training_seed(folder):
    run = load_run(folder / "lacy")
    seeds = [changed(run.config, {"seed": seed}) for seed in (0, 1)]
    one, other = (run_texts.make_prompts(run, config) for config in seeds)
    assert one == other
    assert run_texts.make_prompts(run, changed(run.config, {"generate.num_prompts": 2})) == one[:2]
    scores = [run_texts.gate_calibration(run, config, "call_margin") for config in seeds]
    assert (scores[0] == scores[1]).all()
    options = {"data": str(folder)}
    figures = [run_suite("leakage", options, folder / "lacy", config)[0] for config in seeds]
    assert figures[0]["by_question"] == figures[1]["by_question"]
    assert set(figures[0]["by_question"]["Ada Bell"]) > {"trex-P19-1"}


def test_cost_rises_with_the_budget(folder, monkeypatch):
    monkeypatch.setattr(cost, "BUDGETS", (0.0, 0.25, 1.0))
    run = load_run(folder / "lacy")
    config = run.config.copy_and_resolve_references()
    with config.unlocked():
        config.generate.partner = f"checkpoint:{folder}/ntp"
    result, text = run_suite("cost", {"limit": 2}, folder / "lacy", config)
    rows = result["rows"]
    assert [row["who"] for row in rows] == ["model alone", "cascade", "cascade", "partner alone"]
    alone, some, most, partner = rows
    assert alone["partner_flops"] == 0.0
    assert alone["call_share"] == 0.0
    assert some["partner_flops"] > 0
    assert most["partner_tokens_processed"] >= most["partner_tokens"] > some["partner_tokens"]
    assert some["flops"] == pytest.approx(some["model_flops"] + some["partner_flops"])
    assert some["call_share"] == pytest.approx(0.25, abs=0.2)
    assert some["partner_seconds"] > 0
    assert (partner["model_flops"], partner["call_share"]) == (0.0, 1.0)
    assert partner["flops"] == partner["partner_flops"] > 0, "alone, all the work is the partner's"
    # Forward only: a third of 6 N per token, and attention to half of the text on average.
    length = alone["model_tokens_read"]
    assert alone["model_flops"] == pytest.approx(
        length * flops_per_token(run.model_config, length / 2) / 3, rel=0.02
    )
    assert "judge: the world's table" in text
    assert partner["quality"] is None or 0 <= partner["quality"] <= 1


def test_a_meter_counts_what_passes(folder):
    class Fails(Partner):
        name = "fails"

        def complete(self, texts):
            raise PartnerError("gone")

    world = World(people=40, seed=0)
    metered = MeteredPartner(FactTablePartner(world))
    prompts = [world.prompt(0), world.prompt(1)]
    assert metered.complete(prompts) == FactTablePartner(world).complete(prompts)
    assert (metered.reach, metered.name) == ("span", "world")
    assert metered.typical_texts()
    silent = metered.only_facts()
    assert silent.complete(["Nobody"]) == [""]
    meter = metered.meter
    assert (meter.exchanges, meter.asked, meter.silent, meter.unanswered) == (2, 3, 1, 0)
    assert meter.characters_read == sum(map(len, [*prompts, "Nobody"]))
    failing = MeteredPartner(Fails())
    with pytest.raises(PartnerError):
        failing.complete(["a", "b"])
    assert failing.meter.unanswered == 2
    assert failing.typical_texts() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--suite=facts"], "expected one of "),
        (["--suite=factscores"], "did you mean 'factscore'?"),
        (["--suite=leakage", "--texts=x"], "--texts: suite leakage does not read it (factscore does)"),
        ([], "--workdir=DIR is needed"),
        (["--suite=leakage"], "--workdir=DIR is needed"),
        (["--suite=leakage", "--workdir={}/lacy"], "--data is needed"),
        (["--suite=factscore", "--texts={}/texts.jsonl"], "--knowledge is needed"),
        (["--suite=factscore", "--texts={}/none.jsonl", "--knowledge={}/people.jsonl"], "none.jsonl"),
        (["--suite=judge", "--data={}/lacy", "--knowledge={}/people.jsonl"], "contains no factscore_labeled"),
        (["--suite=cost", "--workdir={}/lacy", "--config.generate.partner=none"], "needs a partner"),
    ],
)
def test_what_is_missing_is_said_in_one_line(folder, capsys, arguments, message):
    code, _, err = _lacy(capsys, "evaluate", *(argument.format(folder) for argument in arguments))
    assert code == 2
    assert message in err
    assert err.strip().count("\n") == 0


def test_options_that_are_needed():
    with pytest.raises(ConfigError, match="--data is needed: a folder"):
        Request(None, None, {}).need(DATA, "a folder")
    assert Request(None, None, {"data": "x"}).need(DATA, "a folder") == "x"


def test_an_option_has_one_meaning_for_all_suites():
    names = [option.name for option in all_options()]
    assert len(names) == len(set(names)), "two suites read an option of one name in two ways"
    assert all(suite.description and suite.name == name for name, suite in SUITES.items())


def test_the_report_shows_every_suite(tmp_path):
    figures = {
        "factscore": {"score": 0.227, "score_ci": [0.2, 0.25], "init_score": 0.3, "init_score_ci": None, "facts_per_text": 9.5,
                      "abstention_rate": 0.0, "covered": 9, "texts": 10, "judge": "my judge", "splitter": "clauses"},
        "leakage": {"all": {"share": 0.1128, "share_ci": [0.1, 0.12]}, "groups": {"popqa qa": {"share": 0.2, "share_ci": None}}},
        "nlu": {"acc_mean": 0.399, "tasks": {"piqa": {"acc": 0.593}}},
        "cost": {"rows": [{"who": "cascade", "budget": b, "call_share": b, "quality": 0.2 + b, "quality_ci": None, "tokens": 90.0,
                           "calls": 3.0, "model_flops": 1e9, "partner_flops": None, "flops": 1e9 * (1 + b), "partner_seconds": 0.5, "judge": "my judge"}
                          for b in (0.0, 0.22)]},
        "judge": {"judge": "my judge", "facts": 563, "topics": 10, "accuracy": 0.76, "always": 0.76, "f1_supported": 0.83,
                  "f1_not_supported": 0.6, "score_correlation": 0.88, "ranking_correlation": None},
    }  # fmt: skip
    run = make_run(tmp_path / "lacy", "lacy", evaluation=False)
    for suite, row in figures.items():
        (run / f"evaluation_{suite}.json").write_text(json.dumps(row))
    page = report_command([run]).read_text()
    for words in (
        "FActScore",
        "Fact leakage",
        "Language understanding",
        "Cost against quality",
        "The judge against people",
    ):
        assert words in page
    assert "11.3\N{NO-BREAK SPACE}% [10.0" in page
    assert page.count("judge: my judge") == 3  # Under each chart.
    assert "Quality against cost per text" in page
    assert "FActScore against leakage" in page
    (run / "evaluation_nlu.json").write_text("{broken")
    (run / "evaluation_cost.json").write_text('{"rows": 5}')
    page = report_command([run]).read_text()
    assert "evaluation_nlu.json: not readable" in page
    assert "Language understanding" not in page
    shutil.rmtree(run)
