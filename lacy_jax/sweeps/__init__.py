"""Many runs of one experiment: how a sweep is written, its trials, running them, and the table of what they gave."""

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
