"""Our `ModelConfig` as a Hugging Face config.json and back; what one side cannot express is refused by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from lacy_jax.errors import ConfigError, DataError
from lacy_jax.models import ModelConfig
from lacy_jax.tokenizer import Tokenizer
from lacy_jax.tokenizer.json_tokenizer import JsonTokenizer


@dataclasses.dataclass(frozen=True)
class _Kin:
    """A `transformers` class of Llama's kind, and the options of our llama family that it supports.

    Attributes:
      model_type: its name in config.json.
      biases: the values of `ModelConfig.biases` that it computes.
      qk_norm: its layers normalise queries and keys.
      windows: which layers may have a sliding window ("none", "all", "any"), all of the same size.
    """

    model_type: str
    biases: tuple[tuple[bool, bool, bool], ...] = ((False, False, False),)
    qk_norm: bool = False
    windows: str = "none"

    def lacks(self, cfg: ModelConfig) -> str:
        """The first field of `cfg` that it does not support; "" = it supports all."""
        if cfg.qk_norm != self.qk_norm:
            return "qk_norm"
        if cfg.biases not in self.biases:
            return "mlp_bias" if cfg.mlp_bias else "attention_bias"
        sizes = set(cfg.windows)
        fits = {"none": sizes == {0}, "all": len(sizes) == 1, "any": len(sizes - {0}) <= 1}
        return "" if fits[self.windows] else "sliding_window"


_NONE, _QKV, _ATTENTION = (False, False, False), (True, False, False), (True, True, False)
_MLP, _EVERYWHERE = (False, False, True), (True, True, True)
# In order of preference for export.
_KIN = {
    "LlamaForCausalLM": _Kin("llama", biases=(_NONE, _ATTENTION, _MLP, _EVERYWHERE)),
    "MistralForCausalLM": _Kin("mistral", windows="all"),
    "MinistralForCausalLM": _Kin("ministral", windows="any"),
    "Qwen2ForCausalLM": _Kin("qwen2", biases=(_QKV,), windows="any"),
    "Qwen3ForCausalLM": _Kin("qwen3", biases=(_NONE, _ATTENTION), qk_norm=True, windows="any"),
}
MODEL_TYPES = {"GPT2LMHeadModel": "gpt2", **{name: kin.model_type for name, kin in _KIN.items()}}
"""The classes that compute the same as ours, and their names in config.json."""
# Fields that change what the model computes, with the only values that our models support.
_ONLY: dict[str, dict[str, tuple[Any, ...]]] = {
    "GPT2LMHeadModel": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
        "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False,),
        "add_cross_attention": (False,),
    },
    **{name: {"hidden_act": ("silu", "swish"), "pretraining_tp": (1,)} for name in _KIN},
}


_SIZES = (
    "hidden_size num_hidden_layers num_attention_heads num_key_value_heads head_dim intermediate_size max_position_embeddings "
    "sliding_window max_window_layers n_embd n_layer n_head n_inner n_positions"
).split()
_MAY_BE_ZERO = ("sliding_window", "max_window_layers")
_SWITCHES = "tie_word_embeddings attention_bias mlp_bias use_sliding_window".split()
_NUMBERS = "rope_theta rms_norm_eps layer_norm_epsilon partial_rotary_factor".split()
_MAY_BE_NULL = "num_key_value_heads head_dim n_inner sliding_window rope_theta partial_rotary_factor".split()
_MOST_LAYERS = 10_000


def architecture(cfg: ModelConfig) -> str:
    """The `transformers` class that computes what `cfg` computes.

    Raises:
      ConfigError: none does; the field is named.
    """
    if cfg.family == "gpt2":
        lacking = {
            "n_kv_heads": cfg.n_kv_heads != cfg.n_heads,
            "qk_norm": cfg.qk_norm,
            "head_dim": cfg.head_dim * cfg.n_heads != cfg.d_model,
            "sliding_window": any(cfg.windows),
        }
        found = {"GPT2LMHeadModel": next((field for field, lacks in lacking.items() if lacks), "")}
    else:
        found = {name: kin.lacks(cfg) for name, kin in _KIN.items()}
    for name, field in found.items():
        if not field:
            return name
    # From the class that supports most of it; `lacks` checks in this order.
    field = max(
        found.values(),
        key=["n_kv_heads", "head_dim", "qk_norm", "mlp_bias", "attention_bias", "sliding_window"].index,
    )
    raise ConfigError(
        f"config.model.{field} = {getattr(cfg, field)}: of {', '.join(found)} none computes it with the rest of this model, "
        "which therefore cannot be exported"
    )


def to_hugging_face_config(
    cfg: ModelConfig, tokenizer: Tokenizer, dtype: str, with_call: bool = True
) -> dict[str, Any]:
    """The content of config.json, with both spellings of the fields that `transformers` 4 and 5 write differently.

    Args:
      cfg: dimensions.
      tokenizer: of the run; CALL is the last id.
      dtype: of the stored tensors.
      with_call: False for a model without CALL.

    Raises:
      ConfigError: as `architecture`, or `transformers` gives the class a different tokenizer from the folder's.
    """
    name = architecture(cfg)
    if name == "Qwen2ForCausalLM" and not isinstance(tokenizer, JsonTokenizer):
        raise ConfigError(
            "config.model.attention_out_bias = False: transformers reads Qwen2ForCausalLM with its own byte-level tokenizer "
            "whatever the folder names; a model with a SentencePiece tokenizer cannot be exported as one"
        )
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
    kin, window = _KIN[name], max(cfg.windows)
    qwen = "qwen" in kin.model_type
    config = {
        **common,
        "model_type": kin.model_type,
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
    if name == "LlamaForCausalLM":
        config["mlp_bias"] = cfg.mlp_bias
    if window or qwen:
        config["sliding_window"] = window or None
    if kin.windows == "any" and window:
        config["layer_types"] = [_LAYER_TYPES[bool(own)] for own in cfg.windows]
    if qwen:
        config["use_sliding_window"] = bool(window)
        config["max_window_layers"] = [*map(bool, cfg.windows), True].index(True)
    return config


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
      DataError: an architecture or a feature that our models do not support, or a missing field; the error names it.
    """
    names = config.get("architectures") or ["none"]
    name = names[0] if isinstance(names, list) else names
    if not isinstance(name, str) or name not in MODEL_TYPES:
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
    _check_types(config, where)
    try:
        return _gpt2(config, vocab_size) if name == "GPT2LMHeadModel" else _llama(config, vocab_size, where)
    except KeyError as error:
        raise DataError(f"{where}: field {error} is missing") from None


