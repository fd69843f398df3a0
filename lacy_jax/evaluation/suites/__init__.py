"""`lacy evaluate --suite=NAME`: one file a suite, each an entry of `SUITES`."""

from lacy_jax.evaluation.suites.suite import (
    SUITES,
    Figures,
    Option,
    Reported,
    Request,
    Suite,
    Units,
    all_options,
    run_suite,
)

__all__ = [
    "SUITES",
    "Figures",
    "Option",
    "Reported",
    "Request",
    "Suite",
    "Units",
    "all_options",
    "run_suite",
]
