"""Go on from a public model: add a CALL head to it and continue pretraining with delegation.

    lacy import  --from=HF_FOLDER --workdir=runs/base                 # GPT-2, Llama, Mistral, Qwen2, Qwen3: docs/export.md
    lacy prepare --config=experiments/continue_from_hf.py:runs/base   # text labelled and tokenised with *its* tokenizer
    lacy train   --config=experiments/continue_from_hf.py:runs/base --workdir=runs/continued
    lacy export  --workdir=runs/continued                             # back to a Hugging Face folder, with <CALL>

The base model's parameters are the start (`train.init_from`); its dimensions and its tokenizer are taken from its run
directory. The CALL vector starts as the mean of the head's rows: c is then the mean of the base logits, so CALL begins
as likely as an average piece and learns its place from the delegated targets (arXiv:2602.12005 §4).

Text: Wikipedia biographies, `wiki/bios_train.jsonl.xz` below the folder that the environment variable LACY_DATA names;
`--config.corpus.path=FILE.jsonl` for your own. Cost depends on the base; for GPT-2 small (124 M) 1,000 steps of 32 x 512
tokens are hours on one GPU, and have not been run here. Expected: validation nll near the base model's, `call_rate` at
0.15, and AUROC of the CALL gates as a detector of *factual and wrong* above that of entropy.

`get_config` args, comma-separated:
  RUN_DIR  of `lacy import` (needed).
  smoke    12 steps of 8 x 32 tokens on 200 documents of the embedded world; needs no data.
  POLICY   ntp, spacy_ref ... instead of lacy.
"""

from __future__ import annotations

import os

import ml_collections

from lacy_jax.config import get_default_config, read_run_config
from lacy_jax.errors import ConfigError
from lacy_jax.objectives import POLICIES
from lacy_jax.run_files import DATASET_FOLDER, TOKENIZER_FILE


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    smoke = "smoke" in words
    policies = [word for word in words if word in POLICIES]
    bases = [word for word in words if word != "smoke" and word not in POLICIES]
    if len(bases) != 1 or len(policies) > 1:
        raise ConfigError(
            f"continue_from_hf.py:{arg}: expected RUN_DIR of lacy import, and at most smoke and one policy"
        )
    base = bases[0]
    config = get_default_config()
    config.name = "continue_from_hf"
    config.model = read_run_config(base).model
    config.train.init_from = base
    config.tokenizer.path = os.path.join(base, TOKENIZER_FILE)
    config.dataset.path = os.path.join(base, DATASET_FOLDER + ("_smoke" if smoke else ""))
    config.objective.policy = policies[0] if policies else "lacy"

    if smoke:
        config.corpus.people, config.corpus.texts_per_person = 200, 1
        config.dataset.valid_fraction = 0.1
    else:
        config.corpus.kind = "jsonl"
        data = os.environ.get("LACY_DATA", "../shared/data")
        config.corpus.path = os.path.join(data, "wiki/bios_train.jsonl.xz")
        config.dataset.workers = 2
    config.dataset.shards = 1 if smoke else 8
    config.input.seq_len = 32 if smoke else 512
    config.input.batch_size = 8 if smoke else 32
    config.train.steps = 12 if smoke else 1000
    config.train.log_every = 2 if smoke else 10
    config.train.eval_every = 6 if smoke else 200
    config.train.eval_batches = 2 if smoke else 8
    config.checkpoint.every = 6 if smoke else 200
    config.optimizer.learning_rate = 1e-4  # A tenth of a fresh start's: the model knows its language already.
    config.optimizer.warmup_steps = 4 if smoke else 100
    config.model.dropout = 0.0
    return config
