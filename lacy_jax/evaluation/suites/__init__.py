"""`lacy evaluate --suite=NAME`: one file per suite, each an entry of `SUITES`."""

import importlib
import pkgutil

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

# Import all of them in the order of their files, so that tables always list them in this order.
for _part in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_part.name}")
