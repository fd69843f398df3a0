"""How much to delegate, what to do with the rest, and at which learning rate: sweeps on the embedded world, whose facts can be checked exactly.

    lacy prepare --config=experiments/call_rate.py --workdir=runs/call_rate
    lacy sweep   --config=experiments/call_rate.py --workdir=runs/call_rate --dry-run    # list the trials
    lacy sweep   --config=experiments/call_rate.py --workdir=runs/call_rate --jobs=2     # run what is not done, then tabulate
    lacy sweep   --config=experiments/call_rate.py:learning_rate --workdir=runs/learning_rate
    lacy sweep   --config=experiments/call_rate.py:search --workdir=runs/search          # on several machines if you like

`get_config` args, comma-separated; the first that names a sweep chooses it:
  (none)          call rate 0 (plain `ntp`), 5, 10, 15, 20, 25 % with `lacy`, three seeds: 18 trials.
  learning_rate   peaks 3e-4, 1e-3, 3e-3, 1e-2 for `ntp` and `lacy`, one seed: 8 trials. Prepare it with
                  --workdir=runs/learning_rate.
  ablations       at 15 %: `lacy` with each call objective, and `lacy_ignorefacts` and `lacy_ignore`, which give other facts, and the
                  hardest of what is not grammatical, no gradient: three seeds. Prepare it with --workdir=runs/ablations.
  search          learning rate, call rate and depth of `lacy`: 16 points, half of them Sobol points, three seeds each; poor
                  points are stopped early. Prepare it with --workdir=runs/search.
  smoke           the same sweeps on a toy, seconds per trial.

Hardware: 2 CPU cores. Cost: about 2.5 minutes a trial on one of them. Expected was that nll on non-factual targets falls up to
about the factual rate, and that the nll of called targets rises with the call rate; found was neither: the first does not
change beyond what seeds do, the second falls from 10 % on. The best learning rate is the same for both policies, as expected. The call
objective `full` makes the better CALL gate; the `lacy_ignore*` policies unlearn all facts.
Results: docs/results/call_rate.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import ml_collections

from lacy_jax import sweeps
from lacy_jax.config import get_default_config
from lacy_jax.default_config import CALL_OBJECTIVES

CALL_RATES = (0.05, 0.10, 0.15, 0.20, 0.25)
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
IGNORING = ("lacy_ignorefacts", "lacy_ignore")


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    smoke = "smoke" in arg.split(",")
    config = get_default_config()
    config.name = "call_rate"
    config.corpus.kind = "world"
    config.corpus.people = 60 if smoke else 3000
    config.corpus.texts_per_person = 1 if smoke else 2
    config.tokenizer.vocab_size = 800 if smoke else 2048
    config.dataset.shards = 1
    config.dataset.valid_fraction = 0.1 if smoke else 0.02

    config.model.preset = "tiny"
    config.model.family = "llama"
    config.model.n_layers = 1 if smoke else 3
    config.input.seq_len = 64 if smoke else 448
    config.input.batch_size = 8
    config.input.packing = "whole"
    config.train.steps = 3 if smoke else 300
    config.train.log_every = 1 if smoke else 20
    config.train.eval_every = (1 if smoke else 60) if "search" in arg.split(",") else 0
    config.train.eval_batches = 1 if smoke else 16
    config.checkpoint.every = 3 if smoke else 100
    config.checkpoint.keep = 1
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 1 if smoke else 20
    config.generate.partner = "world"
    return config


def sweep(arg: str = "") -> Iterable[dict[str, Any]] | sweeps.Search:
    """The trials; see the module docstring for `arg`."""
    smoke = "smoke" in arg.split(",")
    if "search" not in arg.split(","):
        return _grid(arg, smoke)
    space = {
        "optimizer.learning_rate": sweeps.uniform(3e-4, 3e-2, log=True),
        "objective.call_rate": sweeps.uniform(0.05, 0.3),
        "model.n_layers": [1, 2] if smoke else [2, 3, 4],
    }
    if smoke:
        return sweeps.Search(space, points=4, start=2, seeds=2, keep=0.5, after=1)
    return sweeps.Search(space, points=16, start=8, seeds=3, keep=0.5)


def _grid(arg: str, smoke: bool) -> Iterator[dict[str, Any]]:
    if "learning_rate" in arg.split(","):
        rates = sweeps.over("optimizer.learning_rate", LEARNING_RATES[:2] if smoke else LEARNING_RATES)
        yield from sweeps.product(sweeps.over("objective.policy", ["ntp", "lacy"]), rates)
        return
    if "ablations" in arg.split(","):
        objectives = sweeps.over("objective.call_objective", CALL_OBJECTIVES, **{"objective.policy": "lacy"})
        ignoring = sweeps.over("objective.policy", IGNORING)
        yield from sweeps.product(sweeps.seeds(1 if smoke else 3), sweeps.chain(objectives, ignoring))
        return
    none = sweeps.over("objective.call_rate", [0.0], **{"objective.policy": "ntp"})
    some = sweeps.over(
        "objective.call_rate", CALL_RATES[:1] if smoke else CALL_RATES, **{"objective.policy": "lacy"}
    )
    yield from sweeps.product(sweeps.chain(none, some), sweeps.seeds(1 if smoke else 3))
