"""Clients that no one here wrote: the `openai` package, lm-evaluation-harness's `local-completions`, curl."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import time

import openai
import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI
from served import served

from lacy_jax.cascade import FactTablePartner, generate
from lacy_jax.evaluation.harness import LacyLM
from lacy_jax.serving.tickets import Busy

KEY = "test-key"


@pytest.fixture(scope="module")
def address(model, tokenizer, world):
    with served(model, tokenizer, FactTablePartner(world), app={"keys": [KEY]}) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def wanted(model, tokenizer, world):
    settings = {"gate": "call_prob", "budget": 0.3, "max_new_tokens": 48, "progress": False}
    (found,) = generate(model, tokenizer, [world.prompt(0)], FactTablePartner(world), **settings)
    return found


def test_openai_completions(client, world, wanted):
    assert [model.id for model in client.models.list()] == ["tiny"]
    found = client.completions.create(
        model="tiny", prompt=world.prompt(0), logprobs=2, extra_body={"lacy": {}}
    )
    assert found.choices[0].text == wanted.text
    assert found.choices[0].finish_reason == {"eos": "stop", "length": "length"}[wanted.stopped]
    assert found.usage.completion_tokens == len(wanted.tokens) == len(found.choices[0].logprobs.tokens)
    assert found.choices[0].model_extra["lacy"]["calls"] == wanted.calls
    stream = client.completions.create(
        model="tiny", prompt=world.prompt(0), stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(choice.text for chunk in chunks for choice in chunk.choices) == wanted.text
    assert chunks[-1].usage.completion_tokens == len(wanted.tokens)


def test_openai_chat(client, world, wanted):
    messages = [{"role": "user", "content": world.prompt(0)}]
    found = client.chat.completions.create(model="tiny", messages=messages, logprobs=True, top_logprobs=3)
    assert found.choices[0].message.content == wanted.text
    entries = found.choices[0].logprobs.content
    assert all(len(entry.top_logprobs) == 3 for entry in entries)
    assert any(bytes(entry.bytes) == entry.token.encode() for entry in entries)
    stream = client.chat.completions.create(model="tiny", messages=messages, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == wanted.text


def test_openai_async(address, world, wanted):
    async def ask():
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY) as client:
            whole = [client.completions.create(model="tiny", prompt=world.prompt(0)) for _ in range(3)]
            stream = await client.completions.create(model="tiny", prompt=world.prompt(0), stream=True)
            text = "".join([chunk.choices[0].text async for chunk in stream])
            return [found.choices[0].text for found in await asyncio.gather(*whole)], text

    assert asyncio.run(ask()) == ([wanted.text] * 3, wanted.text)


def test_openai_errors(address, client):
    with pytest.raises(openai.BadRequestError, match="must be a number from 0") as refused:
        client.completions.create(model="tiny", prompt="He", temperature=-1)
    assert (refused.value.param, refused.value.code) == ("temperature", "invalid_value")
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.completions.create(model="other", prompt="He")
    stranger = openai.OpenAI(base_url=f"{address}/v1", api_key="wrong")
    with stranger, pytest.raises(openai.AuthenticationError, match="a valid API key is needed"):
        stranger.models.list()


def test_openai_waits_as_long_as_a_full_server_says(model, tokenizer, monkeypatch):
    with served(model, tokenizer) as (address, service):
        real, asked = service.scheduler.submit, []

        def full_at_first(tickets):
            asked.append(time.monotonic())
            if len(asked) == 1:
                raise Busy("no room", 1)
            real(tickets)

        monkeypatch.setattr(service.scheduler, "submit", full_at_first)
        with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=1) as client:
            assert client.completions.create(model="tiny", prompt="He", max_tokens=2).choices[0].text
        assert asked[1] - asked[0] > 0.9
        asked.clear()
        impatient = openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0)
        with impatient, pytest.raises(openai.RateLimitError, match="no room"):
            impatient.completions.create(model="tiny", prompt="He")


@pytest.fixture(scope="module")
def plain(model, tokenizer):
    """Without a partner, as the harness's own wrapper writes."""
    with served(model, tokenizer) as (address, _):
        yield address


def instances(kind, *arguments):
    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


@pytest.mark.parametrize("batch", [1, 3])
def test_the_harness_gets_the_numbers_of_our_wrapper(plain, model, tokenizer, monkeypatch, batch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    theirs = LocalCompletionsAPI(
        model="tiny",
        base_url=f"{plain}/v1/completions",
        max_length=model.cfg.max_seq_len,
        batch_size=batch,
        num_concurrent=1,
    )
    assert theirs.tokenizer_backend == "remote"
    ours = LacyLM(model, tokenizer)
    pairs = [
        ("He was", " born in 1984"),
        ("She lived in Žižkov", " 東京."),
        ("", "They were here"),
        ("The sky", " is"),
    ]
    # Continuations of which some are the greedy ones, as the harness encodes them.
    contexts = [
        f"{name} {verb}" for name in ("He", "She", "They", "In 1984") for verb in ("was", "lived in", "is")
    ]
    texts = generate(model, tokenizer, contexts, max_new_tokens=1, progress=False)
    pairs += [(text.prompt, text.text) for text in texts if text.text.strip("\ufffd ")]
    likelihoods = instances("loglikelihood", *pairs)
    wanted = ours.loglikelihood(likelihoods)
    found = theirs.loglikelihood(likelihoods, disable_tqdm=True)
    assert [f[0] for f in found] == pytest.approx([w[0] for w in wanted], abs=1e-3)
    assert [f[1] for f in found] == [w[1] for w in wanted]
    assert {f[1] for f in found} == {True, False}
    rolling = instances("loglikelihood_rolling", ("He was born in 1984 and lived there.",))
    assert theirs.loglikelihood_rolling(rolling, disable_tqdm=True) == pytest.approx(
        ours.loglikelihood_rolling(rolling), abs=1e-3
    )
    options = {"until": ["e "], "max_gen_toks": 24}
    writing = instances(
        "generate_until", ("He was", options), ("She", {**options, "until": [" th"]}), ("They", options)
    )
    assert theirs.generate_until(writing, disable_tqdm=True) == ours.generate_until(writing)


@pytest.mark.skipif(not shutil.which("curl"), reason="no curl here")
def test_curl(address, world, wanted):
    def curl(*arguments):
        command = ["curl", "--silent", "--no-buffer", "--header", f"Authorization: Bearer {KEY}", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout

    body = json.dumps({"prompt": world.prompt(0)})
    assert json.loads(curl(f"{address}/v1/completions", "--data", body))["choices"][0]["text"] == wanted.text
    lines = curl(
        f"{address}/v1/completions", "--data", json.dumps({"prompt": world.prompt(0), "stream": True})
    )
    parts = [json.loads(line[6:]) for line in lines.split("\n\n")[:-2]]
    assert "".join(part["choices"][0]["text"] for part in parts) == wanted.text
    assert lines.endswith("data: [DONE]\n\n")
