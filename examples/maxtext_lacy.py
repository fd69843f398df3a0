"""MaxText (0.2.5) trained with our labels, mask and loss, on a dataset of `lacy prepare`.

    python examples/maxtext_lacy.py train   DATASET run_name=toy steps=100 per_device_batch_size=8 max_target_length=256 ...
    python examples/maxtext_lacy.py compile DATASET compile_topology=v5e-16 compile_topology_num_slices=1 ...

What follows DATASET are `policy=` and `call_rate=` (default lacy, 0.15) and MaxText's own keys; docs/trainers.md has a toy for a CPU, a 334M for a v5e-16, and how to
install MaxText. Of MaxText four functions are replaced, in this process:

  loss_fn                     delegated cross-entropy of the hidden states, from which MaxText forms no logits
                              (its `num_vocab_tiling`); the mask is that of the global batch
  create_data_iterator        batches of DATASET, with one array more: `factual`
  get_shaped_batch            the same array, where a step is compiled ahead of time
  record_activation_metrics   our metrics beside its own (call rate, nll of called and learned targets)

CALL is the row after the tokenizer's pieces in MaxText's own output head, which is padded to a multiple of 128 rows as
usual: no parameter is added, and checkpoints are MaxText's own.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import maxtext
from absl import logging
from flax import nnx
from maxtext.input_pipeline import input_pipeline_interface
from maxtext.trainers.pre_train import train, train_compile
from maxtext.utils import maxtext_utils, sharding

from lacy_jax.config import get_default_config
from lacy_jax.dataset import make_input, read_metadata
from lacy_jax.errors import ConfigError, LacyError
from lacy_jax.objectives import delegated_cross_entropy

# What the loss reads of MaxText's config but does not know how to do.
_UNSUPPORTED = {"gradient_accumulation_steps": 1, "final_logits_soft_cap": 0,
                "num_experts": 1, "mtp_num_layers": 0, "enable_diloco": False}  # fmt: skip


def lacy_loss(pieces: int, policy: str, call_rate: float):
    """MaxText's `loss_fn` for a tokenizer of that many pieces."""

    def loss_fn(model: Any, config: Any, data: dict[str, jax.Array], dropout_rng: Any, params: Any,
                sparsity_state: Any = None, is_train: bool = True) -> tuple[jax.Array, dict[str, Any]]:  # fmt: skip
        del dropout_rng, params, sparsity_state  # Of its Linen models.
        check(config, pieces)
        rows = config.micro_batch_size_to_train_on if is_train else config.micro_batch_size_to_eval_on
        data = {name: array[:rows] for name, array in data.items()}
        model(
            decoder_input_tokens=data["inputs"],
            decoder_positions=data["inputs_position"],
            decoder_segment_ids=data["inputs_segmentation"],
            enable_dropout=config.enable_dropout and is_train,
        )
        (hidden,) = nnx.pop(model, nnx.Intermediate).to_pure_dict()["decoder"]["hidden_states"]
        hidden = model.decoder.decoder_norm(hidden)
        if config.logits_via_embedding:
            head = model.token_embedder.embedding[...]
            if config.normalize_embedding_logits:
                hidden = hidden / hidden.shape[-1] ** 0.5
        else:
            head = model.decoder.logits_dense.kernel[...].T
        head = head.astype(jnp.float32)
        weights = data["targets_segmentation"] != 0
        loss, metrics = delegated_cross_entropy(
            hidden, head[:pieces], head[pieces], data["targets"], weights, {"factual": data["factual"]},
            policy=policy, call_rate=call_rate, z_loss=config.z_loss_multiplier,
        )  # fmt: skip
        shown = {f"lacy/{name}": getattr(metrics, name) for name in metrics.present}
        return loss, {
            "intermediate_outputs": shown,
            "xent_sum": loss * metrics.weight_sum,
            "z_loss": metrics.z_loss,
            "total_weights": metrics.weight_sum,
            "moe_lb_loss": 0.0,
        }

    return loss_fn


