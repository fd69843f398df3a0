"""The whole path of a public model: imported, given a CALL head, trained on, exported; and decoded by the example."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import runpy
import sys

import jax
import numpy as np
import pytest

from lacy_jax import cli
from lacy_jax.config import load_config
from lacy_jax.errors import ConfigError
from lacy_jax.training.run import load_run

ROOT = pathlib.Path(__file__).resolve().parents[2]
EXPERIMENT = str(ROOT / "experiments" / "continue_from_hf.py")


@pytest.fixture(scope="module")
def base(tmp_path_factory, byte_level) -> pathlib.Path:
    """A run directory imported from a hand-written Hugging Face folder: no torch needed."""
    import safetensors.numpy as numpy_io

    from lacy_jax.export.hf_config import from_hugging_face_config
    from lacy_jax.export.import_hf import import_hugging_face
    from lacy_jax.export.layout import tensors

    folder = tmp_path_factory.mktemp("public")
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 48, "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "tie_word_embeddings": True,
        "bos_token_id": 0, "eos_token_id": [0, 1], "vocab_size": 288,
    }  # fmt: skip
    random = np.random.default_rng(0)
    cfg = from_hugging_face_config(config, 280, "config.json")
    made = {
        t.name: (0.05 * random.normal(size=t.shape) + (len(t.shape) == 1)).astype(np.float32)
        for t in tensors(cfg)
    }
    made["model.embed_tokens.weight"] = (0.05 * random.normal(size=(288, 32))).astype(np.float32)
    numpy_io.save_file(made, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(byte_level)
    workdir = tmp_path_factory.mktemp("runs") / "base"
    result = import_hugging_face(folder, workdir, max_seq_len=96)
    assert (result["rows_left_out"], result["context"]) == (8, 96)
    return workdir


@pytest.fixture(scope="module")
def continued(base) -> pathlib.Path:
    """Twelve steps of LaCy on top of it."""
    spec = f"{EXPERIMENT}:{base},smoke"
    workdir = base.parent / "continued"
    small = ["--config.corpus.people=60", "--config.metrics.tensorboard=false"]
    assert cli.main(["prepare", f"--config={spec}", *small]) == 0
    assert cli.main(["train", f"--config={spec}", f"--workdir={workdir}", *small]) == 0
    return workdir


def test_training_starts_from_the_imported_parameters(base, continued):
    before, after = load_run(base), load_run(continued)
    assert after.step == 12
    assert after.tokenizer.hash == before.tokenizer.hash
    a, b = (np.asarray(run.params["embedding"]) for run in (before, after))
    assert 0 < np.linalg.norm(b - a) / np.linalg.norm(a) < 0.2  # A fresh start would be about 1 away.
    rows = [json.loads(line) for line in (continued / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["realised_call_rate"] > 0


def test_a_base_that_does_not_fit_is_refused(base, continued, tmp_path, capsys):
    spec = f"{EXPERIMENT}:{base},smoke"
    for change, says in (
        ("--config.model.n_layers=2", "n_layers = 1, config.model 2; set config.model.n_layers"),
        ("--config.model.norm_eps=1e-5", "set config.model.norm_eps"),
        (f"--config.train.init_from={tmp_path}", "no run at"),
    ):
        assert (
            cli.main(
                [
                    "train",
                    f"--config={spec}",
                    f"--workdir={tmp_path / 'x'}",
                    "--config.input.batch_size=8",
                    change,
                ]
            )
            == 2
        )
        assert says in capsys.readouterr().err
    assert cli.main(["train", f"--workdir={base}", f"--config.dataset.path={base / 'dataset_smoke'}"]) == 2
    assert "init_from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("smoke", "expected RUN_DIR"),
        ("{base},call_only,last=2", "call_only or last=N"),
        ("{base},last=2,last=3", "call_only or last=N"),
        ("{base},full,renormalised", "one call objective"),
        ("{base},steps=2,steps=3", "steps=N and seed=N"),
        ("{base},steps=0", "steps=0: expected a number of steps"),
        ("{base},seed=-1", "seed=-1: expected a whole number"),
        ("{base},last=all", "last=all: expected a number of layers"),
        ("{base},last=0", "last=0: expected a number of layers"),
    ],
)
def test_args_that_mean_nothing_are_refused(base, args, says):
    with pytest.raises(ConfigError) as caught:
        load_config(f"{EXPERIMENT}:{args.format(base=base)}")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_args_choose_what_is_trained(base):
    def chosen(args: str) -> tuple:
        config = load_config(f"{EXPERIMENT}:{base}{args}")
        return config.train.trainable, config.objective.call_objective

    assert chosen("") == ((), "full")
    assert chosen(",call_only,renormalised") == (("call",), "renormalised")
    assert chosen(",last=2") == (("call", "final_norm.*", "blocks.-1.*", "blocks.-2.*"), "full")


def test_the_comparison_of_ways_goes_on_where_it_was_and_leaves_a_frozen_model_as_it_is(
    base, tmp_path, capsys
):
    main = runpy.run_path(EXPERIMENT)["main"]
    asked = [f"--base={base}", f"--workdir={tmp_path}", "--smoke", "--people=2"]
    assert main([*asked, "--ways=last_4"]) == 2  # The base has one layer.
    assert "'blocks.-2.*' matches no parameter" in capsys.readouterr().err.splitlines()[-1]
    assert main([*asked, "--ways=most"]) == 2
    assert (
        "--ways: 'most' is none of call_only, last_4, everything, call_only_full, last_4_full, everything_full"
        in capsys.readouterr().err
    )
    ways = ["call_only", "call_only_full"]
    assert main([*asked, f"--ways={','.join(ways)}"]) == 0
    shown = capsys.readouterr().out
    start = load_run(base).params
    runs = [load_run(tmp_path / way) for way in ways]
    for run in runs:
        assert np.any(np.asarray(run.params["call"]) != np.asarray(start["call"]))
        jax.tree.map(np.testing.assert_array_equal, {**run.params, "call": start["call"]}, start)
    measured = json.loads((tmp_path / "ways.json").read_text())
    some, other = (measured[way] for way in ways)
    assert some["trained"] == 32
    assert some["positions"] == 12 * 8 * 32
    for gate in ("entropy", "margin"):
        assert some["gates"][gate] == other["gates"][gate], "the base model's own, in both"
    assert some["nll"]["all"] == other["nll"]["all"]
    assert some["gates"]["call_logit"] != other["gates"]["call_logit"]
    rows = json.loads((tmp_path / "gates.json").read_text())["rows"]
    assert [(row["model"], row["gate"]) for row in rows] == [
        *(("call_only", gate) for gate in ("alone", "random", "call_margin", "call_logit", "entropy", "margin")),
        ("call_only_full", "call_margin"), ("call_only_full", "call_logit"),
    ]  # fmt: skip
    written = {
        path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jsonl") if path.parent.name == "unseen"
    }
    assert len(written) >= 8
    assert main([*asked, f"--ways={','.join(ways)}"]) == 0
    assert capsys.readouterr().out == shown
    assert all(path.stat().st_mtime_ns == time for path, time in written.items() if "texts" in path.parts)


def test_an_imported_model_serves_as_partner(base, continued, capsys):
    arguments = [f"--workdir={continued}", f"--config.generate.partner=checkpoint:{base}", "--prompt=Ada"]
    arguments += ["--config.generate.max_new_tokens=8", "--config.generate.budget=0.5", "--json"]
    assert cli.main(["generate", *arguments]) == 0
    assert json.loads(capsys.readouterr().out)["calls"] > 0


def test_the_example_decodes_the_exported_model(continued, tmp_path, capsys, monkeypatch):
    assert cli.main(["export", f"--workdir={continued}", f"--out={tmp_path / 'hf'}"]) == 0
    spec = importlib.util.spec_from_file_location(
        "cascade_example", ROOT / "examples" / "cascade_transformers.py"
    )
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cascade_example", example)
    spec.loader.exec_module(example)
    folder = str(tmp_path / "hf")
    monkeypatch.setattr(sys, "argv", ["x", folder, f"--partner={folder}", "--prompt=Ada was", "--tokens=40"])
    capsys.readouterr()
    example.main()
    out, err = capsys.readouterr()
    assert out.startswith("Ada was")
    assert "[[" in out
    share = float(err.splitlines()[-1].split("(")[1].split("%")[0])
    assert 10 <= share <= 35  # Budget 22 %, within a few tokens of 40.
    source = (ROOT / "examples" / "cascade_transformers.py").read_text()
    assert "import lacy_jax" not in source
    assert "from lacy_jax" not in source
