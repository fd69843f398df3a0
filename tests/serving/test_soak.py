"""Many requests at once, some of them cancelled, some malformed, with a partner that fails and comes back."""

from __future__ import annotations

import concurrent.futures
import gc
import itertools
import json
import os
import random
import time

import pytest
import urllib3
from served import served

from lacy_jax.cascade import Partner, generate
from lacy_jax.errors import PartnerError

NEW = 8
CLIENTS = 24


class Unsteady(Partner):
    """Fails a hundred times out of every three hundred."""

    name, parallel = "unsteady", True

    def __init__(self):
        self._asked = itertools.count()

    def complete(self, texts):
        if next(self._asked) % 300 < 100:
            raise PartnerError("partner unsteady: down")
        return [f" {len(text)}" for text in texts]


def memory():
    """Bytes of this process that are in memory."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("count", [400, pytest.param(10_000, marks=pytest.mark.slow)])
def test_nothing_is_lost_mixed_or_leaked(model, tokenizer, world, count):
    prompts = [world.prompt(i) for i in range(40)]
    alone = {
        text.prompt: text.text
        for text in generate(model, tokenizer, prompts, max_new_tokens=NEW, progress=False)
    }
    http = urllib3.PoolManager(maxsize=CLIENTS, retries=False)
    seen: dict[str, int] = {}

    def one(number):
        draw = random.Random(number)
        prompt = draw.choice(prompts)
        body = {
            "prompt": prompt,
            "max_tokens": NEW,
            "lacy": {"partner": draw.random() < 0.5},
            "stream": draw.random() < 0.3,
        }
        what = draw.random()
        if what < 0.05:
            body["temperature"] = "hot"
        answer = http.request("POST", f"{address}/v1/completions", json=body, preload_content=False)
        if what > 0.9:  # The client goes away.
            answer.close()
            return "gone"
        data = answer.read().decode()
        if what < 0.05:
            assert answer.status == 400
            return "refused"
        assert answer.status == 200, data
        if body["stream"]:
            chunks = [json.loads(line[6:]) for line in data.split("\n\n")[:-2]]
            choices = [chunk["choices"][0] for chunk in chunks]
            assert choices[-1]["finish_reason"]
        else:
            choices = json.loads(data)["choices"]
        text = "".join(choice["text"] for choice in choices)
        tokens = [token for choice in choices for token in choice["lacy"]["tokens"]]
        assert "".join(token["text"] for token in tokens) == text
        if not body["lacy"]["partner"]:
            assert text == alone[prompt]
            return "alone"
        lent = "".join(token["text"] for token in tokens if token["origin"] == "partner")
        assert set(lent) <= set("0123456789 \ufffd")  # The last: bytes of the model's that were none before.
        return "failed" if choices[-1]["lacy"]["partner_failures"] else "called"

    began = time.monotonic()
    with served(model, tokenizer, Unsteady(), rows=8, queue=CLIENTS) as (address, service):
        service.warm_up()  # Programs take memory too.
        with concurrent.futures.ThreadPoolExecutor(CLIENTS) as pool:
            held = []
            for first in range(0, count, count // 4):
                for outcome in pool.map(one, range(first, first + count // 4)):
                    seen[outcome] = seen.get(outcome, 0) + 1
                held.append(memory() / 1e6)
        until = time.monotonic() + 30
        while service.scheduler.pending and time.monotonic() < until:
            time.sleep(0.05)
        assert service.scheduler.pending == 0
        print(f"{count} requests in {time.monotonic() - began:.0f} s: {seen}")
        print("MB in memory after each quarter:", *(f"{megabytes:.1f}" for megabytes in held))
        assert held[-1] - held[0] < 10 + count / 500
        assert b'status="5' not in service.metrics.page()
    assert {"gone", "refused", "alone", "called", "failed"} <= seen.keys()
    assert sum(seen.values()) == count
