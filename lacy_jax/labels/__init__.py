"""Labels: which characters of a text state a fact (arXiv:2602.12005 §3)."""

from lacy_jax.labels.alignment import align
from lacy_jax.labels.registry import LABELLERS, LookupLabeller, WorldLabeller, get_labeller
from lacy_jax.labels.rules import RuleLabeller
from lacy_jax.labels.spacy_rules import SpacyLabeller, label_parse
from lacy_jax.labels.spans import Labeller, Labels, Span
from lacy_jax.labels.tagger import BundledLabeller
from lacy_jax.labels.windows import label_pieces

__all__ = [
    "LABELLERS",
    "BundledLabeller",
    "Labeller",
    "Labels",
    "LookupLabeller",
    "RuleLabeller",
    "SpacyLabeller",
    "Span",
    "WorldLabeller",
    "align",
    "get_labeller",
    "label_parse",
    "label_pieces",
]
