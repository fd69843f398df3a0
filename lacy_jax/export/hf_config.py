"""Our `ModelConfig` as a Hugging Face config.json and back; what one side cannot express is refused by name."""

from __future__ import annotations

from typing import Any

from lacy_jax.errors import ConfigError, DataError
from lacy_jax.models import ModelConfig
from lacy_jax.tokenizer import Tokenizer

MODEL_TYPES = {"GPT2LMHeadModel": "gpt2", "LlamaForCausalLM": "llama", "Qwen3ForCausalLM": "qwen3"}
"""The classes that compute what ours do, and how config.json names their kind."""
_GPT2_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh")
# Fields that change what the model computes, with the only values that ours computes.
_ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "GPT2LMHeadModel": {
        "activation_function": _GPT2_ACTIVATIONS,
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    "LlamaForCausalLM": {"hidden_act": ("silu", "swish"), "pretraining_tp": (1,)},
    "Qwen3ForCausalLM": {"hidden_act": ("silu", "swish"), "use_sliding_window": (False,)},
}


def architecture(cfg: ModelConfig) -> str:
    """The `transformers` class that computes what `cfg` computes.

    Raises:
      ConfigError: none does; the field is named.
    """
    if cfg.family == "gpt2":
        if cfg.n_kv_heads != cfg.n_heads:
            raise ConfigError(
                f"config.model.n_kv_heads = {cfg.n_kv_heads}: GPT2LMHeadModel has no grouped queries; such a model "
                "cannot be exported"
            )
        if cfg.qk_norm:
            raise ConfigError(
                "config.model.qk_norm = True: GPT2LMHeadModel has none; such a model cannot be exported"
            )
        if cfg.head_dim * cfg.n_heads != cfg.d_model:
            raise ConfigError(
                f"config.model.head_dim = {cfg.head_dim}: GPT2LMHeadModel wants d_model / n_heads; such a model "
                "cannot be exported"
            )
        return "GPT2LMHeadModel"
    if cfg.qk_norm and cfg.mlp_bias:
        raise ConfigError(
            "config.model.mlp_bias = True: Qwen3ForCausalLM has none; such a model cannot be exported"
        )
    return "Qwen3ForCausalLM" if cfg.qk_norm else "LlamaForCausalLM"


def to_hugging_face_config(
    cfg: ModelConfig, tokenizer: Tokenizer, dtype: str, with_call: bool = True
) -> dict[str, Any]:
    """The content of config.json. Both spellings of fields that `transformers` 4 and 5 write differently.

    Args:
      cfg: dimensions.
      tokenizer: of the run; CALL is the last id.
      dtype: of the stored tensors.
      with_call: False for a model without CALL.

    Raises:
      ConfigError: as `architecture`.
    """
    name = architecture(cfg)
    common = {
        "architectures": [name],
        "vocab_size": cfg.vocab_size + with_call,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": one_or_several(tokenizer.eos_ids),
        "pad_token_id": tokenizer.pad_id,
        "tie_word_embeddings": cfg.tie_head,
        "torch_dtype": dtype,
        "use_cache": True,
    }
    if name == "GPT2LMHeadModel":
        return {
            **common,
            "model_type": MODEL_TYPES[name],
            "n_embd": cfg.d_model,
            "n_layer": cfg.n_layers,
            "n_head": cfg.n_heads,
            "n_inner": cfg.d_ff,
            "n_positions": cfg.max_seq_len,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": cfg.norm_eps,
            "resid_pdrop": cfg.dropout,
            "embd_pdrop": cfg.dropout,
            "attn_pdrop": 0.0,
        }
    config = {
        **common,
        "model_type": MODEL_TYPES[name],
        "hidden_size": cfg.d_model,
        "num_hidden_layers": cfg.n_layers,
        "num_attention_heads": cfg.n_heads,
        "num_key_value_heads": cfg.n_kv_heads,
        "head_dim": cfg.head_dim,
        "intermediate_size": cfg.d_ff,
        "max_position_embeddings": cfg.max_seq_len,
        "hidden_act": "silu",
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_scaling": _rope_out(cfg.rope_scaling),
        "attention_bias": cfg.attention_bias,
        "attention_dropout": 0.0,
    }
    return {**config, **({"use_sliding_window": False} if cfg.qk_norm else {"mlp_bias": cfg.mlp_bias})}


