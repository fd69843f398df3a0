"""Generation with a partner behind a real HTTP server on localhost, one that fails and one that dies."""

from __future__ import annotations

import pytest
from completions_server import CompletionsServer, InTurn

from lacy_jax.cascade import (
    CompletionsClient,
    CompletionsPartner,
    GenerationStopped,
    budget_summary,
    generate,
)
from lacy_jax.clients import completions, transport


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(transport, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(transport, "LONGEST_WAIT_S", 0.02)
    for name in completions.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def test_generation_goes_on_alone_where_the_server_fails(model, tokenizer, world):
    prompts = [world.prompt(0), world.prompt(1)]
    name = world.name(0)

    def behaviour(prompt):
        return (400, b"no") if name in prompt else " Rome"

    with CompletionsServer(behaviour) as server:
        partner = CompletionsPartner(CompletionsClient(server.url, "m"))
        options = {"budget": 0.2, "max_new_tokens": 24, "progress": False}
        failed, served = generate(model, tokenizer, prompts, partner, **options)
        alone = generate(model, tokenizer, prompts, None, **options)[0]
        assert failed.partner_failures > 0
        assert failed.text == alone.text
        assert "calls failed" in failed.budget_note
        assert "Rome" in served.text
        assert served.partner_failures == 0
        assert "which went on alone" in budget_summary([failed, served])
        with pytest.raises(GenerationStopped, match="no answer to"):
            generate(model, tokenizer, prompts, partner, on_partner_failure="stop", **options)


def test_generation_survives_a_server_that_dies(model, tokenizer, world):
    with CompletionsServer(InTurn(" Rome", " Oslo", (500, b"boom"))) as server:
        client = CompletionsClient(server.url, "m", retries=0, concurrency=1)
        text = generate(
            model, tokenizer, [world.prompt(0)], CompletionsPartner(client), budget=0.2, max_new_tokens=60,
            progress=False,
        )[0]  # fmt: skip
    assert text.calls == 2
    assert len(text.tokens) == 60 or text.stopped in ("eos", "context")
    assert text.partner_failures == 3  # After that the partner is not asked again.
