"""Folders of models as others make them: random ones of transformers' own making."""

from __future__ import annotations

import pathlib

import strange_tokenizers as strange
import torch
import transformers

LLAMA = {
    "vocab_size": 296, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


def make(folder: pathlib.Path, loud: float = 1.0, **fields: object) -> pathlib.Path:
    """A folder of a random Llama; `loud` scales its head."""
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**{**LLAMA, **fields}))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    model.lm_head.weight.data *= loud
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(strange.byte_level())
    return folder
