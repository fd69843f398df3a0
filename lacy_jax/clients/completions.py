"""The client of OpenAI-compatible servers (vLLM, llama.cpp, Ollama), used by partners, fact judges and label judges.

This module makes the requests, with the parameters that a server accepts; `transport` exchanges them, and `answers` reads
the answers.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
import math
import os
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from lacy_jax.clients.answers import Answer, answer_of
from lacy_jax.clients.prices import PriceGuard
from lacy_jax.clients.transport import CircuitBreaker, Refused, Server
from lacy_jax.errors import ConfigError, PartnerError

KEY_VARIABLES = ("LACY_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the server's key, in this order; a key is never part of a config."""
_OTHER_NAMES = {"max_tokens": "max_completion_tokens"}
"""Parameters that some models accept only under another name; any other parameter that a model refuses is left out."""


@dataclasses.dataclass
class Usage:
    """Counts of a client's requests so far.

    Attributes:
      requests: prompts sent.
      tries: HTTP requests, including repeated ones.
      retries: repeated HTTP requests.
      failures: prompts without an answer.
      prompt_tokens, completion_tokens: the server's counts; 0 if it gives none.
      partner_tokens: tokens read and written by the partners of a server that is one of ours.
      seconds: wall time of all calls of `complete`.
    """

    requests: int = 0
    tries: int = 0
    retries: int = 0
    failures: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    partner_tokens: int = 0
    seconds: float = 0.0


