"""Clients of OpenAI-compatible servers: completions and chat."""

from lacy_jax.clients.chat import ChatClient
from lacy_jax.clients.completions import CircuitBreaker, CompletionsClient

__all__ = ["ChatClient", "CircuitBreaker", "CompletionsClient"]
