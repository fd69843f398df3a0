"""The bundled fast labeller: a compact tagger in front of the full rules, and the script that trains it."""

from lacy_jax.labels.tagger.labeller import BundledLabeller

__all__ = ["BundledLabeller"]