def _check_types(config: dict[str, Any], where: str) -> None:
    """Raises DataError if a field that we read has a wrong type or is far out of range; missing fields are accepted."""

    def refuse(field: str, expected: str) -> DataError:
        return DataError(f"{where}: {field} = {config[field]!r:.80}: expected {expected}")

    for field in config.keys() & {*_SIZES, *_SWITCHES, *_NUMBERS}:
        value = config[field]
        if value is None and field in _MAY_BE_NULL:
            continue
        if field in _SWITCHES:
            if not isinstance(value, bool):
                raise refuse(field, "true or false")
        elif not _is_number(value) or (field in _SIZES and not isinstance(value, int)):
            raise refuse(field, "a whole number" if field in _SIZES else "a number")
        elif not (0 if field in _MAY_BE_ZERO else 1) <= value < 1 << 40 if field in _SIZES else value <= 0:
            raise refuse(field, "more than 0")
        elif field in ("num_hidden_layers", "n_layer") and value > _MOST_LAYERS:
            raise refuse(field, f"at most {_MOST_LAYERS} layers")
    for field in config.keys() & {"rope_parameters", "rope_scaling"}:
        rope = config[field] or {}
        if not isinstance(rope, dict):
            raise refuse(field, "an object")
        for name in rope.keys() & {*_NUMBERS, *LLAMA3_ROPE}:
            if rope[name] is not None and not (_is_number(rope[name]) and rope[name] > 0):
                raise refuse(field, f"a number as {name}")
    types = config.get("layer_types")
    if types is not None and not (isinstance(types, list) and all(isinstance(kind, str) for kind in types)):
        raise refuse("layer_types", "a list of names")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


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
    name = config["architectures"][0]
    qwen2, qwen3 = name == "Qwen2ForCausalLM", name == "Qwen3ForCausalLM"
    # transformers 5 writes rope_parameters, 4 rope_theta and rope_scaling. If it has both, 5's reading counts.
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
        head_dim=config.get("head_dim") or (128 if qwen3 else d // heads),
        d_ff=config["intermediate_size"],
        max_seq_len=config["max_position_embeddings"],
        tie_head=config.get("tie_word_embeddings", False),
        qk_norm=qwen3,
        rope_theta=float(theta),
        rope_scaling=_rope_in(rope, where),
        norm_eps=config.get("rms_norm_eps", 1e-6),
        sliding_window=_windows(config, _KIN[name], where),
        attention_bias=qwen2 or config.get("attention_bias", False),
        attention_out_bias=not qwen2,
        mlp_bias=config.get("mlp_bias", False),
    )


