"""Reads and checks the bodies of OpenAI's requests; whatever cannot be done is refused in OpenAI's own form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from lacy_jax.errors import LacyError
from lacy_jax.serving.scoring import MOST

EXTENSION = "lacy"
"""The field of requests and answers that holds everything unknown to OpenAI's API."""
MOST_CHOICES = 128
_EXTENSIONS = ("budget", "gate", "partner", "candidates")
_IGNORED = frozenset(
    ["user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls", "add_special_tokens",
     "skip_special_tokens", "spaces_between_special_tokens", "do_sample", "verbosity", "prompt_cache_retention"]
)  # fmt: skip
"""Fields that are accepted and ignored."""
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "length_penalty": (1,), "min_p": (0,),
    "typical_p": (1,), "logit_bias": ({},), "suffix": ("",), "use_beam_search": (False,), "min_tokens": (0,),
    "tools": ([],), "tool_choice": ("none", "auto"), "functions": ([],), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "modalities": (["text"],), "add_generation_prompt": (True,), "chat_template_kwargs": ({},),
}  # fmt: skip
"""Fields that are not supported, and the values at which they ask for nothing."""


class BadRequest(LacyError):
    """A request that cannot be done, in the API's form.

    Attributes:
      status: of HTTP. parameter: the field that is wrong. code: OpenAI's word for what is wrong.
      retry_after: seconds after which it may be possible.
    """

    def __init__(
        self,
        message: str,
        parameter: str | None = None,
        code: str = "",
        status: int = 400,
        retry_after: int = 0,
    ):
        super().__init__(message)
        self.status, self.parameter, self.code, self.retry_after = status, parameter, code, retry_after

    @property
    def kind(self) -> str:
        """OpenAI's type of error."""
        known = {
            401: "authentication_error",
            429: "rate_limit_error",
            502: "partner_error",
            503: "server_error",
        }
        return known.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")

    def to_json(self) -> dict[str, Any]:
        """The API's error object."""
        about = {"message": str(self), "type": self.kind, "param": self.parameter, "code": self.code or None}
        return {"error": about}


@dataclasses.dataclass(frozen=True)
class Defaults:
    """Defaults for fields of `Asked` that a request leaves out."""

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


@dataclasses.dataclass(frozen=True)
class Asked:
    """A request for texts.

    Attributes:
      chat: a request to /chat/completions. prompts: texts or token ids. model: "" = the one being served.
      max_tokens, temperature, top_k, top_p, n: as in OpenAI's API. seed: None = a new one each time.
      stops: strings that end a text. echo: the prompt is part of the text.
      logprobs: how many likeliest pieces at each place, 0 = only the pieces of the text; None = no scores.
      endless: the model may not end a text (vLLM's and llama.cpp's `ignore_eos`, which load generators send).
      stream: send the text while it is written. with_usage: and the token counts at the end. counts: and so far, in each
        chunk (vLLM's `continuous_usage_stats`).
      extended: the answer has the field `EXTENSION`, which holds the `candidates` likeliest pieces per token.
      budget, gate: None = the server's. partner: whether the partner may be asked.
    """

    chat: bool
    prompts: tuple[str | tuple[int, ...], ...]
    model: str
    max_tokens: int
    temperature: float
    top_k: int
    top_p: float
    n: int
    seed: int | None
    stops: tuple[str, ...]
    echo: bool
    logprobs: int | None
    endless: bool
    stream: bool
    with_usage: bool
    counts: bool
    extended: bool
    budget: float | None
    gate: str | None
    partner: bool
    candidates: int

    @property
    def scored(self) -> int:
        """How many likeliest pieces are needed at each place; 0 = no scores at all."""
        return max(1 if self.logprobs is not None else 0, self.logprobs or 0, self.candidates)

    @property
    def only_scores(self) -> bool:
        """Whether it only scores the given text; evaluators may ask for one more token, which is then the likeliest."""
        return self.echo and self.max_tokens <= 1 and self.logprobs is not None


class _Body:
    """The fields of a JSON object, each read once; fields that were not read are unknown."""

    def __init__(self, body: Any, prefix: str = ""):
        if not isinstance(body, Mapping):
            raise BadRequest(
                f"{prefix.rstrip('.') or 'the body'} must be a JSON object", prefix.rstrip(".") or None
            )
        self._body, self._prefix, self._read = body, prefix, set[str]()

    def bad(self, name: str, wants: str) -> BadRequest:
        value = repr(self._body.get(name))
        shown = value if len(value) <= 80 else f"{value[:77]}..."
        return BadRequest(f"{self._prefix}{name} = {shown}: {wants}", self._prefix + name, "invalid_value")

    def get(self, name: str, default: Any = None) -> Any:
        self._read.add(name)
        value = self._body.get(name)
        return default if value is None else value

    def number(self, name: str, default: Any, low: float, high: float, *, whole: bool = False) -> Any:
        value = self.get(name, default)
        if value is None:
            return None
        kind = "a whole number" if whole else "a number"
        wants = f"must be {kind} from {low:g}" + (f" to {high:g}" if high < math.inf else "")
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.bad(name, wants)
        if not low <= value <= high or value == math.inf or (whole and value != int(value)):
            raise self.bad(name, wants)
        return int(value) if whole else float(value)

    def flag(self, name: str, default: bool = False) -> bool:
        value = self.get(name, default)
        if not isinstance(value, bool):
            raise self.bad(name, "must be true or false")
        return value

    def text(self, name: str) -> str:
        value = self.get(name, "")
        if not isinstance(value, str):
            raise self.bad(name, "must be a string")
        return value

    def finish(self) -> None:
        """Refuse the fields that were not read."""
        for name, value in self._body.items():
            if name in self._read or name in _IGNORED or value is None:
                continue
            if name not in _NEUTRAL:
                raise BadRequest(
                    f"unknown field {self._prefix}{name}", self._prefix + name, "unknown_parameter"
                )
            if value not in _NEUTRAL[name]:
                raise BadRequest(
                    f"{name} is not supported: leave it out", name, "unsupported_parameter"
                )  # fmt: skip


