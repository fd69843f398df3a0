"""Suites of evaluation: what a trained model and its texts are worth."""
