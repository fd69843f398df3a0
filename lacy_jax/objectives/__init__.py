"""What is delegated, learned or ignored, and the loss for it (arXiv:2602.12005 §4). This room sees only arrays."""

from lacy_jax.objectives.gates import AUTO, GATES, Gate, resolve_gate, scored_gates
from lacy_jax.objectives.linear import linear_statistics
from lacy_jax.objectives.loss import LossMetrics, delegated_cross_entropy, parts_by
from lacy_jax.objectives.policies import (
    POLICIES,
    Delegation,
    Policy,
    TokenLabels,
    delegation_mask,
    get_policy,
)
from lacy_jax.objectives.query import QueryLoss, QueryTargets, most_queries, query_loss
from lacy_jax.objectives.statistics import (
    HeadStatistics,
    TokenStatistics,
    head_statistics,
    token_statistics,
)

__all__ = [
    "AUTO",
    "GATES",
    "POLICIES",
    "Delegation",
    "Gate",
    "HeadStatistics",
    "LossMetrics",
    "Policy",
    "QueryLoss",
    "QueryTargets",
    "TokenLabels",
    "TokenStatistics",
    "delegated_cross_entropy",
    "delegation_mask",
    "get_policy",
    "head_statistics",
    "linear_statistics",
    "most_queries",
    "parts_by",
    "query_loss",
    "resolve_gate",
    "scored_gates",
    "token_statistics",
]
