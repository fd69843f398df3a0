"""GGUF files, out and in again: the same parameters, the same ids, transformers' own reading, and what has no place there."""

from __future__ import annotations

import contextlib
import dataclasses
import json

import jax
import numpy as np
import pytest
import strange_tokenizers as strange
import torch
import transformers
from export_small import TEXTS, make_config, random_params, tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st

from lacy_jax.cascade import generate
from lacy_jax.cli import main
from lacy_jax.config import get_default_config
from lacy_jax.errors import ConfigError, DataError, LacyError
from lacy_jax.evaluation.run_texts import make_partner
from lacy_jax.export import check, gguf_out, torture
from lacy_jax.export.gguf_file import GgufFile
from lacy_jax.export.gguf_out import export_gguf
from lacy_jax.export.import_hf import import_hugging_face, open_folder
from lacy_jax.export.run_directory import write_run
from lacy_jax.export.source import load_source
from lacy_jax.tokenizer import Specials, Tokenizer, with_specials
from lacy_jax.tokenizer.json_tokenizer import byte_table, pack
from lacy_jax.training.run import load_run

gguf = pytest.importorskip("gguf")
DIMS = {"n_kv_heads": 2, "norm_eps": 1e-5}
MODELS = {
    "llama": {**DIMS, "family": "llama", "tie_head": True, "rope_theta": 5e5},
    "untied": {**DIMS, "family": "llama", "tie_head": False, "head_dim": 16},
    "qwen3": {**DIMS, "family": "llama", "qk_norm": True, "tie_head": True, "head_dim": 128},
    "gpt2": {"family": "gpt2", "tie_head": True, "d_ff": 128, "max_seq_len": 1024},
    "gpt2_untied": {"family": "gpt2", "tie_head": False, "d_ff": 128, "max_seq_len": 1024},
}
UNREAD = {
    "llama3": {**DIMS, "family": "llama", "rope_scaling": ("llama3", 4.0, 1.0, 4.0, 32)},
    "linear": {**DIMS, "family": "llama", "rope_scaling": ("linear", 2.0)},
    "biases": {**DIMS, "family": "llama", "attention_bias": True, "mlp_bias": True},
    "gpt2_narrow": {"family": "gpt2"},
    "qwen3_narrow": {**DIMS, "family": "llama", "qk_norm": True},
}


def json_kind(first=("<|start|>",), eos=(2, 0)) -> Tokenizer:
    specials = Specials(1, eos, 3, tuple({"<|start|>": 1}[piece] for piece in first))
    return Tokenizer.from_bytes(pack(strange.byte_level(first=first), specials, "t"))


def sentencepiece_kind() -> Tokenizer:
    return Tokenizer.from_bytes(strange.sentencepiece_bpe())


def make(folder, made=json_kind, **model):
    config, own = make_config(**model), made()
    write_run(folder, config, own, random_params(config, own.vocab_size), step=3)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """runs(name, kind of tokenizer) -> run directory, made once."""
    made = {}

    def get(name, kind=json_kind):
        if (name, kind) not in made:
            made[name, kind] = make(tmp_path_factory.mktemp(name), kind, **{**MODELS, **UNREAD}[name])
        return made[name, kind]

    return get


@pytest.mark.parametrize("call", [True, False], ids=["with CALL", "without"])
@pytest.mark.parametrize("name", MODELS)
def test_a_file_comes_back_bit_for_bit_and_transformers_reads_the_same(name, call, runs, tmp_path):
    source = dataclasses.replace(load_source(runs(name)), call=call)
    record = export_gguf(source, tmp_path / "m.gguf")
    assert "the same parameters" in record["checks"]["read back"]
    assert ("CALL included" if call else "without CALL") in record["checks"]["logits"]
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]
    result = import_hugging_face(tmp_path / "m.gguf", tmp_path / "back", check_logits=True)
    assert result["max_abs_difference"] <= check.TOLERANCE * result["largest_logit"]
    assert result["before_a_text"] == ["<|start|>"]
    assert result["ends_of_a_text"] == ["<|end|>", "<|endoftext|>"]
    assert result["head"] == ("tied" if source.run.model_config.tie_head else "its own")
    back = load_run(tmp_path / "back")
    assert back.step == 3
    assert back.model_config == source.run.model_config
    kept = {k: v for k, v in back.params.items() if call or k != "call"}
    jax.tree.map(np.testing.assert_array_equal, kept, {k: source.params[k] for k in kept})


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("llama3", "rope_scaling"),
        ("linear", "rope_scaling"),
        ("biases", "attention_bias, mlp_bias"),
        ("gpt2_narrow", "n_inner, n_positions"),
        ("qwen3_narrow", "head_dim"),
    ],
)
def test_what_transformers_does_not_read_it_is_told(name, told, runs, tmp_path):
    """It sets these to its defaults without a word; the tensors it reads all the same."""
    source = load_source(runs(name))
    record = export_gguf(source, tmp_path / "m.gguf")
    assert record["checks"]["told to transformers"] == told
    assert "CALL included" in record["checks"]["logits"]
    result = import_hugging_face(tmp_path / "m.gguf", tmp_path / "back", check_logits=True)
    assert result["told_to_transformers"] == told
    assert load_run(tmp_path / "back").model_config == source.run.model_config


