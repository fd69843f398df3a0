"""Folders as `transformers` writes them, read into our models."""

from __future__ import annotations

import json
import platform
import re
import shutil

import jax
import numpy as np
import pytest
import torch
import transformers
from export_small import make_config

from lacy_jax.cascade import CheckpointPartner
from lacy_jax.cascade.partners.base import cut
from lacy_jax.cascade.partners.checkpoint import STEPS
from lacy_jax.config import get_default_config
from lacy_jax.errors import ConfigError, DataError, LacyError
from lacy_jax.evaluation.run_texts import keep_compiled, make_partner
from lacy_jax.export import check
from lacy_jax.export.gguf_tokenizer import _CUTS
from lacy_jax.export.hf_config import architecture
from lacy_jax.export.hugging_face import export_hugging_face
from lacy_jax.export.import_hf import import_hugging_face, open_folder
from lacy_jax.export.source import load_source
from lacy_jax.models import init_cache, resolve_model_config
from lacy_jax.training.run import load_run

DIMS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
LLAMA = {**DIMS, "num_key_value_heads": 2, "max_position_embeddings": 64, "vocab_size": 300}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
VARIANTS = {
    "gpt2": ("GPT2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 290}),
    "gpt2_untied": (
        "GPT2",
        {
            "n_embd": 32,
            "n_layer": 1,
            "n_head": 2,
            "n_inner": 40,
            "vocab_size": 290,
            "tie_word_embeddings": False,
        },
    ),
    "llama_untied": ("Llama", {**LLAMA, "tie_word_embeddings": False, "rope_theta": 5e5}),
    "llama3": ("Llama", {**LLAMA, "tie_word_embeddings": True, "rope_scaling": LLAMA3, "rms_norm_eps": 1e-5}),
    "llama_bias": ("Llama", {**LLAMA, "attention_bias": True, "mlp_bias": True, "head_dim": 16}),
    "llama_linear": ("Llama", {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}),
    "mistral": ("Mistral", {**LLAMA, "sliding_window": 6}),
    "mistral_full": ("Mistral", {**LLAMA, "sliding_window": None}),
    "ministral": (
        "Ministral",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "head_dim": 8,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "qwen2": ("Qwen2", {**LLAMA, "tie_word_embeddings": True}),
    "qwen2_windows": (
        "Qwen2",
        {
            **LLAMA,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 6,
            "max_window_layers": 1,
        },
    ),
    "qwen3_windows": (
        "Qwen3",
        {
            **LLAMA,
            "num_hidden_layers": 4,
            "head_dim": 16,
            "use_sliding_window": True,
            "sliding_window": 6,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
    ),
    "qwen3": ("Qwen3", {**LLAMA, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_bias": ("Qwen3", {**LLAMA, "head_dim": 8, "attention_bias": True, "num_key_value_heads": 1}),
}


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory, byte_level):
    """make_folder(variant, shard="1GB") -> a folder that `save_pretrained` wrote, with a tokenizer.json."""

    def make(variant: str, shard: str = "1GB"):
        folder = tmp_path_factory.mktemp(variant)
        kind, fields = VARIANTS[variant]
        config = getattr(transformers, f"{kind}Config")(**fields, bos_token_id=0, eos_token_id=0)
        torch.manual_seed(0)
        model = getattr(transformers, "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM")(config)
        for parameter in model.parameters():  # Off the trivial start: biases and norms count too.
            parameter.data += 0.1 * torch.randn_like(parameter)
        model.save_pretrained(folder, max_shard_size=shard)
        (folder / "tokenizer.json").write_text(byte_level)
        return folder

    return make


@pytest.mark.parametrize("variant", VARIANTS)
def test_imported_models_give_transformers_logits(variant, make_folder, tmp_path):
    folder = make_folder(variant, shard="20KB" if variant == "llama3" else "1GB")
    assert (folder / "model.safetensors.index.json").exists() == (variant == "llama3")
    result = import_hugging_face(folder, tmp_path / "run", check_logits=True)
    assert result["max_abs_difference"] < 1e-4
    assert result["rows_left_out"] == VARIANTS[variant][1]["vocab_size"] - 280
    run = load_run(tmp_path / "run")
    tokens = check.sample_tokens(run.tokenizer, 32)
    z = check.logits(run.model, tokens)[..., :-1]
    np.testing.assert_allclose(z, check.their_logits(folder, tokens)[..., :280], atol=1e-4)
    np.testing.assert_allclose(run.model.call_vector(), run.model.head_kernel().mean(0), atol=1e-6)


@pytest.mark.parametrize(
    ("variant", "windows"),
    [
        ("mistral", (6,)),
        ("mistral_full", ()),
        ("ministral", (6, 0)),
        ("qwen2", ()),
        ("qwen2_windows", (0, 6, 6)),
        ("qwen3_windows", (6, 0)),
    ],
)
def test_greedy_text_beyond_the_window_is_what_transformers_generates(variant, windows, make_folder):
    """Two prompts of unequal length, 40 tokens each, past a window of 6; on both sides by KV cache."""
    folder = make_folder(variant)
    opened = open_folder(folder)
    assert opened.definition.config.sliding_window == windows
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    theirs.generation_config.eos_token_id = None
    model, step = opened.model.for_decoding(), jax.jit(lambda model, *inputs: model.decode(*inputs))
    for prompt in ([5, 9, 11], list(range(20, 40))):
        with torch.inference_mode():
            given = torch.tensor([prompt])
            out = theirs.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=40, do_sample=False, pad_token_id=0,
                suppress_tokens=list(range(opened.tokenizer.vocab_size, 300)),
            )  # fmt: skip
        want = out[0, len(prompt) :].tolist()
        cache, fed, got = init_cache(model.cfg, 1, 64), prompt, []
        for _ in range(40):
            done = len(prompt) + len(got) - len(fed)
            chunk, positions = (
                np.array([fed], np.int32),
                np.arange(done, done + len(fed), dtype=np.int32)[None],
            )
            hidden, cache = step(model, chunk, positions, cache)
            fed = [int(np.argmax(model.logits(hidden[0, -1])[0]))]
            got += fed
        assert got == want


@pytest.mark.parametrize("variant", ["mistral", "ministral", "qwen2", "qwen2_windows", "qwen3_windows"])
def test_windows_and_biases_go_out_as_they_came_in(variant, make_folder, tmp_path):
    """`lacy export` itself compares logits and ids with transformers."""
    folder = make_folder(variant)
    if variant.startswith("qwen2"):
        # It gives this class Qwen's own pre-tokeniser whatever the folder names; the tests' tokenizer has GPT-2's.
        import_hugging_face(folder, tmp_path / "gpt2")
        with pytest.raises(LacyError, match="the exported tokenizer is not ours: ids differ"):
            export_hugging_face(load_source(tmp_path / "gpt2"), tmp_path / "hf")
        folder = shutil.copytree(folder, tmp_path / "own")
        value = json.loads((folder / "tokenizer.json").read_text())
        value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": _CUTS["qwen2"]}
        value["normalizer"] = {"type": "NFC"}
        (folder / "tokenizer.json").write_text(json.dumps(value))
    import_hugging_face(folder, tmp_path / "run")
    source = load_source(tmp_path / "run")
    export_hugging_face(source, tmp_path / "hf")
    names = [json.loads((f / "config.json").read_text())["architectures"] for f in (tmp_path / "hf", folder)]
    assert names[0] == names[1]
    import_hugging_face(tmp_path / "hf", tmp_path / "back")
    assert load_run(tmp_path / "back").model_config == source.run.model_config


def test_a_qwen2_with_sentencepiece_is_refused(make_run, tmp_path):
    source = load_source(make_run(family="llama", attention_bias=True, attention_out_bias=False))
    with pytest.raises(ConfigError, match="with its own byte-level tokenizer whatever the folder names"):
        export_hugging_face(source, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sliding_window": (8, 16)}, "config.model.sliding_window = (8, 16): of LlamaForCausalLM, Mistral"),
        ({"sliding_window": (8,), "mlp_bias": True}, "config.model.sliding_window = (8,): of Llama"),
        (
            {"family": "gpt2", "sliding_window": (8,)},
            "config.model.sliding_window = (8,): of GPT2LMHeadModel none",
        ),
        ({"qk_norm": True, "mlp_bias": True}, "config.model.mlp_bias = True: of Llama"),
        ({"family": "gpt2", "n_kv_heads": 2}, "config.model.n_kv_heads = 2: of GPT2LMHeadModel none"),
    ],
)
def test_what_no_class_of_theirs_computes_is_named(changes, says):
    config = make_config(**{"family": "llama", **changes})
    with pytest.raises(ConfigError, match=re.escape(says)):
        architecture(resolve_model_config(config.model, 320, 64))


def test_an_export_comes_back_bit_for_bit(make_run, tmp_path):
    source = load_source(make_run(family="llama", n_kv_heads=2))
    export_hugging_face(source, tmp_path / "hf", shard_size=20e-6)
    import_hugging_face(tmp_path / "hf", tmp_path / "back")
    back = load_run(tmp_path / "back")
    assert back.step == 3
    assert back.tokenizer.hash == source.run.tokenizer.hash
    jax.tree.map(np.testing.assert_array_equal, back.params, source.params)
    assert back.config.objective.policy == "lacy"


def _edit(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def _cut(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _not_a_number(folder):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] = np.nan
    save_file(tensors, folder / "model.safetensors")


def _pickle(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (
            lambda f: _edit(f, architectures=["Gemma3ForCausalLM"]),
            "architecture Gemma3ForCausalLM is not supported; expected one of GPT2LMHeadModel, LlamaForCausalLM",
        ),
        (
            lambda f: _edit(f, layer_types=["sliding_attention"] * 2, sliding_window=8),
            "layer_types with 2 layers of sliding_attention of 2 is nothing that LlamaForCausalLM reads",
        ),
        (
            lambda f: _edit(f, layer_types=["chunked_attention"] * 2),
            "layer_types has 'chunked_attention'; supported are full_attention and sliding_attention",
        ),
        (lambda f: _edit(f, layer_types=["full_attention"]), "layer_types names 1 of 2 layers"),
        (
            lambda f: _edit(
                f,
                architectures=["Qwen2ForCausalLM"],
                model_type="qwen2",
                layer_types=["sliding_attention"] * 2,
                sliding_window=8,
            ),
            "layer_types has 'sliding_attention', but sliding_window is not set",
        ),
        (lambda f: _edit(f, hidden_act="gelu"), "hidden_act = 'gelu'"),
        (lambda f: _edit(f, rope_scaling={"rope_type": "yarn", "factor": 2}), "rope scaling 'yarn'"),
        (lambda f: _edit(f, quantization_config={"bits": 4}), "quantization_config"),
        (lambda f: _edit(f, hidden_size=64), "has shape"),
        (lambda f: _edit(f, attention_bias=True), "self_attn.q_proj.bias is missing"),
        (lambda f: _edit(f, num_hidden_layers=1), "has no place in llama"),
        (lambda f: (f / "tokenizer.json").unlink(), "neither tokenizer.model nor tokenizer.json"),
        (_cut, "model.safetensors is damaged or cut off"),
        (_not_a_number, "model.norm.weight is damaged"),
        (_pickle, "pytorch_model.bin is a pickle, which is never loaded"),
    ],
)
def test_what_cannot_be_imported_is_named(damage, says, make_folder, tmp_path):
    folder = make_folder("llama_untied")
    damage(folder)
    with pytest.raises(LacyError, match=says) as caught:
        import_hugging_face(folder, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_missing_shard_and_another_vocabulary_are_named(make_folder, tmp_path):
    folder = make_folder("llama3", shard="20KB")
    shard = sorted(folder.glob("model-0*"))[1]
    shard.rename(tmp_path / "shard")
    with pytest.raises(DataError, match=rf"shard {shard.name} is missing"):
        import_hugging_face(folder, tmp_path / "run")
    shutil.move(tmp_path / "shard", shard)
    value = json.loads((folder / "tokenizer.json").read_text())
    value["model"]["vocab"] |= {f"word{i}": 280 + i for i in range(30)}
    (folder / "tokenizer.json").write_text(json.dumps(value))
    with pytest.raises(
        DataError, match=r"vocabulary does not match: the tokenizer has 310 ids, the embedding 300 rows"
    ):
        import_hugging_face(folder, tmp_path / "run")


@pytest.mark.parametrize("variant", ["llama3", "qwen3_bias", "qwen3_windows"])
@pytest.mark.parametrize("reach", ["token", "word"])
def test_a_folder_is_a_partner_that_writes_what_transformers_writes(variant, reach, make_folder):
    """Greedy text over several calls, its KV cache going on; theirs reads everything anew each time."""
    folder = make_folder(variant)
    config = get_default_config()
    config.generate.update({"partner": f"hf:{folder}#60", "partner_reach": reach, "batch_size": 4})
    partner = make_partner(config)
    assert isinstance(partner, CheckpointPartner)
    assert (partner.cfg.max_seq_len, partner.name) == (60, f"hf:{folder}#60")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()

    def written(text):
        ids = partner.tokenizer.with_prefix(partner.tokenizer.encode(text)).tolist()
        before = len(partner.tokenizer.decode(ids))
        for _ in range(STEPS[reach]):
            with torch.inference_mode():
                z = theirs(torch.tensor([ids])).logits[0, -1, : partner.tokenizer.vocab_size]
            ids.append(int(z.argmax()))
            answer = partner.tokenizer.decode(ids)[before:]
            if ids[-1] in partner.tokenizer.eos_ids or (
                reach == "token" and answer and not answer.endswith("\ufffd")
            ):
                break
        if reach == "word":
            return cut(answer.rstrip("\ufffd"), "word")
        return "" if answer.endswith("\ufffd") else answer

    texts, wrote = ["Marie Curie was", "She", "born in Paris on", "and then"], []
    for _ in range(3):
        answers = partner.complete(texts)
        assert answers == [written(text) for text in texts]
        wrote += answers
        texts = [text + answer + " a" for text, answer in zip(texts, answers, strict=True)]
    assert sum(map(bool, wrote)) > 3


def test_what_is_compiled_for_a_folder_is_kept_where_nothing_else_says_so(monkeypatch, tmp_path):
    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        for given, kept in ((None, str(tmp_path / "lacy_jax" / platform.node())), ("elsewhere", "elsewhere")):
            jax.config.update("jax_compilation_cache_dir", given)
            keep_compiled()
            assert jax.config.jax_compilation_cache_dir == kept
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


def test_a_folder_that_cannot_be_a_partner_is_refused(make_folder, tmp_path):
    config = get_default_config()
    for spec, says in (
        (f"hf:{tmp_path}", "config.json not found: not a Hugging Face model folder"),
        (f"hf:{make_folder('llama3')}#999", "the model was made for 64"),
        (f"hf:{make_folder('llama3')}#wide", "#wide is no number of tokens"),
    ):
        config.generate.partner = spec
        with pytest.raises(LacyError, match=says):
            make_partner(config)
