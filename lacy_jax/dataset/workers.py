"""Processes that share the shards of a build."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent import futures
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import ml_collections
from etils import epath

from lacy_jax import config as config_lib
from lacy_jax.dataset.shard import build_shard
from lacy_jax.errors import DataError
from lacy_jax.progress import Progress
from lacy_jax.registry import load_plugins

_POLL_S = 0.2


def build_shards(
    config: ml_collections.ConfigDict, path: epath.Path, shards: Sequence[int], progress: Progress
) -> None:
    """Build `shards`, in this process or in `config.dataset.workers` spawned ones.

    Processes are spawned, not forked, because a fork would copy locks of JAX's and Grain's threads in an unknown state.

    Raises:
      LacyError: the first error of any worker; the others are stopped.
      DataError: a worker died without an error, for example because the system ran out of memory.
    """
    tally = _Tally(progress)
    if config.dataset.workers == 1 or len(shards) <= 1:
        for shard in shards:
            build_shard(config, path, shard, tally)
        return
    context = multiprocessing.get_context("spawn")
    # No locks, because a killed worker might leave one locked; each entry has only one writer.
    counts = [context.RawArray("q", len(shards)) for _ in ("documents", "tokens")]
    stop, begun = context.RawValue("b", 0), context.RawValue("b", 0)
    count = min(config.dataset.workers, len(shards))
    pool = futures.ProcessPoolExecutor(count, context, _begin, (*counts, stop, begun))
    text = config_lib.to_json(config)
    try:
        waiting = {pool.submit(_build, text, str(path), i, shard) for i, shard in enumerate(shards)}
        while waiting:
            finished, waiting = futures.wait(waiting, _POLL_S, futures.FIRST_EXCEPTION)
            tally(sum(counts[0]) - tally.documents, sum(counts[1]) - tally.tokens)
            for future in finished:
                future.result()
    except BrokenProcessPool:
        if begun.value:
            why = "killed; out of memory?"
        else:
            why = 'killed as it began, or started by a script that calls this outside `if __name__ == "__main__":`'
        raise DataError(
            f"a dataset worker died ({why}): finished shards are kept; run again, with fewer config.dataset.workers"
        ) from None
    finally:
        stop.value = 1
        pool.shutdown(cancel_futures=True)


class _Tally:
    """Adds up the documents and tokens done, and shows them."""

    def __init__(self, progress: Progress):
        self._progress, self.documents, self.tokens = progress, 0, 0

    def __call__(self, documents: int, tokens: int) -> None:
        self.documents, self.tokens = self.documents + documents, self.tokens + tokens
        self._progress.update(documents, f"{self.tokens:,} tokens")


class _Stopped(Exception):
    """The parent has told this worker to stop."""


_shared: tuple[Any, Any, Any]
"""In a worker: documents done and tokens done, by shard, and whether to stop."""


def _begin(documents: Any, tokens: Any, stop: Any, begun: Any) -> None:
    """Runs in each worker process before its first shard."""
    global _shared
    _shared = documents, tokens, stop
    begun.value = 1
    # Ctrl-C reaches the whole process group; the parent stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow_parent, daemon=True).start()


def _follow_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # The parent was killed: leave the folder to the next build.


def _build(config_text: str, path: str, index: int, shard: int) -> None:
    """One shard, in a worker process."""
    documents, tokens, stop = _shared

    def report(more_documents: int, more_tokens: int) -> None:
        if stop.value:
            raise _Stopped
        documents[index] += more_documents
        tokens[index] += more_tokens

    config = config_lib.from_json(config_text)
    load_plugins(config.plugins)
    build_shard(config, epath.Path(path), shard, report)
