"""One request in progress: its texts in the scheduler, and its answer, whole or in chunks."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import numpy as np

from lacy_jax.cascade.summary import generation_of
from lacy_jax.errors import LacyError, PartnerError
from lacy_jax.serving.answers import FINISHES, Sheet, sheet_of, summary, usage_of
from lacy_jax.serving.requests import EXTENSION, Asked, BadRequest
from lacy_jax.serving.scoring import Scores
from lacy_jax.serving.service import Service, Text
from lacy_jax.serving.tickets import Busy, ShuttingDown, Ticket, Update


class Completion:
    """The texts of one request. Call `begin`, then `whole` or `chunks`, and always `cancel` at the end."""

    def __init__(self, service: Service, asked: Asked, texts: list[Text]):
        self._service, self._asked, self._texts = service, asked, texts
        self._id = f"{'chatcmpl' if asked.chat else 'cmpl'}-{secrets.token_hex(12)}"
        self._created = int(time.time())
        self._told: asyncio.Queue[tuple[int, Update]] = asyncio.Queue()
        self._tickets: dict[int, Ticket] = {}
        self._last: dict[int, Update] = {}
        self._counted: dict[int, Update] = {}  # The latest of each choice.
        # What was sent of each choice: characters, tokens, and the characters that those tokens cover.
        self._sent: dict[int, tuple[int, int, int]] = {}
        self._scored: dict[int, Scores] = {}  # For requests that only score the given text.

    def begin(self) -> None:
        """Submit the texts to be written.

        Raises:
          Busy, ShuttingDown: as `Scheduler.submit`.
        """
        if self._asked.only_scores:
            if self._service.scorer.waiting >= self._service.settings.queue + self._service.settings.rows:
                raise Busy(f"{self._service.scorer.waiting} texts wait to be scored", 1)
            return
        loop = asyncio.get_running_loop()

        def tell(index: int, update: Update) -> None:
            with contextlib.suppress(RuntimeError):  # The server's loop is closed: nobody waits.
                loop.call_soon_threadsafe(self._told.put_nowait, (index, update))

        for text in self._texts:
            told = functools.partial(tell, text.index)
            self._tickets[text.index] = self._service.ticket(self._asked, text, told)
        self._service.scheduler.submit(list(self._tickets.values()))

    def cancel(self) -> None:
        """Free the rows of unfinished texts."""
        for index, ticket in self._tickets.items():
            if index not in self._last:
                self._service.scheduler.cancel(ticket)

    async def whole(self) -> dict[str, Any]:
        """The answer.

        Raises:
          BadRequest: a text has none.
        """
        async for _ in self._updates():
            pass
        choices = await asyncio.gather(*(self._choice(text, self._last[text.index]) for text in self._texts))
        kind = "chat.completion" if self._asked.chat else "text_completion"
        return {**self._head(kind), "choices": list(choices), "usage": self._usage(self._last)}

    async def chunks(self) -> AsyncIterator[dict[str, Any]]:
        """The answer in parts, as they are written.

        Raises:
          BadRequest: a text has none.
        """
        kind = "chat.completion.chunk" if self._asked.chat else "text_completion"
        if self._asked.chat:
            for text in self._texts:
                delta = {
                    "index": text.index,
                    "delta": {"role": "assistant", "content": ""},
                    "finish_reason": None,
                }
                yield {**self._head(kind), "choices": [delta], **self._counts()}
        async for index, update in self._updates():
            text = next(text for text in self._texts if text.index == index)
            choice = await self._choice(text, update)
            self._counted[index] = update
            yield {**self._head(kind), "choices": [choice], **self._counts()}
        if self._asked.with_usage:
            yield {**self._head(kind), "choices": [], "usage": self._usage(self._last)}

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._service.settings.name,
        }

    def _usage(self, updates: Mapping[int, Update]) -> dict[str, Any]:
        return usage_of(self._texts, list(updates.values()), self._asked.n)

    def _counts(self) -> dict[str, Any]:
        """Token counts so far, if they are asked for."""
        return {"usage": self._usage(self._counted)} if self._asked.counts else {}

    async def _updates(self) -> AsyncIterator[tuple[int, Update]]:
        """(choice, its text so far), until all have ended."""
        if self._asked.only_scores:
            for text, update in zip(self._texts, await self._likeliest(), strict=True):
                self._last[text.index] = update
                yield text.index, update
            return
        while len(self._last) < len(self._texts):
            index, update = await self._told.get()
            if update.error is not None:
                self._last[index] = update
                raise _as_request(update.error)
            if update.over:
                self._last[index] = update
            yield index, update

    async def _choice(self, text: Text, update: Update) -> dict[str, Any]:
        """A choice of the answer; in a stream, only its new part."""
        asked = self._asked
        scores = await self._scores(text, update) if asked.scored else None
        sheet = sheet_of(self._service.tokenizer, asked, text, update, scores)
        characters, first, told = self._sent.get(text.index, (0, 0, 0))
        last = len(sheet.ids) if update.over else max(first, sheet.until(len(sheet.text)))
        self._sent[text.index] = len(sheet.text), last, sheet.ends[last - 1] if last and sheet.ends else 0
        new = sheet.text[characters:]
        choice: dict[str, Any] = {"index": text.index}
        if asked.chat:
            message = (
                {"content": new} if asked.stream else {"role": "assistant", "content": new, "refusal": None}
            )
            choice["delta" if asked.stream else "message"] = message
        else:
            choice["text"] = new
        choice["logprobs"] = self._logprobs(sheet, first, last)
        choice["finish_reason"] = None
        generation = update.generation
        if generation is not None:
            choice["finish_reason"] = FINISHES.get(generation.stopped, "stop")
            if update.stop:
                choice["stop_reason"] = update.stop
        if asked.extended:
            tokens = sheet.extended(first, last, len(update.tokens), told, update, asked.candidates)
            own: dict[str, Any] = {"tokens": tokens}
            if generation is not None:
                own |= summary(text, update, generation)
            choice[EXTENSION] = own
        return choice

    def _logprobs(self, sheet: Sheet, first: int, last: int) -> dict[str, Any] | None:
        asked = self._asked
        if asked.logprobs is None:
            return None
        return (sheet.chat if asked.chat else sheet.legacy)(first, last, asked.logprobs)

    async def _scores(self, text: Text, update: Update) -> Scores:
        if text.index not in self._scored:
            ids = np.concatenate([text.job.ids, update.tokens])
            return await asyncio.wrap_future(self._service.scorer.score(ids, max(self._asked.scored, 1)))
        return self._scored[text.index]

    async def _likeliest(self) -> list[Update]:
        """For requests that only score the given text: the likeliest next token, if one is asked for."""
        return list(await asyncio.gather(*(self._next(text) for text in self._texts)))

    async def _next(self, text: Text) -> Update:
        nothing = np.zeros(0, np.int32)
        self._scored[text.index] = scores = await self._scores(text, Update("", nothing))
        return self._ended(text, scores.top[-1, :1] if self._asked.max_tokens else nothing)

    def _ended(self, text: Text, tokens: np.ndarray) -> Update:
        whole = np.concatenate([text.job.ids, tokens])
        generation = generation_of(
            text.job.prompt, self._service.tokenizer, tokens=whole, prompt_length=len(text.job.ids),
            scores=np.full(len(tokens), np.nan, np.float32), calls=[], budget=0.0, gate=text.job.calling.gate,
            failures=0, silences=0, unfit=0, tokens_per_call=1.0, gave_up="", stopped="length",
        )  # fmt: skip
        return Update(generation.text, tokens, generation=generation)


def _as_request(error: LacyError) -> BadRequest:
    """A text's error in the API's form."""
    if isinstance(error, Busy):
        return BadRequest(str(error), code="queue_full", status=429, retry_after=error.retry_after)
    if isinstance(error, ShuttingDown):
        return BadRequest(str(error), code="shutting_down", status=503, retry_after=1)
    if isinstance(error, PartnerError):
        return BadRequest(str(error), code="partner_failed", status=502)
    return BadRequest(str(error), code="internal_error", status=500)
