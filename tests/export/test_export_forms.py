"""Parameter-only runs, averages, precision, StableHLO, `lacy diff`, and the verbs that write them."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from export_small import make_config, random_params, tokenizer

from lacy_jax import cli
from lacy_jax.errors import CheckpointError
from lacy_jax.export import check
from lacy_jax.export.diff import compare_runs
from lacy_jax.export.source import load_source
from lacy_jax.models import count_params
from lacy_jax.training.checkpoint import Checkpointer
from lacy_jax.training.run import load_run


def lacy(capsys, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.fixture(scope="module")
def several(tmp_path_factory) -> pathlib.Path:
    """A run directory with checkpoints of steps 1, 2 and 3."""
    from lacy_jax.export.run_directory import write_run

    folder = tmp_path_factory.mktemp("several")
    config = make_config(family="llama")
    config.checkpoint.keep = 3
    for step in (1, 2, 3):
        write_run(folder, config, tokenizer(), random_params(config, tokenizer().vocab_size, seed=step), step)
    return folder


def test_the_average_of_the_last_checkpoints(several, tmp_path, capsys):
    code, out, _ = lacy(
        capsys,
        "export",
        f"--workdir={several}",
        "--format=run",
        "--average=2",
        f"--out={tmp_path / 'mean'}",
        "--json",
    )
    assert code == 0
    assert json.loads(out)["steps"] == [2, 3]
    mean = load_run(tmp_path / "mean")
    parts = [load_run(several, step).params for step in (2, 3)]
    want = jax.tree.map(lambda a, b: (np.float64(a) + np.float64(b)) / 2, *parts)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-7), mean.params, want)
    assert mean.step == 3
    code, _, err = lacy(capsys, "export", f"--workdir={several}", "--format=run", "--average=4", "--out=x")
    assert code == 2
    assert "keeps 3 checkpoints up to step 3, --average=4 needs as many" in err


def test_a_query_head_is_left_out_where_it_has_no_place_and_that_is_said(make_run, tmp_path, capsys):
    workdir = make_run(family="llama", query_dim=8)
    code, out, _ = lacy(
        capsys, "export", f"--workdir={workdir}", "--format=run", f"--out={tmp_path / 'run'}", "--json"
    )
    assert (code, json.loads(out)["left_out"]) == (0, [])
    assert load_run(tmp_path / "run").model_config.query_dim == 8
    code, out, _ = lacy(capsys, "export", f"--workdir={workdir}", f"--out={tmp_path / 'hf'}")
    assert code == 0
    assert "left out: query head" in out.splitlines()
    without = count_params(load_run(make_run(family="llama")).model_config)
    assert json.loads((tmp_path / "hf" / "lacy.json").read_text())["parameters"] == without
    assert "| left out | query head |" in (tmp_path / "hf" / "README.md").read_text()
    assert "left out: query head" in lacy(capsys, "inspect", f"--workdir={tmp_path / 'hf'}")[1]


def test_a_bfloat16_run_is_half_the_size_and_reads_as_float32(several, tmp_path, capsys):
    for dtype in ("float32", "bfloat16"):
        arguments = (
            "export",
            f"--workdir={several}",
            "--format=run",
            f"--dtype={dtype}",
            f"--out={tmp_path / dtype}",
        )
        assert lacy(capsys, *arguments)[0] == 0
    back = load_run(tmp_path / "bfloat16")
    want = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), load_run(several).params)
    jax.tree.map(np.testing.assert_array_equal, back.params, want)
    code, out, _ = lacy(capsys, "inspect", f"--workdir={tmp_path / 'bfloat16'}")
    assert code == 0
    assert "run export of step 3, bfloat16" in out
    assert "<CALL> is id 320" in out


def test_parameters_only_cannot_be_resumed_and_says_what_to_do(several):
    run = load_run(several)
    with Checkpointer(several) as checkpointer, pytest.raises(CheckpointError, match="init_from"):
        checkpointer.restore(3, run.definition.abstract_params, optimizer={"step": jnp.zeros(())})


def test_diff_tells_what_changed(several, tmp_path, capsys):
    result = compare_runs(f"{several}@1", f"{several}@2")
    assert result["steps"] == [1, 2]
    assert result["config"] == result["data"] == {}
    assert 0.5 < result["parameters"]["call"]["relative_change"] < 3
    assert compare_runs(str(several), str(several))["parameters"] == {}

    from lacy_jax.export.run_directory import write_run

    config = make_config(family="llama", d_model=16)
    config.optimizer.learning_rate = 2e-3
    other = tmp_path / "other"
    other.mkdir()
    write_run(other, config, tokenizer(), random_params(config, tokenizer().vocab_size), 3)
    code, out, _ = lacy(capsys, "diff", str(several), str(other))
    assert code == 0
    assert "config.optimizer.learning_rate: 0.001 -> 0.002" in out
    assert "parameters/call: shape [32] -> [16]" in out
    code, _, err = lacy(capsys, "diff", str(several), str(tmp_path / "none"))
    assert code == 2
    assert "no run at" in err


RELOAD = """
import sys, json, jax, numpy as np
from safetensors.numpy import load_file
folder = sys.argv[1]
parameters = load_file(folder + "/parameters.safetensors")
prefill, decode = (jax.export.deserialize(bytearray(open(f"{folder}/{f}.bin", "rb").read())) for f in ("prefill", "decode"))
tokens = np.load(folder + "/../tokens.npy")
positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
first, k, v = prefill.call(parameters, tokens[:, :5], positions[:, :5])
for i in range(5, 8):
    last, k, v = decode.call(parameters, tokens[:, i:i+1], positions[:, i:i+1], k, v)
