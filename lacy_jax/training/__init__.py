"""Training: mesh, optimiser, train step, loop, checkpoints, metrics, validation. Data, model and objective meet here."""

from etils import epy

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
