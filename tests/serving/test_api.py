"""The endpoints: what OpenAI's API promises, and what stands in our own field."""

from __future__ import annotations

import concurrent.futures
import hmac
import json
import threading
import time

import numpy as np
import pytest
import urllib3
from cascade_fakes import Scripted, obsessed
from served import served

from lacy_jax.cascade import FactTablePartner, Partner, generate
from lacy_jax.errors import PartnerError
from lacy_jax.objectives.scoring import score_documents, scorer

HTTP = urllib3.PoolManager(retries=False, maxsize=16)


class Api:
    """Asks a server."""

    def __init__(self, address, service):
        self.address, self.service = address, service

    def post(self, path, body, headers=None):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = HTTP.request("POST", self.address + path, body=data, headers=headers or {})
        return answer.status, answer.json(), answer.headers

    def get(self, path, headers=None):
        return HTTP.request("GET", self.address + path, headers=headers or {})

    def complete(self, **body):
        status, answer, _ = self.post("/v1/completions", body)
        assert status == 200, answer
        return answer

    def chunks(self, path, **body):
        answer = HTTP.request(
            "POST", self.address + path, body=json.dumps({**body, "stream": True}), preload_content=False
        )
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = b"".join(answer.stream()).decode().split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


@pytest.fixture(scope="module")
def api(model, tokenizer, world):
    with served(model, tokenizer, FactTablePartner(world)) as (address, service):
        yield Api(address, service)


@pytest.fixture(scope="module")
def alone(model, tokenizer, world):
    """What `generate` writes."""

    def write(*prompts, partner=True, **options):
        settings = {"gate": "call_prob", "budget": 0.3, "max_new_tokens": 48, **options}
        return generate(
            model,
            tokenizer,
            prompts,
            FactTablePartner(world) if partner else None,
            **settings,
            progress=False,
        )

    return write


def test_a_text_is_that_of_generate(api, alone, world):
    prompt = world.prompt(0)
    answer = api.complete(prompt=prompt, model="tiny", lacy={})
    (choice,), (wanted,) = answer["choices"], alone(prompt)
    assert (answer["object"], answer["model"]) == ("text_completion", "tiny")
    assert (choice["text"], choice["finish_reason"], choice["logprobs"]) == (
        wanted.text, {"eos": "stop", "length": "length"}[wanted.stopped], None,
    )  # fmt: skip
    own = choice["lacy"]
    assert "".join(token["text"] for token in own["tokens"]) == wanted.text
    assert [token["id"] for token in own["tokens"]] == wanted.tokens
    assert [token["origin"] for token in own["tokens"]] == wanted.origins
    assert sum(token.get("call", False) for token in own["tokens"]) == own["calls"] == wanted.calls > 1
    np.testing.assert_allclose(
        np.array([token["gate_score"] for token in own["tokens"]], float),
        np.array(wanted.gate_scores, float),
        atol=1e-4,
    )
    assert (own["realised"], own["budget"], own["budget_met"]) == (wanted.call_share, 0.3, wanted.budget_met)
    used = answer["usage"]
    assert used["completion_tokens"] == len(wanted.tokens)
    assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]


def test_sampling_by_seed_and_choices_are_those_of_a_list_of_prompts(api, alone, world):
    prompt, ways = world.prompt(1), {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7}
    answer = api.complete(prompt=prompt, n=3, **ways)
    texts = [choice["text"] for choice in answer["choices"]]
    assert texts == [text.text for text in alone(prompt, prompt, prompt, **ways)]
    assert len(set(texts)) == 3
    assert texts[0] == alone(prompt, **ways)[0].text
    several = api.complete(prompt=[prompt, "She"], **ways)
    assert [c["text"] for c in several["choices"]] == [text.text for text in alone(prompt, "She", **ways)]
    assert [c["index"] for c in several["choices"]] == [0, 1]
    assert api.complete(prompt=prompt, temperature=0.9)["choices"] != api.complete(prompt=prompt, temperature=0.9)["choices"]  # fmt: skip


def test_budget_gate_and_partner_are_chosen_by_the_request(api, alone, world):
    prompt = world.prompt(2)
    for wish, options in (
        ({"budget": 0.1}, {"budget": 0.1}),
        ({"gate": "entropy"}, {"gate": "entropy"}),
        ({"gate": "oracle", "budget": 0.5}, {"gate": "oracle", "budget": 0.5}),
        ({"partner": False}, {"partner": False}),
    ):
        (choice,) = api.complete(prompt=prompt, lacy=wish)["choices"]
        (wanted,) = alone(prompt, **options)
        assert choice["text"] == wanted.text
        assert (choice["lacy"]["gate"], choice["lacy"]["budget"]) == (wanted.gate, wanted.budget)


