"""Parameters and floating-point operations, counted analytically, so that scans and custom kernels count in full."""

from __future__ import annotations

import dataclasses

from lacy_jax.models.config import ModelConfig


@dataclasses.dataclass(frozen=True)
class ParameterCounts:
    """Parameters by part.

    Attributes:
      embedding: V D, the token table.
      position: the position table (gpt2).
      layers: all L layers and the final norm: the usual "non-embedding" count.
      layer_matrices: the part of `layers` that is multiplied with activations (no biases, no norms).
      head: V D if untied, else 0.
      call: D.
      query: Q D and the temperature, with a query head.
    """

    embedding: int
    position: int
    layers: int
    layer_matrices: int
    head: int
    call: int
    query: int = 0

    @property
    def total(self) -> int:
        """All trained parameters; `layer_matrices` is part of `layers`."""
        return self.embedding + self.position + self.layers + self.head + self.call + self.query


def count_params(cfg: ModelConfig) -> int:
    """All trained parameters: embedding, positions, layers, final norm, head if untied, CALL vector, query head."""
    return parameter_counts(cfg).total


def parameter_counts(cfg: ModelConfig) -> ParameterCounts:
    """Parameters by part."""
    d, h, g, k, f = cfg.d_model, cfg.n_heads, cfg.n_kv_heads, cfg.head_dim, cfg.d_ff
    gpt2 = cfg.family == "gpt2"
    matrices = d * k * (h + 2 * g) + h * k * d + (2 if gpt2 else 3) * d * f
    norm = 2 * d if gpt2 else d
    of_inputs, of_output, of_mlp = cfg.biases
    biases = of_inputs * (h + 2 * g) * k + of_output * d + of_mlp * ((1 if gpt2 else 2) * f + d)
    qk_norm = 2 * k if cfg.qk_norm else 0
    return ParameterCounts(
        embedding=cfg.vocab_size * d,
        position=cfg.max_seq_len * d if gpt2 else 0,
        layers=cfg.n_layers * (matrices + 2 * norm + biases + qk_norm) + norm,
        layer_matrices=cfg.n_layers * matrices,
        head=0 if cfg.tie_head else cfg.vocab_size * d,
        call=d,
        query=cfg.query_dim * d + 1 if cfg.query_dim else 0,
    )


def flops_per_token(cfg: ModelConfig, seq_len: int) -> float:
    """Model FLOPs of training per token, forward and backward: 6 N + 12 L H K T, where a sliding window limits T.

    N is the number of weights that each token is multiplied with: layer matrices, the base head (tied or not) and the
    CALL vector, but not the embedding and position look-ups, norms and biases. 6 is 2 per multiply-add, once forward
    and twice backward. The second term is the two T x T attention products, counted in full (T, not T / 2), as is usual
    for utilisation figures (arXiv:2204.02311, appendix B). Recomputed work (remat) is not counted, nor a query head,
    which works at a few positions.

    Args:
      seq_len: T, tokens per row.
    """
    weights = parameter_counts(cfg).layer_matrices + cfg.vocab_size * cfg.d_model + cfg.d_model
    return 6.0 * weights + 3.0 * attention_flops_per_token(cfg, seq_len)


def attention_flops_per_token(cfg: ModelConfig, seq_len: int) -> float:
    """Forward FLOPs per token of the two attention products in all layers: 4 H K per key, for T keys or the window's."""
    seen = sum(min(window or seq_len, seq_len) for window in cfg.windows)
    return 4.0 * cfg.n_heads * cfg.head_dim * seen


def forward_flops(cfg: ModelConfig, tokens: int) -> float:
    """Forward FLOPs of a text of `tokens` tokens, each processed once and attending to those before it."""
    mean_context = max((tokens + 1) // 2, 1)
    return tokens * flops_per_token(cfg, mean_context) / 3.0