def read_request(body: Any, chat: bool, defaults: Defaults, chat_prompt: Any = None) -> Asked:
    """A request of /completions, or of /chat/completions.

    Args:
      body: JSON. chat_prompt: messages -> prompt.

    Raises:
      BadRequest: a field that is unknown, out of range or not supported; names it.
    """
    fields = _Body(body)
    prompts: tuple[str | tuple[int, ...], ...]
    prompts = (chat_prompt(_messages(fields)),) if chat else _prompts(fields)
    longest = fields.number(
        "max_completion_tokens",
        fields.number("max_tokens", None, 0, math.inf, whole=True),
        0,
        math.inf,
        whole=True,
    )
    logprobs: int | None
    if chat:
        wanted, most = fields.flag("logprobs"), fields.number("top_logprobs", None, 0, MOST, whole=True)
        if most is not None and not wanted:
            raise fields.bad("top_logprobs", "needs logprobs = true")
        logprobs, echo = ((most or 0) if wanted else None), False
    else:
        logprobs, echo = _legacy_logprobs(fields), fields.flag("echo")
    n = fields.number("n", 1, 1, MOST_CHOICES, whole=True)
    best_of = fields.number("best_of", n, 1, MOST_CHOICES, whole=True)
    if best_of != n:
        raise fields.bad("best_of", "not supported beside n")
    stream = fields.flag("stream")
    options = _Body(fields.get("stream_options", {}), "stream_options.")
    with_usage, counts = options.flag("include_usage"), options.flag("continuous_usage_stats")
    options.get("include_obfuscation")
    options.finish()
    given = fields.get(EXTENSION)
    extension = _Body({} if given is None else given, f"{EXTENSION}.")
    gate = extension.text("gate") or None
    asked = Asked(
        chat=chat,
        prompts=prompts,
        model=fields.text("model"),
        max_tokens=defaults.max_tokens if longest is None else longest,
        temperature=fields.number("temperature", defaults.temperature, 0.0, 100.0),
        top_k=max(fields.number("top_k", defaults.top_k, -1, math.inf, whole=True), 0),
        top_p=fields.number("top_p", defaults.top_p, 0.0, 1.0) or 1e-9,
        n=n,
        seed=fields.number("seed", None, -(2**63), 2**63 - 1, whole=True),
        stops=_stops(fields),
        echo=echo,
        logprobs=logprobs,
        endless=fields.flag("ignore_eos"),
        stream=stream,
        with_usage=with_usage,
        counts=counts and with_usage,
        extended=given is not None,
        budget=extension.number("budget", None, 0.0, 1.0),
        gate=gate,
        partner=extension.flag("partner", True),
        candidates=extension.number("candidates", 0, 0, MOST, whole=True),
    )
    extension.finish()
    fields.finish()
    if asked.max_tokens < 1 and not asked.only_scores:
        raise BadRequest("max_tokens = 0 needs echo and logprobs", "max_tokens", "invalid_value")
    return asked


def _prompts(fields: _Body) -> tuple[str | tuple[int, ...], ...]:
    wants = "must be a string, a list of strings, a list of token ids, or a list of such lists"
    given = fields.get("prompt")
    if given is None:
        raise BadRequest("prompt is missing", "prompt", "missing_required_parameter")

    def ids(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(i, int) and not isinstance(i, bool) for i in value)

    if isinstance(given, str):
        return (given,)
    if given and ids(given):
        return (tuple(given),)
    if not isinstance(given, list) or not given:
        raise fields.bad("prompt", wants)
    if all(isinstance(one, str) for one in given) or all(ids(one) for one in given):
        return tuple(one if isinstance(one, str) else tuple(one) for one in given)
    raise fields.bad("prompt", wants)


def _messages(fields: _Body) -> list[dict[str, str]]:
    """Messages with their contents as text."""
    given = fields.get("messages")
    if not isinstance(given, list) or not given:
        raise BadRequest("messages must be a list of at least one", "messages", "missing_required_parameter")
    found = []
    for number, message in enumerate(given):
        where = f"messages[{number}]"
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise BadRequest(f"{where} must be an object with a role and a content", where, "invalid_value")
        content = message.get("content")
        if isinstance(content, list):
            if not all(
                isinstance(p, Mapping) and p.get("type") == "text" and isinstance(p.get("text"), str)
                for p in content
            ):
                raise BadRequest(
                    f"{where}.content: only parts of type text are known", where, "invalid_value"
                )
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise BadRequest(f"{where}.content must be a string", where, "invalid_value")
        found.append({"role": message["role"], "content": content})
    return found


def _legacy_logprobs(fields: _Body) -> int | None:
    """A number of pieces, or true for one."""
    value = fields.get("logprobs")
    if isinstance(value, bool):
        return 1 if value else None
    return fields.number("logprobs", None, 0, MOST, whole=True)


def _stops(fields: _Body) -> tuple[str, ...]:
    given = fields.get("stop", [])
    given = [given] if isinstance(given, str) else given
    if not isinstance(given, list) or not all(isinstance(stop, str) for stop in given) or len(given) > 64:
        raise fields.bad("stop", "must be a string or a list of at most 64 strings")
    return tuple(stop for stop in given if stop)
