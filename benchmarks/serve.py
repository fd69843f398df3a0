"""How much of the batch rate of `lacy generate` is left when the same texts are asked of `lacy serve`?

    python benchmarks/serve.py [--quick] [--json]

A model of random weights (speed does not depend on them) with the synthetic world's fact table as partner, at a call budget of 22 %.
`cascade.generate` writes texts in batches of 16; then the same model, in this process, is served over HTTP with 16 rows, and
clients in a process of their own ask for texts of as many tokens, streamed, each client one text after the other. Server and clients
share the machine's cores. Everything is compiled before it is timed; batch and server take turns, and medians are given.
The last line is one JSON object with these keys:

  benchmark                  "serve"
  serve_over_batch_16        tokens/s with 16 clients over those of the batch; goal at least 0.85
  batch_tokens_per_s         of `cascade.generate`, batches of 16
  tokens_per_s_N             of the server with N clients (1, 4, 16, 64)
  first_token_s_N            median seconds from the request to the first text
  refused                    requests that were refused; must be 0
  call_share                 of the served texts; model_parameters, rows, new_tokens, device
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from typing import Any

import urllib3

BUDGET = 0.22
ROWS = 16
CLIENTS = (1, 4, 16, 64)


def ask(address: str, clients: int, prompts: list[str], tokens: int) -> dict[str, Any]:
    """Ask for a text of each prompt, `clients` at a time; {"seconds", "tokens", "first": seconds to the first text, "refused"}."""
    http = urllib3.PoolManager(maxsize=clients, retries=False)

    def one(prompt: str) -> tuple[float, int]:
        started, first, found = time.perf_counter(), 0.0, b""
        body = {
            "prompt": prompt,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        answer = http.request("POST", f"{address}/v1/completions", json=body, preload_content=False)
        for part in answer.stream():
            first = first or time.perf_counter() - started
            found += part
        if answer.status != 200:
            return 0.0, 0
        *_, last, done = found.decode().strip().split("\n\n")
        assert done == "data: [DONE]"
        return first, json.loads(last[6:])["usage"]["completion_tokens"]

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        done = list(pool.map(one, prompts))
    return {
        "seconds": time.perf_counter() - started,
        "tokens": sum(count for _, count in done),
        "first": statistics.median(first for first, _ in done),
        "refused": sum(count == 0 for _, count in done),
    }


def ask_from_outside(address: str, clients: int, prompts: list[str], tokens: int) -> dict[str, Any]:
    """`ask`, in a process of its own."""
    job = json.dumps([address, clients, prompts, tokens])
    done = subprocess.run(
        [sys.executable, __file__, "--client"], input=job, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def run(quick: bool) -> dict[str, Any]:
    """The figures; see the module's docstring. `quick`: a smaller model, shorter texts, fewer of them."""
    import jax
    import uvicorn
    from flax import nnx

    from lacy_jax.cascade import FactTablePartner, Prompt, generate
    from lacy_jax.config import get_default_config
    from lacy_jax.corpus import World
    from lacy_jax.models import Transformer, count_params, resolve_model_config
    from lacy_jax.serving.app import make_app
    from lacy_jax.serving.requests import Defaults
    from lacy_jax.serving.service import Service, Settings
    from lacy_jax.tokenizer import Tokenizer, train_tokenizer

    preset, tokens, repeats = ("tiny", 32, 1) if quick else ("10m", 128, 3)
    world = World(people=200, seed=0)
    config = get_default_config()
    config.tokenizer.vocab_size = 500 if quick else 1900
    tokenizer = Tokenizer.from_bytes(
        train_tokenizer((world.text(i).text for i in range(200)), config.tokenizer)
    )
    context = 64 * (-(-(tokens + 24) // 64))
    config.model.preset, config.model.family, config.model.max_seq_len = preset, "llama", context
    model = Transformer(resolve_model_config(config.model, tokenizer.vocab_size, context), rngs=nnx.Rngs(0))
    partner = FactTablePartner(world)
    prompts = [world.prompt(i) for i in range(128)]

    def batch() -> tuple[int, float]:
        started = time.perf_counter()
        texts = generate(
            model, tokenizer, [Prompt(p) for p in prompts[: 2 * ROWS]], partner, gate="entropy", budget=BUDGET,
            max_new_tokens=tokens, batch_size=ROWS, progress=False,
        )  # fmt: skip
        return sum(len(text.tokens) for text in texts), time.perf_counter() - started

    settings = Settings("bench", "entropy", BUDGET, Defaults(tokens), rows=ROWS, queue=max(CLIENTS))
    service = Service(model, tokenizer, partner, settings)
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning", lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True).start()
    address = f"http://127.0.0.1:{bound.getsockname()[1]}"
    batch()
    ask_from_outside(address, ROWS, prompts[:ROWS], tokens)
    batches: list[float] = []
    served: dict[int, list[dict[str, Any]]] = {clients: [] for clients in CLIENTS}
    for _ in range(repeats):
        written, seconds = batch()
        batches.append(written / seconds)
        for clients in CLIENTS:
            print(f"{clients} clients ...", file=sys.stderr)
            count = {1: 4, 4: 8}.get(clients, max(2 * clients, 2 * ROWS))
            served[clients].append(ask_from_outside(address, clients, prompts[:count], tokens))
    server.should_exit = True
    service.close()
    rates = {
        c: statistics.median(one["tokens"] / one["seconds"] for one in found) for c, found in served.items()
    }
    everything = [one for found in served.values() for one in found]
    rate = statistics.median(batches)
    figures: dict[str, Any] = {
        "benchmark": "serve",
        "serve_over_batch_16": rates[16] / rate,
        "batch_tokens_per_s": rate,
        **{f"tokens_per_s_{c}": rates[c] for c in CLIENTS},
        **{f"first_token_s_{c}": statistics.median(one["first"] for one in served[c]) for c in CLIENTS},
        "refused": sum(one["refused"] for one in everything),
        "call_share": service.metrics.budget.collect()[0].samples[0].value,
        "model_parameters": count_params(model.cfg),
        "rows": ROWS,
        "new_tokens": tokens,
        "device": jax.devices()[0].device_kind,
    }
    return {name: float(f"{v:.4g}") if isinstance(v, float) else v for name, v in figures.items()}


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute: a smaller model, fewer texts")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        print(json.dumps(ask(*json.load(sys.stdin))))
        return 0
    figures = run(args.quick)
    if not args.json:
        for name, value in figures.items():
            print(f"{name:>24}  {value}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
