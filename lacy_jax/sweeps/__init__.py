"""Many runs of one experiment: writing a sweep, its trials, running them, and the table of their results."""

from lacy_jax.sweeps.search import Search, sobol, uniform
from lacy_jax.sweeps.trials import Trial, chain, experiment_name, load_trials, over, product, seeds, zip

__all__ = [
    "Search",
    "Trial",
    "chain",
    "experiment_name",
    "load_trials",
    "over",
    "product",
    "seeds",
    "sobol",
    "uniform",
    "zip",
]
