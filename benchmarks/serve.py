"""How much of the batch rate of `lacy generate` is left when the same texts are asked of `lacy serve`?

    python benchmarks/serve.py [--quick] [--json] [--transformers=PYTHON] [--llama-cpp=PYTHON]

A model of random weights (speed does not depend on them) with the synthetic world's fact table as partner, at a call budget of 22 %.
`cascade.generate` writes texts in batches of 16; then the same model, in this process, is served over HTTP with 16 rows, and
clients in a process of their own ask for texts of as many tokens, streamed, each client one text after the other. Server and clients
share the machine's cores. Everything is compiled before it is timed; batch and server take turns with the same 64 texts, and medians
are given.

Then the same clients ask for texts without partner, of half as many tokens: of this server, of `transformers serve` on the exported
folder and of llama.cpp's server (`llama-cpp-python[server]`) on the exported GGUF file, float32 all of them, on the same cores, in
turns. Each rival needs an interpreter that has it: `transformers[serving]` by default in this one; where one is missing it is said,
and its figures are null.
The last line is one JSON object with these keys:

  benchmark                  "serve"
  serve_over_batch_16        tokens/s with 16 clients over the mean of the batches just before and after; the median of those
                             ratios, which are in serve_over_batch_16_each; goal at least 0.85
  batch_tokens_per_s         of `cascade.generate`, batches of 16
  tokens_per_s_N             of the server with N clients (1, 4, 16, 64)
  first_token_s_N            median seconds from the request to the first text
  over_transformers, over_llama_cpp   tokens/s of this server over theirs, at the number of clients where that is least; goal: above 1;
                             over_llama_cpp_N and over_transformers_N with N clients, medians of the turns' ratios
  plain_tokens_per_s_N, transformers_tokens_per_s_N, llama_cpp_tokens_per_s_N   without partner; first_token_s_N likewise
  same_texts_transformers, same_texts_llama_cpp   share of the texts that are this server's; float32 rounds differently. Of
                             `transformers`, as `streamed`, and only texts whose bytes are characters: at others its stream breaks off
  refused                    requests that were refused; must be 0
  call_share                 of the served texts; model_parameters, rows, new_tokens, device
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import io
import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

import urllib3

BUDGET = 0.22
ROWS = 16
CLIENTS = (1, 4, 16, 64)


def ask(address: str, clients: int, prompts: list[str], tokens: int, more: dict[str, Any]) -> dict[str, Any]:
    """Ask for a text of each prompt, `clients` at a time.

    Args:
      more: fields of the requests.

    Returns:
      {"seconds", "tokens", "first": seconds to the first text, "refused", "texts"}.
    """
    http = urllib3.PoolManager(maxsize=clients, retries=False, timeout=600)

    def one(prompt: str) -> tuple[float, int, str]:
        started, first, text, chunks, usage, finish = time.perf_counter(), 0.0, "", 0, None, ""
        body = {
            "prompt": prompt,
            "max_tokens": tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": 0.0,
            **more,
        }
        answer = http.request("POST", f"{address}/v1/completions", json=body, preload_content=False)
        if answer.status != 200:
            print(answer.status, answer.read()[:300], file=sys.stderr)
            return 0.0, 0, ""
        left = b""
        for part in answer.stream():
            *events, left = (left + part).replace(b"\r", b"").split(b"\n\n")
            for event in events:
                if not event.startswith(b"data: {"):
                    continue  # A comment, or the end.
                chunk = json.loads(event[6:])
                usage = chunk.get("usage") or usage
                for choice in chunk["choices"]:
                    text, chunks = text + (choice.get("text") or ""), chunks + 1
                    finish = choice.get("finish_reason") or finish
                if text and not first:
                    first = time.perf_counter() - started
        # Without usage (llama.cpp's server): as many as were asked for, or a chunk for each.
        return first, usage["completion_tokens"] if usage else tokens if finish == "length" else chunks, text

    started = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        done = list(pool.map(one, prompts))
    return {
        "seconds": time.perf_counter() - started,
        "tokens": sum(count for _, count, _ in done),
        "first": statistics.median(first for first, _, _ in done),
        "refused": sum(count == 0 for _, count, _ in done),
        "texts": [text for _, _, text in done],
    }


def ask_from_outside(
    address: str, clients: int, prompts: list[str], tokens: int, **more: Any
) -> dict[str, Any]:
    """`ask`, in a process of its own."""
    job = json.dumps([address, clients, prompts, tokens, more])
    done = subprocess.run(
        [sys.executable, __file__, "--client"], input=job, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def make_run(folder: pathlib.Path, quick: bool, context: int) -> Any:
    """A run directory of random weights; its tokenizer is SentencePiece's BPE, which GGUF has a place for."""
    import jax
    import sentencepiece

    from lacy_jax.config import get_default_config
    from lacy_jax.corpus import World
    from lacy_jax.export.run_directory import write_run
    from lacy_jax.models import resolve_model_config
    from lacy_jax.tokenizer import Tokenizer
    from lacy_jax.training.run import load_run
    from lacy_jax.training.state import ModelDefinition

    out, world = io.BytesIO(), World(people=200, seed=0)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=(world.text(i).text for i in range(200)), model_writer=out, model_type="bpe",
        vocab_size=500 if quick else 1900, byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False, hard_vocab_limit=False, minloglevel=3,
    )  # fmt: skip
    tokenizer = Tokenizer.from_bytes(out.getvalue())
    config = get_default_config()
    config.model.preset, config.model.family = "tiny" if quick else "10m", "llama"
    config.model.max_seq_len = config.input.seq_len = context
    cfg = resolve_model_config(config.model, tokenizer.vocab_size, context)
    folder.mkdir()
    write_run(folder, config, tokenizer, ModelDefinition(cfg).init(jax.random.key(0)))
    return load_run(folder)


