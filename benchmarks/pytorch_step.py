"""The train step of Hugging Face's model of the same shape in PyTorch, for benchmarks/step.py: what ours is measured against."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers
from torch.nn.functional import cross_entropy

from lacy_jax.dataset.batch import Batch
from lacy_jax.models import ModelConfig


def make_network(model: ModelConfig) -> Any:
    """Hugging Face's model, randomly initialised, without dropout, with its own fastest attention (SDPA)."""
    torch.manual_seed(0)
    if model.family == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=model.vocab_size, n_positions=model.max_seq_len, n_embd=model.d_model, n_layer=model.n_layers,
            n_head=model.n_heads, n_inner=model.d_ff, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return transformers.GPT2LMHeadModel(config).train()
    config = transformers.LlamaConfig(
        vocab_size=model.vocab_size, max_position_embeddings=model.max_seq_len, hidden_size=model.d_model,
        num_hidden_layers=model.n_layers, num_attention_heads=model.n_heads, num_key_value_heads=model.n_kv_heads,
        head_dim=model.head_dim, intermediate_size=model.d_ff, tie_word_embeddings=model.tie_head, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).train()


def make_sides(model: ModelConfig, batch: Batch, threads: int) -> dict[str, Callable[[], Any]]:
    """Functions that each run once: a step (next-token loss, clipping, fused AdamW), its parts, and a large matmul.

    Rows are read as one document each: attention is plainly causal, which is the fast path of PyTorch.

    Args:
      model: the shape and the compute dtype; bfloat16 by autocast.
      batch: tokens, targets and which of them count, on the host.
      threads: how many PyTorch may use.
    """
    torch.set_num_threads(threads)
    network = make_network(model)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True
    )
    tokens = torch.from_numpy(np.array(batch.tokens)).long()
    targets = torch.from_numpy(np.where(batch.weights, batch.targets, -100)).long()
    half = model.dtype == "bfloat16"
    x = torch.randn(*tokens.shape, model.d_model)
    square = torch.randn(2048, 2048, dtype=torch.bfloat16 if half else torch.float32)

    def narrow() -> Any:
        return torch.autocast("cpu", torch.bfloat16, enabled=half)

    def loss_of(logits: Any) -> Any:
        return cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    def optimize() -> None:
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    def step() -> None:
        with narrow():
            logits = network(tokens).logits
        loss = loss_of(logits)
        optimizer.zero_grad()
        loss.backward()
        optimize()

    def layers() -> None:
        given = x.clone().requires_grad_()
        with narrow():
            hidden = network.base_model(inputs_embeds=given).last_hidden_state
        hidden.backward(x.to(hidden.dtype))

    def loss() -> None:
        given = x.clone().requires_grad_()
        with narrow():
            logits = network.lm_head(given)
        loss_of(logits).backward()

    return {
        "pytorch": step,
        "pytorch layers": layers,
        "pytorch loss": loss,
        "pytorch optimizer": optimize,
        "pytorch matmul": lambda: square @ square,
    }
