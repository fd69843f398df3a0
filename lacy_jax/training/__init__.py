"""Training: mesh, optimiser, train step, loop, checkpoints, metrics, validation. Data, model and objective meet here."""

import sys

from etils import epy

# Orbax takes google.cloud.logging into every process where it is installed, a third of the time that all imports take, for a logger
# that nothing here asks for; without this module of its own it does as where that is missing. Who wants it imports it before.
sys.modules.setdefault("orbax.checkpoint._src.logging.cloud_logger", None)  # type: ignore[arg-type]

# Imported on first use: what only loads a model (`lacy serve`) needs none of the loop, whose imports take seconds.
with epy.lazy_api_imports(globals()):
    from lacy_jax.training.goodput import run_goodput
    from lacy_jax.training.loop import TrainResult, train
    from lacy_jax.training.metrics_files import read_metrics
    from lacy_jax.training.run import Run, load_run
    from lacy_jax.training.validation import (
        Evaluator,
        TokenScores,
        auroc,
        average_precision,
        validation_metrics,
    )

__all__ = [
    "Evaluator",
    "Run",
    "TokenScores",
    "TrainResult",
    "auroc",
    "average_precision",
    "load_run",
    "read_metrics",
    "run_goodput",
    "train",
    "validation_metrics",
]
