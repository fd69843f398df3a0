"""examples/maxtext_lacy.py in the real MaxText: `make test-maxtext`, in an environment that has it."""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("maxtext") is None,
    reason="MaxText is not installed here; it wants an environment of its own: make test-maxtext",
)
_TOY = (
    "max_target_length=128", "base_emb_dim=64", "base_num_query_heads=2", "base_num_kv_heads=2", "base_mlp_dim=128",
    "base_num_decoder_layers=2", "dtype=float32", "weight_dtype=float32", "logits_via_embedding=true", "enable_tensorboard=false",
    "learning_rate=3e-3", "learning_rate_schedule_steps=12",  # Else the schedule is as long as the run.
)  # fmt: skip
_CPU = ("hardware=cpu", "attention=dot_product", "head_dim=32")
# MaxText's own loss on the batches of the example.
_THEIRS = """
import sys
sys.path.insert(0, "examples")
import maxtext_lacy
from maxtext.trainers.pre_train import train
loss, metrics = train.loss_fn, train.record_activation_metrics
install = maxtext_lacy.install
def without_the_loss(*arguments):
    keys = install(*arguments)
    train.loss_fn, train.record_activation_metrics = loss, metrics
    return [key for key in keys if not key.startswith(("record_", "num_vocab_"))] + ["num_vocab_tiling=1"]
maxtext_lacy.install = without_the_loss
maxtext_lacy.check = lambda config, pieces: None
sys.exit(maxtext_lacy.main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> pathlib.Path:
    """The embedded world; 1,023 pieces and CALL fill MaxText's 1,024 rows."""
    path = tmp_path_factory.mktemp("maxtext") / "dataset"
    python("-m", "lacy_jax.cli", "prepare", "--config=experiments/quickstart.py:smoke",
           f"--config.dataset.path={path}", "--config.tokenizer.vocab_size=1023")  # fmt: skip
    return path


def python(*words: str, devices: int = 1) -> subprocess.CompletedProcess:
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "DECOUPLE_GCLOUD": "TRUE", "TPU_SKIP_MDS_QUERY": "1",
        "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v5litepod-4", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }  # fmt: skip
    done = subprocess.run([sys.executable, *words], cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def train(
    dataset: pathlib.Path, folder: pathlib.Path, *keys: str, devices: int = 1, code: str = ""
) -> list[dict]:
    """The metrics of each step; 4 rows a batch."""
    written = folder / "metrics.jsonl"
    start = ("-c", code) if code else ("examples/maxtext_lacy.py",)
    python(*start, "train", str(dataset), *_TOY, *_CPU, f"metrics_file={written}", f"base_output_directory={folder}",
           f"per_device_batch_size={4 // devices}", *keys, devices=devices)  # fmt: skip
    return [json.loads(line) for line in written.read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory) -> list[dict]:
    return train(dataset, tmp_path_factory.mktemp("one"), "steps=12")


def test_it_trains_with_our_mask(trained):
    assert len(trained) == 12
    assert trained[-1]["learning/loss"] < trained[0]["learning/loss"] - 0.5
    for step in trained:
        assert step["lacy/n_called"] == int(0.15 * step["lacy/weight_sum"])
        assert step["learning/total_weights"] == step["lacy/weight_sum"] > 400
        assert step["lacy/nll_called"] > step["lacy/nll_factual"] > 0  # Of the factual targets the hardest.


def test_the_mask_is_that_of_the_global_batch_on_any_mesh(dataset, trained, tmp_path):
    four = train(dataset, tmp_path, "steps=4", "ici_data_parallelism=2", "ici_fsdp_parallelism=2", devices=4)
    for one, other in zip(trained, four, strict=False):
        assert other["lacy/n_called"] == one["lacy/n_called"]
        for name in ("learning/loss", "lacy/nll_called", "lacy/threshold"):
            assert other[name] == pytest.approx(one[name], rel=1e-4)


def test_nothing_delegated_is_maxtexts_own_loss(dataset, trained, tmp_path):
    """Its softmax has the row of CALL too: -log(1 - p(CALL)), about p(CALL), lies between the two."""
    (theirs,) = train(dataset, tmp_path, "steps=1", code=_THEIRS)
    ours = trained[0]
    assert theirs["learning/loss"] == pytest.approx(ours["lacy/nll_all"] + ours["lacy/p_call"], abs=2e-4)


def test_it_compiles_ahead_for_sixteen_v5e_chips(dataset):
    done = python("examples/maxtext_lacy.py", "compile", str(dataset), *_TOY, "head_dim=128", "attention=flash",
                  "per_device_batch_size=4", "compile_topology=v5e-16", "compile_topology_num_slices=1")  # fmt: skip
    assert "Finished train_compile.py successfully" in done.stdout


def test_what_the_loss_does_not_do_is_refused_by_name(dataset, tmp_path):
    with pytest.raises(
        AssertionError,
        match=r"maxtext_lacy: gradient_accumulation_steps=2: the delegated loss is written for 1",
    ):
        train(dataset, tmp_path, "steps=1", "gradient_accumulation_steps=2")
    with pytest.raises(AssertionError, match=r"maxtext_lacy: .*no-such-policy"):
        train(dataset, tmp_path, "steps=1", "policy=no-such-policy")