@pytest.mark.parametrize("kind", [json_kind, sentencepiece_kind])
def test_greedy_text_is_that_of_transformers(kind, runs, tmp_path):
    """transformers' model and tokenizer of the file against our generation from the run, CALL left out."""
    run = load_run(runs("untied", kind))
    source = dataclasses.replace(load_source(runs("untied", kind)), call=False)
    export_gguf(source, tmp_path / "m.gguf")
    place = {"pretrained_model_name_or_path": str(tmp_path), "gguf_file": "m.gguf"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32).eval()
    words = transformers.AutoTokenizer.from_pretrained(**place)
    prompts = ["Ada Byron was born", "Carl Gauss wrote 12", "She"]
    ours = generate(run.model, run.tokenizer, prompts, max_new_tokens=16, progress=False)
    for prompt, text in zip(prompts, ours, strict=True):
        ids = words(prompt)["input_ids"]
        assert ids == run.tokenizer.with_prefix(run.tokenizer.encode(prompt)).tolist()
        never = [i for i in (run.tokenizer.bos_id, run.tokenizer.pad_id) if i not in run.tokenizer.eos_ids]
        with torch.inference_mode():
            out = theirs.generate(
                torch.tensor([ids]), max_new_tokens=16, do_sample=False, suppress_tokens=never or None,
                eos_token_id=list(run.tokenizer.eos_ids), pad_token_id=run.tokenizer.eos_id,
            )  # fmt: skip
        written = [i for i in out[0, len(ids) :].tolist() if i not in run.tokenizer.eos_ids]
        assert written == text.tokens


@pytest.mark.parametrize(("dtype", "type_"), [("bfloat16", "BF16"), ("float16", "F16")])
def test_types_of_the_matrices(dtype, type_, runs, tmp_path):
    export_gguf(load_source(runs("llama"), dtype=dtype), tmp_path / "m.gguf")
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert types["token_embd.weight"] == types["blk.0.attn_q.weight"] == type_
    assert types["output_norm.weight"] == "F32"


