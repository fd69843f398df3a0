"""Questions to a chat model (`lacy_jax.clients.completions`) in order and at once, with every answer kept on disk.

An answer is cached under the hash of what was asked (model, messages, limits), so that a job that was interrupted goes
on where it stopped and never pays twice. The key is sent, never written.
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
from collections.abc import Iterable, Iterator

from etils import epath

from lacy_jax import files
from lacy_jax.clients.completions import CircuitBreaker, CompletionsClient, Refused
from lacy_jax.errors import LacyError, PartnerError

_LONGEST_WAIT_S = 60.0


@dataclasses.dataclass
class Usage:
    """What a client has done: requests answered from the cache or by the server, tries repeated, tokens billed."""

    cached: int = 0
    answered: int = 0
    retried: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class ChatClient:
    """Asks one model on one server."""

    def __init__(
        self,
        url: str,
        model: str,
        cache: epath.PathLike,
        *,
        key: str | None = "",
        concurrency: int = 8,
        retries: int = 6,
        backoff_s: float = 1.0,
        timeout_s: float = 120.0,
        max_tokens: int = 512,
    ):
        """
        Args:
          url: base of the API, such as "http://localhost:8000/v1".
          cache: folder for the answers.
          key: sent as bearer token; "" = none, None = from the environment (`completions.KEY_VARIABLES`).
          retries: tries after the first; the wait doubles from `backoff_s`, or is longer if the server asks for it.
          timeout_s: longest time of one try; there is no limit to a request with all its tries.
          max_tokens: longest answer, in the server's tokens.

        Raises:
          ConfigError: `url` is no http(s) address, or a number is out of range.
        """
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
            breaker=CircuitBreaker(cooldown_s=0.0),  # Never refuses: a long job waits for its server.
        )
        self._settings = {"temperature": 0, "max_tokens": max_tokens}
        self._cache = epath.Path(cache)
        self._cached = self._answered = 0
        self._counting = threading.Lock()

    @property
    def usage(self) -> Usage:
        """Counts so far."""
        sent = self._client.usage
        with self._counting:
            return Usage(
                self._cached, self._answered, sent.retries, sent.prompt_tokens, sent.completion_tokens
            )

    def is_cached(self, prompt: str) -> bool:
        """Whether an answer to `prompt` is on disk."""
        return self._file(prompt).exists()

    def ask(self, prompts: Iterable[str]) -> Iterator[str]:
        """Answers in the order of the prompts, which are read a little ahead of the answers.

        Raises:
          LacyError: the server refuses, or fails after all retries; answers so far are kept.
        """
        pool = concurrent.futures.ThreadPoolExecutor(self._client.concurrency)
        waiting: collections.deque[concurrent.futures.Future[str]] = collections.deque()
        try:
            for prompt in prompts:
                waiting.append(pool.submit(self._answer, prompt))
                if len(waiting) > 2 * self._client.concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the caller stops early: what has not begun is not asked
            pool.shutdown(cancel_futures=True)

    def _file(self, prompt: str) -> epath.Path:
        request = self._client.body(prompt, self._settings)
        digest = hashlib.sha256(
            json.dumps(request, sort_keys=True).encode("utf-8", "surrogatepass")
        ).hexdigest()
        return self._cache / digest[:2] / f"{digest}.json"

    def _answer(self, prompt: str) -> str:
        file = self._file(prompt)
        if file.exists():
            with contextlib.suppress(LacyError, KeyError, TypeError):  # a damaged answer is asked for again
                text = str(files.read_json(file, "cached answer")["answer"])
                with self._counting:
                    self._cached += 1
                return text
        try:
            answer = self._client.answer(prompt, self._settings)
        except Refused as error:
            raise LacyError(f"judge server {error}; check address, model and key") from None
        except PartnerError as error:
            raise LacyError(
                f"judge server {error}, {self._client.retries + 1} times; the answers so far are kept in "
                f"{self._cache}: run again to go on"
            ) from None
        with self._counting:
            self._answered += 1
        files.write_json(file, {"model": self._client.model, "answer": answer.text, "usage": answer.usage})
        return answer.text