def test_a_stream_is_the_text_in_parts(api, alone, world):
    prompt = world.prompt(3)
    chunks = api.chunks(
        "/v1/completions", prompt=prompt, lacy={"candidates": 3}, stream_options={"include_usage": True}
    )
    (wanted,) = alone(prompt)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks[:-1]) == wanted.text
    assert 0 < len(chunks[0]["choices"][0]["lacy"]["tokens"]) < len(wanted.tokens)
    tokens = [token for chunk in chunks[:-1] for token in chunk["choices"][0]["lacy"]["tokens"]]
    assert [token["id"] for token in tokens] == wanted.tokens
    assert "".join(token["text"] for token in tokens) == wanted.text
    assert all(len(token["candidates"]) == 3 for token in tokens)
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-2]] == [None] * (len(chunks) - 2)
    assert chunks[-2]["choices"][0]["lacy"]["realised"] == wanted.call_share
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == len(wanted.tokens)
    assert len({chunk["id"] for chunk in chunks}) == 1


def test_token_counts_so_far_are_in_each_chunk_that_asks_for_them(api, alone, world):
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    chunks = api.chunks("/v1/completions", prompt=[world.prompt(3), "She"], **options)
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == sum(len(text.tokens) for text in alone(world.prompt(3), "She"))
    messages = [{"role": "user", "content": world.prompt(3)}]
    first, *_, last = api.chunks("/v1/chat/completions", messages=messages, **options)
    assert first["usage"]["completion_tokens"] == 0 < last["usage"]["completion_tokens"]
    assert first["usage"]["prompt_tokens"] == last["usage"]["prompt_tokens"]


def test_a_text_that_may_not_end_is_as_long_as_was_asked_for(tokenizer):
    """Load generators send it, so that all texts are of one length."""
    word = int(tokenizer.encode(" was")[0])
    with served(obsessed(tokenizer.vocab_size, tokenizer.eos_id, word), tokenizer) as (address, service):
        api, asked = Api(address, service), {"prompt": "He", "max_tokens": 12, "lacy": {}}
        (ended,) = api.complete(**asked)["choices"]
        assert (ended["text"], ended["finish_reason"]) == ("", "stop")
        (endless,) = api.complete(**asked, ignore_eos=True)["choices"]
        assert [token["id"] for token in endless["lacy"]["tokens"]] == [word] * 12
        assert endless["finish_reason"] == "length"


def test_chat_goes_on_from_the_messages(api, alone):
    messages = [
        {"role": "system", "content": "Facts."},
        {"role": "user", "content": [{"type": "text", "text": "He"}]},
    ]
    (wanted,) = alone("Facts.\n\nHe", max_new_tokens=9)
    status, answer, _ = api.post("/v1/chat/completions", {"messages": messages, "max_completion_tokens": 9})
    assert (status, answer["object"]) == (200, "chat.completion")
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": wanted.text, "refusal": None}
    chunks = api.chunks(
        "/v1/chat/completions", messages=messages, max_tokens=9, logprobs=True, top_logprobs=2
    )
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == wanted.text
    content = [e for chunk in chunks[1:] for e in chunk["choices"][0]["logprobs"]["content"]]
    data = bytes(b for entry in content for b in entry["bytes"])
    assert data.decode(errors="ignore") == wanted.text.replace("\ufffd", "")
    assert all(len(entry["top_logprobs"]) == 2 and entry["logprob"] <= 0 for entry in content)