def one_or_several(ids: tuple[int, ...]) -> int | list[int]:
    """Ids as config.json and generation_config.json write them."""
    return ids[0] if len(ids) == 1 else list(ids)


def from_hugging_face_config(config: dict[str, Any], vocab_size: int, where: str) -> ModelConfig:
    """Dimensions of our model from their config.json.

    Args:
      config: the content of config.json.
      vocab_size: V, pieces of the tokenizer without CALL.
      where: names the file in errors.

    Raises:
      DataError: an architecture or a feature that our models do not compute, or a field that is missing; named.
    """
    names = config.get("architectures") or ["none"]
    name = names[0]
    if name not in MODEL_TYPES:
        raise DataError(
            f"{where}: architecture {name} is not supported; expected one of {', '.join(MODEL_TYPES)}"
        )
    if config.get("model_type", MODEL_TYPES[name]) != MODEL_TYPES[name]:
        raise DataError(
            f"{where}: architectures says {name}, model_type {config['model_type']!r}: which is it?"
        )
    for field, allowed in _ONLY[name].items():
        value = config.get(field, allowed[0])
        if value not in allowed:
            raise DataError(f"{where}: {field} = {value!r} is not supported; expected {allowed[0]!r}")
    if config.get("quantization_config"):
        raise DataError(f"{where}: quantization_config is not supported; give the unquantised weights")
    if config.get("sliding_window") and "sliding_attention" in (config.get("layer_types") or ()):
        raise DataError(f"{where}: layer_types with sliding_attention are not supported")
    try:
        return _gpt2(config, vocab_size) if name == "GPT2LMHeadModel" else _llama(config, vocab_size, where)
    except KeyError as error:
        raise DataError(f"{where}: field {error} is missing") from None


def _gpt2(config: dict[str, Any], vocab_size: int) -> ModelConfig:
    d, heads = config["n_embd"], config["n_head"]
    return ModelConfig(
        family="gpt2",
        vocab_size=vocab_size,
        d_model=d,
        n_layers=config["n_layer"],
        n_heads=heads,
        n_kv_heads=heads,
        head_dim=d // heads,
        d_ff=config.get("n_inner") or 4 * d,
        max_seq_len=config["n_positions"],
        tie_head=config.get("tie_word_embeddings", True),
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
    )


def _llama(config: dict[str, Any], vocab_size: int, where: str) -> ModelConfig:
    d, heads = config["hidden_size"], config["num_attention_heads"]
    qwen = config["architectures"][0] == "Qwen3ForCausalLM"
    # transformers 5 writes rope_parameters, 4 rope_theta and rope_scaling. Where a config has both: what 5 makes of it.
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = rope.get("rope_theta") or config.get("rope_theta") or 10_000.0
    rotary = rope.get("partial_rotary_factor", config.get("partial_rotary_factor")) or 1.0
    if float(rotary) != 1.0:
        raise DataError(f"{where}: partial_rotary_factor = {rotary} is not supported")
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        d_model=d,
        n_layers=config["num_hidden_layers"],
        n_heads=heads,
        n_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or (128 if qwen else d // heads),
        d_ff=config["intermediate_size"],
        max_seq_len=config["max_position_embeddings"],
        tie_head=config.get("tie_word_embeddings", False),
        qk_norm=qwen,
        rope_theta=float(theta),
        rope_scaling=_rope_in(rope, where),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        attention_bias=config.get("attention_bias", False),
        mlp_bias=config.get("mlp_bias", False),
    )


LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def _rope_out(scaling: tuple[Any, ...]) -> dict[str, Any] | None:
    if not scaling:
        return None
    names = ("factor",) if scaling[0] == "linear" else LLAMA3_ROPE
    return {"rope_type": scaling[0], **dict(zip(names, scaling[1:], strict=True))}


def _rope_in(rope: dict[str, Any], where: str) -> tuple[Any, ...]:
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if nested := [name for name, value in rope.items() if isinstance(value, dict)]:
        raise DataError(f"{where}: rope_parameters of its own for {', '.join(nested)} are not supported")
    if kind == "default":
        return ()
    if kind == "linear":
        return ("linear", float(rope["factor"]))
    if kind == "llama3":
        return ("llama3", *(rope[name] if "original" in name else float(rope[name]) for name in LLAMA3_ROPE))
    raise DataError(f"{where}: rope scaling {kind!r} is not supported; expected default, linear or llama3")
