"""Wikipedia biographies: LaCy on real text, at a size that a CPU can train.

    lacy prepare --config=experiments/wiki_bios.py --workdir=runs/wiki_bios
    lacy train --config=experiments/wiki_bios.py --workdir=runs/wiki_bios/lacy
    lacy generate --workdir=runs/wiki_bios/lacy --config.generate.partner=checkpoint:runs/wiki_bios/ntp

Text: 47,059 articles on people (18.5 M words), `wiki/bios_train.jsonl.xz` below the folder that the environment
variable LACY_DATA names (default ../shared/data). Tokenizer: the public 32,000-piece model in tokenizers/ there, on
which the labels are calibrated to 25 % factual tokens (one of our own splits digits, so dates weigh more: 29 %). Labels: `auto` (docs/labels.md), that is the full rules on
`en_core_web_sm` where installed, else on the bundled tagger where spaCy is, else the model-free rules; the dataset
metadata says which.

Hardware: 2 CPU cores. Cost: 17 minutes a model. Expected, and seen: factual rate about 26 %, the same nll on
non-factual targets for `lacy` and `ntp`, and c - max z a better detector of *factual and wrong* than entropy (docs/results/wiki_bios.md).

`get_config` args, comma-separated:
  (none)   13 M parameters, 32,000 pieces, context 256, 1.2 M tokens: the 30-minute run on 2 CPU cores; not a good
           writer, but the loss, the factual rate and the calls can be seen to behave (docs/results/wiki_bios.md).
  gpu      30m llama, 32,000 pieces, context 1,024, bfloat16, four epochs: hours on one GPU (not yet run).
  smoke    a toy of everything; under a minute.
  POLICY   ntp, loss, hardest ... instead of lacy.
"""

from __future__ import annotations

import os

import ml_collections

from lacy_jax.config import get_default_config


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = set(filter(None, arg.split(",")))
    smoke, gpu = "smoke" in words, "gpu" in words
    words -= {"smoke", "gpu"}
    config = get_default_config()
    config.name = "wiki_bios"
    config.objective.policy = words.pop() if words else "lacy"

    config.corpus.kind = "jsonl"
    data = os.environ.get("LACY_DATA", "../shared/data")
    config.corpus.path = os.path.join(data, "wiki/bios_train.jsonl.xz")
    config.tokenizer.path = os.path.join(data, "tokenizers/sentencepiece_cc_all.32000.100extra.model")
    config.dataset.path = "runs/wiki_bios/dataset" + ("_smoke" if smoke else "_gpu" if gpu else "")
    config.dataset.workers = 2
    config.dataset.shards = 8
    config.corpus.max_documents = 300 if smoke else 0 if gpu else 6000  # More than the steps below read.

    config.model.family = "llama"
    config.model.preset = "tiny" if smoke else "30m" if gpu else "10m"
    if not (smoke or gpu):  # Wide and shallow: what a CPU multiplies fastest.
        config.model.d_model, config.model.n_heads, config.model.n_layers, config.model.d_ff = 256, 4, 6, 704
    config.model.dtype = "bfloat16" if gpu else "float32"
    config.input.seq_len = 64 if smoke else 1024 if gpu else 256
    config.input.batch_size = 64 if gpu else 4  # On a CPU, many small steps learn more per minute.
    config.train.steps = 12 if smoke else 2400 if gpu else 1200
    config.train.log_every = 2 if smoke else 10
    config.train.eval_every = 6 if smoke else 200
    config.train.eval_batches = 2 if smoke else 8
    config.checkpoint.every = 6 if smoke else 200
    config.optimizer.learning_rate = 1e-3
    config.optimizer.warmup_steps = 4 if smoke else 100
    config.generate.num_prompts = 2 if smoke else 50
    config.generate.max_new_tokens = 16 if smoke else 150
    return config
