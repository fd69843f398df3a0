"""The harness model against plain logits, and the local tasks through the harness itself."""

from __future__ import annotations

import bz2
import dataclasses
import io
import json
import lzma
import tarfile
import types

import jax
import jax.numpy as jnp
import lm_eval
import numpy as np
import pytest
import scipy.special
from cascade_fakes import make_model, make_tokenizer
from flax import nnx
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lacy_jax.config import get_default_config
from lacy_jax.corpus import World
from lacy_jax.errors import ConfigError, DataError
from lacy_jax.evaluation import harness
from lacy_jax.evaluation.harness import LacyLM
from lacy_jax.evaluation.harness_tasks import write_tasks
from lacy_jax.evaluation.kept import Kept
from lacy_jax.evaluation.nlu import nlu_table, run_nlu
from lacy_jax.export.hugging_face import export_hugging_face
from lacy_jax.export.run_directory import write_run
from lacy_jax.export.source import load_source
from lacy_jax.models import resolve_model_config
from lacy_jax.training.run import load_run
from lacy_jax.training.state import ModelDefinition


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two items of each test set, in the form they are distributed in."""
    folder = tmp_path_factory.mktemp("nlu")
    text = "Please choose the correct answer to the question: Which one?\n\nAnswer1: a cat Answer2: the dog Answer3: it\n\nAnswer format: answer1"
    items = [{"instruction": text, "answer": f"answer{i}"} for i in (1, 3)]
    for name in ("ARC-Easy_test.json", "social_i_qa_test.json"):
        (folder / name).write_text(json.dumps(items))
    lines = ["Ski: A man [x] is. he", "2", "runs.", "sits.", "stands.", "eats."] * 2
    (folder / "hellaswag_val_full.txt.bz2").write_bytes(bz2.compress("\n".join(lines).encode()))
    rows = [{"goal": "dress", "sol1": "wear it", "sol2": "eat it"}] * 2
    (folder / "piqa_valid.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "piqa_valid-labels.lst").write_text("0\n1\n")
    lambada = "".join(json.dumps({"text": f"He went {place} home"}) + "\n" for place in ("back", "to"))
    (folder / "lambada_test.jsonl.xz").write_bytes(lzma.compress(lambada.encode()))
    with tarfile.open(folder / "blimp.tar.xz", "w:xz") as archive:
        pair = {"sentence_good": "He is here.", "sentence_bad": "He are here."}
        for name in ("blimp/one.jsonl", "blimp/two.jsonl"):
            body = (json.dumps(pair) + "\n").encode() * 2
            info = tarfile.TarInfo(name)
            info.size = len(body)
            archive.addfile(info, io.BytesIO(body))
    return folder


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer(World(people=60, seed=3), 500)


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer.vocab_size, context=64)


def test_tasks_are_parsed_out_of_what_is_distributed(data, tmp_path):
    names = write_tasks(data, tmp_path / "tasks")
    assert names == [f"lacy_{t}" for t in ("arc_easy", "hellaswag", "piqa", "social_iqa", "lambada", "blimp")]

    def items(task):
        return [json.loads(line) for line in (tmp_path / "tasks" / f"{task}.jsonl").read_text().splitlines()]

    assert items("arc_easy")[1] == {
        "query": "Question: Which one?\nAnswer:", "choices": ["a cat", "the dog", "it"], "gold": 2,
    }  # fmt: skip
    assert items("hellaswag")[0] == {
        "query": "Ski: A man is. he", "choices": ["runs.", "sits.", "stands.", "eats."], "gold": 2,
    }  # fmt: skip
    assert [item["gold"] for item in items("piqa")] == [0, 1]
    assert items("blimp_one")[0]["choices"] == ["He is here.", "He are here."]
    assert "lacy_blimp_two" in (tmp_path / "tasks" / "lacy_blimp.yaml").read_text()
    assert 'target_delimiter: " "' in (tmp_path / "tasks" / "lacy_piqa.yaml").read_text()
    assert 'target_delimiter: ""' in (tmp_path / "tasks" / "lacy_blimp_one.yaml").read_text()


def test_missing_and_damaged_test_sets_are_named(data, tmp_path):
    with pytest.raises(DataError, match=r"task piqa: .*piqa_valid"):
        write_tasks(tmp_path, tmp_path / "tasks", ("piqa",))
    (tmp_path / "blimp.tar.xz").write_bytes(b"no archive")
    with pytest.raises(DataError, match="task blimp"):
        write_tasks(tmp_path, tmp_path / "tasks", ("blimp",))
    with pytest.raises(DataError, match="expected one of"):
        write_tasks(data, tmp_path / "tasks", ("mmlu",))
    assert not (tmp_path / "tasks").exists()


def test_without_the_harness_the_suite_says_what_to_install(model, tokenizer, data, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"lacy_jax\[nlu\]"):
        run_nlu(model, tokenizer, data, tmp_path)


def _requests(*arguments):
    return [types.SimpleNamespace(args=pair) for pair in arguments]


@pytest.fixture(scope="module")
def plain(model):
    """log p_\\CALL of each token after the first, and whether it is the first choice, by numpy over the base vocabulary."""
    forward = nnx.jit(
        lambda model, tokens: model.logits(model(tokens, jnp.arange(64)[None], jnp.ones_like(tokens)))[0]
    )

    def run(ids):
        tokens = np.zeros((1, 64), np.int32)  # One shape; causal, so what follows does not matter.
        tokens[0, : len(ids) - 1] = ids[:-1]
        z = np.asarray(forward(model, jnp.asarray(tokens))[0, : len(ids) - 1], np.float64)
        log_p = z - scipy.special.logsumexp(z, axis=-1, keepdims=True)
        return log_p[np.arange(len(ids) - 1), ids[1:]], z.argmax(-1) == ids[1:]

    return run


def test_likelihoods_are_those_of_plain_logits(model, tokenizer, plain):
    world = World(people=60, seed=3)
    harness = LacyLM(model, tokenizer, batch_size=2)
    sentence = world.text(0).text[:60]
    pairs = [
        ("He was born in", " Copperfield"),
        ("", "He is here."),
        (sentence * 6, " the end"),
        ("He", " was"),
    ]
    for (context, continuation), (found, greedy) in zip(
        pairs, harness.loglikelihood(_requests(*pairs)), strict=True
    ):
        ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode(context + continuation)])
        own = len(ids) - 1 - len(tokenizer.encode(context) if context else [])
        logs, first = plain(ids[-65:])  # The context of 64 tokens loses its beginning.
        assert found == pytest.approx(logs[-own:].sum(), rel=1e-4)
        assert greedy == first[-own:].all()
    text = world.text(1).text  # Longer than the context: read in pieces.
    ids = np.concatenate([[tokenizer.bos_id], tokenizer.encode(text)])
    assert len(ids) > 100
    expected = sum(plain(ids[start : start + 65])[0].sum() for start in range(0, len(ids) - 1, 64))
    assert harness.loglikelihood_rolling(_requests((text,)))[0] == pytest.approx(expected, rel=1e-4)


def test_generation_stops_where_the_task_says(model, tokenizer):
    harness = LacyLM(model, tokenizer)
    whole = harness.generate_until(_requests(("He was born", {"until": [], "max_gen_toks": 12})))[0]
    stop = whole[4:6]
    cut = harness.generate_until(_requests(("He was born", {"until": [stop], "max_gen_toks": 12})))[0]
    assert cut == whole[: whole.index(stop)]
    with pytest.raises(ConfigError, match="workdir=RUN_DIR"):
        LacyLM()


def test_options_of_a_task_mean_what_they_mean_to_the_harness(model, tokenizer, monkeypatch):
    asked = []

    def write(model, tokenizer, prompts, **options):
        asked.append({name: options[name] for name in ("max_new_tokens", "temperature", "top_k", "top_p")})
        return [types.SimpleNamespace(text="one two\n\nthree") for _ in prompts]

    monkeypatch.setattr(harness, "generate", write)

    def run(**options):
        (text,) = LacyLM(model, tokenizer).generate_until(_requests(("He", options)))
        return text, tuple(asked.pop().values())

    for name in ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens"):
        assert run(**{name: 7}) == ("one two\n\nthree", (7, 0.0, 0, 1.0))
    assert run(max_gen_toks=5, max_new_tokens=9)[1] == (5, 0.0, 0, 1.0)
    assert run()[1] == (256, 0.0, 0, 1.0)
    assert run(temperature=0.5)[1] == (256, 0.5, 0, 1.0)  # Sampled without being told so.
    assert run(temperature=0.5, do_sample=False)[1] == (256, 0.0, 0, 1.0)
    assert run(do_sample=True, temperature=0.8, top_k=4)[1] == (256, 0.8, 4, 1.0)
    assert run(do_sample=True)[1] == (256, 0.0, 0, 1.0)
    assert run(until="two")[0] == "one "
    assert run(until=["three", "", "two"])[0] == "one "
    assert run(until=None)[0] == run(until=[])[0] == "one two\n\nthree"
    assert run(top_p=0.9, num_beams=1)[1] == (256, 0.0, 0, 1.0)  # Greedy: it makes no difference.
    assert run(top_p=0.9, temperature=1.0)[1] == (256, 1.0, 0, 0.9)
    for options in ({"min_p": 0.1, "temperature": 1.0}, {"num_beams": 4}, {"repetition_penalty": 1.2}):
        with pytest.raises(ConfigError, match=f"{next(iter(options))} = .* is not supported"):
            run(**options)


def test_the_harness_runs_the_local_tasks(model, tokenizer, data, tmp_path):
    result = run_nlu(model, tokenizer, data, tmp_path / "tasks", limit=2, batch_size=8)
    assert set(result["tasks"]) == {"arc_easy", "hellaswag", "piqa", "social_iqa", "lambada", "blimp"}
    assert result["tasks"]["piqa"]["acc"] == 0.5  # Both items have the same answer, the labels differ.
    assert result["tasks"]["hellaswag"]["items"] == 2
    assert result["tasks"]["lambada"]["perplexity"] > 1
    mean = np.mean([result["tasks"][t]["acc"] for t in ("arc_easy", "hellaswag", "piqa", "social_iqa")])
    assert result["acc_mean"] == pytest.approx(mean)
    assert "CALL excluded, first 2 items" in nlu_table(result)
    assert result["tasks"]["piqa"]["right"] in ("01", "10")
    assert len(result["tasks"]["blimp"]["right"]) == result["tasks"]["blimp"]["items"] == 4


def test_a_stopped_run_goes_on_with_the_next_task(model, tokenizer, data, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    import lm_eval

    asked = []
    evaluate = lm_eval.simple_evaluate

    def once(tasks, **options):
        asked.append(tasks)
        if tasks == ["lacy_lambada"] and asked.count(tasks) == 1:
            raise KeyboardInterrupt
        return evaluate(tasks=tasks, **options)

    monkeypatch.setattr(lm_eval, "simple_evaluate", once)

    def run(about=0):
        return run_nlu(
            model, tokenizer, data, tmp_path / "tasks", tasks=("piqa", "lambada"), kept=Kept(tmp_path / "nlu"), about=about
        )  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        run()
    assert (tmp_path / "nlu.partial.jsonl").exists()
    result = run()
    assert asked == [["lacy_piqa"], ["lacy_lambada"], ["lacy_lambada"]], "piqa is not asked again"
    assert set(result["tasks"]) == {"piqa", "lambada"}
    assert not (tmp_path / "nlu.partial.jsonl").exists()


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_an_exported_folder_gets_the_same_scores_from_the_harness_itself(family, tokenizer, data, tmp_path):
    """Whole tasks through lm-evaluation-harness's own `hf` model, on the folder as exported."""
    config = get_default_config()
    config.model.family, config.model.d_model, config.model.n_layers, config.model.n_heads = family, 64, 2, 2
    config.input.seq_len = 48  # Some contexts are longer: both sides must cut alike.
    definition = ModelDefinition(resolve_model_config(config.model, tokenizer.vocab_size, 48))
    params = jax.tree.map(
        lambda x: 3.0 * x, definition.init(jax.random.key(1))
    )  # Scores that differ clearly.
    write_run(tmp_path, config, tokenizer, params)
    source = dataclasses.replace(load_source(tmp_path), call=False)
    export_hugging_face(source, tmp_path / "hf", tolerance=1e-3)
    theirs = HFLM(pretrained=str(tmp_path / "hf"), dtype="float32", device="cpu", batch_size=4)
    run = load_run(tmp_path)
    ours = LacyLM(run.model, run.tokenizer, batch_size=4)
    texts = [(f"{w} was born", f" in {w} in 19") for w in ("Ada", "Émile  ", "x" * 99)] + [
        ("", "He is here."),
        ("a ", "b"),
    ]
    for pair, (a, first), (b, also) in zip(
        texts, ours.loglikelihood(_requests(*texts)), theirs.loglikelihood(_requests(*texts)), strict=True
    ):
        assert a == pytest.approx(b, rel=1e-4), pair
        assert first == also
    names = write_tasks(data, tmp_path / "tasks")
    manager = TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False)
    figures = [
        lm_eval.simple_evaluate(model=lm, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=False)["results"]
        for lm in (ours, theirs)
    ]  # fmt: skip
    assert len(figures[0]) >= len(names)
    for task, row in figures[0].items():
        numbers = {k: v for k, v in row.items() if isinstance(v, float)}
        assert numbers == pytest.approx({k: figures[1][task][k] for k in numbers}, rel=1e-4), task
