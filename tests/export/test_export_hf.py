"""The exported folder as `transformers` sees it."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from lacy_jax.errors import ConfigError, LacyError
from lacy_jax.export import check, provenance
from lacy_jax.export.hugging_face import export_hugging_face
from lacy_jax.export.source import load_source


@pytest.mark.parametrize(
    ("model", "architecture"),
    [
        ({"family": "gpt2"}, "GPT2LMHeadModel"),
        ({"family": "gpt2", "tie_head": False, "norm_eps": 1e-6}, "GPT2LMHeadModel"),
        ({"family": "llama", "n_kv_heads": 2}, "LlamaForCausalLM"),
        (
            {
                "family": "llama",
                "tie_head": False,
                "head_dim": 16,
                "attention_bias": True,
                "mlp_bias": True,
                "rope_scaling": ("llama3", 8.0, 1.0, 4.0, 32),
            },
            "LlamaForCausalLM",
        ),
        ({"family": "llama", "qk_norm": True, "n_kv_heads": 1, "scan_layers": False}, "Qwen3ForCausalLM"),
    ],
)
def test_transformers_gives_the_same_logits(make_run, tmp_path, model, architecture):
    record = export_hugging_face(load_source(make_run(**model)), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert config["vocab_size"] == record["call"]["id"] + 1 == 321
    assert "max abs difference" in record["checks"]["logits"]
    assert provenance.read(tmp_path / "hf") == json.loads((tmp_path / "hf" / "lacy.json").read_text())
