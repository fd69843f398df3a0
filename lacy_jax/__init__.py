"""lacy_jax: pretrain small language models that learn what to delegate (arXiv:2602.12005)."""

__version__ = "0.1.0"
