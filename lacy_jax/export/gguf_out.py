"""`lacy export --format=gguf`: a file for llama.cpp, read back before it gets its name.

Only for runs with a tokenizer that GGUF can express: imported ones, with byte-level BPE or SentencePiece's BPE. CALL is
an ordinary row, a control piece named `<CALL>`; llama.cpp has no rule against writing it, so plain text needs
`--without-call`.
"""

from __future__ import annotations

import json
import pathlib
from typing import Any

import jax
import numpy as np

from lacy_jax.errors import ConfigError, LacyError
from lacy_jax.export import check, provenance, torture
from lacy_jax.export.extras import require
from lacy_jax.export.folder import finished_file
from lacy_jax.export.gguf_file import (
    CHAT_TEMPLATE,
    NUMBERS,
    RECORD,
    ROPE_FACTORS,
    SUFFIX,
    interleaved,
    names,
    rope_factors,
    turned,
)
from lacy_jax.export.gguf_tokenizer import write_tokenizer
from lacy_jax.export.hf_config import MODEL_TYPES, architecture, to_hugging_face_config
from lacy_jax.export.import_hf import open_folder
from lacy_jax.export.layout import to_hugging_face
from lacy_jax.export.source import Source
from lacy_jax.tokenizer.specials import specials_of

_TYPES = {"float32": ("F32", 0), "float16": ("F16", 1), "bfloat16": ("BF16", 32)}
"""For each `--dtype`: the type of the matrices, and the `general.file_type` of such a file."""


def export_gguf(source: Source, out: pathlib.Path, tolerance: float = check.TOLERANCE) -> dict[str, Any]:
    """Write the file, read it with `transformers` and as `lacy import` does, compare, and only then name it `out`.

    Args:
      source: what to export.
      out: file that does not exist yet.
      tolerance: of the logits, see `check.compare`.

    Returns:
      The record that other exports write to lacy.json; the file holds it without the checks.

    Raises:
      ConfigError: GGUF cannot express the architecture or tokenizer, or `out` exists or has another suffix.
      LacyError: a package is missing, the disk is full, or what was read back differs; then `out` does not exist.
    """
    gguf = require("gguf", "lacy export --format=gguf")
    if out.suffix != SUFFIX:
        raise ConfigError(f"{out}: the name of a GGUF file ends in {SUFFIX}")
    run = source.run
    name = architecture(run.model_config)
    kind = MODEL_TYPES[name]
    if kind not in NUMBERS:
        raise ConfigError(
            f"{run.workdir}: a {name} has sliding windows or biases that GGUF has no place for here"
        )
    record = provenance.describe(source, "gguf", {})
    with finished_file(out) as path:
        writer = gguf.GGUFWriter(path, kind)
        write_tokenizer(writer, run.tokenizer, source.call)
        if run.chat_template:
            writer.add_string(CHAT_TEMPLATE, run.chat_template)
        _write_numbers(writer, kind, source, record)
        _write_tensors(gguf, writer, kind, source)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()
        finally:
            writer.close()
        record["checks"] = {**_read_back(path, source), **_compare(path, source, tolerance)}
    return record


def _write_numbers(writer: Any, kind: str, source: Source, record: dict[str, Any]) -> None:
    cfg = source.run.model_config
    config = to_hugging_face_config(cfg, source.run.tokenizer, source.dtype, source.call)
    writer.add_name(str(source.run.config.name))
    writer.add_file_type(_TYPES[source.dtype][1])
    writer.add_string(RECORD, json.dumps(record))
    writer.add_vocab_size(config["vocab_size"])
    for name, theirs in NUMBERS[kind].items():
        add = writer.add_float32 if isinstance(config[theirs], float) else writer.add_uint32
        add(f"{kind}.{name}", config[theirs])
    if kind != "gpt2":
        writer.add_head_count_kv(cfg.n_kv_heads)
        writer.add_key_length(cfg.head_dim)
        writer.add_value_length(cfg.head_dim)
        writer.add_rope_dimension_count(cfg.head_dim)
        writer.add_rope_freq_base(cfg.rope_theta)
        if cfg.rope_scaling[:1] == ("linear",):
            writer.add_string(f"{kind}.rope.scaling.type", "linear")
            writer.add_rope_scaling_factor(cfg.rope_scaling[1])


def _write_tensors(gguf: Any, writer: Any, kind: str, source: Source) -> None:
    """Matrices in the requested type; norms, biases and positions in float32, as llama.cpp wants them."""
    cfg = source.run.model_config
    theirs = names(gguf, kind, cfg.n_layers)
    wanted = gguf.GGMLQuantizationType[_TYPES[source.dtype][0]]
    for name, value in to_hugging_face(cfg, source.params, source.call):
        if heads := interleaved(kind, name, cfg.n_heads, cfg.n_kv_heads):
            value = value.reshape(heads, 2, -1, *value.shape[1:]).swapaxes(1, 2).reshape(value.shape)
        value = np.ascontiguousarray(value.T if turned(kind, name) else value)
        plain = value.ndim == 1 or theirs[name].startswith("position")
        stored = gguf.GGMLQuantizationType.F32 if plain else wanted
        writer.add_tensor(theirs[name], gguf.quantize(value, stored), raw_dtype=stored)
    if cfg.rope_scaling[:1] == ("llama3",):
        factors = rope_factors(cfg.head_dim, cfg.rope_theta, cfg.rope_scaling)
        writer.add_tensor(ROPE_FACTORS, factors.astype(np.float32))


def _read_back(path: pathlib.Path, source: Source) -> dict[str, str]:
    """Checks that `lacy import` reads the same parameters, bit for bit, and gets the same ids for texts."""
    opened, tokenizer = open_folder(path), source.run.tokenizer
    params = dict(source.params)
    if not source.call:
        opened.params.pop("call")
        params.pop("call")
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, np.asarray(b))), opened.params, params)
    if not all(jax.tree.leaves(same)):
        raise LacyError(
            "the file does not hold our parameters: they differ when it is read back; nothing was written"
        )
    texts = torture.texts()
    for text in texts:
        if opened.tokenizer.encode(text).tolist() != tokenizer.encode(text).tolist():
            raise LacyError(
                f"the file's tokenizer is not ours: ids differ for the text {text[:60]!r}; nothing was written"
            )
    if specials_of(opened.tokenizer) != specials_of(tokenizer):
        raise LacyError("the file's tokenizer is not ours: its special ids differ; nothing was written")
    return {"read back": f"the same parameters, ids identical on {len(texts)} of {len(texts)} texts"}


def _compare(path: pathlib.Path, source: Source, tolerance: float) -> dict[str, Any]:
    """Checks the logits of `transformers`, which is given the settings that it does not read."""
    run = source.run
    config = to_hugging_face_config(run.model_config, run.tokenizer, source.dtype, source.call)
    told = check.unread(path, run.model_config)
    found = check.check_logits(
        path, run.model, run.tokenizer, tolerance, source.call, config if told else None
    )
    return found | ({"told to transformers": told} if told else {})
