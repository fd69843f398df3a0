"""Cascade decoding of an exported model with `transformers` alone (no lacy_jax): the budget gate in 100 lines.

    python examples/cascade_transformers.py EXPORTED_FOLDER --prompt="Marie Curie was" --partner=PARTNER_FOLDER --budget=0.22

EXPORTED_FOLDER is what `lacy export --format=hf` wrote; PARTNER_FOLDER any causal model, or none to see where it would
have called. Greedy decoding, one text at a time (arXiv:2602.12005 §5.1):

  - at every position the gate scores the need for help: CALL logit minus the largest base logit;
  - the call budget is the share of generated tokens that the partner may write. The score is compared with a running
    quantile of the scores so far, whose level adapts to what has been spent; the balance may not exceed SLACK tokens;
  - on a call the partner gets the text so far, without CALL, and its next word, in our tokens, goes into the text; the
    word is cut where it would exceed the budget.

Our tokenizers put nothing before a text, so the word's tokens can simply follow; one that does (Llama 2's dummy prefix)
needs the whole text tokenised again. `lacy generate` does all this in batches with a KV cache, calibrated quantiles and exact bounds; here nothing is cached.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

SLACK = 4.0  # Tokens that the partner's share may be ahead of the budget or behind it.
GAIN = 10.0  # 1 + GAIN * budget: tokens of balance that change the odds of a call by a factor e.


@dataclasses.dataclass
class Budget:
    """Decides which positions call, so that `share` of the tokens are the partner's."""

    share: float
    written: int = 0
    spent: int = 0
    scores: list[float] = dataclasses.field(default_factory=list)

    def calls(self, score: float) -> bool:
        """Whether the position with this gate score is worth a call now."""
        balance = self.share * (self.written + 1) - self.spent
        self.scores.append(score)
        if not 0 < self.share < 1 or balance >= SLACK or 1 - balance > SLACK:
            return self.share >= 1 or (self.share > 0 and balance >= SLACK)
        odds = math.log(self.share / (1 - self.share)) + (balance - 0.3) / (1 + GAIN * self.share)
        level = 1 / (1 + math.exp(-odds))
        higher = sum(s > score for s in self.scores) + 0.5 * sum(s == score for s in self.scores)
        return higher / len(self.scores) < level

    def allowance(self) -> int:
        """Most tokens that a call may write now without running ahead of the budget by more than SLACK."""
        return max(1, int(SLACK + self.share * self.written - self.spent))

    def record(self, tokens: int, by_partner: bool) -> None:
        """Count tokens that were written."""
        self.written += tokens
        self.spent += tokens if by_partner else 0


@torch.no_grad()
def next_logits(model, ids: list[int]) -> torch.Tensor:
    """[V] logits after `ids`, read from their end if they exceed the context."""
    context = getattr(model.config, "max_position_embeddings", 1024)
    return model(torch.tensor([ids[-context:]])).logits[0, -1].float()


def ends_of_text(model) -> set[int]:
    """The ids at which `model.generate` would stop; chat models have several."""
    found = model.generation_config.eos_token_id
    return set(found) if isinstance(found, list) else {found}


def partner_word(model, tokenizer, text: str, most: int = 8) -> str:
    """The partner's greedy continuation of `text` up to the end of a word; "" if it would end the text."""
    ids = tokenizer(text)["input_ids"]
    start, written = tokenizer.decode(ids, skip_special_tokens=True), ""
    for _ in range(most):
        token = int(next_logits(model, ids).argmax())
        if token in ends_of_text(model):
            break
        ids.append(token)
        continued = tokenizer.decode(ids, skip_special_tokens=True)[len(start) :]
        if written.strip() and continued[len(written) :].startswith((" ", "\n")):
            break  # The next word begins.
        written = continued
    return written.rstrip("\ufffd")  # An unfinished character.


def generate(
    model, tokenizer, partner, prompt: str, share: float, tokens: int
) -> tuple[list[tuple[str, str]], Budget]:
    """Spans (who, text) that follow the prompt, and what was spent. `partner` is None or (model, tokenizer)."""
    call = tokenizer.convert_tokens_to_ids("<CALL>")
    budget, ids = Budget(share), tokenizer(prompt)["input_ids"]
    spans: list[tuple[str, str]] = []
    while budget.written < tokens:
        logits = next_logits(model, ids)
        gate = float(logits[call] - logits[:call].max())
        text = tokenizer.decode(ids, skip_special_tokens=True)
        wants = budget.calls(gate) and not text.endswith("\ufffd")  # Not inside a character.
        answer = partner_word(*partner, text) if wants and partner else ""
        if answer:
            new = tokenizer(answer, add_special_tokens=False)["input_ids"][: budget.allowance()]
            while new and tokenizer.decode(ids + new).endswith(
                "\ufffd"
            ):  # Nor does an answer end inside one.
                new.pop()
        if answer and new:
            ids += new
            budget.record(len(new), by_partner=True)
            spans.append(("partner", tokenizer.decode(ids, skip_special_tokens=True)[len(text) :]))
            continue
        logits[call] = -math.inf
        token = int(logits.argmax())
        if token in ends_of_text(model):
            break
        ids.append(token)
        budget.record(1, by_partner=wants and not partner)  # Without a partner: where it would have called.
        own = tokenizer.decode(ids, skip_special_tokens=True)[len(text) :]
        spans.append(("would call" if wants and not partner else "model", own))
    return spans, budget


def main() -> None:
    """Print the text with [[what the partner wrote]]."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", help="folder of lacy export")
    parser.add_argument("--partner", help="folder of any causal model")
    parser.add_argument("--prompt", default="Marie Curie was")
    parser.add_argument("--budget", type=float, default=0.22, help="share of tokens the partner writes")
    parser.add_argument("--tokens", type=int, default=100)
    options = parser.parse_args()

    def load(folder: str):
        return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    model, tokenizer = load(options.model)
    partner = load(options.partner) if options.partner else None
    spans, budget = generate(model, tokenizer, partner, options.prompt, options.budget, options.tokens)
    print(options.prompt + "".join(text if who == "model" else f"[[{text}]]" for who, text in spans))
    share = budget.spent / max(budget.written, 1)
    print(
        f"{budget.spent} of {budget.written} tokens by the partner ({share:.1%}; budget {options.budget:.1%})",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
