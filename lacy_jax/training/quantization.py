"""Quantised training: the matmuls of the layers in 8 bits, through qwix. The rules are here; the model does not know them.

Parameters, their updates, norms, attention's own products, the embedding and both heads keep their types: the delegation
mask ranks by the loss, so the computation of the loss from the last hidden state stays exact. Weights and activations get
a scale for each output or token (the largest magnitude) over whole rows and columns, also where these are sharded, so a
mask does not depend on the layout of devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from lacy_jax.errors import ConfigError
from lacy_jax.models import Transformer
from lacy_jax.registry import Registry


@dataclasses.dataclass(frozen=True)
class Quantization:
    """One way to quantise the matmuls of the layers.

    Attributes:
      name: as in the config field `train.quantization`.
      description: one line for help texts and docs.
      rule: fields of `qwix.QtRule`; None = nothing is quantised.
      devices: `jax.Device.device_kind` must contain one of these, except on a CPU; () = any.
    """

    name: str
    description: str
    rule: Mapping[str, Any] | None = dataclasses.field(default=None, repr=False)
    devices: tuple[str, ...] = ()

    @property
    def numbers(self) -> str:
        """The type of the multiplied numbers: "int8", "fp8", or "" for the model's compute type."""
        return "" if self.rule is None else "int8" if "int8" in self.rule["weight_qtype"] else "fp8"

    @property
    def backward(self) -> bool:
        """Whether the backward pass is quantised too."""
        return self.rule is not None and "bwd_qtype" in self.rule


QUANTIZATIONS: Registry[Quantization] = Registry("quantization", (
    Quantization("none", "matmuls in model.dtype"),
    Quantization(
        "int8", "int8 in the layers, forward and backward",
        {"weight_qtype": "int8", "act_qtype": "int8", "bwd_qtype": "int8"},
    ),
    Quantization(
        "int8_forward", "int8 in the layers, forward only; gradients in model.dtype",
        {"weight_qtype": "int8", "act_qtype": "int8"},
    ),
    Quantization(
        "fp8", "float8 in the layers: e4m3 forward, e5m2 for gradients; TPU7x, NVIDIA Hopper and later",
        {"weight_qtype": "float8_e4m3fn", "act_qtype": "float8_e4m3fn", "bwd_qtype": "float8_e5m2"},
        ("TPU7x", "H100", "H200", "H20", "GH200", "B100", "B200", "GB200", "B300", "L4", "L40", "RTX 40", "RTX 50"),
    ),
))  # fmt: skip


def check_quantization(name: str, device_kind: str) -> None:
    """Check that `config.train.quantization` can run on a kind of device; a CPU emulates all types.

    Raises:
      ConfigError: the device does not support the type, or qwix is not installed.
    """
    chosen = QUANTIZATIONS.named(name)
    if chosen.rule is None:
        return
    _qwix()
    if device_kind != "cpu" and chosen.devices and not any(kind in device_kind for kind in chosen.devices):
        raise ConfigError(
            f"config.train.quantization = {name!r}: {device_kind} does not support it; use 'int8' or 'none'"
        )


def quantized(model: Transformer, name: str) -> Transformer:
    """`model` with layers that multiply as `config.train.quantization` says; for one call, inside the step."""
    rule = QUANTIZATIONS[name].rule
    if rule is None:
        return model
    qwix = _qwix()
    provider = qwix.QtProvider([qwix.QtRule(module_path="blocks", op_names=("einsum",), **rule)])
    # The quantised model is not kept, so it needs no initialisation.
    return qwix.quantize_model(model, provider, skip_nnx_init=True)


def _qwix() -> Any:
    try:
        import qwix
    except ImportError as error:
        raise ConfigError(
            f"config.train.quantization needs the package qwix, which cannot be imported ({error}); "
            "pip install 'lacy_jax[quantization]'"
        ) from error
    return qwix
