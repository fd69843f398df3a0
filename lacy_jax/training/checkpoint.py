"""Checkpoints: Orbax, asynchronous, with everything a run needs to continue as if it had never stopped.

A step's folder holds three items: `params`, `optimizer` and `meta` (JSON: the step, the state of the input pipeline,
the running totals of the host, the config it belongs to, and a checksum per array). Orbax writes into a temporary
folder and renames it when everything is on disk, so a kill or a full disk leaves the older checkpoints as they were.
The checksums are sums of the arrays' bits: exact, independent of sharding, and checked on every restore, because
the storage format itself does not notice a flipped bit.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers

from lacy_jax import files
from lacy_jax.errors import CheckpointError, CheckpointWriteError
from lacy_jax.run_files import CHECKPOINTS_FOLDER, DAMAGED_FOLDER
from lacy_jax.training.checksums import checksums, lies_here

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Restored:
    """The content of a checkpoint. `optimizer` is None if only the parameters were requested."""

    step: int
    params: Any
    optimizer: Any
    meta: dict[str, Any]


class Checkpointer:
    """Saves and restores the checkpoints of one run directory.

    It keeps the last `checkpoint.keep`, the `checkpoint.keep_best` with the lowest validation nll, and every multiple
    of `checkpoint.keep_every` steps.

    Args:
      workdir: run directory; checkpoints go to WORKDIR/checkpoints/STEP.
      config: reads `checkpoint`; None opens for reading only.

    Raises:
      CheckpointError: the folder cannot be created.
    """

    def __init__(self, workdir: epath.PathLike, config: ml_collections.ConfigDict | None = None):
        directory = epath.Path(workdir) / CHECKPOINTS_FOLDER
        self.directory = (
            directory.absolute() if files.is_local(directory) else directory
        )  # Orbax accepts no others.
        absl_logging.set_verbosity(absl_logging.ERROR)  # Orbax narrates every save at INFO.
        if config is None:
            options = ocp.CheckpointManagerOptions(read_only=True, save_interval_steps=0)
        else:
            try:
                self.directory.mkdir(parents=True, exist_ok=True)
            except Exception as error:
                if not files.is_storage_failure(error):
                    raise
                raise CheckpointWriteError(
                    f"cannot create {self.directory}: {files.reason(error)}; choose another workdir"
                ) from error
            options = ocp.CheckpointManagerOptions(
                preservation_policy=_preservation(config.checkpoint),
                best_fn=lambda metrics: _ranked(metrics["valid_nll"]),
                best_mode="min",
                cleanup_tmp_directories=True,
                enable_async_checkpointing=config.checkpoint.asynchronous,
                async_options=ocp.options.AsyncOptions(timeout_secs=config.checkpoint.timeout_s),
            )
        self._manager = ocp.CheckpointManager(self.directory, options=options)
        self._pending = -1  # The step being written in the background; -1 = none.

    def __enter__(self) -> Checkpointer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and jax.process_count() > 1:
            return  # The write waits for other processes that will not come; older checkpoints are intact.
        try:
            self.close()
        except CheckpointError:
            if kind is None:  # The last checkpoint's error must not hide the one that ended the run.
                raise

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending. One still being written is not among them."""
        # From memory, not by listing the folder: all processes must see the same at the same point of the run.
        return sorted(step for step in self._manager.all_steps() if step != self._pending)

    def describe_last(self) -> str:
        """The last complete checkpoint, as a phrase for messages."""
        steps = self.steps()
        return (
            f"last good checkpoint: step {steps[-1]} in {self.directory}"
            if steps
            else "no checkpoint was saved yet"
        )

    def save(
        self,
        step: int,
        params: Any,
        optimizer: Any | None,
        meta: dict[str, Any],
        valid_nll: float | None = None,
    ) -> None:
        """Start writing a checkpoint; arrays are copied before this returns, so the caller may donate them.

        Waits for the previous checkpoint; if that failed, its error is raised here.

        Args:
          step: optimiser steps done.
          params, optimizer: pytrees of arrays; optimizer None = a checkpoint to use or start from, not to resume.
          meta: JSON-safe; `format`, `step` and `checksums` are added.
          valid_nll: validation nll at this step, if it was measured; decides "best"; ignored if not finite.

        Raises:
          CheckpointError: the disk is full or cannot be written; older checkpoints are untouched.
        """
        self.wait()
        if step in self.steps():
            return  # A resumed run that stops again at once: the same step holds the same bits.
        trees = {"params": params, **({} if optimizer is None else {"optimizer": optimizer})}
        record = {**meta, "format": FORMAT, "step": step, "checksums": checksums(trees)}
        self._pending = step
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    **{name: ocp.args.StandardSave(tree) for name, tree in trees.items()},
                    meta=ocp.args.JsonSave(record),
                ),
                metrics={"valid_nll": float(valid_nll)}
                if valid_nll is not None and math.isfinite(valid_nll)
                else None,
                force=True,
            )
        except Exception as error:
            raise self._save_error(error) from error
        if not self._manager.is_saving_in_progress():
            self._pending = -1

    def wait(self) -> None:
        """Block until the checkpoint under way is on disk.

        Raises:
          CheckpointError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except Exception as error:
            raise self._save_error(error) from error
        self._pending = -1

    def close(self) -> None:
        """Wait, then release. Raises as `wait`."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _save_error(self, error: BaseException) -> CheckpointError:
        step = self._pending
        kept = self.steps()  # From memory, because the storage has just failed.
        last = f"last good checkpoint: step {kept[-1]}" if kept else "there is no earlier checkpoint"
        if files.is_local(self.directory):
            self._pending = -1
            self._manager.reload()  # So that the next one can be written when there is space.
        return CheckpointWriteError(
            f"cannot write checkpoint {self.directory / str(step)}: {files.reason(error)}; {last}"
        )

    def read_meta(self, step: int) -> dict[str, Any]:
        """The JSON record of one checkpoint.

        Raises:
          CheckpointError: it is missing or unreadable.
        """
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
            meta = restored["meta"]
            if meta["format"] != FORMAT or meta["step"] != step:
                raise ValueError(f"format {meta['format']}, step {meta['step']}")
            return meta
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} is damaged: {files.reason(error)}"
            ) from error

    def restore(self, step: int, params: Any, optimizer: Any = None) -> Restored:
        """Read one checkpoint and check it.

        Args:
          step: which.
          params, optimizer: pytrees of `jax.ShapeDtypeStruct` with shardings: what to restore and where it goes.
            `optimizer=None` leaves the optimiser state on disk.

        Raises:
          CheckpointError: it is missing or truncated, or its bits differ from those that were saved.
        """
        meta = self.read_meta(step)
        if optimizer is not None and not any(name.startswith("optimizer/") for name in meta["checksums"]):
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} holds parameters only, which training cannot resume: "
                "name its run directory as config.train.init_from in another workdir"
            )
        _ignore_reads_left_behind()
        stored = meta.get("dtype")  # Of parameters stored in less than float32; checksums are of these bits.
        given, params = params, params if stored is None else _retyped(params, stored)
        wanted = {"params": params} if optimizer is None else {"params": params, "optimizer": optimizer}
        try:
            args = ocp.args.Composite(
                **{name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
            )
            restored = self._manager.restore(step, args=args)
            trees = {name: restored[name] for name in wanted}
        except Exception as error:
            raise CheckpointError(
                f"checkpoint {self.directory / str(step)} is damaged: {files.reason(error)}"
            ) from error
        for name, checksum in checksums(trees).items():
            if meta["checksums"].get(name) != checksum:
                raise CheckpointError(
                    f"checkpoint {self.directory / str(step)} is damaged: {name} is not what was saved"
                )
        restored_params = jax.tree.map(lambda x, want: _cast(x, want.dtype), trees["params"], given)
        return Restored(step, restored_params, trees.get("optimizer"), meta)

    def restore_latest(self, params: Any, optimizer: Any = None) -> Restored | None:
        """The newest undamaged checkpoint; damaged ones are reported and, if the run writes checkpoints, set aside.

        Returns:
          None if there is no checkpoint at all.

        Raises:
          CheckpointError: there are checkpoints, but all are damaged.
        """
        steps = self.steps()
        for older, step in reversed(list(zip([0, *steps], steps, strict=False))):
            try:
                return self.restore(step, params, optimizer)
            except CheckpointError as error:
                if not older:
                    raise CheckpointError(f"{error}; no older checkpoint is left to go back to") from error
                print(f"warning: {error}; going back to step {older}", file=sys.stderr, flush=True)
        return None

    def refuse_other_run(self, identity: dict[str, Any], defaults: dict[str, Any] | None = None) -> None:
        """Make sure that the checkpoints here belong to the run described by `identity`.

        Args:
          identity: groups of JSON-safe fields, {"config": {field: value}, ..}, as saved in the meta of each checkpoint.
          defaults: values of fields that are newer than a checkpoint and therefore missing in it. A missing group is
            also newer, and is not compared.

        Raises:
          CheckpointError: they do not; the fields that differ are listed with both values.
        """
        for step in reversed(self.steps()):
            try:
                meta = self.read_meta(step)
            except CheckpointError:
                continue  # Damaged: `restore_latest` reports it.
            had = {
                group: {**(defaults or {}).get(group, {}), **meta[group]}
                for group in identity
                if group in meta
            }
            different = [
                f"{group}.{name} = {_short(identity[group].get(name))} (checkpoint: {_short(fields.get(name))})"
                for group, fields in had.items()
                for name in sorted(set(identity[group]) | set(fields))
                if identity[group].get(name) != fields.get(name)
            ]
            if different:
                raise CheckpointError(
                    f"{self.directory.parent} holds checkpoints of another run: {'; '.join(different)}; "
                    "restore these fields or use another workdir"
                )
            return

    def set_aside_after(self, step: int) -> None:
        """Rename the checkpoints after `step` (damaged ones) to damaged-STEP, so that the run can write its own there."""
        for later in self.steps():
            if later > step and jax.process_index() == 0:
                aside = self.directory.parent / DAMAGED_FOLDER / str(later)
                if aside.exists():
                    aside.rmtree()
                files.move_folder(self.directory / str(later), aside)
        if jax.process_count() > 1:  # In a bucket this copies files: nobody lists the folder meanwhile.
            multihost_utils.sync_global_devices(f"checkpoints after {step} set aside")
        # Else a process that still sees one would not write it again, and those that write it would wait for that process.
        files.forget_listing(self.directory)
        self._manager.reload()


def _preservation(config: ml_collections.ConfigDict) -> checkpoint_managers.PreservationPolicy:
    policies: list[Any] = [checkpoint_managers.LatestN(config.keep)]
    if config.keep_every:
        policies.append(checkpoint_managers.EveryNSteps(config.keep_every))
    if config.keep_best:
        policies.append(
            checkpoint_managers.BestN(  # Keeps the highest ranked.
                get_metric_fn=lambda metrics: -_ranked(metrics["valid_nll"]),
                n=config.keep_best,
                keep_checkpoints_without_metrics=False,
            )
        )
    return checkpoint_managers.AnyPreservationPolicy(policies)


def _ranked(nll: float) -> float:
    """An earlier version stored NaN as a metric, which would rank as the best."""
    return nll if math.isfinite(nll) else math.inf


def _retyped(abstract: Any, dtype: str) -> Any:
    """The same shapes and shardings in another dtype."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, jnp.dtype(dtype), sharding=getattr(leaf, "sharding", None)
        ),
        abstract,
    )


def _cast(x: jax.Array, dtype: np.dtype) -> jax.Array:
    if lies_here(x) and x.dtype != dtype:
        return jax.device_put(np.asarray(x).astype(dtype), x.sharding)
    return x.astype(dtype)


@functools.cache
def _ignore_reads_left_behind() -> None:
    """Keep one damaged array from printing a traceback for each array that was being read at the same time.

    Orbax stops at the first failure and closes its event loop; TensorStore's other reads then report to a closed
    loop, and Python prints each as "exception ignored". The failure itself is still raised.
    """
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous(unraisable)

    sys.unraisablehook = hook


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
