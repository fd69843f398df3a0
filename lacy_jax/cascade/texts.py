"""Input and output of generation: prompts, generations, and their JSONL files."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.errors import DataError
from lacy_jax.json_lines import read_objects
from lacy_jax.typed_json import from_json


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """A text to go on from. `id` names it in errors and output."""

    text: str
    id: str = ""


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generated text; the lists have one entry per generated token.

    Attributes:
      id, prompt: as given.
      text: the continuation, so that prompt + text is the whole text.
      tokens: ids of the continuation, without eos; pieces: as SentencePiece writes them.
      origins: "model" or "partner".
      gate_scores: the score when the decision about this token was made; None inside a partner's text.
      spans: [start, end, origin] in characters of `text`; neighbours with the same origin are joined.
      calls: calls that returned text.
      call_share: share of the tokens that the partner wrote: the realised budget.
      budget, gate: the call budget asked for (0 without a partner) and the gate.
      budget_met: whether call_share is within one point, or within one call, of the budget.
      budget_note: one line saying why the budget was not met; "" if it was.
      partner_failures: calls that failed (the model went on alone).
      stopped: "eos", "length" (max_new_tokens), "context" (the model's context is full) or "partner"
        (generation was stopped by a failing partner; the text is unfinished).
    """

    id: str
    prompt: str
    text: str
    tokens: list[int]
    pieces: list[str]
    origins: list[str]
    gate_scores: list[float | None]
    spans: list[tuple[int, int, str]]
    calls: int
    call_share: float
    budget: float
    gate: str
    budget_met: bool
    budget_note: str
    partner_failures: int
    stopped: str

    def to_json(self) -> dict[str, Any]:
        """As one JSON object."""
        return dataclasses.asdict(self)


def write_generations(path: epath.PathLike, generations: Iterable[Generation]) -> None:
    """Write one JSON object per line (`Generation.to_json`), atomically.

    Raises:
      LacyError: the disk is full or the folder is not writable; nothing is left under `path`.
    """
    lines = (json.dumps(generation.to_json(), ensure_ascii=False) + "\n" for generation in generations)
    files.write_text(path, "".join(lines))


def read_generations(path: epath.PathLike) -> list[Generation]:
    """Inverse of `write_generations`.

    Raises:
      DataError: missing, empty, or a line is not a generation.
    """
    found = []
    for where, record in read_objects(path, "generations"):
        try:
            found.append(from_json(Generation, record))
        except ValueError as error:
            raise DataError(f"{where}: not a generation written by `lacy generate` ({error})") from None
    if not found:
        raise DataError(f"{path}: no generations in it")
    return found


def read_prompts(path: epath.PathLike) -> list[Prompt]:
    """Prompts from JSONL: per line an object with `prompt` and optionally `id` (default "FILE:LINE").

    Raises:
      DataError: missing, empty, or a line (its number is given) without a prompt.
    """
    prompts = []
    for where, record in read_objects(path, "prompts"):
        text = record.get("prompt")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{where}: no prompt; each line needs an object with a non-empty string `prompt`")
        prompts.append(Prompt(text, str(record.get("id", where))))
    if not prompts:
        raise DataError(f"{path}: no prompts in it")
    return prompts


def budget_summary(generations: Sequence[Generation]) -> str:
    """One line about the budget over all texts: target, realised, and how many texts missed it and why."""
    if not generations:
        return "no texts"
    tokens = sum(len(generation.tokens) for generation in generations)
    partner = sum(generation.origins.count("partner") for generation in generations)
    share = partner / tokens if tokens else 0.0
    line = f"call budget {generations[0].budget:.1%}, realised {share:.1%} of {tokens} tokens"
    missed = [generation for generation in generations if not generation.budget_met]
    if missed:
        line += f"; not met in {len(missed)} of {len(generations)} texts, e.g. {missed[0].id}: {missed[0].budget_note}"
    failed = [generation for generation in generations if generation.partner_failures]
    if failed:
        calls = sum(generation.partner_failures for generation in failed)
        line += (
            f"; {calls} calls failed in {len(failed)} of {len(generations)} texts, which went on alone there"
        )
    return line