RIVALS = ("transformers", "llama_cpp")


def rate(asked: dict[str, Any]) -> float:
    """Tokens/s of what `ask` found."""
    return asked["tokens"] / asked["seconds"]


def streamed(text: str) -> str:
    """What `transformers serve` streams of a text: it decodes the answer as if nothing stood before it, so a first space is
    lost.
    """
    return text.removeprefix(" ")


@contextlib.contextmanager
def rival(name: str, python: str, run: Any, folder: pathlib.Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Exports the run without CALL and serves it with a rival; gives its address and what its requests need more.

    Raises:
      LookupError: it does not run with this interpreter; says why.
    """
    from lacy_jax.export.gguf_out import export_gguf
    from lacy_jax.export.hugging_face import export_hugging_face
    from lacy_jax.export.source import load_source

    needs = {"transformers": "transformers, fastapi, uvicorn", "llama_cpp": "llama_cpp.server"}[name]
    found = subprocess.run([python, "-c", f"import {needs}"], capture_output=True, text=True)
    if found.returncode:
        raise LookupError(f"{python} has no {needs}: {found.stderr.strip().splitlines()[-1]}")
    source = dataclasses.replace(load_source(run.workdir), call=False)
    out = folder / {"transformers": "exported", "llama_cpp": "exported.gguf"}[name]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    cores = str(len(os.sched_getaffinity(0)))
    more: dict[str, Any] = {}
    if name == "transformers":
        export_hugging_face(source, out)
        command = [python, "-m", "transformers.cli.transformers", "serve", str(out), "--host=127.0.0.1", f"--port={port}", "--device=cpu"]  # fmt: skip
        more["model"] = str(out)
    else:
        export_gguf(source, out)
        # Keys and values in float32, like the others'; all texts wait their turn instead of ending the one before.
        command = [python, "-m", "llama_cpp.server", "--model", str(out), "--host=127.0.0.1", "--port", str(port), "--n_ctx",
                   str(run.model_config.max_seq_len), "--n_threads", cores, "--n_threads_batch", cores, "--type_k=0", "--type_v=0",
                   "--interrupt_requests=false", "--verbose=false"]  # fmt: skip
    with open(folder / f"{name}.log", "w+") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": cores, "HF_HUB_OFFLINE": "1"},
        )
        try:
            address = f"http://127.0.0.1:{port}"
            until = time.monotonic() + 120
            while True:
                with contextlib.suppress(urllib3.exceptions.HTTPError):
                    urllib3.request("GET", f"{address}/v1/models", retries=False, timeout=10)
                    break
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise LookupError(f"{name} does not serve: {log.read()[-500:]}")
                time.sleep(0.2)
            yield address, more
        finally:
            process.terminate()
            process.wait()


def against_rivals(
    pythons: dict[str, str],
    run: Any,
    own: str,
    prompts: list[str],
    tokens: int,
    repeats: int,
    folder: pathlib.Path,
) -> dict[str, Any]:
    """Figures of this server at the address `own` and of the rivals, without partner."""
    figures: dict[str, Any] = {}
    found: dict[str, dict[int, list[dict[str, Any]]]] = {}
    with contextlib.ExitStack() as stack:
        servers = {"plain": (own, {"lacy": {"partner": False}})}
        for name in RIVALS:
            try:
                servers[name] = stack.enter_context(rival(name, pythons[name], run, folder))
            except LookupError as error:
                print(f"not measured: {error}", file=sys.stderr)
        for name, (address, more) in servers.items():
            print(f"warming up {name} ...", file=sys.stderr)
            ask_from_outside(address, 2, prompts[:2], tokens, **more)
            found[name] = {clients: [] for clients in CLIENTS}
        for clients in repeats * CLIENTS:
            for name, (address, more) in servers.items():
                asked = prompts[: max(clients, 16)]
                found[name][clients].append(ask_from_outside(address, clients, asked, tokens, **more))
                print(
                    f"{name}, {clients} clients: {rate(found[name][clients][-1]):.4g} tokens/s",
                    file=sys.stderr,
                )
    for name, by_clients in found.items():
        for clients, turns in by_clients.items():
            figures[f"{name}_tokens_per_s_{clients}"] = statistics.median(map(rate, turns))
            figures[f"{name}_first_token_s_{clients}"] = statistics.median(turn["first"] for turn in turns)
        figures[f"{name}_refused"] = sum(turn["refused"] for turns in by_clients.values() for turn in turns)
    for name in RIVALS:
        ratios = {
            clients: statistics.median(rate(ours) / rate(theirs) for ours, theirs in zip(turns, others, strict=True))
            for (clients, turns), others in zip(found["plain"].items(), found.get(name, {}).values(), strict=False)
        }  # fmt: skip
        for clients, ratio in ratios.items():
            figures[f"over_{name}_{clients}"] = ratio
        figures[f"over_{name}"] = min(ratios.values(), default=None)
        texts = [found[one][CLIENTS[-1]][0]["texts"] for one in ("plain", name) if one in found]
        pairs = list(zip(*texts, strict=True)) if len(texts) == 2 else []
        if name == "transformers":
            pairs = [(streamed(a), streamed(b)) for a, b in pairs if "\ufffd" not in a]
        same = [a == b for a, b in pairs]
        for our_text, their_text in [pair for pair in pairs if pair[0] != pair[1]][:2]:
            print(f"{name} writes\n  {their_text!r}\nand not\n  {our_text!r}", file=sys.stderr)
        figures[f"same_texts_{name}"] = statistics.mean(same) if same else None
    return figures


def run(quick: bool, pythons: dict[str, str], folder: pathlib.Path) -> dict[str, Any]:
    """The figures; see the module's docstring.

    Args:
      quick: a smaller model, shorter texts, fewer of them. pythons: interpreter for each rival. folder: to write into.
    """
    import jax
    import uvicorn

    from lacy_jax.cascade import FactTablePartner, Prompt, generate
    from lacy_jax.corpus import World
    from lacy_jax.models import count_params
    from lacy_jax.serving.app import make_app
    from lacy_jax.serving.requests import Defaults
    from lacy_jax.serving.service import Service, Settings

    tokens, repeats = (32, 1) if quick else (128, 5)
    world = World(people=200, seed=0)
    # Room for the prompts, in a tokenizer of whose pieces some are single bytes.
    made = make_run(folder / "run", quick, 64 * (-(-(tokens + 32) // 64)))
    model, tokenizer = made.model, made.tokenizer
    partner = FactTablePartner(world)
    prompts = [world.prompt(i) for i in range(128)]

    def batch() -> tuple[int, float]:
        started = time.perf_counter()
        texts = generate(
            model, tokenizer, [Prompt(p) for p in prompts[: 4 * ROWS]], partner, gate="entropy", budget=BUDGET,
            max_new_tokens=tokens, batch_size=ROWS, progress=False,
        )  # fmt: skip
        return sum(len(text.tokens) for text in texts), time.perf_counter() - started

    settings = Settings("bench", "entropy", BUDGET, Defaults(tokens), rows=ROWS, queue=max(CLIENTS))
    service = Service(model, tokenizer, partner, settings)
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(make_app(service), log_level="warning", lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True).start()
    address = f"http://127.0.0.1:{bound.getsockname()[1]}"
    service.warm_up()
    batch()
    for clients in CLIENTS:
        ask_from_outside(address, clients, prompts[: max(2 * clients, 8)], tokens)
    batches: list[float] = []
    ratios: list[float] = []
    served: dict[int, list[dict[str, Any]]] = {clients: [] for clients in CLIENTS}

    def clients_ask(clients: int) -> None:
        print(f"{clients} clients ...", file=sys.stderr)
        # Four texts a row: with fewer, the first and the last, which are written beside fewer, would count for much.
        count = {1: 4, 4: 16}.get(clients, max(2 * clients, 4 * ROWS))
        served[clients].append(ask_from_outside(address, clients, prompts[:count], tokens))

    for _ in range(repeats):
        beside = []
        for clients in (None, ROWS, None, *(c for c in CLIENTS if c != ROWS)):
            if clients:
                clients_ask(clients)
            else:
                written, seconds = batch()
                beside.append(written / seconds)
        batches += beside
        ratios.append(rate(served[ROWS][-1]) / statistics.mean(beside))
    call_share = service.metrics.budget.collect()[0].samples[0].value
    others = against_rivals(pythons, made, address, prompts, tokens // 2, -(-repeats // 2), folder)
    server.should_exit = True
    service.close()
    rates = {c: statistics.median(map(rate, found)) for c, found in served.items()}
    everything = [one for found in served.values() for one in found]
    figures: dict[str, Any] = {
        "benchmark": "serve",
        "serve_over_batch_16": statistics.median(ratios),
        "serve_over_batch_16_each": [float(f"{ratio:.3g}") for ratio in ratios],
        "batch_tokens_per_s": statistics.median(batches),
        **{f"tokens_per_s_{c}": rates[c] for c in CLIENTS},
        **{f"first_token_s_{c}": statistics.median(one["first"] for one in served[c]) for c in CLIENTS},
        **others,
        "refused": sum(one["refused"] for one in everything),
        "call_share": call_share,
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
    for name in RIVALS:
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            default=sys.executable,
            metavar="PYTHON",
            help=f"interpreter that has {name}",
        )
    parser.add_argument("--client", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client:
        print(json.dumps(ask(*json.load(sys.stdin))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        figures = run(args.quick, {name: getattr(args, name) for name in RIVALS}, pathlib.Path(folder))
    if not args.json:
        for name, value in figures.items():
            print(f"{name:>32}  {value}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
