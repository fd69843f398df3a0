"""Decoding with a partner: gates, the call budget, partners, batched generation.

Sees models and tokenizer (and the synthetic world, for its fact table); not the training room.
"""

from lacy_jax.cascade.boundary import Boundary
from lacy_jax.cascade.budget import BudgetController, BudgetState, make_controller
from lacy_jax.cascade.calibrated_gate import CalibratedGate, fit_gate, gate_weights
from lacy_jax.cascade.decoding import GenerationStopped, generate
from lacy_jax.cascade.dense_index import DenseIndex
from lacy_jax.cascade.exchange import Standing
from lacy_jax.cascade.fact_database import FactDatabase
from lacy_jax.cascade.gates import calibration_scores, gate_scores
from lacy_jax.cascade.partners.base import PARTNERS, Opening, Partner, PartnerKind, get_partner
from lacy_jax.cascade.partners.checkpoint import CheckpointPartner
from lacy_jax.cascade.partners.database import DatabasePartner
from lacy_jax.cascade.partners.documents import DocumentPartner
from lacy_jax.cascade.partners.index import IndexPartner
from lacy_jax.cascade.partners.server import CompletionsPartner
from lacy_jax.cascade.partners.world import FactTablePartner
from lacy_jax.cascade.passages import PassageIndex
from lacy_jax.cascade.texts import (
    Generation,
    Prompt,
    budget_summary,
    read_generations,
    read_prompts,
    write_generations,
)
from lacy_jax.clients import CircuitBreaker, CompletionsClient

__all__ = [
    "PARTNERS",
    "Boundary",
    "BudgetController",
    "BudgetState",
    "CalibratedGate",
    "CheckpointPartner",
    "CircuitBreaker",
    "CompletionsClient",
    "CompletionsPartner",
    "DatabasePartner",
    "DenseIndex",
    "DocumentPartner",
    "FactDatabase",
    "FactTablePartner",
    "Generation",
    "GenerationStopped",
    "IndexPartner",
    "Opening",
    "Partner",
    "PartnerKind",
    "PassageIndex",
    "Prompt",
    "Standing",
    "budget_summary",
    "calibration_scores",
    "fit_gate",
    "gate_scores",
    "gate_weights",
    "generate",
    "get_partner",
    "make_controller",
    "read_generations",
    "read_prompts",
    "write_generations",
]
