"""The 1.3B set-up of the paper (arXiv:2602.12005 §5.1): as `paper_334m.py`, four times the parameters.

    lacy plan    --config=experiments/paper_1b3.py --topology=v5p-128        # what it needs (docs/plan.md)
    lacy prepare --config=experiments/paper_1b3.py                           # the dataset of paper_334m.py, if not there yet
    lacy train   --config=experiments/paper_1b3.py:lacy --workdir=runs/paper_1b3/lacy
    lacy sweep   --config=experiments/paper_1b3.py --workdir=runs/paper_1b3 --dry-run        # all policies
    lacy sweep   --config=experiments/paper_1b3.py:llama --workdir=runs/llama_1b3 --dry-run  # the same, Llama style

1,276 M parameters (24 layers, width 2,048), the same text, batch, context and number of tokens; peak learning rate
2e-4 (ours: the paper names none). In float32 parameters and optimiser state are split over 16 chips (`mesh.fsdp`); in bfloat16
every chip has whole parameters, which is faster by the compiler's clock, and the optimiser's state alone is split.

Hardware: a v5e-16 or larger (on a v5e-256 with `mesh.tensor=2`). Cost of a policy, chip-hours at the roofline and by
the compiler's own estimate (docs/plan.md): 813 and 1,291 on a v5e-16, 349 and 686 on a v5p-128; `llama` by the estimate 844 and 463. Expected result: as for 334M, the cascade of
`lacy` well above that of `ntp` at the same call budget; not yet run here.

`get_config` args: as in `paper_334m.py` (a policy, `llama`, `bf16`, `loop`, `smoke`).
"""

from __future__ import annotations

import pathlib
import runpy
from collections.abc import Iterator
from typing import Any

import ml_collections

_SMALLER = runpy.run_path(str(pathlib.Path(__file__).with_name("paper_334m.py")))


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """Config of one run; see the module docstring for `arg`."""
    config = _SMALLER["get_config"](arg)
    config.name = "paper_1b3"
    if "smoke" not in arg.split(","):
        config.model.preset = "1b3"
        config.train.compiler_options = ("xla_tpu_scoped_vmem_limit_kib=32768",)
        if config.model.dtype == "float32":  # A v5e-16 has no room for whole parameters, or for `dots`, then.
            config.mesh.fsdp, config.train.shard_optimizer = 16, False
            config.model.remat = "full"
        config.optimizer.learning_rate = 2e-4
    return config


def sweep(arg: str = "") -> Iterator[dict[str, Any]]:
    """All policies, as for 334M."""
    yield from _SMALLER["sweep"](arg)
