"""Names of what a run directory, a study's folder and a dataset folder hold: each name is written here and nowhere else."""

from __future__ import annotations

CONFIG_FILE = "config.json"
ENVIRONMENT_FILE = "environment.json"
METRICS_FILE = "metrics.jsonl"
RUN_ID_FILE = "run_id.txt"
HEARTBEAT_FILE = "heartbeat.json"
EVENTS_FILE = "health.jsonl"
EVALUATION_FILE = "evaluation.json"
TOKENIZER_FILE = "tokenizer.model"
METADATA_FILE = "metadata.json"
DATASET_METADATA_FILE = f"dataset_{METADATA_FILE}"
"""A run's copy of the metadata of its dataset."""
REPORT_FILE = "report.html"
RESULTS_FILE = "results.json"
"""Of a comparison of several runs."""
STUDY_FILE = "gates.json"
"""Of a gate study."""
JUDGE_FILE = "judge.json"
"""In a dataset: what the last `lacy judge` came to."""

ACCEPTABILITY_CACHE_FOLDER = "acceptability_cache"
CHECKPOINTS_FOLDER = "checkpoints"
DAMAGED_FOLDER = "damaged"
"""Checkpoints that were set aside."""
DATASET_FOLDER = "dataset"
FACTSCORE_FOLDER = "factscore"
JUDGE_CACHE_FOLDER = "judge_cache"
"""Of a dataset."""
PROFILE_FOLDER = "profile"
SAMPLES_FOLDER = "samples"
TENSORBOARD_FOLDER = "tensorboard"


def suite_file(suite: str) -> str:
    """Where the figures of a suite are kept."""
    return EVALUATION_FILE if suite == "calls" else f"evaluation_{suite}.json"
