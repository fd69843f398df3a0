"""Suite calls: losses by class of token, and whether the model calls where it should. It writes no text."""

from __future__ import annotations

from lacy_jax.config import dataset_folder
from lacy_jax.errors import ConfigError
from lacy_jax.evaluation.evaluate import evaluate_run, evaluation_table
from lacy_jax.evaluation.suites.suite import SUITES, Figures, Option, Request, Suite

BASELINE = Option("baseline", "another run, usually ntp, to compare on both runs' call masks")
BATCHES = Option("batches", "validation batches; 0 = all", 0)


def _run(request: Request) -> Figures:
    if not request.workdir or request.config is None:
        raise ConfigError("--workdir=DIR is needed: the run to evaluate")
    return evaluate_run(
        request.workdir,
        dataset_folder(request.config, request.workdir),
        baseline=request[BASELINE] or None,
        batches=request[BATCHES],
        step=request.config.generate.step,
        save=False,
    )


SUITES.add(
    Suite(
        "calls",
        "losses, and how well each gate detects facts that would be wrong, on held-out text (the default)",
        _run,
        evaluation_table,
        options=(BASELINE, BATCHES),
    )
)