_LAYER_TYPES = ("full_attention", "sliding_attention")


def _windows(config: dict[str, Any], kin: _Kin, where: str) -> tuple[int, ...]:
    """`ModelConfig.sliding_window` from a config of theirs, as its class reads it."""
    layers, window = config["num_hidden_layers"], config.get("sliding_window") or 0
    types = config.get("layer_types")
    if "qwen" in kin.model_type:
        window = window if config.get("use_sliding_window", False) else 0
        if types is None:
            full = config.get("max_window_layers", 28)
            types = [_LAYER_TYPES[bool(window) and layer >= full] for layer in range(layers)]
    types = types or [_LAYER_TYPES[bool(window) and kin.windows != "none"]] * layers
    unknown = next((kind for kind in types if kind not in _LAYER_TYPES), None)
    if unknown or len(types) != layers:
        raise DataError(
            f"{where}: layer_types {'has ' + repr(unknown) if unknown else f'names {len(types)} of {layers} layers'}; "
            f"supported are {' and '.join(_LAYER_TYPES)}, one a layer"
        )
    sliding = types.count(_LAYER_TYPES[1])
    if sliding and not window:
        raise DataError(f"{where}: layer_types has 'sliding_attention', but sliding_window is not set")
    if {"none": sliding, "all": 0 < sliding < layers, "any": False}[kin.windows]:
        raise DataError(
            f"{where}: layer_types with {sliding} layers of sliding_attention of {layers} is nothing that "
            f"{config['architectures'][0]} reads"
        )
    windows = tuple(window if kind == _LAYER_TYPES[1] else 0 for kind in types)
    return () if not sliding else _cycle(windows)


def _cycle(values: tuple[int, ...]) -> tuple[int, ...]:
    """The shortest start that gives `values` when it is repeated."""
    return next(
        values[:n] for n in range(1, len(values) + 1) if all(v == values[i % n] for i, v in enumerate(values))
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
        return ("linear", float(_given(rope, "factor")))
    if kind == "llama3":
        return (
            "llama3",
            *(
                _given(rope, name) if "original" in name else float(_given(rope, name))
                for name in LLAMA3_ROPE
            ),
        )
    raise DataError(f"{where}: rope scaling {kind!r} is not supported; expected default, linear or llama3")


def _given(rope: dict[str, Any], name: str) -> Any:
    if rope.get(name) is None:
        raise KeyError(name)
    return rope[name]
