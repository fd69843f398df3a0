"""The 334M set-up of the paper (arXiv:2602.12005 §5.1): GPT-2 style, Wikipedia, every delegation policy.

    lacy plan    --config=experiments/paper_334m.py --topology=v5e-16      # what it needs, before paying (docs/plan.md)
    lacy prepare --config=experiments/paper_334m.py
    lacy train   --config=experiments/paper_334m.py:lacy --workdir=runs/paper_334m/lacy
    lacy sweep   --config=experiments/paper_334m.py --workdir=runs/paper_334m --dry-run      # all policies
    lacy sweep   --config=experiments/paper_334m.py:llama --workdir=runs/llama_334m --dry-run    # the same, Llama style
    lacy sweep   --config=experiments/paper_334m.py --workdir=gs://BUCKET/paper_334m --emit=TEMPLATE  # for pods: docs/tpu.md

From the paper: 336 M parameters, context 1,024, 32,000 SentencePiece pieces and CALL, full precision, about 50 G tokens
(16 epochs of Wikipedia), call rate 15 %. Ours where it is silent: AdamW, peak 5e-4, 2,000 warm-up steps, cosine to
10 %, weight decay 0.1, batch 128.

Text: the MediaWiki dump that LACY_WIKI names (default enwiki-latest-pages-articles.xml.bz2, from dumps.wikimedia.org).
The policies `judge`, `rho`, `rho_skip` and `spacy_ref` read labels or a reference nll stored in the dataset (`lacy judge`,
`lacy score`).

Hardware: one v5e-16 or larger. Cost of a policy, chip-hours at the roofline and by the compiler's own estimate (docs/plan.md): 198
and 528 on a v5e-16, 90 and 281 on a v5p-128, 120 and 324 on a v6e-64; `llama` by the estimate 318 on a v5e-16.
Expected result, from the paper, not yet run here: with a partner at a call budget of 22 %, FActScore 15.9 for `ntp`
and 22.7 for `lacy`; mean NLU 39.6 and 39.9; `lacy` has the lowest leakage, 11.28.

`get_config` args, comma-separated: a policy (default lacy); `llama` (RoPE, RMSNorm, SwiGLU, bfloat16 compute, 332 M);
`bf16` (bfloat16 compute, float32 parameters); `loop` (layers in a loop, with either of these: compiled in a minute instead of
minutes, a slower step); `smoke` (a toy on the embedded world; under a minute on a laptop).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import ml_collections

from lacy_jax import sweeps
from lacy_jax.config import get_default_config
from lacy_jax.errors import ConfigError
from lacy_jax.objectives import POLICIES

FROM_DATASET = ("rho", "rho_skip", "spacy_ref")  # Ranked by a reference nll, which the dataset stores.
NEED_LABELS = (*FROM_DATASET, "judge")
STYLES = ("llama", "bf16", "loop", "smoke")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    words = [word for word in arg.split(",") if word]
    policies = [word for word in words if word not in STYLES]
    if len(policies) > 1:
        raise ConfigError(f"arg {arg!r}: more than one policy: {', '.join(policies)}")
    llama, smoke = "llama" in words, "smoke" in words
    config = get_default_config()
    config.name = "paper_334m"
    config.objective.policy = policies[0] if policies else "lacy"
    config.objective.reference = "dataset" if config.objective.policy in FROM_DATASET else ""

    config.corpus.kind = "mediawiki"
    config.corpus.path = os.environ.get("LACY_WIKI", "enwiki-latest-pages-articles.xml.bz2")
    config.corpus.on_bad_record = "skip"
    config.dataset.path = "runs/paper/dataset"
    config.dataset.shards = 256
    config.dataset.workers = os.cpu_count() or 1

    config.model.preset = "334m"
    config.model.family = "llama" if llama else "gpt2"
    config.model.dtype = "bfloat16" if llama or "bf16" in words else "float32"
    # By the compiler's clock, on a v5e-16 (docs/plan.md); the values computed are those of any other setting.
    config.model.remat = "dots"
    config.train.shard_optimizer = True
    config.objective.chunk = 2048
    if config.model.dtype == "bfloat16":
        config.train.compiler_options = ("xla_tpu_scoped_vmem_limit_kib=32768",)  # 3 to 5 % less.
        if "loop" not in words:  # By the estimate 15 % less; such a program takes longer to compile.
            config.model.scan_layers, config.model.remat = False, "none"
    config.input.batch_size = 128
    config.train.steps = 400_000
    config.train.log_every = 50
    config.train.eval_every = 5000
    config.train.eval_batches = 50
    config.checkpoint.every = 1000
    config.checkpoint.keep_every = 50_000
    config.optimizer.warmup_steps = 2000
    config.generate.num_prompts = 500
    if smoke:
        shrink(config)
    return config


def shrink(config: ml_collections.ConfigDict) -> None:
    """The same on the embedded world in seconds: every part runs, nothing is learned."""
    config.corpus.kind, config.corpus.path = "world", ""
    config.corpus.people, config.corpus.texts_per_person = 60, 1
    config.tokenizer.vocab_size = 800
    config.dataset.path, config.dataset.shards, config.dataset.workers = "", 1, 1
    config.dataset.valid_fraction = 0.1
    config.model.preset, config.model.n_layers, config.model.dtype = "tiny", 2, "float32"
    config.input.seq_len, config.input.batch_size = 64, 8
    config.train.steps, config.train.log_every, config.train.eval_every, config.train.eval_batches = (
        6,
        2,
        0,
        1,
    )
    config.checkpoint.every, config.checkpoint.keep_every = 6, 0
    config.optimizer.warmup_steps = 2
    config.mesh.fsdp = 1
    config.generate.num_prompts, config.generate.max_new_tokens = 2, 16


def sweep(arg: str = "") -> Iterator[dict[str, Any]]:
    """All policies; under `smoke` only those that need no further labels."""
    skip = NEED_LABELS if "smoke" in arg.split(",") else ()
    for policy in POLICIES:
        if policy not in skip:
            reference = {"objective.reference": "dataset"} if policy in FROM_DATASET else {}
            yield from sweeps.over("objective.policy", [policy], **reference)
