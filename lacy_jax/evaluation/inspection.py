"""What a trained model thinks of each token that `lacy inspect` shows: its loss, and CALL's probability and rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
import scipy.special

from lacy_jax import objectives
from lacy_jax.dataset.assemble import Part, stack_rows
from lacy_jax.dataset.batch import Batch
from lacy_jax.dataset.records import Record
from lacy_jax.errors import ConfigError
from lacy_jax.labels.inspect import LabelledDocument
from lacy_jax.training import sharding
from lacy_jax.training.run import Run


def add_scores(documents: Sequence[LabelledDocument], run: Run) -> list[LabelledDocument]:
    """The documents with `nll`, `call` and `call_rank` on each piece.

    Args:
      documents: labelled with the run's tokenizer. A document longer than the context is cut as training cuts it.

    Raises:
      ConfigError: the documents show words, or the tokens of another tokenizer.
    """
    mesh = jax.tree.leaves(run.params)[0].sharding.mesh
    definition, tokenizer, seq_len = run.definition, run.tokenizer, run.config.input.seq_len

    @jax.jit
    def score(params, batch: Batch):
        network = definition.merge(params)
        partition = sharding.ActivationPartition(mesh)
        hidden = network(batch.tokens, batch.positions, batch.segment_ids, partition=partition)
        found = objectives.token_statistics(
            hidden,
            network.head_kernel(),
            network.call_vector(),
            batch.targets,
            chunk=run.config.objective.chunk,
        )
        return found.nll, found.call_logit - found.lse

    scores: list[np.ndarray] = []  # Per document [2, tokens]: nll, and log-odds of CALL.
    for document in documents:
        ids = tokenizer.encode("".join(piece.text for piece in document.pieces))
        if document.unit != "tokens" or not len(ids) <= len(document.pieces) <= len(ids) + 1:
            raise ConfigError(f"document {document.id!r} is not shown in the tokens of run {run.workdir}")
        tokens = np.concatenate(([tokenizer.bos_id], ids, [tokenizer.eos_id])).astype(np.int32)
        nothing = np.zeros(len(tokens), bool)
        record = Record(tokens, nothing, nothing)
        parts: list[np.ndarray] = []
        with jax.set_mesh(mesh):
            for start in range(0, len(tokens) - 1, seq_len):
                row = [Part(record, start, min(start + seq_len + 1, len(tokens)))]
                host = stack_rows([row], seq_len, tokenizer.pad_id, confine=True)
                found = score(run.params, sharding.put_batch(host, mesh))
                parts.append(np.stack([np.asarray(array)[0][host.weights[0]] for array in found]))
        scores.append(np.concatenate(parts, 1)[:, : len(ids)])
    # By rank, as gates read it: the paper's objective does not calibrate p(CALL), which may be near 1 everywhere.
    everywhere = np.sort(np.concatenate([odds for _, odds in scores])) if scores else np.zeros(0)
    return [
        _with_scores(document, pair[0], pair[1], everywhere)
        for document, pair in zip(documents, scores, strict=True)
    ]


def _with_scores(
    document: LabelledDocument, nll: np.ndarray, odds: np.ndarray, everywhere: np.ndarray
) -> LabelledDocument:
    call = scipy.special.expit(odds)
    rank = np.searchsorted(everywhere, odds) / len(everywhere)
    scored = [
        dataclasses.replace(piece, nll=float(nll[i]), call=float(call[i]), call_rank=float(rank[i]))
        for i, piece in enumerate(document.pieces[: len(nll)])
    ]
    return dataclasses.replace(document, pieces=(*scored, *document.pieces[len(nll) :]))