@pytest.mark.parametrize("quantised", ["Q4_1", "Q8_0", "Q5_0"])
def test_quantised_matrices_are_taken_apart_as_transformers_does(quantised, runs, tmp_path, monkeypatch):
    """Rows of 32 numbers, in the types that small models are published in."""
    right = gguf_out.to_hugging_face

    def rounded(cfg, params, with_call):
        for name, value in right(cfg, params, with_call):
            kind = gguf.GGMLQuantizationType[quantised]
            turn = (
                gguf.dequantize(gguf.quantize(value, kind), kind)
                if value.ndim > 1 and value.shape[-1] == 32
                else value
            )
            yield name, turn.reshape(value.shape)

    class Writer(gguf.GGUFWriter):
        def add_tensor(self, name, tensor, raw_shape=None, raw_dtype=None, **_):
            if tensor.ndim > 1 and tensor.shape[-1] == 32:
                raw_dtype = gguf.GGMLQuantizationType[quantised]
                tensor = gguf.quantize(tensor, raw_dtype)
            super().add_tensor(name, tensor, raw_shape, raw_dtype)

    monkeypatch.setattr(gguf_out, "to_hugging_face", rounded)
    monkeypatch.setattr(gguf, "GGUFWriter", Writer)
    monkeypatch.setattr(gguf_out, "_read_back", lambda *_: {})
    monkeypatch.setattr(gguf_out, "_compare", lambda *_: {})
    export_gguf(load_source(runs("llama")), tmp_path / "m.gguf")
    assert quantised in {t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    result = import_hugging_face(tmp_path / "m.gguf", tmp_path / "run", check_logits=True)
    assert result["max_abs_difference"] <= check.TOLERANCE * result["largest_logit"]


def test_a_file_is_a_partner(runs, tmp_path):
    export_gguf(load_source(runs("llama")), tmp_path / "m.gguf")
    config = get_default_config()
    texts = ["Ada Byron was", "born in Paris on"]
    answers = []
    for spec in (f"hf:{tmp_path}/m.gguf#48", f"checkpoint:{runs('llama')}"):
        config.generate.update({"partner": spec, "partner_reach": "word", "batch_size": 2})
        answers.append(make_partner(config).complete(texts))
    assert answers[0] == answers[1]
    assert any(answers[0])


def test_the_command_writes_and_reads_it(runs, tmp_path, capsys):
    run, out = str(runs("llama")), tmp_path / "m.gguf"
    assert (
        main(["export", f"--workdir={run}", "--format=gguf", f"--out={out}", "--without-call", "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["path"] == str(out)
    assert main(["import", f"--from={out}", f"--workdir={tmp_path / 'run'}", "--check", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["call_vector"] == "mean of the head's rows"
    assert main(["export", f"--workdir={run}", "--format=gguf", f"--out={out}"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", f"--workdir={run}", "--format=gguf", f"--out={tmp_path / 'm'}"]) == 2
    assert "ends in .gguf" in capsys.readouterr().err


# -- tokenizers ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [json_kind, sentencepiece_kind])
def test_tokenizers_come_back(kind, runs, tmp_path):
    export_gguf(load_source(runs("llama", kind)), tmp_path / "m.gguf")
    back, ours = GgufFile(tmp_path / "m.gguf", "test").tokenizer, kind()
    assert (back.prefix, back.eos_ids, back.bos_id, back.vocab_size) == (
        ours.prefix, ours.eos_ids, ours.bos_id, ours.vocab_size,
    )  # fmt: skip
    for text in torture.texts() + TEXTS:
        assert back.encode(text).tolist() == ours.encode(text).tolist()
        assert back.decode(ours.encode(text)) == ours.decode(ours.encode(text))


def _cut_by(*steps):
    value = json.loads(strange.byte_level())
    value["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": list(steps)}
    return Tokenizer.from_bytes(pack(json.dumps(value), Specials(0, (0,), 0, ()), "t"))


def _normalised():
    value = json.loads(strange.byte_level())
    value["normalizer"] = {"type": "NFC"}
    return Tokenizer.from_bytes(pack(json.dumps(value), Specials(0, (0,), 0, ()), "t"))


@pytest.mark.parametrize(
    ("made", "says"),
    [
        (tokenizer, "no BPE .models trained here are unigram."),
        (_normalised, "the normaliser NFC: GGUF has no place for it"),
        (lambda: _cut_by({"type": "Whitespace"}, {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}), "cuts texts by Whitespace, ByteLevel"),
        (lambda: json_kind(eos=(0, 1, 2, 3)), "4 ids end a text: GGUF has places for three"),
        (lambda: with_specials(sentencepiece_kind(), Specials(1, (2,), 2, (1, 1)), "t"), "puts 2 ids before a text"),
    ],
)  # fmt: skip
def test_what_gguf_has_no_place_for_is_named(made, says, tmp_path):
    run = make(tmp_path / "run", made, **MODELS["llama"])
    with pytest.raises(ConfigError, match=says):
        export_gguf(load_source(run), tmp_path / "m.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize("pre", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_pre_tokenisers_by_name(pre, tmp_path):
    """Cut as the named models' own tokenizer.json: what differs between them is how digits and apostrophes are cut."""
    from lacy_jax.export.gguf_tokenizer import _CUTS, read_tokenizer

    value = json.loads(strange.byte_level())
    fields = {
        "model": "gpt2", "pre": pre, "tokens": sorted(value["model"]["vocab"], key=value["model"]["vocab"].get),
        "merges": [" ".join(m) for m in value["model"]["merges"]], "eos_token_id": 0,
    }  # fmt: skip
    found = read_tokenizer({f"tokenizer.ggml.{k}": v for k, v in fields.items()}, "f.gguf")
    assert found.prefix == ((0,) if pre == "llama-bpe" else ())
    pieces = {
        "gpt-2": ["It", "'s", " 1867", " IT", "'", "S", " ", "\n", "x"],
        "smollm": ["It", "'s", " ", "1", "8", "6", "7", " IT", "'", "S", " ", "\n", "x"],
        "llama-bpe": ["It", "'s", " ", "186", "7", " IT", "'S", " \n", "x"],
        "qwen2": ["It", "'s", " ", "1", "8", "6", "7", " IT", "'S", " \n", "x"],
    }[pre]
    import tokenizers

    cutter = tokenizers.Tokenizer.from_str(found.backend_json).pre_tokenizer
    table = {byte: character for character, byte in byte_table().items()}
    spelled = ["".join(table[b] for b in piece.encode()) for piece in pieces]
    assert [piece for piece, _ in cutter.pre_tokenize_str("It's 1867 IT'S \nx")] == spelled
    assert set(_CUTS) == {"gpt-2", "smollm", "llama-bpe", "qwen2"}


# -- strangers and damage ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(runs, tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("small") / "m.gguf"
    export_gguf(load_source(runs("llama")), path)
    return path.read_bytes()


def rewritten(path, content, **fields):
    """The file with fields changed, added, or (None) left out; "tensors" = {name: new array or None}."""
    path.with_name("old.gguf").write_bytes(content)
    old = gguf.GGUFReader(path.with_name("old.gguf"))
    changed = {name.replace("__", "."): value for name, value in fields.items() if name != "tensors"}
    tensors = fields.get("tensors", {})
    writer = gguf.GGUFWriter(path, changed.pop("general.architecture", "llama"))
    for name, field in old.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture" or name in changed:
            continue
        writer.add_key_value(
            name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None
        )
    for name, value in changed.items():
        if value is None:
            continue
        add = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        add.get(type(value), writer.add_array)(name, value)
    for tensor in old.tensors:
        value = tensors.pop(tensor.name, np.array(tensor.data))
        if value is not None:
            writer.add_tensor(tensor.name, value)
    for name, value in tensors.items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"general__architecture": "mamba"}, "architecture 'mamba' is not supported; expected one of gpt2, llama, qwen3"),
        ({"llama__expert_count": 8}, "llama.expert_count = 8 is not supported"),
        ({"llama__attention__sliding_window": 4096}, "llama.attention.sliding_window = 4096 is not supported"),
        ({"llama__rope__scaling__type": "yarn"}, "rope scaling 'yarn' is not supported"),
        ({"llama__rope__dimension_count": 4}, "llama.rope.dimension_count = 4 is not the head's width 8"),
        ({"llama__attention__head_count_kv": [1, 2]}, "head_count_kv differs from layer to layer"),
        ({"llama__block_count": None}, "field llama.block_count is missing"),
        ({"llama__block_count": 1}, "has no place in llama"),
        ({"split__count": 2}, "one of 2 parts: join them first"),
        ({"tokenizer__ggml__model": "bert"}, "a tokenizer of kind 'bert' is not supported"),
        ({"tokenizer__ggml__pre": "superbpe"}, "pre-tokeniser 'superbpe' is not supported"),
        ({"tokenizer__ggml__add_eos_token": True}, "its tokenizer ends every text"),
        ({"tokenizer__ggml__tokens": ["a", "a", "<CALL>"]}, "two are the same"),
        ({"tokenizer__ggml__token_type": [1, 1]}, "types of pieces"),
        ({"tokenizer__ggml__eos_token_id": 4000}, "eos id 4000 is outside the vocabulary"),
        ({"lacy__record": "{"}, "lacy.record is damaged"),
        ({"tensors": {"blk.0.attn_q.weight": None}}, "self_attn.q_proj.weight is missing"),
        ({"tensors": {"output_norm.weight": np.full(32, np.nan, np.float32)}}, "model.norm.weight is damaged"),
        ({"tensors": {"rope_freqs.weight": np.full(4, 3.0, np.float32)}}, "rope_freqs.weight is no rope scaling"),
        ({"tensors": {"blk.0.ffn_gate_inp.weight": np.ones((2, 32), np.float32)}}, "ffn_gate_inp.weight .1 such. has no place"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_named(fields, says, small, tmp_path):
    path = rewritten(tmp_path / "m.gguf", small, **fields)
    with pytest.raises(DataError, match=says) as caught:
        import_hugging_face(path, tmp_path / "run")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_no_such_file_and_no_such_format(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        import_hugging_face(tmp_path / "m.gguf", tmp_path / "run")
    (tmp_path / "m.gguf").write_bytes(b"GGML" + bytes(200))
    with pytest.raises(DataError, match="not a GGUF file, or damaged"):
        import_hugging_face(tmp_path / "m.gguf", tmp_path / "run")


@settings(max_examples=120, deadline=None, derandomize=True)
@given(data=st.data())
def test_bits_that_flip_and_files_that_end_early(data, small, tmp_path_factory):
    """Whatever happens to the file's head: it is read, or one line says that it cannot be."""
    path = tmp_path_factory.mktemp("flip") / "m.gguf"
    content = bytearray(small)
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        content[data.draw(st.integers(0, 12_000))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(content))
    with contextlib.suppress(LacyError):  # Never anything else.
        open_folder(path)
