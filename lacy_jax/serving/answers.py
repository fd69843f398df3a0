"""Answers to clients: tokens, log-probabilities and texts in the format of OpenAI's API, plus our own field."""

from __future__ import annotations

import codecs
import dataclasses
from typing import Any

import numpy as np

from lacy_jax.cascade.texts import Generation
from lacy_jax.serving.requests import EXTENSION, Asked
from lacy_jax.serving.scoring import Scores
from lacy_jax.serving.service import Text
from lacy_jax.serving.tickets import Update
from lacy_jax.tokenizer import Tokenizer

FINISHES = {
    "eos": "stop",
    "stop": "stop",
    "length": "length",
    "context": "length",
    "time": "length",
    "shutdown": "length",
}
"""Why a text ended -> OpenAI's finish_reason."""


def character_ends(tokenizer: Tokenizer, before: np.ndarray, ids: np.ndarray) -> list[int]:
    """Number of whole characters up to the end of each token, in the text of `ids`, which continues `before`."""
    whole, given = np.concatenate([before, ids]), len(tokenizer.decode(before))

    def settled(count: int) -> int:
        return max(len(tokenizer.decode(whole[:count]).rstrip("\ufffd")) - given, 0)

    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ends = np.cumsum([len(decoder.decode(tokenizer.piece_bytes(token))) for token in ids.tolist()]).tolist()
    if ends and ends[-1] != settled(len(whole)):
        # Bytes that are not a character, or a leading space that the tokenizer adds and removes again.
        ends = [settled(len(before) + count) for count in range(1, len(ids) + 1)]
    return ends


def token_string(tokenizer: Tokenizer, token: int) -> str:
    """A token as a string: its text, "bytes:\\xe6" for a part of a character, or its name if it has no text."""
    data = tokenizer.piece_bytes(token)
    if not data:
        return tokenizer.piece(token)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


@dataclasses.dataclass(frozen=True)
class Sheet:
    """A text with its tokens, from which the parts of an answer are cut.

    Attributes:
      text: text of the choice, after the prompt if that is echoed. ids: int32 [n] its tokens.
      ends: number of characters up to the end of each token; empty if the client does not ask for tokens.
      skipped: number of tokens before the text that are not part of it.
      scores: of the skipped tokens and `ids`, if they were asked for.
    """

    tokenizer: Tokenizer
    text: str
    ids: np.ndarray
    ends: list[int]
    skipped: int
    scores: Scores | None

    def until(self, characters: int) -> int:
        """How many tokens end within the first `characters` characters."""
        return sum(end <= characters for end in self.ends)

    def legacy(self, first: int, last: int, likeliest: int) -> dict[str, list[Any]]:
        """`logprobs` of a text completion, for the tokens first .. last - 1."""
        names: list[str] = []
        logs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        for index in range(first, last):
            token, at = int(self.ids[index]), self.skipped + index - 1
            names.append(token_string(self.tokenizer, token))
            if at < 0:  # The first token has nothing before it.
                logs.append(None)
                tops.append(None)
                continue
            own = self._own(at)
            logs.append(own)
            found: dict[str, float] = {}
            for piece, score in self._top(at, likeliest):
                found.setdefault(token_string(self.tokenizer, piece), score)
            found.setdefault(names[-1], own)
            tops.append(found)
        starts = [self.ends[i - 1] if i else 0 for i in range(first, last)]
        return {"tokens": names, "token_logprobs": logs, "top_logprobs": tops, "text_offset": starts}

    def chat(self, first: int, last: int, likeliest: int) -> dict[str, list[Any]]:
        """`logprobs` of a chat completion."""
        content = []
        for index in range(first, last):
            at = self.skipped + index - 1
            entry = self._entry(int(self.ids[index]), self._own(at))
            tops = [self._entry(piece, score) for piece, score in self._top(at, likeliest)]
            content.append({**entry, "top_logprobs": tops})
        return {"content": content}

    def extended(
        self, first: int, last: int, written: int, told: int, update: Update, candidates: int
    ) -> list[dict[str, Any]]:
        """The tokens in our field: who wrote each, and how much the model needed help.

        Args:
          first, last: range of tokens. written: how many tokens at the end were generated.
          told: characters already sent with tokens before `first`.
        """
        start = len(self.ids) - written
        at = max(told, self.ends[start - 1] if start else 0)
        partner = {a + i for a, n in update.calls for i in range(n)}
        begins = {a for a, _ in update.calls}
        found = []
        for index in range(max(first, start), last):
            place = index - start
            score = float(update.scores[place]) if place < len(update.scores) else np.nan
            entry: dict[str, Any] = {
                "text": self.text[at : self.ends[index]],
                "id": int(self.ids[index]),
                "origin": "partner" if place in partner else "model",
                "gate_score": score if np.isfinite(score) else None,
            }
            at = max(at, self.ends[index])
            if place in begins:
                entry["call"] = True
            if candidates and self.scores is not None:
                entry["candidates"] = [
                    {"token": token_string(self.tokenizer, piece), "logprob": value}
                    for piece, value in self._top(self.skipped + index - 1, candidates)
                ]
            found.append(entry)
        return found

    def _own(self, at: int) -> float:
        """Log-probability of the token after place `at`; after the last scored token, that of the likeliest one."""
        assert self.scores is not None
        return float(
            self.scores.tokens[at] if at < len(self.scores.tokens) else self.scores.top_scores[at, 0]
        )

    def _top(self, at: int, count: int) -> list[tuple[int, float]]:
        assert self.scores is not None
        return list(
            zip(
                self.scores.top[at, :count].tolist(), self.scores.top_scores[at, :count].tolist(), strict=True
            )
        )

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        data = self.tokenizer.piece_bytes(token)
        return {"token": token_string(self.tokenizer, token), "logprob": logprob, "bytes": list(data)}


