"""What a trained model thinks of each token that `lacy inspect` shows: its loss, and the probability of CALL."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from lacy_jax import objectives
from lacy_jax.dataset.assemble import Part, stack_rows
from lacy_jax.dataset.batch import Batch
from lacy_jax.dataset.records import Record
from lacy_jax.errors import ConfigError
from lacy_jax.labels.inspect import LabelledDocument
from lacy_jax.training import sharding
from lacy_jax.training.run import Run


def add_scores(documents: Sequence[LabelledDocument], run: Run) -> list[LabelledDocument]:
    """The documents with `nll` and `call` on each piece.

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
        return found.nll, jax.nn.sigmoid(found.call_logit - found.lse)

    scored = []
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
        nll, call = np.concatenate(parts, 1).tolist()
        pieces = tuple(
            dataclasses.replace(piece, nll=nll[i], call=call[i]) if i < len(ids) else piece
            for i, piece in enumerate(document.pieces)
        )
        scored.append(dataclasses.replace(document, pieces=pieces))
    return scored
