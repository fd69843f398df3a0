"""A trained model's scores for the tokens that `lacy inspect` shows: loss, and probability and rank of CALL."""

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
      documents: documents labelled with the run's tokenizer. Those longer than the context are cut as in training.

    Raises:
      ConfigError: the documents show words, or tokens of another tokenizer.
    """
    tokenizer, texts, lengths = run.tokenizer, [], []
    for document in documents:
        ids = tokenizer.encode("".join(piece.text for piece in document.pieces))
        if document.unit != "tokens" or not len(ids) <= len(document.pieces) <= len(ids) + 1:
            raise ConfigError(f"document {document.id!r} does not show the tokens of run {run.workdir}")
        texts.append(tokenizer.with_prefix(ids))
        lengths.append(len(ids))
    score = scorer(run.model, run.config.objective.chunk)
    scores = score_documents(score, texts, run.config.input.seq_len, title="inspect")
    # The first token has no scores; if no bos is put before the text, that is the text's own first token.
    pairs = [np.array([found.nll, found.call_logit - found.lse]) for found in scores]
    pairs = [np.insert(pair, 0, np.nan, axis=1)[:, -n:] for pair, n in zip(pairs, lengths, strict=True)]
    # Rank, as for gates, because the paper's objective does not calibrate p(CALL), which may be near 1 everywhere.
    everywhere = np.concatenate([odds for _, odds in pairs]) if pairs else np.zeros(0)
    everywhere = np.sort(everywhere[np.isfinite(everywhere)])
    return [
        _with_scores(document, nll, odds, everywhere)
        for document, (nll, odds) in zip(documents, pairs, strict=True)
    ]


def _with_scores(
    document: LabelledDocument, nll: np.ndarray, odds: np.ndarray, everywhere: np.ndarray
) -> LabelledDocument:
    call = scipy.special.expit(odds)
    rank = np.searchsorted(everywhere, odds) / len(everywhere)
    scored = [
        dataclasses.replace(piece, nll=float(nll[i]), call=float(call[i]), call_rank=float(rank[i]))
        if np.isfinite(nll[i])
        else piece
        for i, piece in enumerate(document.pieces[: len(nll)])
    ]
    return dataclasses.replace(document, pieces=(*scored, *document.pieces[len(nll) :]))
