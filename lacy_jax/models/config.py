"""Model dimensions: presets, overrides from the run config, and the checks between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import ml_collections

from lacy_jax.errors import ConfigError
from lacy_jax.registry import Registry, registry_of

RUN_FIELDS = ("dropout", "dtype", "remat", "scan_layers", "attention", "attention_block")
"""Fields of `ModelConfig` that only affect how the model runs; its parameters do not depend on them."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that defines a transformer. Frozen and hashable, so that it may be a static argument of `jax.jit`.

    Attributes:
      family: one of `default_config.FAMILIES`.
      vocab_size: V, the base vocabulary. CALL is not counted: it has its own vector, not a row of the head.
      d_model: D, model width.
      n_layers: L.
      n_heads: H, query heads.
      n_kv_heads: G, key/value heads; divides H (grouped-query attention if smaller).
      head_dim: K, width of a head.
      d_ff: F, hidden width of the feed-forward layer.
      max_seq_len: longest context in tokens: the rows of gpt2's position table, and the bound of the KV cache.
      tie_head: whether the base head is the embedding table.
      query_dim: Q, length of the query head's vectors, by which an index is asked; 0 = no such head.
      qk_norm: RMSNorm on queries and keys, per head.
      rope_theta: base of the rotary frequencies (llama).
      rope_scaling: how the frequencies are scaled for long contexts (llama): () for not at all, ("linear", factor), or
        ("llama3", factor, low_freq_factor, high_freq_factor, original context); see `layers.rotary_frequencies`.
      sliding_window: the most keys that a query sees, including its own, per layer and repeated over the depth: (1024,)
        in every layer, (512, 512, 512, 0) in three of four; 0 = all, () = all in every layer.
      norm_eps: added to the variance (gpt2) or mean square (llama) in every norm.
      attention_bias, mlp_bias: biases on the projections of a llama layer, as some public weights have them; gpt2
        always has them.
      attention_out_bias: whether attention_bias includes the output projection (not in Qwen2).
      dropout: rate on embeddings and on both residual branches; not on attention probabilities, because fused
        attention kernels do not offer it.
      dtype: type of activations and matmuls; parameters are always float32.
      remat: what the backward pass recomputes, one of `lacy_jax.models.transformer.REMATS`.
      scan_layers: compile one layer and loop over it; False unrolls. Parameters and results are the same.
      attention: the implementation, one of `lacy_jax.models.attention.ATTENTIONS`.
      attention_block: the most queries and keys that the kernel of `splash` works on at once: 128 times a power of two.
    """

    family: str
    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_ff: int
    max_seq_len: int
    tie_head: bool = True
    query_dim: int = 0
    qk_norm: bool = False
    rope_theta: float = 10_000.0
    rope_scaling: tuple[Any, ...] = ()
    sliding_window: tuple[int, ...] = ()
    norm_eps: float = 1e-5
    attention_bias: bool = False
    mlp_bias: bool = False
    attention_out_bias: bool = True
    dropout: float = 0.0
    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = True
    attention: str = "auto"
    attention_block: int = 512

    @property
    def biases(self) -> tuple[bool, bool, bool]:
        """Whether a layer has biases on (queries, keys and values; attention's output; the feed-forward layer)."""
        gpt2 = self.family == "gpt2"
        inputs = gpt2 or self.attention_bias
        return inputs, gpt2 or (inputs and self.attention_out_bias), gpt2 or self.mlp_bias

    @property
    def windows(self) -> tuple[int, ...]:
        """The window of each of the L layers; 0 = none."""
        cycle = self.sliding_window or (0,)
        return tuple(cycle[layer % len(cycle)] for layer in range(self.n_layers))


DIMENSIONS = tuple(
    field.name
    for field in dataclasses.fields(ModelConfig)
    if field.name not in ("family", "vocab_size", *RUN_FIELDS)
)
"""Fields that determine the parameters and their meaning; the config group `model` may override each of them."""


@dataclasses.dataclass(frozen=True)
class Dims:
    """A preset's dimensions for one family, named as in `ModelConfig`."""

    d_model: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_ff: int
    max_seq_len: int


@dataclasses.dataclass(frozen=True)
class Preset:
    """Dimensions by name.

    Attributes:
      name: as in the config field `model.preset`.
      families: dimensions by family.
    """

    name: str
    families: Mapping[str, Dims]

    @property
    def description(self) -> str:
        """One line for help texts and docs."""
        return "; ".join(
            f"{family}: {d.n_layers} layers of {d.d_model}, {d.n_heads} heads "
            f"({d.n_kv_heads} of keys), feed-forward {d.d_ff}, context {d.max_seq_len}"
            for family, d in self.families.items()
        )


# Names give the number of ALL parameters (embedding, positions, layers, CALL) with V = 32,000 and a tied head, except
# `tiny`, which is meant for small vocabularies, and `124m`, which has GPT-2 small's dimensions: it has 124M with
# GPT-2's own 50,257 pieces. Exact counts are golden values in tests/models/test_config.py.
PRESETS: Registry[Preset] = Registry("model preset", (
    Preset("tiny", {"gpt2": Dims(128, 4, 4, 4, 512, 256), "llama": Dims(128, 4, 4, 4, 384, 256)}),
    Preset("10m", {"gpt2": Dims(192, 8, 3, 3, 768, 512), "llama": Dims(192, 8, 3, 3, 512, 512)}),
    Preset("30m", {"gpt2": Dims(384, 10, 6, 6, 1536, 512), "llama": Dims(384, 10, 6, 6, 1024, 512)}),
    Preset("124m", {"gpt2": Dims(768, 12, 12, 12, 3072, 1024), "llama": Dims(768, 12, 12, 12, 2048, 1024)}),
    Preset("334m", {"gpt2": Dims(1024, 24, 16, 16, 4096, 1024), "llama": Dims(1024, 24, 16, 16, 2688, 1024)}),
    Preset("1b3", {"gpt2": Dims(2048, 24, 16, 16, 8192, 1024), "llama": Dims(2048, 24, 16, 4, 6656, 1024)}),
))  # fmt: skip

_ROPE_SCALING = {"linear": 1, "llama3": 4}  # Name -> number of arguments.


def resolve_model_config(model: ml_collections.ConfigDict, vocab_size: int, seq_len: int = 0) -> ModelConfig:
    """The preset named by `config.model`, with its overrides, checked.

    If only the width is overridden, the heads keep the preset's width and the feed-forward width is scaled with it.
    An unset `max_seq_len` becomes the preset's or `seq_len`, whichever is longer.

    Args:
      model: the `model` group of a run config; fields that are None follow the preset.
      vocab_size: V, the tokenizer's pieces without CALL.
      seq_len: T of the training batches; 0 if there will be none.

    Raises:
      ConfigError: an unknown preset, or dimensions that contradict each other; names the field.
    """
    families = PRESETS.named(model.preset).families
    if registry_of("model.family").named(model.family).name not in families:
        raise ConfigError(
            f"config.model.preset = {model.preset!r}: has no family {model.family}, only {', '.join(families)}"
        )
    preset = dataclasses.asdict(families[model.family])
    given = {name: model[name] for name in DIMENSIONS if model[name] is not None}
    fields: dict[str, Any] = {**preset, **given}
    head_dim = preset["d_model"] // preset["n_heads"]
    if "d_model" in given:
        if "n_heads" not in given:
            fields["n_heads"] = max(1, fields["d_model"] // head_dim)
        if "d_ff" not in given:
            fields["d_ff"] = fields["d_model"] * preset["d_ff"] // preset["d_model"]
    if "n_kv_heads" not in given and fields["n_heads"] != preset["n_heads"]:
        groups = preset["n_heads"] // preset["n_kv_heads"]
        fields["n_kv_heads"] = (
            fields["n_heads"] // groups if fields["n_heads"] % groups == 0 else fields["n_heads"]
        )
    if "max_seq_len" not in given:
        fields["max_seq_len"] = max(fields["max_seq_len"], seq_len)
    if "head_dim" not in given:
        if fields["n_heads"] < 1 or fields["d_model"] % fields["n_heads"]:
            raise ConfigError(
                f"config.model.n_heads = {fields['n_heads']}: must divide d_model = {fields['d_model']}"
            )
        fields["head_dim"] = fields["d_model"] // fields["n_heads"]
    cfg = ModelConfig(
        family=model.family,
        vocab_size=vocab_size,
        **fields,
        **{name: model[name] for name in RUN_FIELDS},
    )
    check_model_config(cfg)
    if cfg.max_seq_len < seq_len:
        raise ConfigError(
            f"config.model.max_seq_len = {cfg.max_seq_len}: shorter than config.input.seq_len = {seq_len}; "
            "raise the first or lower the second"
        )
    return cfg


def check_model_config(cfg: ModelConfig) -> None:
    """Check a `ModelConfig` on its own.

    Raises:
      ConfigError: names the first field that is out of range or contradicts another.
    """
    for name in ("family", "dtype", "remat", "attention"):
        registry_of(f"model.{name}").named(getattr(cfg, name))
    for name in (field.name for field in dataclasses.fields(cfg) if field.type == "int"):
        least = 0 if name == "query_dim" else 1
        if getattr(cfg, name) < least:
            raise ConfigError(f"config.model.{name} = {getattr(cfg, name)}: must be at least {least}")
    if cfg.attention_block % 128 or cfg.attention_block & (cfg.attention_block - 1):
        raise ConfigError(
            f"config.model.attention_block = {cfg.attention_block}: expected 128 times a power of two, such as 512"
        )
    if cfg.n_heads % cfg.n_kv_heads:
        raise ConfigError(
            f"config.model.n_kv_heads = {cfg.n_kv_heads}: must divide config.model.n_heads = {cfg.n_heads}"
        )
    if cfg.family == "llama" and cfg.head_dim % 2:
        raise ConfigError(
            f"config.model.d_model = {cfg.d_model} over {cfg.n_heads} heads makes heads of {cfg.head_dim}: "
            "rotary positions need an even width"
        )
    for name in ("rope_theta", "norm_eps"):
        if getattr(cfg, name) <= 0:
            raise ConfigError(f"config.model.{name} = {getattr(cfg, name)}: must be positive")
    _check_rope_scaling(cfg)
    if not all(isinstance(n, int) and n >= 0 for n in cfg.sliding_window) or (
        len(cfg.sliding_window) > cfg.n_layers
    ):
        raise ConfigError(
            f"config.model.sliding_window = {cfg.sliding_window}: expected at most n_layers = {cfg.n_layers} numbers of "
            "keys, such as (1024,), with 0 for a layer that sees all keys"
        )
    if not 0 <= cfg.dropout < 1:
        raise ConfigError(f"config.model.dropout = {cfg.dropout}: must be in [0, 1)")


def _check_rope_scaling(cfg: ModelConfig) -> None:
    kind, *numbers = cfg.rope_scaling or ("",)
    if cfg.rope_scaling and (
        len(numbers) != _ROPE_SCALING.get(kind)
        or not all(isinstance(n, int | float) and n > 0 for n in numbers)
        or (kind == "llama3" and numbers[1] >= numbers[2])
    ):
        raise ConfigError(
            f"config.model.rope_scaling = {cfg.rope_scaling}: expected (), ('linear', factor) or ('llama3', factor, "
            "low_freq_factor, high_freq_factor, original context) with low < high"
        )
    plain = {"rope_scaling": (), "attention_bias": False, "mlp_bias": False, "attention_out_bias": True}
    extras = [name for name, value in plain.items() if getattr(cfg, name) != value]
    if cfg.family == "gpt2" and extras:
        raise ConfigError(f"config.model.{extras[0]} = {getattr(cfg, extras[0])}: only for family 'llama'")
