"""Clients of OpenAI-compatible servers: completions and chat."""

from lacy_jax.clients.answers import Answer, NoAnswer, Tally
from lacy_jax.clients.chat import ChatClient, Question
from lacy_jax.clients.completions import CompletionsClient
from lacy_jax.clients.prices import PriceGuard
from lacy_jax.clients.transport import CircuitBreaker

__all__ = [
    "Answer",
    "ChatClient",
    "CircuitBreaker",
    "CompletionsClient",
    "NoAnswer",
    "PriceGuard",
    "Question",
    "Tally",
]
