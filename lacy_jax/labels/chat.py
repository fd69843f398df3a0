"""A client for any OpenAI-compatible chat server: concurrent, retried, and every answer kept on disk.

An answer is cached under the hash of what was asked (model, messages, limits), so that a job that was interrupted goes
on where it stopped and never pays twice. The key is sent, never written.
"""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.errors import ConfigError, LacyError

_TRY_AGAIN = frozenset([408, 409, 425, 429, 500, 502, 503, 504])
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
    """Asks one model on one server.

    Attributes:
      usage: counts so far.
    """

    def __init__(
        self,
        url: str,
        model: str,
        cache: epath.PathLike,
        *,
        key: str = "",
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
          retries: tries after the first; the wait doubles from `backoff_s`, or is what the server asks for.
          max_tokens: longest answer, in the server's tokens.

        Raises:
          ConfigError: `url` is no http(s) address, or a number is out of range.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"judge server {url!r}: expected an address such as http://localhost:8000/v1")
        if concurrency < 1 or retries < 0:
            raise ConfigError(f"concurrency {concurrency}, retries {retries}: expected at least 1 and 0")
        self._url = url.rstrip("/") + "/chat/completions"
        self._model, self._key, self._max_tokens = model, key, max_tokens
        self._cache = epath.Path(cache)
        self._concurrency, self._retries = concurrency, retries
        self._backoff_s, self._timeout_s = backoff_s, timeout_s
        self.usage = Usage()
        self._counting = threading.Lock()

    def is_cached(self, prompt: str) -> bool:
        """Whether an answer to `prompt` is on disk."""
        return self._file(self._request(prompt)).exists()

    def ask(self, prompts: Iterable[str]) -> Iterator[str]:
        """Answers in the order of the prompts, which are read a little ahead of the answers.

        Raises:
          LacyError: the server refuses, or fails after all retries; answers so far are kept.
        """
        pool = concurrent.futures.ThreadPoolExecutor(self._concurrency)
        waiting: collections.deque[concurrent.futures.Future[str]] = collections.deque()
        try:
            for prompt in prompts:
                waiting.append(pool.submit(self._answer, prompt))
                if len(waiting) > 2 * self._concurrency:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # also when the caller stops early: what has not begun is not asked
            pool.shutdown(cancel_futures=True)

    def _request(self, prompt: str) -> dict[str, Any]:
        return {
            "model": self._model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": self._max_tokens,
        }

    def _file(self, request: dict[str, Any]) -> epath.Path:
        digest = hashlib.sha256(
            json.dumps(request, sort_keys=True).encode("utf-8", "surrogatepass")
        ).hexdigest()
        return self._cache / digest[:2] / f"{digest}.json"

    def _answer(self, prompt: str) -> str:
        request = self._request(prompt)
        file = self._file(request)
        if file.exists():
            with contextlib.suppress(LacyError, KeyError, TypeError):  # a damaged answer is asked for again
                answer = str(files.read_json(file, "cached answer")["answer"])
                self._count(cached=1)
                return answer
        answer, usage = self._post(json.dumps(request).encode())
        counts = {name: int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")}
        self._count(answered=1, **counts)
        files.write_json(file, {"model": self._model, "answer": answer, "usage": usage})
        return answer

    def _count(self, **counts: int) -> None:
        with self._counting:
            for name, count in counts.items():
                setattr(self.usage, name, getattr(self.usage, name) + count)

    def _post(self, body: bytes) -> tuple[str, dict[str, Any]]:
        """(answer, usage) by the server, tried again as long as that may help."""
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self._key}"} if self._key else {}
        )
        for attempt in range(self._retries + 1):
            request = urllib.request.Request(self._url, body, headers)
            wait = min(self._backoff_s * 2**attempt, _LONGEST_WAIT_S) * random.uniform(0.75, 1.25)
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s) as reply:
                    value = json.load(reply)
                return str(value["choices"][0]["message"]["content"] or ""), value.get("usage") or {}
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code}: {' '.join(error.read(300).decode(errors='replace').split())}"
                if error.code not in _TRY_AGAIN:
                    raise LacyError(
                        f"judge server {self._url}: {why}; check address, model and key"
                    ) from None
                with contextlib.suppress(TypeError, ValueError):
                    wait = min(float(error.headers.get("Retry-After", "")), _LONGEST_WAIT_S)
            except (OSError, http.client.HTTPException) as error:
                why = str(getattr(error, "reason", error)) or type(error).__name__
            except (ValueError, KeyError, IndexError, TypeError) as error:
                why = f"not a chat completion ({type(error).__name__}: {error})"
            if attempt < self._retries:
                self._count(retried=1)
                time.sleep(wait)
        raise LacyError(
            f"judge server {self._url}: {why}, {self._retries + 1} times; the answers so far are kept in "
            f"{self._cache}: run again to go on"
        )
