"""Exchanges of JSON with a server, with retries, one deadline per request and a circuit breaker.

A request is repeated after a temporary failure (no connection, timeout, 408, 409, 425, 429, 5xx, an unusable answer). It
waits as long as the server asks for, but all attempts together never take longer than the request's timeout. A circuit
breaker stops requests to a server that is down: they then fail at once, with the reason for which the breaker opened.

The retry loop is our own because its waits can be cancelled, share a deadline with the attempts and are shared by all
threads, and because an answer with status 200 may be a failure too; urllib3's `Retry` reads the Retry-After header.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import urllib3

from lacy_jax.clients.answers import message_of
from lacy_jax.clients.proxies import basic_auth, open_pool
from lacy_jax.errors import ConfigError, PartnerError, one_line

_MAY_PASS = frozenset([408, 409, 425, 429])
_OF_THIS_TEXT = frozenset([400, 413, 422])
FIRST_WAIT_S, LONGEST_WAIT_S = 0.25, 4.0
LONGEST_ASKED_S = 600.0
"""The longest wait that a server may ask for; if it asks for more, the request has failed."""

_T = TypeVar("_T")


class Refused(PartnerError):
    """The server refuses the request; repeating it would not help.

    Attributes:
      parameter: the parameter that the server does not accept, if it names one.
    """

    def __init__(self, message: str, parameter: str = ""):
        super().__init__(message)
        self.parameter = parameter


class TextRefused(Refused):
    """The server works, but refuses this text (because it is too long, for example)."""


class CircuitBreaker:
    """Opens after `threshold` consecutive failures for `cooldown_s` seconds; then one trial request decides.

    Thread-safe. `clock` returns seconds and is replaced in tests.
    """

    def __init__(
        self, threshold: int = 5, cooldown_s: float = 30.0, clock: Callable[[], float] = time.monotonic
    ):
        self.threshold, self.cooldown_s = threshold, cooldown_s
        self._clock, self._lock = clock, threading.Lock()
        self._failures, self._closed_again = 0, -float("inf")
        self.cause = ""  # The reason of the first of the consecutive failures.

    def allows(self) -> bool:
        """Whether a request may be sent now; after the cooldown, only one caller gets True until its outcome is known."""
        with self._lock:
            if self._failures < self.threshold:
                return True
            if self._clock() < self._closed_again:
                return False
            self._closed_again = self._clock() + self.cooldown_s
            return True

    def record(self, reason: str = "") -> None:
        """Count an outcome ("" = success); a failure that reaches the threshold starts the cooldown."""
        with self._lock:
            self.cause = (self.cause or reason) if reason else ""
            self._failures = self._failures + 1 if reason else 0
            if self._failures >= self.threshold:
                self._closed_again = self._clock() + self.cooldown_s


class Server:
    """One server, used by up to `connections` threads over connections that are kept alive.

    Args:
      url: URL of the API; user and password in it are sent as basic authentication and never shown.
      key: sent as bearer token; "" = none.
      timeout_s: longest time of one exchange with all its attempts.
      retries: attempts after the first.
      breaker: the circuit breaker.
      try_timeout_s: longest time of one attempt.
      first_wait_s, longest_wait_s: the wait before a retry doubles from the first value up to the second (plus or minus
        a quarter), or is as long as the server asks for.

    Raises:
      ConfigError: `url` is not an http(s) URL, or its proxy cannot be used.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        connections: int,
        timeout_s: float,
        retries: int,
        breaker: CircuitBreaker,
        try_timeout_s: float = math.inf,
        first_wait_s: float | None = None,
        longest_wait_s: float | None = None,
    ):
        try:
            parsed = urllib3.util.parse_url(url)
        except urllib3.exceptions.LocationParseError:
            parsed = urllib3.util.Url()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ConfigError(f"completions server {url!r}: expected a URL such as http://localhost:8000/v1")
        self._base = parsed._replace(auth=None)
        self.url = self._base.url.rstrip("/")
        self.timeout_s, self.retries, self.breaker = timeout_s, retries, breaker
        self.tries = self.repeated = 0
        self._try_timeout_s = try_timeout_s
        self._first_wait_s = FIRST_WAIT_S if first_wait_s is None else first_wait_s
        self._longest_wait_s = LONGEST_WAIT_S if longest_wait_s is None else longest_wait_s
        self._lock = threading.Lock()
        self._cancelled = threading.Event()
        self._asks_again_at = -math.inf  # The server has asked all threads to send nothing before this time.
        self._pool = open_pool(parsed, connections)
        self._headers = {"Content-Type": "application/json"}
        if parsed.auth:
            self._headers["Authorization"] = basic_auth(parsed.auth)
        if key:
            self._headers["Authorization"] = f"Bearer {key}"

    def cancel(self, cancelled: bool = True) -> None:
        """Make running exchanges return soon with an error; False undoes this."""
        (self._cancelled.set if cancelled else self._cancelled.clear)()

    @property
    def is_cancelled(self) -> bool:
        """Whether exchanges return at once."""
        return self._cancelled.is_set()

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def exchange(
        self, method: str, path: str, deadline: float, read: Callable[[Any], _T], body: Any = None
    ) -> _T:
        """One JSON exchange with retries; `read` converts the answer, or raises a ValueError that says why it cannot.

        Args:
          deadline: a time of `time.monotonic`.

        Raises:
          Refused: repeating would not help; `TextRefused` if another text may be answered.
          PartnerError: all attempts failed, the time is up, the circuit is open, or the exchange was cancelled.
        """
        reason, backoff = "no attempt was made", self._first_wait_s
        for attempt in range(self.retries + 1):
            if not self.breaker.allows():
                raise PartnerError(
                    f"{self.url}: not asked, because it has just failed {self.breaker.threshold} times: {self.breaker.cause}"
                )
            if not self._wait_until(self._asks_again_at, deadline):
                break
            with self._lock:
                self.tries += 1
                self.repeated += attempt > 0
            try:
                result = read(self._try(method, path, deadline, body))
            except _Failed as error:
                failed = error
            except ValueError as error:
                failed = _Failed(str(error))
            else:
                self.breaker.record()
                return result
            reason = str(failed)
            if not failed.works:
                self.breaker.record(reason)
            if failed.asks_s and failed.asks_s > min(LONGEST_ASKED_S, deadline - time.monotonic()):
                raise PartnerError(f"{self.url}: {reason}; it asks for a wait of {failed.asks_s:.0f} s")
            with self._lock:
                self._asks_again_at = max(self._asks_again_at, time.monotonic() + failed.asks_s)
            if attempt < self.retries:
                pause = min(backoff * random.uniform(0.75, 1.25), self._longest_wait_s)
                self._wait_until(time.monotonic() + pause, deadline)
                backoff *= 2.0
        if self.is_cancelled:
            reason = "cancelled"
        elif time.monotonic() >= deadline:
            reason = f"no answer in {self.timeout_s:g} s ({reason})"
        times = f", {attempt + 1} times" if attempt else ""
        raise PartnerError(f"{self.url}: {reason}{times}")

    def _wait_until(self, when: float, deadline: float) -> bool:
        """Wait; whether a request may be sent then (not cancelled, and before the deadline)."""
        pause = min(when, deadline) - time.monotonic()
        if pause > 0:
            self._cancelled.wait(pause)
        return not self.is_cancelled and max(when, time.monotonic()) < deadline

    def _try(self, method: str, path: str, deadline: float, body: Any) -> Any:
        """The JSON value from one attempt.

        Raises:
          Refused: see `exchange`.
          _Failed: the failure may be temporary.
        """
        try:
            response = self._pool.request(
                method,
                self._base._replace(path=(self._base.path or "").rstrip("/") + path).url,
                body=None if body is None else json.dumps(body).encode(),
                headers=self._headers,
                timeout=urllib3.Timeout(total=min(deadline - time.monotonic(), self._try_timeout_s)),
            )
            value = json.loads(response.data)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise _Failed(_reason(error)) from None
        except (ValueError, RecursionError):
            value = None
        status, said = response.status, f"HTTP {response.status}"
        if 200 <= status < 300:
            if value is None:
                raise _Failed("the answer is not JSON")
            status, said = _status_inside(value), f"{said} with an error:"
            if not status:
                return value
        text = message_of(value) if value is not None else response.data.decode("utf-8", "replace")
        reason = f"{said} {one_line(text, 200)}".rstrip()
        if status in _MAY_PASS or status >= 500:
            raise _Failed(reason, asks_s=_asked_to_wait(response.headers), works=status in _MAY_PASS)
        self.breaker.record()  # The server works.
        kind = TextRefused if status in _OF_THIS_TEXT else Refused
        raise kind(f"{self.url}: {reason}", _parameter(value, text))