def sheet_of(tokenizer: Tokenizer, asked: Asked, text: Text, update: Update, scores: Scores | None) -> Sheet:
    """The sheet of a choice, finished or still being written."""
    ids = np.concatenate([text.job.ids, update.tokens])
    skipped = len(text.job.ids) - (text.shown if asked.echo else 0)
    whole = (text.prompt if asked.echo else "") + update.text
    ends = _ends(tokenizer, asked, text, update) if asked.extended or asked.logprobs is not None else []
    return Sheet(tokenizer, whole, ids[skipped:], ends, skipped, scores)


def _ends(tokenizer: Tokenizer, asked: Asked, text: Text, update: Update) -> list[int]:
    """`Sheet.ends`: prompt and generated tokens are counted apart, so that each part ends with its text."""
    ids, before = text.job.ids, []
    start = len(ids) - text.shown
    if asked.echo and text.shown:
        before = character_ends(tokenizer, ids[:start], ids[start:])
        before[-1] = len(text.prompt)
    given = len(text.prompt) if asked.echo else 0
    own = [min(end, len(update.text)) for end in character_ends(tokenizer, ids, update.tokens)]
    if own and update.over:
        own[-1] = len(update.text)  # Even if it ends inside a character.
    return before + [given + end for end in own]


def summary(text: Text, update: Update, generation: Generation) -> dict[str, Any]:
    """Our field of a finished choice, without the tokens."""
    return {
        "gate": generation.gate,
        "budget": generation.budget,
        "realised": generation.call_share,
        "budget_met": generation.budget_met,
        "budget_note": generation.budget_note,
        "calls": generation.calls,
        "partner_failures": generation.partner_failures,
        "partner_tokens": round(update.partner_tokens),
        "stopped": generation.stopped,
        "seed": text.seed,
    }


def usage_of(texts: list[Text], updates: list[Update], n: int) -> dict[str, Any]:
    """Token counts; those of the partners, and of their partners, are in our field."""
    prompt = sum(len(text.job.ids) for text in texts[::n])
    written = sum(len(update.tokens) for update in updates)
    partners = round(sum(update.partner_tokens for update in updates))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        EXTENSION: {"partner_tokens": partners},
    }
