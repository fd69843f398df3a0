"""A client of OpenAI-compatible servers (vLLM, llama.cpp, Ollama): concurrent, patient, bounded.

The only one: partners, judges of facts and judges that label all ask through it.

Connections are kept alive and shared by `concurrency` threads. A request is tried again after a failure that
may pass (no connection, timeout, 408, 409, 425, 429, 5xx, an answer that is none), and never takes longer than
`timeout_s` with all its tries. A circuit breaker stops asking a server that is down: what fails then fails at once.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import math
import os
import random
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import urllib3

from lacy_jax.errors import ConfigError, PartnerError

KEY_VARIABLES = ("LACY_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the server's key, in this order; a key is never part of a config."""
_MAY_PASS = frozenset([408, 409, 425, 429])
_OF_THIS_TEXT = frozenset([400, 413, 422])
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.25, 4.0


_T = TypeVar("_T")


class Refused(PartnerError):
    """The server answers that it will not; asking again would not help."""


class TextRefused(Refused):
    """The server works, but will not go on from this text (too long for it, for example)."""


class CircuitBreaker:
    """Opens after `threshold` failures in a row, for `cooldown_s` seconds; then one trial decides.

    Thread-safe. `clock` gives seconds and is replaced in tests.
    """

    def __init__(
        self, threshold: int = 5, cooldown_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ):
        self.threshold, self.cooldown_s = threshold, cooldown_s
        self._clock, self._lock = clock, threading.Lock()
        self._failures, self._closed_again = 0, -float("inf")

    def allows(self) -> bool:
        """Whether a request may be sent now; after the cooldown one caller gets True and the others wait."""
        with self._lock:
            if self._failures < self.threshold:
                return True
            if self._clock() < self._closed_again:
                return False
            self._closed_again = self._clock() + self.cooldown_s
            return True

    def record(self, success: bool) -> None:
        """Count an outcome; the failure that reaches the threshold starts the cooldown."""
        with self._lock:
            self._failures = 0 if success else self._failures + 1
            if self._failures >= self.threshold:
                self._closed_again = self._clock() + self.cooldown_s


@dataclasses.dataclass
class Usage:
    """What a client has asked for so far. Tokens are the server's count, 0 where it does not say.

    Attributes:
      requests: prompts sent. tries: HTTP requests, tries again included. retries: the tries again alone.
      failures: prompts without an answer.
      seconds: wall time of `complete`, summed over its calls.
    """

    requests: int = 0
    tries: int = 0
    retries: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """A text, and what the server says it has used for it (its `usage`, as sent)."""

    text: str
    usage: dict[str, Any]


