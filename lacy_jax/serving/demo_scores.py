"""Calibration of the run that comes with the package: its world writes the text that a dataset would hold.

The scores of all gates on that text lie beside the run, because computing them (mostly compiling) took a fifth of the
time until the first answer. They are made by

    python -m lacy_jax.serving.demo_scores
"""

from __future__ import annotations

import pathlib
import types

import ml_collections
import numpy as np

from lacy_jax.cascade import Boundary, CalibratedGate, calibration_scores, gate_weights
from lacy_jax.cascade.gates import batch_scores
from lacy_jax.corpus import world_of
from lacy_jax.objectives import GATES
from lacy_jax.training.run import Run, load_run

STORED = pathlib.Path(__file__).parent / "demo" / "gate_scores.npy"
"""float32 [texts, T, G], as `batch_scores` gives them."""
_TEXTS = 16


def demo_scores(run: Run, config: ml_collections.ConfigDict, gate: str | CalibratedGate) -> np.ndarray | None:
    """Like `evaluation.run_texts.gate_calibration`, on texts about people of the synthetic world."""
    if isinstance(gate, str) and not GATES[gate].formula:
        return None
    boundary = None if config.generate.partner_reach == "token" else Boundary.of(run.tokenizer)
    known = gate if isinstance(gate, str) else gate_weights(gate)
    return calibration_scores(run.model, [demo_batch(run)], known, boundary=boundary, known=[np.load(STORED)])


def demo_batch(run: Run) -> types.SimpleNamespace:
    """The text, as a batch."""
    world = world_of(run.config.corpus)
    assert world is not None
    tokenizer = run.tokenizer
    documents = [tokenizer.with_prefix(tokenizer.encode(world.text(i).text)) for i in range(_TEXTS)]
    shape = _TEXTS, min(max(map(len, documents)) - 1, run.model_config.max_seq_len)
    tokens, targets, segments = np.zeros((3, *shape), np.int32)
    for row, ids in enumerate(documents):
        n = min(len(ids) - 1, shape[1])
        tokens[row, :n], targets[row, :n], segments[row, :n] = ids[:n], ids[1 : n + 1], 1
    positions = np.broadcast_to(np.arange(shape[1], dtype=np.int32), shape)
    return types.SimpleNamespace(
        tokens=tokens, targets=targets, positions=positions, segment_ids=segments, weights=segments > 0
    )


if __name__ == "__main__":
    demo = load_run(STORED.parent)
    np.save(STORED, batch_scores(demo.model, demo_batch(demo))[0])
