"""Transformers (Flax NNX) in GPT-2 and Llama style, with a base head and a separate CALL head; presets and KV cache.

This room knows only arrays and dimensions: no objectives, no data, no mesh.
"""

from lacy_jax.models.accounting import (
    ParameterCounts,
    attention_flops_per_token,
    count_params,
    flops_per_token,
    forward_flops,
    parameter_counts,
)
from lacy_jax.models.attention import attention
from lacy_jax.models.axes import LOGICAL_AXES, logical_axes
from lacy_jax.models.cache import Cache, check_fits_context, grow, init_cache
from lacy_jax.models.config import (
    PRESETS,
    ModelConfig,
    Preset,
    check_model_config,
    resolve_model_config,
)
from lacy_jax.models.mask import Mask
from lacy_jax.models.transformer import DecodingModel, Transformer

__all__ = [
    "LOGICAL_AXES",
    "PRESETS",
    "Cache",
    "DecodingModel",
    "Mask",
    "ModelConfig",
    "ParameterCounts",
    "Preset",
    "Transformer",
    "attention",
    "attention_flops_per_token",
    "check_fits_context",
    "check_model_config",
    "count_params",
    "flops_per_token",
    "forward_flops",
    "grow",
    "init_cache",
    "logical_axes",
    "parameter_counts",
    "resolve_model_config",
]
