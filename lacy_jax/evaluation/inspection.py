"""What a trained model thinks of each token that `lacy inspect` shows: its loss, and CALL's probability and rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import scipy.special

from lacy_jax.errors import ConfigError
from lacy_jax.labels.inspect import LabelledDocument
from lacy_jax.objectives.scoring import score_documents, scorer
from lacy_jax.training.run import Run


def add_scores(documents: Sequence[LabelledDocument], run: Run) -> list[LabelledDocument]:
    """The documents with `nll`, `call` and `call_rank` on each piece.

    Args:
      documents: labelled with the run's tokenizer. A document longer than the context is cut as training cuts it.

    Raises:
      ConfigError: the documents show words, or the tokens of another tokenizer.
    """
    tokenizer, texts = run.tokenizer, []
    for document in documents:
        ids = tokenizer.encode("".join(piece.text for piece in document.pieces))
        if document.unit != "tokens" or not len(ids) <= len(document.pieces) <= len(ids) + 1:
            raise ConfigError(f"document {document.id!r} is not shown in the tokens of run {run.workdir}")
        texts.append(np.concatenate(([tokenizer.bos_id], ids)).astype(np.int32))
    score = scorer(run.model, run.config.objective.chunk)
    scores = score_documents(score, texts, run.config.input.seq_len, title="inspect")
    # By rank, as gates read it: the paper's objective does not calibrate p(CALL), which may be near 1 everywhere.
    odds = [np.asarray(found.call_logit - found.lse) for found in scores]
    everywhere = np.sort(np.concatenate(odds)) if odds else np.zeros(0)
    return [
        _with_scores(document, np.asarray(found.nll), own, everywhere)
        for document, found, own in zip(documents, scores, odds, strict=True)
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