@pytest.mark.parametrize("given", ["text", "ids", "ids with bos"])
@pytest.mark.parametrize("new", [0, 1, 12])
def test_echoed_logprobs_are_aligned_and_those_of_the_scorer(api, model, tokenizer, given, new):
    text = "He was born in Žižkov 東京 in 1984"
    own = tokenizer.encode(text).tolist()
    prompt = {"text": text, "ids": own, "ids with bos": [tokenizer.bos_id, *own]}[given]
    (choice,) = api.complete(prompt=prompt, echo=True, logprobs=2, max_tokens=new, lacy={})["choices"]
    found = choice["logprobs"]
    whole = tokenizer.with_prefix(own)
    first = 0 if given == "ids with bos" else 1
    written = len(found["tokens"]) - len(whole) + first
    assert written == new  # No eos so early.
    ids = np.concatenate([whole, [token["id"] for token in choice["lacy"]["tokens"]]]).astype(np.int32)
    assert choice["text"].startswith(text)
    (wanted,) = score_documents(scorer(model), [ids], model.cfg.max_seq_len)
    logs = [-nll for nll in wanted.nll.tolist()]
    if first == 0:
        assert found["token_logprobs"][0] is None
        assert found["top_logprobs"][0] is None
        logs = [None, *logs]
    assert found["token_logprobs"][first == 0 :] == pytest.approx(logs[first == 0 :], abs=1e-4)
    for index, (offset, name) in enumerate(zip(found["text_offset"], found["tokens"], strict=True)):
        if not name.startswith(("bytes:", "<s>")):
            assert choice["text"][offset : offset + len(name)] == name
        if found["top_logprobs"][index]:
            best = max(found["top_logprobs"][index].values())
            greedy = wanted.top1[index - (first == 0)] == ids[index + first]
            assert (best == found["token_logprobs"][index]) == greedy
    assert np.isfinite([x for x in found["token_logprobs"] if x is not None]).all()


def test_a_prompt_that_fills_the_context_can_be_scored(api, model, tokenizer):
    ids = [
        int(i) for i in np.random.default_rng(0).integers(10, tokenizer.vocab_size, model.cfg.max_seq_len - 1)
    ]
    (choice,) = api.complete(prompt=ids, echo=True, logprobs=1, max_tokens=1)["choices"]
    assert len(choice["logprobs"]["token_logprobs"]) == len(ids) + 1
    status, answer, _ = api.post(
        "/v1/completions", {"prompt": [*ids, 20], "echo": True, "logprobs": 1, "max_tokens": 1}
    )
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")


def test_stop_strings(api, alone, world):
    (full,) = alone(world.prompt(4))
    stop = full.text[10:13]
    answer = api.complete(prompt=world.prompt(4), stop=[stop, "\x00"], logprobs=1)
    (choice,) = answer["choices"]
    assert (choice["text"], choice["finish_reason"]) == (full.text[: full.text.index(stop)], "stop")
    assert choice["stop_reason"] == stop
    assert len(choice["logprobs"]["tokens"]) == answer["usage"]["completion_tokens"]
    chunks = api.chunks("/v1/completions", prompt=world.prompt(4), stop=stop)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == choice["text"]


