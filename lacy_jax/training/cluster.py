"""Joining the processes of a pod into one job, before any device is touched.

On Cloud TPU and on GKE the environment names the leader and the number of processes; elsewhere they are given by hand.
Every wait is limited: if the other processes do not come, or leave, a process ends with a clear line instead of
hanging.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import os
import sys
import threading
import time
from typing import Any, NoReturn

import jax
from etils import epath

from lacy_jax.errors import PEER_LOST, ConfigError, PeerLostError

AUTOMATIC = "auto"
_ALIVE, _FAREWELL = "lacy/alive", "farewell"
_BACKUP_MINUTES = 30
"""Between two copies of a checkpoint in memory to the replicator's bucket."""
_LEADER = "process 0, which leads the job,"


def leave_at_once(status: int) -> NoReturn:
    """End this process without JAX's shutdown, which waits for all others: after a failure they may never answer.

    The others notice: their next exchange with this process fails, or they get no more signs of life (`PeerWatch`).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class PeerWatch:
    """During training, every process sends signs of life and checks those of the others.

    An exchange with a process that has died or hangs may wait forever. JAX ends the waiting processes, but with an
    abort and a message about its internals. This class acts earlier: it writes the stacks of all threads and one line,
    and ends with its own exit status. If process 0 dies, which stores these messages, JAX may act first and abort the
    others at once. A process that cannot send signs of life, because something holds the interpreter, writes its stacks
    before the others give up on it.

    Args:
      timeout_s: how long another process may be silent.
    """

    def __init__(self, timeout_s: float):
        # From JAX's internals, as there is no public access to it.
        self._client: Any = importlib.import_module("jax._src.distributed").global_state.client
        self._timeout, self._over = timeout_s, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="peer watch", daemon=True)

    def __enter__(self) -> PeerWatch:
        if self._client is not None:
            faulthandler.enable()  # Print stacks also if native code crashes.
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        if self._client is None or kind is not None:
            return  # After a failure the others must notice.
        self._over.set()
        self._thread.join()
        with contextlib.suppress(RuntimeError):  # The others have gone: there is nobody to tell.
            self._say(_FAREWELL)

    def _say(self, what: str) -> None:
        self._client.key_value_set(f"{_ALIVE}/{jax.process_index()}", what, allow_overwrite=True)

    def _watch(self) -> None:
        heard: dict[str, tuple[str, float]] = {}
        beat, others = 0, {str(i) for i in range(jax.process_count())} - {str(jax.process_index())}
        while not self._over.wait(min(self._timeout / 5, 5.0)):
            beat += 1
            # Done by a C thread that does not need the interpreter, unless the next round comes first.
            faulthandler.dump_traceback_later(0.8 * self._timeout, file=2)
            silent = threading.Timer(
                self._timeout, self._leave, [f"{_LEADER} has not answered for {self._timeout:g} s"]
            )
            silent.daemon = True
            silent.start()
            try:
                self._say(str(beat))
                said = {key.rsplit("/", 1)[-1]: what for key, what in self._client.key_value_dir_get(_ALIVE)}
            except RuntimeError as failure:  # JaxRuntimeError is one.
                self._leave(f"{_LEADER} does not answer ({str(failure).splitlines()[0][:120]})")
            silent.cancel()
            now = time.monotonic()
            for other in others:
                what = said.get(other, "")
                if what == _FAREWELL or heard.get(other, ("never", now))[0] != what:
                    heard[other] = (what, now)
                elif now - heard[other][1] > self._timeout:
                    self._leave(
                        f"nothing was heard of process {other} for {self._timeout:g} s: it has died or hangs"
                    )

        faulthandler.cancel_dump_traceback_later()

    def _leave(self, why: str) -> NoReturn:
        faulthandler.dump_traceback(file=2)
        print(
            f"lacy train: process {jax.process_index()} of {jax.process_count()}: {why}; checkpoints are kept: start all "
            "processes again to go on",
            file=sys.stderr,
        )
        leave_at_once(PEER_LOST.status)


def join_cluster(where: str, timeout_s: int = 600, silence_s: int = 90, ram: str = "") -> None:
    """Join the other processes of this job; a process must do this before it asks for devices.

    Args:
      where: "auto" (Cloud TPU, GKE, Slurm: read from the environment), or "HOST:PORT,PROCESSES,INDEX".
      timeout_s: how long to wait for the others.
      silence_s: how long another process may be silent later on. JAX waits a little longer than `PeerWatch`.
      ram: with "auto": `config.checkpoint.ram`, whose replicator on GKE tells each process who it is.

    Raises:
      ConfigError: `where` is neither.
      PeerLostError: the others did not come in time, or the environment does not say where they are.
    """
    settings: dict[str, str | int] = {}
    if where != AUTOMATIC:
        parts = where.split(",")
        if len(parts) != 3 or ":" not in parts[0] or not (parts[1].isdigit() and parts[2].isdigit()):
            raise ConfigError(
                f"--distributed={where}: expected HOST:PORT,PROCESSES,INDEX, or nothing to read it from the environment"
            )
        count, index = int(parts[1]), int(parts[2])
        if index >= count:
            raise ConfigError(f"--distributed={where}: index {index} of {count} processes; the first is 0")
        settings = {"coordinator_address": parts[0], "num_processes": count, "process_id": index}
    try:
        if ram and where == AUTOMATIC:
            _join_with_replicator(ram, timeout_s)
            return
        jax.distributed.initialize(
            **settings,  # type: ignore[arg-type]
            initialization_timeout=timeout_s,
            heartbeat_timeout_seconds=silence_s + max(silence_s // 2, 10),
        )
    except (RuntimeError, ValueError, TimeoutError) as error:  # JaxRuntimeError is a RuntimeError.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        advice = (
            "this machine does not say who else takes part; give --distributed=HOST:PORT,PROCESSES,INDEX"
            if where == AUTOMATIC
            else f"are all processes started, and can they reach {settings['coordinator_address']}?"
        )
        raise PeerLostError(f"could not join the job within {timeout_s} s: {advice} ({reason})") from error


def _join_with_replicator(ram: str, timeout_s: int) -> None:
    """Join by the ranks that GKE's replicator of checkpoints gives, so that each process finds its own part in memory."""
    from orbax.checkpoint.experimental.emergency.multi_tier_checkpointing import initialization

    initialization.initialize_multi_tier_checkpointing(
        epath.Path(ram),
        run_name=os.environ.get("JOBSET_NAME", "lacy"),
        backup_interval_minutes=_BACKUP_MINUTES,
        jax_initialization_timeout_seconds=timeout_s,
    )
