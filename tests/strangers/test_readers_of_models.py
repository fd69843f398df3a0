"""Readers of models from elsewhere, of tokenizers and of what an export says of itself. See tests/support/reader_checks.py."""

from __future__ import annotations

import json
import pathlib
from typing import Any, ClassVar

import export_small
import safetensors.numpy
import strange_models
from reader_checks import Reader, ReaderChecks, folder_of

from lacy_jax.export import provenance
from lacy_jax.export.hub_folder import HubFolder
from lacy_jax.export.import_hf import open_folder
from lacy_jax.tokenizer import Tokenizer


def _hub(path: pathlib.Path) -> None:
    strange_models.make(path.parent)
    (path.parent / "tokenizer_config.json").write_text(
        '{"eos_token": "<|endoftext|>", "added_tokens_decoder": {"0": {"content": "<|endoftext|>"}}}'
    )
    if path.name.endswith("index.json"):
        tensors = path.parent / "model.safetensors"
        names = list(safetensors.numpy.load_file(tensors))
        tensors.rename(path.parent / "model-00001-of-00001.safetensors")
        path.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))


def _open_hub(path: pathlib.Path) -> Any:
    """All of it where tensors are read; else what is read before them."""
    if path.name in ("generation_config.json", "tokenizer_config.json"):
        return HubFolder(path.parent, "a test").tokenizer
    return open_folder(path.parent)


def _export(path: pathlib.Path) -> None:
    path.parent.mkdir(exist_ok=True)
    (path.parent / "x.bin").write_bytes(b"x")
    record = {"dataset": None, "trained_at": None, "steps": [1], "form": "hf", "dtype": "float32", "parameters": 5, "lacy_jax": "1",
              "exported": "today", "config": {"objective": {"policy": "lacy", "call_rate": 0.1}}, "call": None, "checks": {}, "format": provenance.FORMAT}  # fmt: skip
    provenance.write(path.parent, record)


_hub_files = (
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
    "model.safetensors",
    "model.safetensors.index.json",
)


class TestReaders(ReaderChecks):
    readers: ClassVar[dict[str, Reader]] = {
        **{
            f"model, {name}": Reader(
                f"hf/{name}",
                _hub,
                _open_hub,
                json=name.endswith(".json"),
                names=folder_of,
                cost=1 if name[0] in "gt" else 5,
            )
            for name in _hub_files
        },
        "tokenizer": Reader(
            "t.model",
            lambda path: path.write_bytes(export_small.tokenizer().model_bytes),
            lambda path: Tokenizer.load(path).encode("Ada").tolist(),
        ),
        "export record": Reader(
            f"x/{provenance.FILE}",
            _export,
            lambda path: provenance.summary(provenance.read(path.parent)),
            json=True,
            names=folder_of,
        ),
    }
