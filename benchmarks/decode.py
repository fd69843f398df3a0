"""How fast are texts written, alone and with a partner, and what does a call cost?

    python benchmarks/decode.py [--quick] [--json]

A small model and a larger partner of ours (Llama style, random weights: speed does not depend on them) write
texts with calls at the paper's budget, one partner token per call. The same two sizes are driven by transformers,
each with its KV cache, one text and one token at a time with as large a share of partner tokens (needs
lacy_jax[export]; else those figures are null). transformers has no cascade for texts side by side, each calling at its
own places; what it does have, the small model alone with a full batch in step, is measured too. Both sides compile or
warm up before they are timed, and take turns.
The last line is one JSON object with these keys:

  benchmark            "decode"
  speedup              cascade tokens/s, batched, over transformers' cascade tokens/s; target at least 3
  speedup_one_text     the same with one text at a time on both sides
  alone_tokens_per_s, cascade_tokens_per_s   ours, `batch_size` texts side by side
  alone_one_tokens_per_s, cascade_one_tokens_per_s   ours, one text at a time
  over_floor           CPU seconds of the cascade, batched, over those of its arithmetic: all tokens, prompts included, once through the
                       layers of both models, logits for what is written and for each call, as fast as a float32 product of
                       1,024 x 1,024 x 1,024 runs here, measured in the same turns; goal at most 4
  floor_cpu_s, cascade_cpu_s, gflop_per_s   what it is made of: CPU time, which other work on the machine disturbs least
  seconds_per_call     what a call adds: (cascade time - time alone for as many tokens) / calls, batched
  transformers_alone_tokens_per_s, transformers_cascade_tokens_per_s   theirs, one text at a time
  transformers_batch_tokens_per_s   theirs, the small model alone, `batch_size` texts in step
  recompilations       of our loops (writing, reading, the partner) while prompts of other lengths are written; must be 0
  call_share, calls    of the cascade; model_parameters, partner_parameters, batch_size, new_tokens, device
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from lacy_jax.cascade import CheckpointPartner, Generation, Prompt, engine, generate
from lacy_jax.cascade.partners import checkpoint
from lacy_jax.config import get_default_config
from lacy_jax.corpus import World
from lacy_jax.errors import LacyError
from lacy_jax.models import (
    ModelConfig,
    Transformer,
    count_params,
    forward_flops,
    init_cache,
    resolve_model_config,
)
from lacy_jax.tokenizer import Tokenizer, train_tokenizer

BUDGET = 0.22
VOCABULARY = 1900


def make_model(tokenizer: Tokenizer, preset: str, context: int, seed: int) -> Transformer:
    """A model of random weights."""
    config = get_default_config()
    config.model.preset, config.model.family, config.model.max_seq_len = preset, "llama", context
    return Transformer(resolve_model_config(config.model, tokenizer.vocab_size, context), rngs=nnx.Rngs(seed))


def take_turns(
    works: dict[str, Callable[[], Any]], repeats: int
) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """Median seconds and CPU seconds of each work over `repeats` rounds after one that is not counted; the last results."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    results = {name: work() for name, work in works.items()}
    for _ in range(repeats):
        for name, work in works.items():
            started, before = time.perf_counter(), time.process_time()
            results[name] = work()
            seconds[name].append((time.perf_counter() - started, time.process_time() - before))
    wall, cpu = (
        {n: statistics.median(t[i] for t in taken) for n, taken in seconds.items()} for i in range(2)
    )
    return wall, cpu, results


PRODUCT = 1024
"""Width of the matrices whose product shows how fast arithmetic can be here."""


PRODUCTS = 20


def products(a: jax.Array) -> None:
    """`PRODUCTS` products of such matrices, one after the other."""
    jax.block_until_ready(_products(a))


@jax.jit
def _products(a: jax.Array) -> jax.Array:
    return jax.lax.fori_loop(0, PRODUCTS, lambda _, b: (a @ b) / PRODUCT, a)