class CompletionsClient:
    """Asks one server for greedy continuations.

    Args:
      url: of the API, such as http://localhost:8000/v1.
      model: name to ask for; "" = the first that the server lists.
      chat: use /chat/completions with the prompt as the only message, for models served for chat alone.
      concurrency: requests at a time. timeout_s: longest time of one request with all its tries.
      retries: tries after the first. try_timeout_s: longest time of one of them; None = what is left of `timeout_s`.
      key: sent as bearer token; None = from the environment (`KEY_VARIABLES`), "" = none.
      first_wait_s, longest_wait_s: the wait before a try again doubles from the first (give or take a quarter), or
        is longer where the server asks for it; never longer than the second. None = 0.25 and 4 s.

    Raises:
      ConfigError: the url is no http(s) URL, or a number is out of range.
    """

    def __init__(
        self,
        url: str,
        model: str = "",
        *,
        chat: bool = False,
        concurrency: int = 8,
        timeout_s: float = 30.0,
        retries: int = 2,
        breaker: CircuitBreaker | None = None,
        try_timeout_s: float | None = None,
        key: str | None = None,
        first_wait_s: float | None = None,
        longest_wait_s: float | None = None,
    ):
        parsed = urllib3.util.parse_url(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f"completions server {url!r}: expected a URL such as http://localhost:8000/v1")
        if concurrency < 1 or timeout_s <= 0 or retries < 0:
            raise ConfigError(
                f"completions server {url}: concurrency = {concurrency} and timeout_s = {timeout_s} must be "
                f"positive, retries = {retries} not negative"
            )
        self.url, self.model, self.chat = url.rstrip("/"), model, chat
        self.concurrency, self.timeout_s, self.retries = concurrency, timeout_s, retries
        self.breaker = breaker or CircuitBreaker()
        self.usage = Usage()
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._pool = _open_pool(parsed, concurrency)
        self._try_timeout_s = math.inf if try_timeout_s is None else try_timeout_s
        self._first_wait_s = _FIRST_WAIT_S if first_wait_s is None else first_wait_s
        self._longest_wait_s = _LONGEST_WAIT_S if longest_wait_s is None else longest_wait_s
        if key is None:
            key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "")
        self._headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {key}"} if key else {}
        )

    def complete(
        self, prompts: Sequence[str], *, max_tokens: int, stop: Sequence[str] = ()
    ) -> list[str | PartnerError]:
        """The greedy continuation of each prompt, in order; a prompt without an answer gets its error.

        Ctrl-C, and `cancel` from another thread, end it early: what has not been sent is not sent.
        """
        started = time.monotonic()
        self._cancelled.clear()
        body = {"temperature": 0.0, "max_tokens": max_tokens, **({"stop": list(stop)} if stop else {})}
        executor = concurrent.futures.ThreadPoolExecutor(min(self.concurrency, max(len(prompts), 1)))
        try:
            return list(executor.map(lambda prompt: self._complete_one(prompt, body), prompts))
        except KeyboardInterrupt:
            self.cancel()
            raise
        finally:
            executor.shutdown(wait=not self._cancelled.is_set(), cancel_futures=True)
            with self._lock:
                self.usage.seconds += time.monotonic() - started

    def cancel(self) -> None:
        """Make a running `complete` return soon, with errors for what is not answered yet."""
        self._cancelled.set()

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def body(self, prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What is sent for a prompt: the model's name as known so far, the prompt, the settings."""
        given: dict[str, Any] = (
            {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        )
        return {"model": self.model, **given, **settings}

    def answer(self, prompt: str, settings: Mapping[str, Any]) -> Answer:
        """The answer to one prompt; may be called by many threads.

        Args:
          settings: of the API, such as {"temperature": 0, "max_tokens": 16}.

        Raises:
          Refused: the server will not answer this, however often it is asked.
          PartnerError: it failed, with all tries.
        """
        path = "/chat/completions" if self.chat else "/completions"
        deadline = time.monotonic() + self.timeout_s
        answer = None
        try:
            if not self.model:
                self.model = self._request("GET", "/models", deadline, _first_model)
            answer = self._request("POST", path, deadline, self._read_answer, self.body(prompt, settings))
        finally:
            with self._lock:
                self.usage.requests += 1
                self.usage.failures += answer is None
        used = [int(answer.usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")]
        with self._lock:
            self.usage.prompt_tokens += used[0]
            self.usage.completion_tokens += used[1]
        return answer

    def _complete_one(self, prompt: str, settings: dict[str, Any]) -> str | PartnerError:
        try:
            return self.answer(prompt, settings).text
        except PartnerError as error:
            return error

    def _read_answer(self, value: Any) -> Answer:
        try:
            choice = value["choices"][0]
            text = choice["message"]["content"] if self.chat else choice["text"]
            usage = dict(value.get("usage") or {})
            for kind in ("prompt", "completion"):
                int(usage.get(f"{kind}_tokens") or 0)
        except (KeyError, IndexError, TypeError, AttributeError, ValueError):
            raise ValueError("the answer is not that of a completions server") from None
        if text is None:  # A chat model that has nothing to say.
            text = ""
        if not isinstance(text, str):
            raise ValueError("the answer is not that of a completions server")
        return Answer(text, usage)

    def _request(
        self, method: str, path: str, deadline: float, read: Callable[[Any], _T], body: Any = None
    ) -> _T:
        """One JSON exchange with its tries; `read` takes the answer in, or says why not by a ValueError.

        Raises:
          PartnerError: it failed for good, the time is up, the circuit is open, or it was cancelled.
        """
        reason, wait = "no try was made", self._first_wait_s
        for attempt in range(self.retries + 1):
            if not self.breaker.allows():
                raise PartnerError(
                    f"{self.url}: not asked, it has just failed {self.breaker.threshold} times"
                )
            left = deadline - time.monotonic()
            if self._cancelled.is_set() or left <= 0:
                break
            with self._lock:
                self.usage.tries += 1
                self.usage.retries += attempt > 0
            asked_to_wait = 0.0
            try:
                response = self._pool.request(
                    method,
                    self.url + path,
                    body=None if body is None else json.dumps(body).encode(),
                    headers=self._headers,
                    timeout=urllib3.Timeout(total=min(left, self._try_timeout_s)),
                )
                value, reason, asked_to_wait = self._read(response)
                if not reason:
                    result = read(value)
                    self.breaker.record(True)
                    return result
            except (urllib3.exceptions.HTTPError, OSError) as error:
                reason = _reason(error)
            except ValueError as error:
                reason = str(error)
            self.breaker.record(False)
            if attempt < self.retries:
                pause = max(wait * random.uniform(0.75, 1.25), asked_to_wait)
                self._cancelled.wait(min(pause, self._longest_wait_s, max(deadline - time.monotonic(), 0.0)))
                wait *= 2.0
        if self._cancelled.is_set():
            reason = "cancelled"
        elif time.monotonic() >= deadline:
            reason = f"no answer in {self.timeout_s:g} s ({reason})"
        raise PartnerError(f"{self.url}: {reason}")

    def _read(self, response: urllib3.BaseHTTPResponse) -> tuple[Any, str, float]:
        """(JSON value, why there is none or "", seconds the server asks to wait).

        Raises:
          Refused: asking again would not help; `TextRefused` if another text may be answered.
        """
        if 200 <= response.status < 300:
            try:
                answer = json.loads(response.data)
            except ValueError:
                return None, "the answer is not JSON", 0.0
            return answer, "", 0.0
        reason = f"HTTP {response.status} {_message(response.data)}".rstrip()
        if response.status in _MAY_PASS or response.status >= 500:
            try:
                after = float(response.headers.get("Retry-After", ""))
            except ValueError:  # Absent, or a date.
                after = 0.0
            return None, reason, after if after > 0 else 0.0
        kind = TextRefused if response.status in _OF_THIS_TEXT else Refused
        raise kind(f"{self.url}: {reason}")


def _open_pool(url: urllib3.util.Url, connections: int) -> urllib3.PoolManager:
    """Connections to a server, through the proxy that the environment names for it, as other tools do."""
    proxy = None
    if not urllib.request.proxy_bypass(url.netloc or ""):
        proxy = urllib.request.getproxies().get(url.scheme or "")
    if proxy:
        return urllib3.ProxyManager(proxy, maxsize=connections, block=True, retries=False)
    return urllib3.PoolManager(maxsize=connections, block=True, retries=False)


def _first_model(listed: Any) -> str:
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ValueError("the server lists no model; name one as URL#MODEL") from None


def _message(data: bytes) -> str:
    """What the server says is wrong, in one line of at most 200 characters."""
    try:
        value = json.loads(data)
        value = value.get("error", value) if isinstance(value, dict) else value
        text = str(value.get("message", value) if isinstance(value, dict) else value)
    except ValueError:
        text = data.decode("utf-8", "replace")
    return " ".join(text.split())[:200]


def _reason(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # Which urllib3 also calls a timeout.
        return "cannot connect; is the server running?"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "timed out"
    return " ".join(str(error).split())[:200] or type(error).__name__