BAD = [
    ({}, 400, "prompt", "prompt is missing"),
    ({"prompt": 3}, 400, "prompt", "must be a string"),
    ({"prompt": [[1, "a"]]}, 400, "prompt", "must be a string"),
    ({"prompt": []}, 400, "prompt", "must be a string"),
    ({"prompt": [500]}, 400, "prompt", "500 is no token id of a text"),  # CALL.
    ({"prompt": "\ud800"}, 400, "prompt", "lone surrogate"),
    ({"prompt": "He " * 400}, 400, "prompt", "the model's context is 128"),
    ({"prompt": "He", "model": "gpt-9"}, 404, "model", "no model 'gpt-9' here, but 'tiny'"),
    ({"prompt": "He", "max_tokens": -1}, 400, "max_tokens", "must be a whole number from 0"),
    ({"prompt": "He", "max_tokens": 0}, 400, "max_tokens", "needs echo and logprobs"),
    ({"prompt": "He", "temperature": "hot"}, 400, "temperature", "must be a number from 0"),
    ({"prompt": "He", "top_p": 1.5}, 400, "top_p", "from 0 to 1"),
    ({"prompt": "He", "n": 0}, 400, "n", "from 1"),
    ({"prompt": "He", "n": True}, 400, "n", "from 1"),
    ({"prompt": "He", "best_of": 3}, 400, "best_of", "not supported"),
    ({"prompt": "He", "logprobs": 21}, 400, "logprobs", "from 0 to 20"),
    ({"prompt": "He", "stop": [1]}, 400, "stop", "must be a string or a list"),
    ({"prompt": "He", "stream": "yes"}, 400, "stream", "must be true or false"),
    ({"prompt": "He", "frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported"),
    ({"prompt": "He", "temprature": 0.5}, 400, "temprature", "unknown field temprature"),
    ({"prompt": "He", "lacy": {"budget": 2}}, 400, "lacy.budget", "from 0 to 1"),
    ({"prompt": "He", "lacy": {"gate": "vibes"}}, 400, "lacy.gate", "expected one of"),
    ({"prompt": "He", "lacy": {"bugdet": 2}}, 400, "lacy.bugdet", "unknown field"),
    ({"prompt": "He", "lacy": 3}, 400, "lacy", "must be a JSON object"),
    ({"prompt": ["He"] * 100}, 400, "prompt", "100 texts at once: at most 68"),
    ([], 400, None, "must be a JSON object"),
    (b"{", 400, None, "not JSON"),
    (b'{"prompt": "He", "temperature": NaN}', 400, None, "not JSON"),
    (b"[" * 100_000, 400, None, "not JSON"),
    (b"x" * (5 << 20), 413, None, "longer than"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "status", "parameter", "message"), BAD)
def test_what_cannot_be_done_is_refused_in_the_api_s_words(api, body, status, parameter, message):
    found, answer, _ = api.post("/v1/completions", body)
    error = answer["error"]
    assert (found, error["param"]) == (status, parameter)
    assert message in error["message"]
    assert "\n" not in error["message"]
    assert error["type"] == "invalid_request_error"


CHAT = {"messages": [{"role": "user", "content": "He"}]}


@pytest.mark.parametrize(
    ("body", "parameter", "message"),
    [
        ({}, "messages", "must be a list"),
        ({"messages": [{"role": "user"}]}, "messages[0]", "must be a string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0]",
            "only parts of type text",
        ),
        ({**CHAT, "top_logprobs": 3}, "top_logprobs", "needs logprobs"),
        ({**CHAT, "tools": [{"type": "function"}]}, "tools", "not supported"),
        ({**CHAT, "response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({**CHAT, "echo": True}, "echo", "unknown field"),
    ],
)
def test_what_cannot_be_done_in_a_chat(api, body, parameter, message):
    status, answer, _ = api.post("/v1/chat/completions", body)
    assert (status, answer["error"]["param"]) == (400, parameter)
    assert message in answer["error"]["message"]


def test_what_evaluators_send_at_values_that_ask_for_nothing_is_taken(api):
    api.complete(prompt="He", max_tokens=2, best_of=1, presence_penalty=0, frequency_penalty=0.0, logit_bias={}, suffix=None, user="me",
                 repetition_penalty=1.0, min_p=0.0, stop=None, skip_special_tokens=False, top_k=-1, seed=1234)  # fmt: skip


def test_paths_models_and_tokens(api, tokenizer):
    assert api.get("/health").json()["status"] == "ok"
    assert api.get("/v1/models").json()["data"][0]["id"] == "tiny"
    assert api.get("/v1/models/tiny").json()["max_model_len"] == 128
    assert api.get("/v1/models/other").json()["error"]["code"] == "model_not_found"
    assert (api.get("/v1/nothing").status, api.get("/v1/completions").status) == (404, 405)
    assert "no such path" in api.get("/v1/nothing").json()["error"]["message"]
    info = api.get("/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["vocab_size"]) == ("<s>", "</s>", tokenizer.vocab_size)
    text = "He was born <s> in 東京"
    ids = api.post("/tokenize", {"prompt": text, "add_special_tokens": False})[1]["tokens"]
    assert ids == tokenizer.encode(text).tolist()
    assert api.post("/tokenize", {"prompt": text})[1]["tokens"] == tokenizer.with_prefix(ids).tolist()
    assert api.post("/tokenize", {"prompt": "</s>", "add_special_tokens": False})[1]["tokens"] == [
        tokenizer.eos_id
    ]
    assert api.post("/detokenize", {"tokens": ids})[1]["prompt"] == text
    assert api.post("/detokenize", {"tokens": [500]})[0] == api.post("/tokenize", {"prompt": 3})[0] == 400


def test_what_is_counted(api, world):
    before = api.get("/metrics").data.decode()
    answer = api.complete(prompt=world.prompt(5), lacy={})["choices"][0]["lacy"]
    after = api.get("/metrics").data.decode()

    def value(page, name):
        return next((float(line.split()[-1]) for line in page.splitlines() if line.startswith(name)), 0.0)

    spent = sum(token["origin"] == "partner" for token in answer["tokens"])
    for name, by in (
        ('lacy_tokens_total{origin="partner"}', spent),
        ('lacy_tokens_total{origin="model"}', len(answer["tokens"]) - spent),
        ('lacy_requests_total{path="/v1/completions",status="200"}', 1),
    ):
        assert value(after, name) - value(before, name) == by
    assert value(after, "lacy_partner_seconds_count") > value(before, "lacy_partner_seconds_count")
    assert 0 < value(after, "lacy_realised_budget") < 1


def test_pages_of_other_sites_are_refused(api):
    status, answer, _ = api.post(
        "/v1/completions", {"prompt": "He", "max_tokens": 1}, {"Origin": "http://evil.example"}
    )
    assert (status, answer["error"]["code"]) == (403, "origin")
    assert api.post("/v1/completions", {"prompt": "He", "max_tokens": 1}, {"Origin": api.address})[0] == 200


def test_keys_are_compared_whole_and_never_logged(model, tokenizer, monkeypatch):
    lines, compared = [], []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: (compared.append(len(b)), real(a, b))[1])
    keys = ["first-secret", "second-secret"]
    with served(model, tokenizer, app={"keys": keys, "log": lines.append}) as (address, service):
        api = Api(address, service)
        for key in ("", "Bearer wrong", "Bearer first-secre", "Basic first-secret", "first-secret"):
            status, answer, headers = api.post("/v1/completions", {"prompt": "He"}, {"Authorization": key})
            assert (status, answer["error"]["code"]) == (401, "invalid_api_key")
            assert headers["www-authenticate"] == "Bearer"
        assert api.get("/v1/models?key=first-secret").status == api.get("/metrics").status == 401
        assert api.get("/first-secret").status == 401
        assert api.get("/health").status == api.get("/").status == 200
        for key in keys:
            assert api.get("/v1/models", {"Authorization": f"Bearer {key}"}).status == 200
        metrics = api.get("/metrics", {"Authorization": "Bearer second-secret"}).data.decode()
    assert set(compared) == {32}
    assert len(compared) % 2 == 0
    assert lines
    assert not any("secret" in line for line in [*lines, metrics])


class Stuck(Partner):
    """Answers when it is told to."""

    name, parallel = "stuck", True

    def __init__(self):
        self.free, self.asked = threading.Event(), threading.Event()

    def complete(self, texts):
        self.asked.set()
        assert self.free.wait(60)
        return [" so"] * len(texts)


def test_a_full_queue_is_429_and_a_client_that_goes_frees_its_row(model, tokenizer):
    partner = Stuck()
    with served(model, tokenizer, partner, rows=1, queue=0) as (address, service):
        api = Api(address, service)
        for body in ({"prompt": "He"}, {"prompt": "He", "stream": True}):
            gone = HTTP.connection_from_url(address)._new_conn()
            gone.request("POST", "/v1/completions", body=json.dumps(body), headers={})
            assert partner.asked.wait(30)
            partner.asked.clear()
            status, answer, headers = api.post("/v1/completions", {"prompt": "She"})
            assert (status, answer["error"]["code"]) == (429, "queue_full")
            assert int(headers["retry-after"]) >= 1
            gone.close()
            until = time.monotonic() + 10
            while service.scheduler.pending and time.monotonic() < until:
                time.sleep(0.02)
            assert service.scheduler.pending == 0
        assert b"lacy_cancelled_total 2.0" in service.metrics.page()
        partner.free.set()
        assert api.complete(prompt="She")["choices"][0]["text"]


def test_a_partner_s_failure_is_502_where_it_is_to_stop(model, tokenizer):
    error = PartnerError("partner scripted: down")
    with served(model, tokenizer, Scripted(error), stop_on_failure=True) as (address, service):
        api = Api(address, service)
        status, answer, _ = api.post("/v1/completions", {"prompt": "He"})
        assert (status, answer["error"]) == (
            502, {"message": "partner scripted: down", "type": "partner_error", "param": None, "code": "partner_failed"},
        )  # fmt: skip
        chunks = api.chunks("/v1/completions", prompt="He")
        assert chunks[-1]["error"]["code"] == "partner_failed"
    with served(model, tokenizer, Scripted(error)) as (address, service):
        (choice,) = Api(address, service).complete(prompt="He", lacy={})["choices"]
        assert choice["lacy"]["partner_failures"] == 3
        assert "given up after 3 failures" in choice["lacy"]["budget_note"]


def test_many_at_once_get_each_their_own(api, alone, world):
    prompts = [world.prompt(i) for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(lambda p: api.complete(prompt=p)["choices"][0]["text"], prompts))
    assert found == [alone(prompt)[0].text for prompt in prompts]
