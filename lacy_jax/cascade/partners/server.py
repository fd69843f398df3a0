"""A language model behind an OpenAI-compatible completions server as partner."""

from __future__ import annotations

from collections.abc import Sequence

from lacy_jax.cascade.partners.base import (
    PARTNERS,
    Opening,
    Partner,
    PartnerKind,
    check_reach,
    cut,
    first_span,
)
from lacy_jax.clients.answers import Answer
from lacy_jax.clients.completions import CompletionsClient
from lacy_jax.clients.transport import TextRefused
from lacy_jax.errors import PartnerError

MAX_TOKENS = {"token": 1, "word": 8, "span": 20}
"""Tokens requested from the server per call: one (the paper), or enough for the rest of a word or span."""


class CompletionsPartner(Partner):
    """Continuations by a served model.

    If a text gets no answer (its request failed, or the server withheld one: a refusal, a filter, all tokens spent on
    thinking), `complete` returns None for it: the model goes on alone there, and the generation counts the failure.
    If the server answers none of the texts, that is an error, unless it works and rejects them (too long for it).

    Args:
      client: for the server.
      reach: "token" (the paper: one token of the server's model), "word", or "span" (`first_span`).
    """

    parallel = True

    def __init__(self, client: CompletionsClient, reach: str = "span"):
        self.client, self.reach = client, check_reach(reach)
        self.name = client.url

    def complete(self, texts: Sequence[str]) -> list[str | None]:
        """See `Partner.complete`.

        Raises:
          PartnerError: the server failed on every text, or withheld every answer; gives the reason for the first text.
        """
        answers = self.client.complete(texts, max_tokens=MAX_TOKENS[self.reach])
        errors = [answer for answer in answers if isinstance(answer, PartnerError)]
        failures = [error for error in errors if not isinstance(error, TextRefused)]
        if failures and len(errors) == len(answers):
            raise PartnerError(f"partner {failures[0]}")
        withheld = [answer.withheld for answer in answers if isinstance(answer, Answer) and answer.withheld]
        if withheld and len(withheld) + len(errors) == len(answers):
            raise PartnerError(f"partner {self.name}: no answer: {withheld[0]}")
        return [
            None if isinstance(answer, PartnerError) or answer.withheld else self._cut(answer.text)
            for answer in answers
        ]

    def used(self) -> tuple[int, float]:
        """Tokens as the server counts them, including those of its own partners; 0 if it does not report them."""
        usage = self.client.usage
        return usage.prompt_tokens + usage.completion_tokens + usage.partner_tokens, 0.0

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _cut(self, answer: str) -> str:
        if self.reach == "token":
            return answer
        return first_span(answer) if self.reach == "span" else cut(answer, "word")


def _open(where: str, opening: Opening) -> CompletionsPartner:
    url, _, model = opening.spec.partition("#")
    return CompletionsPartner(CompletionsClient(url, model, concurrency=opening.rows), opening.reach)


_ABOUT = "an OpenAI-compatible completions server (vLLM, llama.cpp, Ollama, lacy serve); without #MODEL the first that it lists"
PARTNERS.add(PartnerKind("http", "http://HOST:PORT/v1[#MODEL]", _ABOUT, _open))
PARTNERS.add(PartnerKind("https", "https://HOST/v1[#MODEL]", "the same, encrypted", _open))