class Ours:
    """Our two models; writes texts alone or with the partner."""

    def __init__(self, model: Transformer, partner: Transformer, tokenizer: Tokenizer, rows: int):
        self.model, self.tokenizer, self.rows = model, tokenizer, rows
        self.partner = CheckpointPartner(partner, tokenizer, "token", rows=rows)

    def write(self, prompts: list[Prompt], tokens: int, cascade: bool) -> list[Generation]:
        """A continuation of `tokens` tokens of each prompt."""
        return generate(
            self.model, self.tokenizer, prompts, self.partner if cascade else None, gate="entropy", budget=BUDGET,
            max_new_tokens=tokens, batch_size=self.rows, progress=False,
        )  # fmt: skip

    def meet_shapes(self, width: int) -> None:
        """Compile what texts of other lengths may need: chunks of each size, with each share of them filled."""
        shares = (*engine.PARTS, 1.0)
        for model in (self.model, self.partner._model):
            laid_out = model.for_decoding() if isinstance(model, Transformer) else model
            for size in engine.CHUNKS:
                tokens = np.zeros((self.rows, size), np.int32)
                for pack in (int(size * self.rows * share) if share < 1 else None for share in shares):
                    engine.feed(laid_out, init_cache(model.cfg, self.rows, width), tokens, tokens, pack)
        text = " The"
        # The partner reads few new tokens of so many texts, and writes; then of the others.
        for share in shares:
            for new in (checkpoint.FEW - 1, engine.CHUNKS[0] - 1):
                text += " and" * new
                texts = [f"{i}{text}" for i in range(self.rows)]
                self.partner.complete(texts[: int(self.rows * share)])
                self.partner.complete(texts[int(self.rows * share) :])


def arithmetic(cfg: ModelConfig, tokens: int, logits: int) -> float:
    """FLOPs of a model that takes in `tokens` tokens of a text and forms logits for so many of them."""
    return forward_flops(cfg, tokens) - 2 * (tokens - logits) * cfg.vocab_size * cfg.d_model


def compiled() -> int:
    """Programs compiled so far by the loops of decoding."""
    loops = engine.advance, engine.feed, checkpoint._read_and_write
    return sum(loop._cache_size() for loop in loops)


class Transformers:
    """The same two sizes in transformers, driven token by token with its KV cache."""

    def __init__(self, cfg: ModelConfig, partner_cfg: ModelConfig):
        import torch
        import transformers

        torch.set_num_threads(len(os.sched_getaffinity(0)))  # It would take as many as the machine has cores.

        def make(cfg: ModelConfig) -> Any:
            config = transformers.LlamaConfig(
                vocab_size=cfg.vocab_size, hidden_size=cfg.d_model, intermediate_size=cfg.d_ff,
                num_hidden_layers=cfg.n_layers, num_attention_heads=cfg.n_heads, num_key_value_heads=cfg.n_kv_heads,
                head_dim=cfg.head_dim, max_position_embeddings=cfg.max_seq_len, tie_word_embeddings=cfg.tie_head,
            )  # fmt: skip
            return transformers.LlamaForCausalLM(config).eval()

        self.small, self.large = make(cfg), make(partner_cfg)

    def write(self, prompt: list[int], tokens: int, share: float, rows: int = 1) -> None:
        """Write `tokens` tokens to each of `rows` equal texts, a share of them by the partner, evenly spread."""
        import torch

        def feed(model: Any, ids: Any, cache: Any) -> tuple[Any, Any]:
            out = model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return out.logits[:, -1:].argmax(-1), out.past_key_values

        with torch.inference_mode():
            new = unread = torch.tensor([prompt] * rows)
            cache = partner_cache = None
            spent = 0
            for written in range(1, tokens + 1):
                token, cache = feed(self.small, new, cache)
                if spent + 1 <= share * written:
                    token, partner_cache = feed(self.large, unread, partner_cache)
                    unread, spent = unread[:, :0], spent + 1
                new, unread = token, torch.cat([unread, token], dim=1)


