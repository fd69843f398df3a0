"""The completions client and partner against a real HTTP server on localhost."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from completions_server import CompletionsServer, InTurn

from lacy_jax.cascade import (
    CircuitBreaker,
    CompletionsClient,
    CompletionsPartner,
    DocumentPartner,
    PassageIndex,
    get_partner,
)
from lacy_jax.clients import completions, transport
from lacy_jax.corpus import Document
from lacy_jax.errors import ConfigError, PartnerError


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(transport, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(transport, "LONGEST_WAIT_S", 0.02)
    for name in completions.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)


def _texts(client, prompts, max_tokens=1):
    return [answer.text for answer in client.complete(prompts, max_tokens=max_tokens)]


def test_answers_come_in_order_over_few_kept_connections():
    def behaviour(prompt):
        time.sleep(0.02 if prompt.endswith("0") else 0.0)
        return f" {prompt}!"

    with CompletionsServer(behaviour) as server:
        client = CompletionsClient(server.url, "m", concurrency=4)
        prompts = [str(i) for i in range(24)]
        for _ in range(2):
            assert _texts(client, prompts, 5) == [f" {prompt}!" for prompt in prompts]
        assert 2 <= server.most_at_once <= 4
        assert server.connections <= 4  # 48 requests: connections are kept alive, across calls too.
        assert server.requests[0] | {"prompt": ""} == {
            "model": "m", "prompt": "", "max_tokens": 5, "temperature": 0.0,
        }  # fmt: skip
        assert (client.usage.requests, client.usage.tries, client.usage.failures) == (48, 48, 0)
        assert (client.usage.prompt_tokens, client.usage.completion_tokens) == (48, 48)
        assert client.usage.seconds > 0
        client.close()


def test_failures_that_may_pass_are_tried_again():
    busy = (503, {"error": {"message": "loading"}}, [("Retry-After", "1")])
    with CompletionsServer(InTurn(busy, (429, b"slow down"), " there")) as server:
        client = CompletionsClient(server.url, "m", retries=2)
        assert _texts(client, ["x"]) == [" there"]
        assert client.usage.tries == 3
        assert client.usage.failures == 0


def test_a_refusal_is_not_tried_again_and_says_what_the_server_says():
    refusal = (400, {"error": {"message": "maximum context length is 2048\ntokens"}})
    with CompletionsServer(InTurn(refusal, " never")) as server:
        client = CompletionsClient(server.url, "m")
        error = client.complete(["x"], max_tokens=1)[0]
        assert isinstance(error, PartnerError)
        assert "HTTP 400 maximum context length is 2048 tokens" in str(error)
        assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"<html>", b'{"choices": []}', b'{"choices": [{"text": 5}]}', b"[]"])
def test_an_answer_of_something_else_is_an_error(body):
    with CompletionsServer(lambda prompt: (200, body)) as server:
        error = CompletionsClient(server.url, "m", retries=0).complete(["x"], max_tokens=1)[0]
        assert isinstance(error, PartnerError)
        assert "\n" not in str(error)


def test_a_slow_server_does_not_take_longer_than_the_timeout():
    with CompletionsServer(InTurn(1.5)) as server:
        client = CompletionsClient(server.url, "m", timeout_s=0.2, retries=5)
        started = time.monotonic()
        error = client.complete(["x"], max_tokens=1)[0]
        assert time.monotonic() - started < 1.0
        assert "no answer in 0.2 s" in str(error)


def test_no_server_and_the_circuit_breaker():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
    now = [0.0]
    breaker = CircuitBreaker(threshold=4, cooldown_s=30.0, clock=lambda: now[0])
    client = CompletionsClient(url, "m", concurrency=1, retries=1, breaker=breaker)
    errors = client.complete(["a", "b", "c"], max_tokens=1)
    assert "cannot connect" in str(errors[0])
    assert "not asked, because it has just failed 4 times: cannot connect" in str(errors[2])
    assert client.usage.tries == 4  # Two texts, two tries each; the third text is not sent at all.
    now[0] = 31.0
    client.complete(["d", "e"], max_tokens=1)
    assert client.usage.tries == 5  # One trial after the cooldown, which fails and opens it again.


def test_the_circuit_closes_when_the_trial_succeeds():
    now = [0.0]
    breaker = CircuitBreaker(threshold=2, cooldown_s=10.0, clock=lambda: now[0])
    for _ in range(2):
        assert breaker.allows()
        breaker.record("timed out")
    assert not breaker.allows()
    now[0] = 11.0
    assert breaker.allows()
    assert not breaker.allows()  # Only one trial at a time.
    breaker.record()
    assert breaker.allows()


def test_cancel_ends_a_running_exchange():
    with CompletionsServer(lambda prompt: (503, b"")) as server:
        client = CompletionsClient(
            server.url, "m", concurrency=1, retries=10_000, breaker=CircuitBreaker(10**9)
        )
        threading.Timer(0.15, client.cancel).start()
        answers = client.complete(["a", "b"], max_tokens=1)
        assert all(isinstance(answer, PartnerError) for answer in answers)
        assert "cancelled" in str(answers[0])


def test_the_model_is_the_first_one_listed_and_the_key_comes_from_the_environment(monkeypatch):
    monkeypatch.setenv("LACY_API_KEY", "secret")
    with CompletionsServer(lambda prompt: " yes") as server:
        client = CompletionsClient(server.url, chat=True)
        assert _texts(client, ["x"]) == [" yes"]
        assert server.requests[0]["model"] == "served-model"
        assert server.requests[0]["messages"] == [{"role": "user", "content": "x"}]
        assert server.headers[0]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "arguments",
    [{"url": "localhost:8000"}, {"url": "http://h", "timeout_s": 0}, {"url": "http://h", "concurrency": 0}],
)
def test_bad_options_are_refused(arguments):
    with pytest.raises(ConfigError, match="completions server"):
        CompletionsClient(**arguments)


@pytest.mark.parametrize(
    ("reach", "tokens", "answer"), [("token", 1, " 7 Mai"), ("word", 8, " 7"), ("span", 20, " 7 Mai 1956")]
)
def test_reach_of_a_served_partner(reach, tokens, answer):
    text = " 7 Mai" if reach == "token" else " 7 Mai 1956 in Paris"
    with CompletionsServer(lambda prompt: text) as server:
        partner = get_partner(f"{server.url}#m", reach=reach)
        assert isinstance(partner, CompletionsPartner)
        assert partner.complete(["born on"]) == [answer]
        assert server.requests[0]["max_tokens"] == tokens


def test_documents_through_a_served_partner():
    index = PassageIndex.build([Document("1", "Ada Bell was born in Oslo.", "Ada Bell")])
    with CompletionsServer(lambda prompt: " Oslo") as server:
        through = CompletionsPartner(CompletionsClient(server.url, "m"))
        partner = DocumentPartner(index, through=through)
        assert partner.complete(["Ada Bell was born in"]) == [" Oslo"]
        assert server.requests[0]["prompt"] == "Ada Bell: Ada Bell was born in Oslo.\n\nAda Bell was born in"
    assert partner.name == f"documents, {server.url}"
