"""Checkpoints in the memory of the hosts, between those on storage: GKE's multi-tier checkpointing, through Orbax.

Each process writes what it holds to a folder in its host's memory, within moments. On GKE a replicator beside it copies
that to peers and to a bucket, and puts it back after a restart, so that a host may be lost; elsewhere a run can go on
from there as long as every host keeps its memory. Tested with processes on one machine; never run on a pod.
"""

from __future__ import annotations

import json
from typing import Any

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from orbax.checkpoint import checkpoint_managers

from lacy_jax import files
from lacy_jax.errors import CheckpointError, ConfigError
from lacy_jax.training.checkpoint import Restored
from lacy_jax.training.checksums import checksums

_META_BYTES = 2**20
_KEPT = 2
_MOST_STEPS = 64  # That a process can tell the others about.


class RamCheckpointer:
    """The checkpoints of a run in the memory of its hosts.

    Args:
      config: reads `checkpoint.ram`, a folder of each host.
      workdir: run directory; checkpoints of another run in the same folder are left alone.
      mesh: the devices.

    Raises:
      ConfigError: there is one process only, or no such folder can be made.
    """

    def __init__(self, config: ml_collections.ConfigDict, workdir: epath.PathLike, mesh: Mesh):
        # Experimental, so only those who ask for it depend on it.
        from orbax.checkpoint.experimental.emergency import replicator_checkpoint_manager as replicator

        folder = epath.Path(config.checkpoint.ram)
        if jax.process_count() == 1:
            raise ConfigError(f"config.checkpoint.ram = {folder}: is for several processes (--distributed)")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"config.checkpoint.ram = {folder}: {files.reason(error)}") from error
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Orbax reads one.
        if not ocp.multihost.is_runtime_to_distributed_ids_initialized():
            ocp.multihost.initialize_runtime_to_distributed_ids()
        ocp.multihost.initialize_distributed_to_device_ids()
        self._mesh, self._workdir = mesh, str(workdir)
        options = replicator.ReplicatorCheckpointManagerOptions(
            preservation_policy=checkpoint_managers.LatestN(_KEPT)
        )
        self._manager = replicator.ReplicatorCheckpointManager(folder, options, global_mesh=mesh)

    def steps(self) -> list[int]:
        """Steps that all processes hold, ascending."""
        mine = np.zeros(_MOST_STEPS, np.int64)
        own = sorted(self._manager.all_steps())[-_MOST_STEPS:]
        mine[: len(own)] = own
        held = multihost_utils.process_allgather(mine)
        return sorted(set.intersection(*(set(of_one.tolist()) for of_one in held)) - {0})

    def save(self, step: int, params: Any, optimizer: Any, meta: dict[str, Any]) -> None:
        """Start writing; arrays are copied before this returns. Arguments as of `Checkpointer.save`.

        Raises:
          CheckpointError: the memory is full, or the folder cannot be written.
        """
        trees = {"params": params, "optimizer": optimizer}
        record = {**meta, "step": step, "workdir": self._workdir, "checksums": checksums(trees)}
        text = json.dumps(record).encode()
        if len(text) > _META_BYTES:
            raise CheckpointError(f"the record of step {step} has {len(text)} bytes, more than {_META_BYTES}")
        data = np.frombuffer(text.ljust(_META_BYTES), np.uint8)
        trees["meta"] = jax.make_array_from_callback(
            data.shape, self._replicated(), lambda index: data[index]
        )
        try:
            self._manager.wait_until_finished()
            self._manager.save(step, ocp.args.Composite(state=ocp.args.PyTreeSave(trees)), force=True)
        except Exception as error:
            if not files.is_storage_failure(error):
                raise
            raise CheckpointError(
                f"cannot write step {step} to {self._manager.directory}: {files.reason(error)}"
            ) from error

    def restore(self, step: int, params: Any, optimizer: Any, identity: dict[str, Any]) -> Restored:
        """Read one checkpoint and check it. Arguments as of `Checkpointer.restore`; `identity` as of `refuse_other_run`.

        Raises:
          CheckpointError: a process cannot read its part, bits differ from those that were saved, or it is of another run.
            All processes raise it.
        """
        meta = jax.ShapeDtypeStruct((_META_BYTES,), np.uint8, sharding=self._replicated())
        wanted = {"params": params, "optimizer": optimizer, "meta": meta}
        args = ocp.args.PyTreeRestore(
            item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted)
        )
        trees: dict[str, Any] = {}
        why = ""
        try:
            trees = self._manager.restore(step, ocp.args.Composite(state=args))["state"]
        except Exception as error:
            why = files.reason(error)
        if int(np.min(multihost_utils.process_allgather(np.int32(not why)))) == 0:
            raise CheckpointError(f"step {step} in memory cannot be read: {why or 'by another process'}")
        record = json.loads(np.asarray(trees.pop("meta").addressable_data(0)).tobytes())
        if record["workdir"] != self._workdir or any(record[group] != identity[group] for group in identity):
            raise CheckpointError(f"step {step} in memory is of another run")
        for name, checksum in checksums(trees).items():
            if record["checksums"].get(name) != checksum:
                raise CheckpointError(f"step {step} in memory is damaged: {name} is not what was saved")
        return Restored(step, trees["params"], trees["optimizer"], record)

    def close(self) -> None:
        """Wait for the checkpoint under way, then release."""
        self._manager.wait_until_finished()
        self._manager.close()

    def _replicated(self) -> NamedSharding:
        return NamedSharding(self._mesh, jax.P())
