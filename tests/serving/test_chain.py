"""A served cascade is a partner: small model -> larger model -> a third with documents, and the cost of all of them."""

from __future__ import annotations

import pytest
from cascade_fakes import make_model, make_tokenizer
from served import served

from lacy_jax.cascade import (
    CompletionsClient,
    CompletionsPartner,
    DocumentPartner,
    PassageIndex,
    generate,
    get_partner,
)
from lacy_jax.cascade.partners.metering import MeteredPartner
from lacy_jax.corpus import Document, World


@pytest.fixture(scope="module")
def others():
    """A model with another tokenizer."""
    tokenizer = make_tokenizer(World(people=60, seed=8), 420)
    return make_model(tokenizer.vocab_size, seed=5), tokenizer


def read_and_written(service):
    """Tokens that a server counts, from its metrics."""
    lines = service.metrics.page().decode().splitlines()
    counted = ("lacy_tokens_total", "lacy_prompt_tokens_total")
    return sum(float(line.split()[-1]) for line in lines if line.startswith(counted))


def test_a_chain_of_three_writes_and_reports_the_cost_of_all(model, tokenizer, others, world):
    documents = DocumentPartner(
        PassageIndex.build([Document("1", world.text(0).text, "A life")], most_words=12)
    )
    larger, larger_tokenizer = others
    prompts = [world.prompt(i) for i in range(3)]
    with served(larger, larger_tokenizer, documents, name="third", gate="entropy") as (third, third_service):
        behind = get_partner(f"{third}/v1", reach="word")
        with served(model, tokenizer, behind, name="second") as (second, second_service):
            partner = MeteredPartner(CompletionsPartner(CompletionsClient(f"{second}/v1")))
            options = {"gate": "call_prob", "budget": 0.3, "max_new_tokens": 40, "progress": False}
            found = generate(model, tokenizer, prompts, partner, **options)
            behind.close()
            partner.close()
        assert all(text.calls and text.budget_met and not text.partner_failures for text in found)
        assert partner.partner.client.model == "second"
        alone = read_and_written(second_service)
        assert partner.meter.tokens == alone + read_and_written(third_service)
        assert 0 < alone < partner.meter.tokens


def test_a_text_too_long_for_the_served_model_goes_on_alone(model, tokenizer, others):
    """The server refuses this text, not the exchange: nothing is given up."""
    larger, larger_tokenizer = others
    with served(larger, larger_tokenizer) as (address, _):
        partner = CompletionsPartner(CompletionsClient(f"{address}/v1"))
        assert partner.complete(["He was " * 200, "He was"])[0] is None
        assert isinstance(partner.complete(["He was"])[0], str)
        partner.close()
