"""`lacy export --format=hf`: a folder that `transformers` loads, checked before it gets its name."""

from __future__ import annotations

import pathlib
from typing import Any

from lacy_jax import files
from lacy_jax.export import check, provenance, tensors
from lacy_jax.export.extras import require
from lacy_jax.export.folder import finished_folder
from lacy_jax.export.hf_config import architecture, one_or_several, to_hugging_face_config
from lacy_jax.export.layout import to_hugging_face
from lacy_jax.export.source import Source
from lacy_jax.export.tokenizer_files import write_tokenizer

SHARD_SIZE = 5.0
"""Most GB of one safetensors file, as in transformers."""


def export_hugging_face(
    source: Source,
    out: pathlib.Path,
    shard_size: float = SHARD_SIZE,
    tolerance: float = check.TOLERANCE,
) -> dict[str, Any]:
    """Write the folder, load it with `transformers`, compare, and only then name it `out`.

    Args:
      source: what to export.
      out: folder that does not exist yet.
      shard_size: most GB of one safetensors file.
      tolerance: of the logits, see `check.check_logits`.

    Returns:
      The record that is also in OUT/lacy.json.

    Raises:
      ConfigError: an architecture that `transformers` does not have, or `out` exists.
      LacyError: a package is missing, the disk is full, or the exported model or tokenizer differs from ours; then
        `out` does not exist.
    """
    for package in ("torch", "transformers", "safetensors", "tokenizers"):
        require(package, "lacy export --format=hf")
    run = source.run
    name = architecture(run.model_config)
    with finished_folder(out) as folder:
        write_files(source, folder, shard_size)
        checks = {
            **check.check_tokenizer(folder, run.tokenizer, source.call, run.chat_template),
            **check.check_logits(folder, run.model, run.tokenizer, tolerance, source.call),
        }
        record = provenance.describe(source, "hf", checks)
        files.write_text(folder / provenance.CARD, provenance.card(record, name))
        provenance.write(folder, record)
    return record


def write_files(source: Source, folder: pathlib.Path, shard_size: float = SHARD_SIZE) -> None:
    """config.json, generation_config.json, tokenizer files and tensors, unchecked."""
    run = source.run
    cfg, tokenizer = run.model_config, run.tokenizer
    files.write_json(
        folder / "config.json", to_hugging_face_config(cfg, tokenizer, source.dtype, source.call)
    )
    generation: dict[str, Any] = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": one_or_several(tokenizer.eos_ids),
        "pad_token_id": tokenizer.pad_id,
        "do_sample": False,
    }
    if source.call:
        generation["suppress_tokens"] = [tokenizer.call_id]  # CALL calls the partner and is never text.
    files.write_json(folder / "generation_config.json", generation)
    write_tokenizer(folder, tokenizer, cfg.max_seq_len, source.call, run.chat_template)
    tensors.write(
        folder, to_hugging_face(cfg, source.params, source.call), source.dtype, int(shard_size * 1e9)
    )