assert not [m for m in sys.modules if m.startswith(("lacy_jax", "flax"))]
np.save(folder + "/../logits.npy", np.asarray(last[:, 0]))
"""


def test_stablehlo_runs_without_our_code(make_run, tmp_path, capsys):
    run = make_run(family="llama", n_kv_heads=2)
    code, out, _ = lacy(
        capsys, "export", f"--workdir={run}", "--format=stablehlo", f"--out={tmp_path / 'hlo'}"
    )
    assert code == 0
    assert "prefill then decode" in out
    source = load_source(run)
    tokens = check.sample_tokens(source.run.tokenizer, 8)[:5]
    np.save(tmp_path / "tokens.npy", tokens)
    subprocess.run([sys.executable, "-c", RELOAD, str(tmp_path / "hlo")], check=True, cwd=tmp_path)
    want = check.logits(source.run.model, tokens)[:, -1]
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), want, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export"], "--workdir=DIR is needed"),
        (["export", "--workdir=/nowhere"], "no run at /nowhere"),
        (["export", "--workdir={r}", "--step=7"], "no checkpoint of step 7"),
        (["export", "--workdir={r}", "--format=run", "--dtype=int8"], "--dtype=int8"),
        (["export", "--workdir={r}", "--format=run", "--average=0"], "--average=0"),
        (
            ["export", "--workdir={r}", "--format=stablehlo", "--dtype=bfloat16"],
            "--dtype: only for --format=hf, gguf, run, not stablehlo",
        ),
        (["export", "--workdir={r}", "--format=run", "--out=gs://bucket/x"], "local folder only"),
        (["import", "--from={r}/none", "--workdir=x"], "config.json not found"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(several, capsys, arguments, says):
    code, _, err = lacy(capsys, *(argument.replace("{r}", str(several)) for argument in arguments))
    lines = [line for line in err.splitlines() if line.startswith("lacy ")]
    assert code == 2
    assert len(lines) == 1
    assert says in lines[0]


def test_a_missing_package_is_one_line(several, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setitem(sys.modules, "torch", None)
    code, _, err = lacy(capsys, "export", f"--workdir={several}", "--format=hf")
    assert code == 2
    assert "needs the package torch" in err
    assert "pip install 'lacy_jax[export]'" in err
