"""FActScore (arXiv:2305.14251): is each atomic fact of a generated text supported by a knowledge source?

Entities -> generations -> atomic facts -> retrieved passages -> verdicts -> score. Splitter and judge can be exchanged,
and a score is never shown without their names. The original tool's file formats are read and written, so that its scores
can be compared and recomputed.
"""

from lacy_jax.evaluation.factscore.agreement import agreement, agreement_table
from lacy_jax.evaluation.factscore.formats import (
    AtomicFact,
    Entry,
    read_entities,
    read_entries,
    write_entries,
    write_output,
)
from lacy_jax.evaluation.factscore.judging import EmbeddedJudge, Judge
from lacy_jax.evaluation.factscore.knowledge import KnowledgeSource
from lacy_jax.evaluation.factscore.pipeline import get_judge, get_splitter, run_factscore
from lacy_jax.evaluation.factscore.prompting import PromptedJudge, PromptedSplitter
from lacy_jax.evaluation.factscore.scoring import JudgedTopic, factscore_figures, score_line
from lacy_jax.evaluation.factscore.splitting import ClauseSplitter, Splitter

__all__ = [
    "AtomicFact",
    "ClauseSplitter",
    "EmbeddedJudge",
    "Entry",
    "Judge",
    "JudgedTopic",
    "KnowledgeSource",
    "PromptedJudge",
    "PromptedSplitter",
    "Splitter",
    "agreement",
    "agreement_table",
    "factscore_figures",
    "get_judge",
    "get_splitter",
    "read_entities",
    "read_entries",
    "run_factscore",
    "score_line",
    "write_entries",
    "write_output",
]