class Batches(Iterator[dict[str, jax.Array]]):
    """Batches of a dataset under MaxText's names, spread over the devices of all hosts."""

    def __init__(self, dataset: str, config: Any, mesh: jax.sharding.Mesh, split: str):
        ours = get_default_config()
        ours.seed = config.data_shuffle_seed
        ours.dataset.path = dataset
        ours.input.seq_len = config.max_target_length
        self._arguments = {
            "split": split,
            "batch_size": config.global_batch_size_to_load if split == "train" else config.global_batch_size_to_load_eval,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "epochs": 0 if split == "train" else 1,
        }  # fmt: skip
        self._config, self._sharding = ours, sharding.get_input_data_sharding(config, mesh)
        self.reset()

    def reset(self) -> None:
        """Begin again; MaxText does before each evaluation."""
        self._input = make_input(self._config, **self._arguments)

    def __next__(self) -> dict[str, jax.Array]:
        batch = next(self._input)
        arrays = {
            "inputs": batch.tokens, "inputs_position": batch.positions, "inputs_segmentation": batch.segment_ids,
            "targets": batch.targets, "targets_position": batch.positions, "targets_segmentation": batch.weights,
            "factual": batch.labels["factual"],
        }  # fmt: skip
        return {
            name: jax.make_array_from_process_local_data(self._sharding, array.astype("int32"))
            for name, array in arrays.items()
        }


def install(dataset: str, policy: str, call_rate: float) -> list[str]:
    """Replace the four functions; gives the keys that MaxText needs besides those of the user."""
    pieces = read_metadata(dataset).vocab_size
    shaped_batch = maxtext_utils.get_shaped_batch

    def with_factual(config: Any, batch_sharding: Any = None, is_eval: bool = False) -> dict[str, Any]:
        batch = shaped_batch(config, batch_sharding, is_eval)
        return {**batch, "factual": batch["targets"]}

    def iterators(config: Any, mesh: jax.sharding.Mesh) -> tuple[Batches, Batches | None]:
        valid = Batches(dataset, config, mesh, "valid") if config.eval_interval > 0 else None
        return Batches(dataset, config, mesh, "train"), valid

    train.loss_fn = lacy_loss(pieces, policy, call_rate)
    maxtext_utils.get_shaped_batch = with_factual
    input_pipeline_interface.create_data_iterator = iterators
    train.record_activation_metrics = lambda metrics, outputs, config: metrics["scalar"].update(outputs)
    rows = -(-(pieces + 1) // 128) * 128
    return [f"vocab_size={rows}", "num_vocab_tiling=2", "record_internal_nn_metrics=1", "skip_jax_distributed_system=true",
            "enable_checkpointing=false", "base_output_directory=maxtext_out", "run_name=lacy"]  # fmt: skip


def check(config: Any, pieces: int) -> None:
    """Refuse what the loss does not do, by name.

    Raises:
      ConfigError: a key has a value for which the loss would be wrong.
    """
    for name, wanted in _UNSUPPORTED.items():
        if getattr(config, name, wanted) not in (wanted, None):
            raise ConfigError(f"{name}={getattr(config, name)}: the delegated loss is written for {wanted}")
    if config.vocab_size <= pieces:
        raise ConfigError(
            f"vocab_size={config.vocab_size}: {pieces} pieces and CALL need at least {pieces + 1}"
        )
    if config.num_vocab_tiling < 2:
        raise ConfigError("num_vocab_tiling must be above 1, so that MaxText leaves the logits to the loss")


def main(arguments: list[str]) -> int:
    """Train, or compile ahead of time."""
    if len(arguments) < 2 or arguments[0] not in ("train", "compile"):
        print(__doc__, file=sys.stderr)
        return 2
    verb, dataset, *given = arguments
    logging.set_verbosity(logging.INFO)  # MaxText logs its steps.
    try:
        keys = dict(word.split("=", 1) for word in given)
        ours = install(dataset, keys.pop("policy", "lacy"), float(keys.pop("call_rate", 0.15)))
        base = pathlib.Path(maxtext.__file__).parent / "configs" / "base.yml"
        words = [verb, str(base), *[word for word in ours if word.split("=")[0] not in keys],
                 *[f"{key}={value}" for key, value in keys.items()]]  # fmt: skip
        (train if verb == "train" else train_compile).main(words)
    except LacyError as error:
        print(f"maxtext_lacy: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