class _Failed(Exception):
    """A failed attempt that may be repeated; `str` is the reason.

    Attributes:
      asks_s: seconds that the server asks to wait.
      works: whether the server is only busy, not down.
    """

    def __init__(self, reason: str, asks_s: float = 0.0, works: bool = False):
        super().__init__(reason)
        self.asks_s, self.works = asks_s, works


def _status_inside(value: Any) -> int:
    """The status of an error reported in a body with status 200; 0 if there is none."""
    if not isinstance(value, dict) or value.get("choices"):
        return 0
    error = value.get("error") or (value if value.get("object") == "error" else None)
    if not error:
        return 0
    code = str(error.get("code")) if isinstance(error, dict) else ""
    return int(code) if re.fullmatch("[45][0-9]{2}", code) else 500


def _parameter(value: Any, message: str) -> str:
    """The parameter that a refusal names as not supported; "" if there is none."""
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, dict) and str(error.get("code")) in ("unsupported_parameter", "unsupported_value"):
        return str(error.get("param") or "")
    named = re.search(r"'(\w+)' (?:is not supported|does not support)", message)
    return named[1] if named else ""


def _asked_to_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait, given as a number or a date; 0 if it does not ask."""
    given = headers.get("Retry-After", "")
    with contextlib.suppress(ValueError):
        seconds = float(given)
        return seconds if 0.0 < seconds < math.inf else 0.0
    with contextlib.suppress(urllib3.exceptions.InvalidHeader, ValueError, OverflowError):
        return max(urllib3.Retry().parse_retry_after(given), 0.0)
    return 0.0


def _reason(error: Exception) -> str:
    if isinstance(error, urllib3.exceptions.ProxyError):
        return f"the proxy refuses the connection ({one_line(error.original_error, 200)})"
    if isinstance(error, urllib3.exceptions.NameResolutionError):
        return "cannot connect; the host name is unknown"
    if isinstance(error, urllib3.exceptions.NewConnectionError):  # urllib3 counts it as a timeout, too.
        return "cannot connect; is the server running?"
    if isinstance(error, urllib3.exceptions.TimeoutError):
        return "timed out"
    return one_line(error, 200)
