"""Log-probabilities of given texts, with the likeliest pieces at each place; CALL does not count as a piece.

They come from the weights that write the texts, with the forward pass that validation and `lacy evaluate` use.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import queue
import threading

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lacy_jax.models import Transformer
from lacy_jax.objectives.linear import chunk_statistics, default_chunk, over_chunks

MOST = 20
"""Most pieces that may be asked for at a place."""
_ROWS = (1, 4, 16)
_NARROWEST = 64


@dataclasses.dataclass(frozen=True)
class Scores:
    """Log-probabilities (natural) of a text of n tokens.

    Attributes:
      tokens: float32 [n - 1], entry i is about token i + 1.
      top: int32 [n, K] the likeliest pieces after each token, the likeliest first. top_scores: float32 [n, K].
    """

    tokens: Float[np.ndarray, " m"]
    top: Int[np.ndarray, "n K"]
    top_scores: Float[np.ndarray, "n K"]


@functools.partial(jax.jit, static_argnames="count")
def _score(
    model: Transformer, tokens: Int[Array, "B T"], lengths: Int[Array, " B"], count: int
) -> tuple[Array, Array, Array]:
    """(log-probability of the next token [B, T], pieces [B, T, K], their log-probabilities)."""
    places = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = model(tokens, places, (places < lengths[:, None]).astype(jnp.int32))

    def statistics(z: Array, targets: Array) -> tuple[Array, ...]:
        lse, z_target, largest = chunk_statistics(z, targets)
        if count == 1:  # XLA's CPU backend sorts all of V for more than one.
            return z_target - lse, jnp.argmax(z, axis=-1).astype(jnp.int32), largest - lse
        values, pieces = jax.lax.top_k(z, min(count, z.shape[-1]))
        return z_target - lse, *jnp.moveaxis(pieces, -1, 0), *jnp.moveaxis(values - lse[..., None], -1, 0)

    targets = jnp.roll(tokens, -1, axis=1)
    kernel = model.head_kernel()
    found, *likeliest = over_chunks(statistics, hidden, kernel, targets, default_chunk(kernel.shape[0]))
    half = len(likeliest) // 2
    return found, jnp.stack(likeliest[:half], axis=-1), jnp.stack(likeliest[half:], axis=-1)


class Scorer:
    """Scores texts for all clients, in its own thread; waiting texts are scored side by side."""

    def __init__(self, model: Transformer):
        self._model, self._context = model, model.cfg.max_seq_len
        self._waiting: queue.SimpleQueue[tuple[np.ndarray, int, concurrent.futures.Future] | None] = (
            queue.SimpleQueue()
        )
        self._thread = threading.Thread(target=self._run, name="scorer", daemon=True)
        self._thread.start()

    def score(self, tokens: np.ndarray, count: int = 1) -> concurrent.futures.Future[Scores]:
        """`Scores` of a text [n], n at most the model's context, with `count` pieces at each place (1 to `MOST`)."""
        future: concurrent.futures.Future[Scores] = concurrent.futures.Future()
        self._waiting.put((np.asarray(tokens, np.int32), count, future))
        return future

    @property
    def waiting(self) -> int:
        """Texts that wait to be scored."""
        return self._waiting.qsize()

    def close(self) -> None:
        """End the thread, after what it computes: a process that ends while a thread of it is inside XLA aborts."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None:
            batch = [first]
            while len(batch) < _ROWS[-1] and not self._waiting.empty():
                if (another := self._waiting.get()) is None:
                    self._waiting.put(None)
                    break
                batch.append(another)
            for several in (False, True):
                some = [item for item in batch if (item[1] > 1) == several]
                if some:
                    self._answer(some, MOST if several else 1)

    def _answer(self, batch: list[tuple[np.ndarray, int, concurrent.futures.Future]], count: int) -> None:
        batch = [item for item in batch if item[2].set_running_or_notify_cancel()]
        if not batch:
            return  # Nobody waits for them.
        try:
            longest = max(len(tokens) for tokens, _, _ in batch)
            width = _NARROWEST
            while width < longest:
                width *= 2
            rows = next(rows for rows in _ROWS if rows >= len(batch))
            tokens = np.zeros((rows, min(width, self._context)), np.int32)
            lengths = np.ones(rows, np.int32)
            for row, (own, _, _) in enumerate(batch):
                tokens[row, : len(own)], lengths[row] = own, len(own)
            found, top, scores = jax.device_get(_score(self._model, tokens, lengths, count))
        except Exception as error:  # A bug of ours: tell those who wait, and keep the thread alive.
            for _, _, future in batch:
                future.set_exception(error)
            return
        for row, (own, wanted, future) in enumerate(batch):
            n = len(own)
            future.set_result(Scores(found[row, : n - 1], top[row, :n, :wanted], scores[row, :n, :wanted]))
