"""How fast are texts written, alone and with a partner, and what does a call cost?

    python benchmarks/decode.py [--quick] [--json]

A small model and a larger partner of ours (Llama style, random weights: speed does not depend on them) write
texts with calls at the paper's budget, one partner token per call. The same two sizes are driven by transformers,
each with its KV cache, one text and one token at a time with as large a share of partner tokens (needs
lacy_jax[export]; else those figures are null). Both sides compile or warm up before they are timed.
The last line is one JSON object with these keys:

  benchmark            "decode"
  speedup              cascade tokens/s, batched, over transformers' cascade tokens/s; target at least 3
  speedup_one_text     the same with one text at a time on both sides
  alone_tokens_per_s, cascade_tokens_per_s   ours, `batch_size` texts side by side
  alone_one_tokens_per_s, cascade_one_tokens_per_s   ours, one text at a time
  seconds_per_call     what a call adds: (cascade time - time alone for as many tokens) / calls, batched
  transformers_alone_tokens_per_s, transformers_cascade_tokens_per_s   theirs
  recompilations       of the decoding loop while prompts of other lengths are written; must be 0
  call_share, calls    of the cascade; model_parameters, partner_parameters, batch_size, new_tokens, device
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from lacy_jax.cascade import CheckpointPartner, Generation, Prompt, engine, generate
from lacy_jax.config import get_default_config
from lacy_jax.corpus import World
from lacy_jax.errors import LacyError
from lacy_jax.models import ModelConfig, Transformer, count_params, resolve_model_config
from lacy_jax.tokenizer import Tokenizer, train_tokenizer

BUDGET = 0.22
VOCABULARY = 1900


def make_model(tokenizer: Tokenizer, preset: str, context: int, seed: int) -> Transformer:
    """A model of random weights."""
    config = get_default_config()
    config.model.preset, config.model.family, config.model.max_seq_len = preset, "llama", context
    return Transformer(resolve_model_config(config.model, tokenizer.vocab_size, context), rngs=nnx.Rngs(seed))


def timed(work: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median seconds of `repeats` runs after one that is not counted, and the last result."""
    work()
    seconds, result = [], None
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), result


def rate(seconds: float, texts: Sequence[Generation]) -> float:
    """Generated tokens per second."""
    return sum(len(text.tokens) for text in texts) / seconds


def measure_ours(
    model: Transformer,
    partner: Transformer,
    tokenizer: Tokenizer,
    prompts: list[Prompt],
    tokens: int,
    repeats: int,
) -> dict[str, Any]:
    """Our figures, batched and one text at a time."""
    figures: dict[str, Any] = {}
    for suffix, size in (("", len(prompts)), ("_one", 1)):
        some = prompts if size > 1 else prompts[:2]
        asked = CheckpointPartner(partner, tokenizer, "token", rows=size)

        def write(
            with_partner: bool, some: list[Prompt] = some, size: int = size, asked: Any = asked
        ) -> list[Generation]:
            return generate(
                model, tokenizer, some, asked if with_partner else None, gate="entropy", budget=BUDGET,
                max_new_tokens=tokens, batch_size=size, progress=False,
            )  # fmt: skip

        alone_s, alone = timed(lambda write=write: write(False), repeats)
        cascade_s, texts = timed(lambda write=write: write(True), repeats)
        figures[f"alone{suffix}_tokens_per_s"] = rate(alone_s, alone)
        figures[f"cascade{suffix}_tokens_per_s"] = rate(cascade_s, texts)
        if size > 1:
            calls = sum(text.calls for text in texts)
            written = sum(len(text.tokens) for text in texts)
            figures["calls"] = calls
            figures["call_share"] = sum(t.origins.count("partner") for t in texts) / written
            figures["seconds_per_call"] = (cascade_s - written / rate(alone_s, alone)) / max(calls, 1)
    compiled = engine.advance._cache_size()
    longer = [Prompt(f"{prompt.text} and", prompt.id) for prompt in prompts]
    generate(
        model, tokenizer, longer, CheckpointPartner(partner, tokenizer, "token", rows=len(longer)), gate="entropy",
        budget=BUDGET, max_new_tokens=tokens - 3, batch_size=len(longer), progress=False,
    )  # fmt: skip
    figures["recompilations"] = engine.advance._cache_size() - compiled
    return figures


def measure_transformers(
    cfg: ModelConfig, partner_cfg: ModelConfig, prompt: np.ndarray, tokens: int, share: float, repeats: int
) -> dict[str, Any]:
    """Models of the same sizes, driven token by token with transformers' KV cache; None without transformers."""
    if importlib.util.find_spec("torch") is None or importlib.util.find_spec("transformers") is None:
        return dict.fromkeys(("transformers_alone_tokens_per_s", "transformers_cascade_tokens_per_s"))
    import torch
    import transformers

    def make(cfg: ModelConfig) -> Any:
        config = transformers.LlamaConfig(
            vocab_size=cfg.vocab_size, hidden_size=cfg.d_model, intermediate_size=cfg.d_ff,
            num_hidden_layers=cfg.n_layers, num_attention_heads=cfg.n_heads, num_key_value_heads=cfg.n_kv_heads,
            head_dim=cfg.head_dim, max_position_embeddings=cfg.max_seq_len, tie_word_embeddings=cfg.tie_head,
        )  # fmt: skip
        return transformers.LlamaForCausalLM(config).eval()

    class Fed:
        """A model with its cache: `next(ids)` reads new tokens and names the one after."""

        def __init__(self, model: Any):
            self.model, self.cache = model, None

        def next(self, ids: list[int]) -> int:
            out = self.model(torch.tensor([ids]), past_key_values=self.cache, use_cache=True)
            self.cache = out.past_key_values
            return int(out.logits[0, -1].argmax())

    small, large = make(cfg), make(partner_cfg)

    def write(share: float) -> None:
        model, partner = Fed(small), Fed(large)
        new = unread = [int(token) for token in prompt]
        spent = 0
        for written in range(1, tokens + 1):
            token = model.next(new)
            if spent + 1 <= share * written:  # As many calls as ours, evenly spread.
                token, unread, spent = partner.next(unread), [], spent + 1
            new = [token]
            unread = [*unread, token]

    with torch.inference_mode():
        alone, _ = timed(lambda: write(0.0), repeats)
        cascade, _ = timed(lambda: write(share), repeats)
    return {
        "transformers_alone_tokens_per_s": tokens / alone,
        "transformers_cascade_tokens_per_s": tokens / cascade,
    }


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
    print("measuring ours ...", file=sys.stderr)
    figures: dict[str, Any] = {"benchmark": "decode"}
    figures |= measure_ours(model, partner, tokenizer, prompts, tokens, repeats)
    print("measuring transformers ...", file=sys.stderr)
    prompt = np.concatenate([[tokenizer.bos_id], tokenizer.encode(prompts[0].text)])
    theirs = measure_transformers(model.cfg, partner.cfg, prompt, tokens, figures["call_share"], repeats)
    base = theirs["transformers_cascade_tokens_per_s"]
    figures |= theirs | {
        "speedup": figures["cascade_tokens_per_s"] / base if base else None,
        "speedup_one_text": figures["cascade_one_tokens_per_s"] / base if base else None,
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
