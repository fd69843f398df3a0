"""The exported folder as `transformers` sees it."""

from __future__ import annotations

import dataclasses
import json

import pytest
import transformers

from lacy_jax.errors import ConfigError, LacyError
from lacy_jax.export import check, hugging_face, provenance
from lacy_jax.export.hugging_face import export_hugging_face
from lacy_jax.export.source import load_source
from lacy_jax.tokenizer import Tokenizer


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
        ({"family": "llama", "sliding_window": (8,)}, "MistralForCausalLM"),
        ({"family": "llama", "sliding_window": (8, 0), "tie_head": False}, "MinistralForCausalLM"),
        (
            {"family": "llama", "sliding_window": (0, 0, 8), "n_layers": 4, "qk_norm": True},
            "Qwen3ForCausalLM",
        ),
    ],
)
def test_transformers_gives_the_same_logits(make_run, tmp_path, model, architecture):
    record = export_hugging_face(load_source(make_run(**model)), tmp_path / "hf")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["architectures"] == [architecture]
    assert config["vocab_size"] == record["call"]["id"] + 1 == 321
    assert "max abs difference" in record["checks"]["logits"]
    assert provenance.read(tmp_path / "hf") == json.loads((tmp_path / "hf" / "lacy.json").read_text())


def test_bfloat16_shards_and_the_record(make_run, tmp_path):
    source = load_source(make_run(family="llama", n_kv_heads=2), dtype="bfloat16")
    record = export_hugging_face(source, tmp_path / "hf", shard_size=20e-6)
    index = json.loads((tmp_path / "hf" / "model.safetensors.index.json").read_text())
    shards = sorted(path.name for path in (tmp_path / "hf").glob("model-*.safetensors"))
    assert len(shards) > 1
    assert sorted(set(index["weight_map"].values())) == shards
    assert index["metadata"]["total_size"] == 2 * record["parameters"]
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| stored as | bfloat16 |" in card
    assert "lacy, call rate 0.15, renormalised" in card
    shard = tmp_path / "hf" / shards[0]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.raises(LacyError, match=f"{shards[0]} is damaged"):
        provenance.read(tmp_path / "hf")


def test_call_is_special_in_ids_and_plain_in_text(make_run, tmp_path):
    source = load_source(make_run(family="gpt2"))
    hugging_face.write_files(source, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    call = source.run.tokenizer.call_id
    assert (
        theirs("<CALL>", add_special_tokens=False)["input_ids"]
        == source.run.tokenizer.encode("<CALL>").tolist()
    )
    assert theirs("<CALL>", add_special_tokens=False, split_special_tokens=False)["input_ids"] == [call]
    assert theirs.decode([call]) == "<CALL>"
    assert call in theirs.all_special_ids
    theirs.save_pretrained(tmp_path / "again")  # What a fine-tuning script does must not lose it.
    again = transformers.AutoTokenizer.from_pretrained(str(tmp_path / "again"))
    assert call not in again("a <CALL> b")["input_ids"]


def test_a_model_without_call_scores_text_as_p_without_call(make_run, tmp_path):
    from lacy_jax.export.import_hf import import_hugging_face

    source = dataclasses.replace(load_source(make_run(family="gpt2")), call=False)
    record = export_hugging_face(source, tmp_path / "hf")
    assert record["call"] is None
    assert "without CALL" in record["checks"]["logits"]
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["vocab_size"] == 320
    assert "exported without CALL" in (tmp_path / "hf" / "README.md").read_text()
    assert "exported without CALL" in provenance.summary(provenance.read(tmp_path / "hf"))
    assert "<CALL>" not in transformers.AutoTokenizer.from_pretrained(str(tmp_path / "hf")).get_vocab()
    result = import_hugging_face(tmp_path / "hf", tmp_path / "back")
    assert result["call_vector"] == "mean of the head's rows"
    assert result["rows_left_out"] == 0


def test_a_public_tokenizer_with_rules_of_its_own(shared_data, tmp_path):
    from lacy_jax.export.tokenizer_files import write_tokenizer

    tokenizer = Tokenizer.load(shared_data / "tokenizers" / "sentencepiece_cc_all.32000.100extra.model")
    write_tokenizer(tmp_path, tokenizer, 64)
    found = check.check_tokenizer(tmp_path, tokenizer)["tokenizer"]
    same, of = int(found.split()[3]), int(found.split()[5])
    assert same >= of - 2


def test_a_model_that_differs_gets_no_name(make_run, tmp_path, monkeypatch):
    source = load_source(make_run(family="gpt2"))
    right = hugging_face.to_hugging_face

    def wrong(cfg, params, with_call):
        for name, value in right(cfg, params, with_call):
            yield name, value * (1.01 if name.endswith("ln_f.weight") else 1.0)

    monkeypatch.setattr(hugging_face, "to_hugging_face", wrong)
    with pytest.raises(LacyError, match="logits differ by up to"):
        export_hugging_face(source, tmp_path / "hf")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_export_leaves_nothing_and_the_next_one_works(make_run, tmp_path, monkeypatch):
    source = load_source(make_run(family="gpt2"))

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(check, "check_logits", interrupt)
        with pytest.raises(KeyboardInterrupt):
            export_hugging_face(source, tmp_path / "hf")
    assert not list(tmp_path.iterdir())
    killed = tmp_path / ".hf.12345678.partial"  # What a SIGKILL leaves.
    killed.mkdir()
    export_hugging_face(source, tmp_path / "hf")
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]
    with pytest.raises(ConfigError, match="exists already"):
        export_hugging_face(source, tmp_path / "hf")


@pytest.mark.parametrize("model", [{"n_kv_heads": 2}, {"qk_norm": True}])
def test_what_gpt2_cannot_express_is_named(make_run, tmp_path, model):
    with pytest.raises(ConfigError, match=next(iter(model))):
        export_hugging_face(load_source(make_run(family="gpt2", **model)), tmp_path / "hf")
    assert not list(tmp_path.iterdir())