def run(quick: bool) -> dict[str, Any]:
    """The figures; see the module's docstring. `quick`: smaller models, shorter texts, fewer repeats."""
    sizes, tokens, rows, repeats = (("tiny", "10m"), 32, 4, 1) if quick else (("10m", "30m"), 128, 16, 3)
    world = World(people=200, seed=0)
    config = get_default_config()
    config.tokenizer.vocab_size = 500 if quick else VOCABULARY
    tokenizer = Tokenizer.from_bytes(
        train_tokenizer((world.text(i).text for i in range(200)), config.tokenizer)
    )
    context = 64 * (-(-(tokens + 24) // 64))
    model, partner = (make_model(tokenizer, size, context, seed) for seed, size in enumerate(sizes))
    prompts = [Prompt(world.prompt(i), str(i)) for i in range(rows)]
    ours, single = (Ours(model, partner, tokenizer, size) for size in (rows, 1))
    square = jax.random.normal(jax.random.key(0), (PRODUCT, PRODUCT))
    works: dict[str, Callable[[], Any]] = {
        "alone": lambda: ours.write(prompts, tokens, False),
        "cascade": lambda: ours.write(prompts, tokens, True),
        "alone_one": lambda: single.write(prompts[:1], tokens, False),
        "cascade_one": lambda: single.write(prompts[:1], tokens, True),
        "products": lambda: products(square),
    }
    texts = works["cascade"]()
    written = sum(len(text.tokens) for text in texts)
    share, calls = sum(t.origins.count("partner") for t in texts) / written, sum(text.calls for text in texts)
    theirs = ("transformers_alone", "transformers_cascade", "transformers_batch")
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        other, prompt = (
            Transformers(model.cfg, partner.cfg),
            tokenizer.with_prefix(tokenizer.encode(prompts[0].text)).tolist(),
        )
        works["transformers_alone"] = lambda: other.write(prompt, tokens, 0.0)
        works["transformers_cascade"] = lambda: other.write(prompt, tokens, share)
        works["transformers_batch"] = lambda: other.write(prompt, tokens, 0.0, rows)
    print(f"measuring {', '.join(works)} ...", file=sys.stderr)
    seconds, cpu, results = take_turns(works, repeats)
    rate = PRODUCTS * 2 * PRODUCT**3 / cpu["products"]
    floor = 0.0
    for prompt, text in zip(prompts, texts, strict=True):
        length = len(tokenizer.with_prefix(tokenizer.encode(prompt.text))) + len(text.tokens)
        floor += arithmetic(model.cfg, length, len(text.tokens)) + arithmetic(partner.cfg, length, text.calls)
    floor /= rate
    count = {name: sum(len(text.tokens) for text in result) for name, result in results.items() if result}
    count |= {name: tokens * (rows if name == "transformers_batch" else 1) for name in theirs}
    rates = {name: n / seconds[name] if name in seconds else None for name, n in count.items()}

    ours.meet_shapes(context)
    before = compiled()
    for ending in (" of", " and", " was", ", who was called by another name"):
        for changed in (rows, rows // 2):
            longer = [Prompt(f"{p.text}{ending if i < changed else ''}", p.id) for i, p in enumerate(prompts)]
            ours.write(longer, tokens, True)
    base, batched, one = rates["transformers_cascade"], rates["cascade"], rates["cascade_one"]
    figures: dict[str, Any] = {
        "benchmark": "decode",
        "speedup": batched / base if base and batched else None,
        "speedup_one_text": one / base if base and one else None,
        **{f"{name}_tokens_per_s": rate for name, rate in rates.items()},
        "over_floor": cpu["cascade"] / floor,
        "floor_cpu_s": floor,
        "cascade_cpu_s": cpu["cascade"],
        "gflop_per_s": rate / 1e9,
        "seconds_per_call": (seconds["cascade"] - seconds["alone"] * written / count["alone"])
        / max(calls, 1),
        "recompilations": compiled() - before,
        "calls": calls,
        "call_share": share,
        "model_parameters": count_params(model.cfg),
        "partner_parameters": count_params(partner.cfg),
        "batch_size": rows,
        "new_tokens": tokens,
        "device": jax.devices()[0].device_kind,
    }
    return {
        name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()
    }


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="about a minute: smaller models, fewer repeats")
    parser.add_argument("--json", action="store_true", help="only the JSON line on standard output")
    args = parser.parse_args()
    try:
        figures = run(args.quick)
    except LacyError as error:
        print(f"benchmarks/decode.py: {error}", file=sys.stderr)
        return 2
    if not args.json:
        for name, value in figures.items():
            print(f"{name:>34}  {value}")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
