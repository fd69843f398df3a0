"""Concurrent questions to a chat model (`lacy_jax.clients.completions`), with every answer cached on disk.

An answer is cached under the hash of the request (model, messages, limits), so that an interrupted job goes on where it
stopped and never pays twice. A missing answer is not cached, so it is requested again. The key is sent, but never written.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from etils import epath

from lacy_jax import files
from lacy_jax.clients.answers import Answer, NoAnswer, without_thinking
from lacy_jax.clients.completions import CompletionsClient, server_of
from lacy_jax.clients.prices import PriceGuard, TooExpensive
from lacy_jax.clients.transport import CircuitBreaker, Refused
from lacy_jax.errors import ConfigError, LacyError, PartnerError

ANSWER_TOKENS = 512
_LONGEST_WAIT_S = 60.0

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class Question(Generic[T]):
    """A prompt, and how to read an answer to it: `read` raises a one-line ValueError if the answer is malformed."""

    prompt: str
    read: Callable[[str], T]


@dataclasses.dataclass
class ChatUsage:
    """Counts of a client: requests answered from the cache and by the server, repeated attempts, tokens billed."""

    cached: int = 0
    answered: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatClient:
    """Client of one model on one server."""

    def __init__(
        self,
        spec: str,
        cache: epath.PathLike,
        *,
        key: str | None = "",
        concurrency: int = 8,
        retries: int = 6,
        backoff_s: float = 1.0,
        timeout_s: float = 120.0,
        max_tokens: int = 0,
        guard: PriceGuard | None = None,
        who: str = "judge",
    ):
        """
        Args:
          spec: "chat+http://HOST:PORT/v1#MODEL".
          cache: folder for the answers.
          key: sent as bearer token; "" = none, None = from the environment (`completions.KEY_VARIABLES`).
          retries: attempts after the first; the wait doubles from `backoff_s`, or is longer if the server asks for it.
          timeout_s: longest time of one attempt; the total time of a request is not limited.
          max_tokens: most tokens of an answer, including the model's reasoning; 0 = `ANSWER_TOKENS`.
          guard: stops the requests when they have cost too much.
          who: the model's part, as errors name it; its option is --WHO.

        Raises:
          ConfigError: `spec` names no chat model of a server, or a number is out of range.
        """
        url, model, chat = server_of(spec, f"--{who}")
        if not chat or not model:
            raise ConfigError(f"--{who}={spec}: needs a chat model, chat+http://HOST:PORT/v1#MODEL")
        self._client = CompletionsClient(
            url,
            model,
            chat=True,
            concurrency=concurrency,
            timeout_s=math.inf,
            try_timeout_s=timeout_s,
            retries=retries,
            first_wait_s=backoff_s,
            longest_wait_s=_LONGEST_WAIT_S,
            key=key,
            breaker=CircuitBreaker(cooldown_s=0.0),  # Never opens: a long job waits for its server.
            guard=guard,
        )
        self.url, self.model, self._who = self._client.url, model, who
        self._settings = {"temperature": 0, "max_tokens": max_tokens or ANSWER_TOKENS}
        self._cache = epath.Path(cache)
        self._cached = self._answered = 0
        self._counting = threading.Lock()

    @property
    def usage(self) -> ChatUsage:
        """Counts so far."""
        sent = self._client.usage
        with self._counting:
            return ChatUsage(
                self._cached, self._answered, sent.retries, sent.prompt_tokens, sent.completion_tokens
            )

    def is_cached(self, question: Question[Any]) -> bool:
        """Whether a readable answer to the question is on disk."""
        return not isinstance(self._kept(question), NoAnswer)

    def ask(self, questions: Iterable[Question[T]]) -> Iterator[T | NoAnswer]:
        """Answers in the order of the questions, of which a few are requested ahead.

        Raises:
          LacyError: the server refuses, fails after all retries, or has cost too much; answers so far are kept.
        """
        self._client.cancel(False)
        pool = concurrent.futures.ThreadPoolExecutor(self._client.concurrency)
        waiting: collections.deque[concurrent.futures.Future[T | NoAnswer]] = collections.deque()
        try:
            for question in questions:
                waiting.append(pool.submit(self._answer, question))
                if len(waiting) > 2 * self._client.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # If the caller stops early, no further requests and no further attempts are made.
            self._client.cancel()
            pool.shutdown(cancel_futures=True)

    def _file(self, prompt: str) -> epath.Path:
        request = self._client.body(prompt, self._settings)
        digest = hashlib.sha256(
            json.dumps(request, sort_keys=True).encode("utf-8", "surrogatepass")
        ).hexdigest()
        return self._cache / digest[:2] / f"{digest}.json"

    def _kept(self, question: Question[T]) -> T | NoAnswer:
        """The cached answer; a damaged one, or one that would not be cached today, counts as missing."""
        file = self._file(question.prompt)
        if files.exists(file):
            with contextlib.suppress(LacyError, KeyError, TypeError):
                kept = files.read_json(file, "cached answer")
                text, reason = without_thinking(str(kept["answer"])), str(kept.get("finish_reason", ""))
                return _read(question, Answer(text, reason))
        return NoAnswer("not asked")

    def _answer(self, question: Question[T]) -> T | NoAnswer:
        kept = self._kept(question)
        if not isinstance(kept, NoAnswer):
            with self._counting:
                self._cached += 1
            return kept
        try:
            answer = self._client.answer(question.prompt, self._settings)
        except Refused as error:
            raise LacyError(f"{self._who} server {error}; check the address, model and key") from None
        except TooExpensive as error:
            raise LacyError(
                f"{error}; the answers so far are kept in {self._cache}: run again with a higher limit to go on"
            ) from None
        except PartnerError as error:
            raise LacyError(
                f"{self._who} server {error}; the answers so far are kept in {self._cache}: run again to go on"
            ) from None
        with self._counting:
            self._answered += 1
        found = _read(question, answer)
        if not isinstance(found, NoAnswer):
            value = {"model": self.model, "answer": answer.text, "finish_reason": answer.finish_reason}
            files.write_json(self._file(question.prompt), {**value, "usage": dict(answer.usage)})
        return found


def _read(question: Question[T], answer: Answer) -> T | NoAnswer:
    """The value of an answer, or why there is none."""
    if answer.problem:
        return NoAnswer(answer.problem)
    try:
        return question.read(answer.text)
    except ValueError as error:
        return NoAnswer(str(error))
