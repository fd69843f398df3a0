"""Checkpoints that leave, and models that come in: Hugging Face folders, StableHLO, parameter-only runs.

Nothing is imported here: the command line registers its verbs (`command`) without JAX, and torch, transformers,
safetensors and tokenizers (the extra `export`) are imported where they are used.
"""
