"""Processes that share the shards of a build."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import traceback
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import ml_collections
from etils import epath

from lacy_jax import config as config_lib
from lacy_jax import errors
from lacy_jax.dataset.shard import build_shard
from lacy_jax.errors import DataError, LacyError
from lacy_jax.progress import Progress
from lacy_jax.registry import load_plugins

_POLL_S = 0.2


def build_shards(
    config: ml_collections.ConfigDict, path: epath.Path, shards: Sequence[int], progress: Progress
) -> None:
    """Build `shards`, in this process or in `config.dataset.workers` spawned ones.

    Processes are spawned, not forked: a fork copies the threads' locks of JAX and Grain in an unknown state.

    Raises:
      LacyError: the first error of any worker; the others are stopped.
      DataError: a worker died without an error, as when the system runs out of memory.
    """
    tally = _Tally(progress)
    if config.dataset.workers == 1 or len(shards) <= 1:
        for shard in shards:
            build_shard(config, path, shard, tally)
        return
    context = multiprocessing.get_context("spawn")
    messages: Any = context.Queue()
    count = min(config.dataset.workers, len(shards))
    text = config_lib.to_json(config)
    processes = [
        context.Process(target=_work, args=(text, str(path), tuple(shards[i::count]), messages), daemon=True)
        for i in range(count)
    ]
    try:
        for process in processes:
            process.start()
        _follow(processes, messages, tally)
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
        for process in processes:
            if process.pid is not None:
                process.join()


class _Tally:
    """Adds up what is done and shows it."""

    def __init__(self, progress: Progress):
        self._progress, self._tokens = progress, 0

    def __call__(self, documents: int, tokens: int) -> None:
        self._tokens += tokens
        self._progress.update(documents, f"{self._tokens:,} tokens")


def _follow(processes: Sequence[BaseProcess], messages: Any, tally: _Tally) -> None:
    """Pass reports on until every worker has said that it is done."""
    working = len(processes)
    silent = 0
    while working:
        try:
            kind, *values = messages.get(timeout=_POLL_S)
        except queue.Empty:
            # A dead worker's last messages may still be in the pipe: give them two polls.
            dead = [p for p in processes if p.exitcode not in (None, 0)]
            silent = silent + 1 if dead else 0
            if silent > 2:
                raise DataError(
                    f"a dataset worker died (exit code {dead[0].exitcode}; out of memory?): "
                    "finished shards are kept; run again, with fewer config.dataset.workers"
                ) from None
            continue
        if kind == "count":
            tally(*values)
        elif kind == "done":
            working -= 1
        elif kind == "error":
            name, message = values
            raise getattr(errors, name)(message)
        else:
            raise RuntimeError(f"a dataset worker failed:\n{values[0]}")


def _work(config_text: str, path: str, shards: Sequence[int], messages: Any) -> None:
    """Body of a worker process."""
    parent = multiprocessing.parent_process()

    def report(documents: int, tokens: int) -> None:
        if parent is not None and not parent.is_alive():  # killed: leave the folder to its successor
            os._exit(1)
        messages.put(("count", documents, tokens))

    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C reaches the whole group; the parent stops its workers.
    try:
        config = config_lib.from_json(config_text)
        load_plugins(config.plugins)
        for shard in shards:
            build_shard(config, epath.Path(path), shard, report)
        messages.put(("done",))
    except LacyError as error:
        messages.put(("error", type(error).__name__, str(error)))
    except Exception:
        messages.put(("crash", traceback.format_exc()))
