"""Openings of Wikipedia biographies: every gate and every kind of partner, at a size that two CPU cores can train.

    lacy prepare --config=experiments/wiki_openings.py --workdir=runs/wiki_openings
    for arg in lacy ntp loss partner; do
        lacy train --config=experiments/wiki_openings.py:$arg --workdir=runs/wiki_openings/$arg
    done

Text: the first sentences, up to 500 characters, of the 47,059 articles in `wiki/bios_train.jsonl.xz` below the folder
that the environment variable LACY_DATA names (default ../shared/data). An opening says who someone was - names, dates,
places, occupations - so a model of this size meets many people more than once instead of a few at length. Tokenizer:
8,192 pieces, trained on the same text. Labels: `auto` (docs/labels.md).

`get_config` args, comma-separated:
  (none)   the `lacy` model, 2.9 M parameters.
  smoke    a toy of everything; under a minute.
  POLICY   ntp, loss, hardest ... instead of lacy.
  partner  a larger plain model of the same text, to answer the others' calls (`checkpoint:runs/wiki_openings/partner`).

Cost and results: docs/results/wiki_openings.md.
"""

from __future__ import annotations

import os

import ml_collections

from lacy_jax.config import get_default_config

_PARTNER = {"d_model": 320, "n_heads": 5, "n_layers": 7, "d_ff": 896}
_SMALL = {"d_model": 160, "n_heads": 5, "n_layers": 5, "d_ff": 448}


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = set(filter(None, arg.split(",")))
    smoke, partner = "smoke" in words, "partner" in words
    words -= {"smoke", "partner"}
    config = get_default_config()
    config.name = "wiki_openings_partner" if partner else "wiki_openings"
    config.objective.policy = words.pop() if words else "ntp" if partner else "lacy"

    config.corpus.kind = "jsonl"
    config.corpus.path = os.path.join(
        os.environ.get("LACY_DATA", "../shared/data"), "wiki/bios_train.jsonl.xz"
    )
    config.corpus.max_chars = 500
    config.corpus.max_documents = 300 if smoke else 0
    config.tokenizer.vocab_size = 1024 if smoke else 8192
    config.dataset.path = "runs/wiki_openings/dataset" + ("_smoke" if smoke else "")
    config.dataset.workers = 2
    config.dataset.valid_fraction = 0.01

    config.model.family = "llama"
    config.model.preset = "tiny"
    if not smoke:
        config.model.update(_PARTNER if partner else _SMALL)
    config.input.seq_len = 64 if smoke else 256
    config.input.batch_size = 4 if smoke else 8
    config.train.steps = 12 if smoke else 5000
    config.train.log_every = 2 if smoke else 25
    config.train.eval_every = 6 if smoke else 1000
    config.train.eval_batches = 2 if smoke else 16
    config.checkpoint.every = 6 if smoke else 250
    config.optimizer.learning_rate = 2e-3
    config.optimizer.warmup_steps = 4 if smoke else 200
    config.generate.num_prompts = 2 if smoke else 100
    config.generate.max_new_tokens = 16 if smoke else 128
    return config
