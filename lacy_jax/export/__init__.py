"""Exporting checkpoints and importing models: Hugging Face folders, GGUF, StableHLO, parameter-only runs.

Nothing is imported here: the command line registers its verbs (`command`) without JAX, and torch, transformers,
safetensors and tokenizers (the extra `export`) are imported where they are used.
"""
