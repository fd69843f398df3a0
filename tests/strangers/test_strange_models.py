"""Models that others made: configs that say a thing twice, heads that are not what they are called, large and small logits."""

from __future__ import annotations

import json
import types

import numpy as np
import pytest
import strange_tokenizers as strange
from safetensors.numpy import load_file, save_file
from strange_models import make

from lacy_jax.errors import LacyError
from lacy_jax.export import check, hugging_face
from lacy_jax.export.hugging_face import export_hugging_face
from lacy_jax.export.import_hf import import_hugging_face
from lacy_jax.export.source import load_source
from lacy_jax.training.run import load_run


def edit(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    for name, value in fields.items():
        config.pop(name, None) if value is None else config.update({name: value})
    (folder / "config.json").write_text(json.dumps(config))


def logits_of(folder, tmp_path, name="run"):
    """(ours, theirs) over random ids, after an import that has compared them itself."""
    import_hugging_face(folder, tmp_path / name, check_logits=True)
    run = load_run(tmp_path / name)
    tokens = check.sample_tokens(run.tokenizer, 48)
    ours = check.logits(run.model, tokens)[..., :-1]
    return ours, check.their_logits(folder, tokens)[..., : ours.shape[-1]], run


@pytest.mark.parametrize(
    "fields",
    [
        {"rope_theta": 5e5, "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}},
        {"rope_theta": 77.0, "rope_parameters": {"rope_type": "default"}},
        {"rope_theta": 77.0, "rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 3.0}},
        {
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "linear", "factor": 3.0},
            "rope_parameters": {"rope_type": "default", "rope_theta": 77.0},
        },
    ],
)
def test_rope_said_twice_is_what_transformers_makes_of_it(fields, tmp_path):
    folder = make(tmp_path / "hf")
    plain, _, _ = logits_of(folder, tmp_path, "plain")
    edit(folder, **fields)
    ours, theirs, _ = logits_of(folder, tmp_path)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert np.abs(ours - plain).max() > 100 * np.abs(ours - theirs).max()  # It does matter here.


def test_a_head_beside_tie_word_embeddings(tmp_path):
    """One that differs is the head; one that is the embedding again is not stored twice."""
    folder = make(tmp_path / "hf", tie_word_embeddings=False)
    edit(folder, tie_word_embeddings=True)
    ours, theirs, run = logits_of(folder, tmp_path)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())
    assert not run.model_config.tie_head
    tensors = load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    save_file(tensors, folder / "model.safetensors")
    _, _, run = logits_of(folder, tmp_path, "tied")
    assert run.model_config.tie_head


def test_a_single_file_beside_shards(tmp_path):
    """As transformers: the single file, whatever an index beside it says."""
    folder = make(tmp_path / "hf")
    shards = make(tmp_path / "shards", loud=3.0)
    (shards / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    names = list(load_file(folder / "model.safetensors"))
    index = {"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    ours, theirs, _ = logits_of(folder, tmp_path)
    np.testing.assert_allclose(ours, theirs, atol=1e-4 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"model_type": "qwen3"}, "architectures says LlamaForCausalLM, model_type 'qwen3'"),
        ({"vocab_size": 300}, "vocab_size is 300, but the embedding has 296 rows"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "of its own for full_attention"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(fields, says, tmp_path):
    folder = make(tmp_path / "hf")
    edit(folder, **fields)
    with pytest.raises(LacyError, match=says):
        import_hugging_face(folder, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("first", [(), ("<|start|>",)], ids=["no bos", "bos"])
def test_the_harness_sees_what_its_own_model_sees(first, tmp_path):
    """Its `hf` model on the strangers' folder, ours on the run: the first token is the post-processor's, whatever the config says."""
    from lm_eval.models.huggingface import HFLM

    from lacy_jax.evaluation.harness import LacyLM

    folder = make(tmp_path / "hf", 3.0, tie_word_embeddings=False, vocab_size=290)
    edit(folder, bos_token_id=3, eos_token_id=2)
    (folder / "generation_config.json").unlink()
    (folder / "tokenizer.json").write_text(strange.byte_level(first=first))
    names = {"bos_token": "<|start|>", "eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    import_hugging_face(folder, tmp_path / "run")
    run = load_run(tmp_path / "run")
    ours = LacyLM(run.model, run.tokenizer, batch_size=4)
    theirs = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
    assert ours.prefix_token_id == theirs.prefix_token_id == 1
    assert ours.tok_encode("Ada was") == theirs.tok_encode("Ada was")
    pairs = [("Ada Byron was born", " in Paris"), ("", "He is here."), ("a ", "b"), ("x" * 90, " y")]
    requests = [types.SimpleNamespace(args=pair) for pair in pairs]
    for (a, one), (b, other) in zip(
        ours.loglikelihood(requests), theirs.loglikelihood(requests), strict=True
    ):
        assert (a, one) == (pytest.approx(b, rel=1e-4), other)
    if not first:  # With bos, `hf` counts it as a token of the text (docs/export.md).
        whole = [
            types.SimpleNamespace(args=(text,)) for text in ("Carl Gauss was born in Göttingen", "y" * 150)
        ]
        assert ours.loglikelihood_rolling(whole) == pytest.approx(
            theirs.loglikelihood_rolling(whole), rel=1e-4
        )


@pytest.mark.parametrize("loud", [1e-3, 1.0, 300.0])
def test_parity_is_as_exact_as_the_logits_are_large(loud, tmp_path):
    """Logits of 0.001 and of 500 pass, in and out: float32 differs from float32 by a share of them."""
    folder = make(tmp_path / "hf", loud, tie_word_embeddings=False)
    result = import_hugging_face(folder, tmp_path / "run", check_logits=True)
    assert 0.5 < result["largest_logit"] / loud < 50
    assert 0 < result["max_abs_difference"] < 1e-5 * result["largest_logit"]
    record = export_hugging_face(load_source(tmp_path / "run"), tmp_path / "out")
    assert f"of logits up to {result['largest_logit']:.3g}"[:-1] in record["checks"]["logits"]


@pytest.mark.parametrize("loud", [1e-3, 300.0])
def test_an_error_of_a_hundredth_never_passes(loud, tmp_path, monkeypatch):
    """Small logits too: 1e-4 is much to a logit of 0.001."""
    import_hugging_face(make(tmp_path / "hf", loud, tie_word_embeddings=False), tmp_path / "run")
    right = hugging_face.to_hugging_face

    def wrong(cfg, params, with_call):
        for name, value in right(cfg, params, with_call):
            yield name, value * (1.01 if name == "model.norm.weight" else 1.0)

    monkeypatch.setattr(hugging_face, "to_hugging_face", wrong)
    with pytest.raises(LacyError, match="logits differ by up to"):
        export_hugging_face(load_source(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_logits_that_are_no_numbers_never_pass():
    one, nan = np.ones((1, 2, 3)), np.full((1, 2, 3), np.nan)
    for got, want in ((nan, one), (one, nan)):
        with pytest.raises(LacyError, match="logits differ by up to nan"):
            check.compare(got, want, 1e-4, "x")
    assert check.compare(one * 0, one * 0, 1e-4, "x") == (0.0, 0.0)