class CompletionsClient:
    """Client of one server, for greedy continuations.

    Args:
      url: URL of the API, such as http://localhost:8000/v1.
      model: name of the model; "" = the first that the server lists.
      chat: use /chat/completions with the prompt as the only message, for models that are served only for chat.
      concurrency: concurrent requests.
      timeout_s: longest time of one request with all its attempts.
      retries: attempts after the first.
      try_timeout_s: longest time of one attempt; None = the rest of `timeout_s`.
      key: sent as bearer token; None = from the environment (`KEY_VARIABLES`), "" = none.
      first_wait_s, longest_wait_s: see `Server`.
      guard: stops the requests when they have cost too much.

    Raises:
      ConfigError: `url` is not an http(s) URL, or a number is out of range.
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
        guard: PriceGuard | None = None,
    ):
        if concurrency < 1 or timeout_s <= 0 or retries < 0:
            raise ConfigError(
                f"completions server {url}: concurrency = {concurrency} and timeout_s = {timeout_s} must be "
                f"positive, retries = {retries} not negative"
            )
        if key is None:
            key = next((os.environ[name] for name in KEY_VARIABLES if os.environ.get(name)), "")
        self._server = Server(
            url,
            key.strip(),
            connections=concurrency,
            timeout_s=timeout_s,
            retries=retries,
            breaker=breaker or CircuitBreaker(),
            try_timeout_s=math.inf if try_timeout_s is None else try_timeout_s,
            first_wait_s=first_wait_s,
            longest_wait_s=longest_wait_s,
        )
        self.url, self.model, self.chat = self._server.url, model, chat
        self.concurrency, self.guard = concurrency, guard or PriceGuard()
        self._usage = Usage()
        self._lock = threading.Lock()
        self._refused: set[str] = set()

    @property
    def retries(self) -> int:
        """Attempts after the first."""
        return self._server.retries

    @property
    def usage(self) -> Usage:
        """Counts so far."""
        with self._lock:
            return dataclasses.replace(self._usage, tries=self._server.tries, retries=self._server.repeated)

    def complete(self, prompts: Sequence[str], *, max_tokens: int) -> list[Answer | PartnerError]:
        """The greedy continuation of each prompt, in order; a failed prompt gets its error.

        Ctrl-C, and `cancel` from another thread, end it early, without sending the remaining requests.
        """
        started = time.monotonic()
        self._server.cancel(False)
        settings = {"temperature": 0.0, "max_tokens": max_tokens}
        executor = concurrent.futures.ThreadPoolExecutor(min(self.concurrency, max(len(prompts), 1)))
        try:
            return list(executor.map(lambda prompt: self._complete_one(prompt, settings), prompts))
        except KeyboardInterrupt:
            self.cancel()
            raise
        finally:
            executor.shutdown(wait=not self._server.is_cancelled, cancel_futures=True)
            with self._lock:
                self._usage.seconds += time.monotonic() - started

    def cancel(self, cancelled: bool = True) -> None:
        """Make requests that wait for another attempt fail at once, so that `complete` returns soon; False undoes this."""
        self._server.cancel(cancelled)

    def close(self) -> None:
        """Close the connections."""
        self._server.close()

    def body(self, prompt: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The body of a request: the model's name if it is known, the prompt, the settings."""
        given: dict[str, Any] = (
            {"messages": [{"role": "user", "content": prompt}]} if self.chat else {"prompt": prompt}
        )
        return {"model": self.model, **given, **settings}

    def answer(self, prompt: str, settings: Mapping[str, Any]) -> Answer:
        """The answer to one prompt; thread-safe.

        Args:
          settings: parameters of the API, such as {"temperature": 0, "max_tokens": 16}.

        Raises:
          Refused: the server refuses the request for good.
          TooExpensive: `guard` allows no more requests.
          PartnerError: all attempts failed.
        """
        self.guard.check()
        deadline = time.monotonic() + self._server.timeout_s
        answer = None
        try:
            if not self.model:
                self.model = self._server.exchange("GET", "/models", deadline, _first_model)
            answer = self._ask(self.body(prompt, settings), deadline)
        finally:
            with self._lock:
                self._usage.requests += 1
                self._usage.failures += answer is None
        used = [answer.tokens(kind) for kind in ("prompt", "completion")]
        with self._lock:
            self._usage.prompt_tokens += used[0]
            self._usage.completion_tokens += used[1]
            self._usage.partner_tokens += answer.partner_tokens
        self.guard.bill(prompt, answer.text, *used)
        return answer

    def _ask(self, body: dict[str, Any], deadline: float) -> Answer:
        """One exchange, repeated without each parameter that the model refuses."""
        path = "/chat/completions" if self.chat else "/completions"
        read = functools.partial(answer_of, chat=self.chat)
        while True:
            sent = {self._name(name): value for name, value in body.items() if self._name(name)}
            try:
                return self._server.exchange("POST", path, deadline, read, sent)
            except Refused as refusal:
                if refusal.parameter not in sent or refusal.parameter not in ("max_tokens", "temperature"):
                    raise
                self._leave_out(refusal.parameter)

    def _name(self, parameter: str) -> str:
        """The server's name of a parameter; "" if it does not accept the parameter."""
        return _OTHER_NAMES.get(parameter, "") if parameter in self._refused else parameter

    def _leave_out(self, parameter: str) -> None:
        with self._lock:
            known = parameter in self._refused
            self._refused.add(parameter)
        if not known and parameter == "temperature":
            print(
                f"warning: {self.url}: {self.model} accepts no temperature, so its answers may vary",
                file=sys.stderr,
            )

    def _complete_one(self, prompt: str, settings: dict[str, Any]) -> Answer | PartnerError:
        try:
            return self.answer(prompt, settings)
        except PartnerError as error:
            return error


def server_of(spec: str, option: str) -> tuple[str, str, bool]:
    """(url, model or "", whether it is a chat model) of "http://HOST:PORT/v1#MODEL" or "chat+http://HOST:PORT/v1#MODEL".

    Raises:
      ConfigError: it is neither; the error names the option that it was given for ("--judge").
    """
    url, _, model = spec.removeprefix("chat+").partition("#")
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"{option}={spec}: expected http://HOST:PORT/v1#MODEL, or chat+http://... for a chat model"
        )
    return url, model, spec.startswith("chat+")


def _first_model(listed: Any) -> str:
    try:
        return str(listed["data"][0]["id"])
    except (KeyError, IndexError, TypeError):
        raise ValueError("the server lists no model; name one as URL#MODEL") from None
