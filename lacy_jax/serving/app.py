"""The HTTP side: OpenAI's endpoints, and vLLM's for tokens, as a Starlette application."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import importlib.resources
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import anyio
import anyio.to_thread
import prometheus_client
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lacy_jax.errors import DataError
from lacy_jax.serving.completions import Completion
from lacy_jax.serving.requests import BadRequest, read_request
from lacy_jax.serving.service import PLAIN_TEMPLATE, Service
from lacy_jax.serving.tickets import Busy, ShuttingDown

LARGEST_BODY = 4 << 20
_BODY_S = 60.0
"""The longest time a body may take to arrive."""
_OPEN = ("/", "/health")
"""Paths that need no key: the page holds nothing secret, and probes have no key."""


def make_app(
    service: Service,
    *,
    keys: Sequence[str] = (),
    largest_body: int = LARGEST_BODY,
    log: Callable[[str], None] | None = None,
    examples: Sequence[str] = (),
) -> ASGIApp:
    """The application.

    Args:
      keys: accepted bearer tokens; none = everybody may ask.
      largest_body: most bytes of a request.
      log: called with one line per request, without its query and headers.
      examples: prompts that the page offers.
    """
    api = _Api(service, largest_body, list(examples))
    routes = [
        Route("/", api.page),
        Route("/health", api.health),
        Route("/metrics", api.metrics),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.model),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/tokenizer_info", api.tokenizer_info),
        Route("/tokenize", api.tokenize, methods=["POST"]),
        Route("/detokenize", api.detokenize, methods=["POST"]),
        Route("/lacy/info", api.info),
    ]
    handlers: dict[Any, Any] = {
        BadRequest: _refuse,
        HTTPException: _http_error,
        ClientDisconnect: lambda request, error: Response(status_code=499),
        Exception: _fault,
    }
    app = Starlette(routes=routes, exception_handlers=handlers)
    return _Gate(app, service, [_digest(key) for key in keys], log, {route.path for route in routes})


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


class _Gate:
    """Wraps all endpoints: checks keys, counts and logs. It never logs a header, a query or a body."""

    def __init__(
        self,
        app: ASGIApp,
        service: Service,
        keys: list[bytes],
        log: Callable[[str], None] | None,
        paths: set[str],
    ):
        self._app, self._service, self._keys, self._log = app, service, keys, log
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 0

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            refusal = self._refusal(scope)
            if refusal is None:
                await self._app(scope, receive, counted)
            else:
                await _refuse(None, refusal)(scope, receive, counted)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"  # A path may hold anything.
            self._service.metrics.requests.labels(path, str(status or "gone")).inc()
            if self._log:
                seconds = time.monotonic() - started
                self._log(f"{scope['method']} {path} {status or 'gone'} {seconds:.3f} s")

    def _refusal(self, scope: Scope) -> BadRequest | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        if origin and origin.partition("://")[2] != headers.get("host"):
            return BadRequest("requests from pages of other sites are refused", status=403, code="origin")
        if not self._keys or scope["path"] in _OPEN:
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        # Compare with all keys, each in constant time.
        if sum([hmac.compare_digest(given, known) for known in self._keys]):
            return None
        return BadRequest(
            "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key", status=401
        )


class _Api:
    """The endpoints."""

    def __init__(self, service: Service, largest_body: int, examples: list[str]):
        self._service, self._largest_body = service, largest_body
        self._examples = examples
        page = importlib.resources.files("lacy_jax.serving") / "playground.html"
        self._page = page.read_text(encoding="utf-8")
        script = self._page.partition("<script>")[2].partition("</script>")[0]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        self._policy = _POLICY.format(script=digest)

    async def page(self, request: Request) -> Response:
        return HTMLResponse(
            self._page, headers={"Content-Security-Policy": self._policy, "X-Frame-Options": "DENY"}
        )

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "texts": self._service.scheduler.pending})

    async def metrics(self, request: Request) -> Response:
        return Response(self._service.metrics.page(), media_type=prometheus_client.CONTENT_TYPE_LATEST)

    def _described(self) -> dict[str, Any]:
        service = self._service
        return {
            "id": service.settings.name,
            "object": "model",
            "created": service.settings.created,
            "owned_by": "lacy_jax",
            "max_model_len": service.context,
        }

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._described()]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name != self._service.settings.name:
            raise BadRequest(f"no model {name!r} here", "model", "model_not_found", 404)
        return JSONResponse(self._described())

    async def info(self, request: Request) -> Response:
        """What the page needs to know."""
        return JSONResponse(await anyio.to_thread.run_sync(self._info))

    def _info(self) -> dict[str, Any]:
        service, settings = self._service, self._service.settings
        return {
            "model": settings.name,
            "partner": service.partner.name if service.partner else None,
            "gate": settings.gate,
            "gates": list(settings.gates or [settings.gate]),
            "budget": settings.budget,
            "max_tokens": settings.defaults.max_tokens,
            "temperature": settings.defaults.temperature,
            "examples": self._examples,
        }

    async def completions(self, request: Request) -> Response:
        return await self._complete(request, chat=False)

    async def chat(self, request: Request) -> Response:
        return await self._complete(request, chat=True)

    async def _complete(self, request: Request, chat: bool) -> Response:
        service = self._service
        body = await self._json(request)
        asked = read_request(body, chat, service.settings.defaults, service.chat_prompt)
        try:
            texts = await anyio.to_thread.run_sync(service.texts, asked)
            completion = Completion(service, asked, texts)
            completion.begin()
        except Busy as busy:
            raise BadRequest(str(busy), code="queue_full", status=429, retry_after=busy.retry_after) from None
        except ShuttingDown as error:
            raise BadRequest(str(error), code="shutting_down", status=503, retry_after=1) from None
        if not asked.stream:
            async with _until_gone(request, completion):
                return JSONResponse(await completion.whole())
            return Response(status_code=499)  # Nobody reads this.
        return StreamingResponse(
            _events(completion),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    async def tokenizer_info(self, request: Request) -> Response:
        tokenizer = self._service.tokenizer
        special = {name: tokenizer.piece(getattr(tokenizer, f"{name}_id")) for name in ("bos", "eos", "pad")}
        return JSONResponse({
            "tokenizer_class": type(tokenizer).__name__,
            "vocab_size": tokenizer.vocab_size,
            **{f"{name}_token": piece for name, piece in special.items()},
            "model_max_length": self._service.context,
            "chat_template": self._service.template.source if self._service.template else PLAIN_TEMPLATE,
        })  # fmt: skip

    async def tokenize(self, request: Request) -> Response:
        body, tokenizer = await self._json(request), self._service.tokenizer
        prompt = body.get("prompt") if isinstance(body, dict) else None
        if not isinstance(prompt, str):
            raise BadRequest("prompt must be a string", "prompt", "invalid_value")
        special = {tokenizer.piece(i): i for i in (tokenizer.bos_id, tokenizer.pad_id, *tokenizer.eos_ids)}
        if prompt in special:  # Clients ask for the ids of special tokens by name.
            ids = [special[prompt]]
        else:
            try:
                own = tokenizer.encode(prompt)
            except DataError as error:
                raise BadRequest(str(error), "prompt", "invalid_value") from None
            ids = (tokenizer.with_prefix(own) if body.get("add_special_tokens", True) else own).tolist()
        found: dict[str, Any] = {"tokens": ids, "count": len(ids), "max_model_len": self._service.context}
        if body.get("return_token_strs"):
            found["token_strs"] = [tokenizer.piece(token) for token in ids]
        return JSONResponse(found)

    async def detokenize(self, request: Request) -> Response:
        body, tokenizer = await self._json(request), self._service.tokenizer
        ids = body.get("tokens") if isinstance(body, dict) else None
        if not isinstance(ids, list) or not all(
            type(i) is int and 0 <= i < tokenizer.vocab_size for i in ids
        ):
            raise BadRequest(
                f"tokens must be a list of token ids, 0 to {tokenizer.vocab_size - 1}",
                "tokens",
                "invalid_value",
            )
        return JSONResponse({"prompt": tokenizer.decode(ids)})

    async def _json(self, request: Request) -> Any:
        body = bytearray()
        with anyio.move_on_after(_BODY_S) as slow:
            async for part in request.stream():
                body += part
                if len(body) > self._largest_body:
                    raise BadRequest(
                        f"the body is longer than {self._largest_body} bytes", code="too_large", status=413
                    )
        if slow.cancelled_caught:
            raise BadRequest(f"the body did not come within {_BODY_S:g} s", code="timeout", status=408)
        try:
            return json.loads(bytes(body), parse_constant=_no_number)
        except (ValueError, RecursionError):
            raise BadRequest("the body is not JSON", code="invalid_json") from None


_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{script}'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'"
)


def _no_number(name: str) -> float:
    raise ValueError(name)


@contextlib.asynccontextmanager
async def _until_gone(request: Request, completion: Completion) -> AsyncIterator[None]:
    """Runs the block, but stops it when the client has gone; its texts are then cancelled."""

    async def watch(cancel: Callable[[], None]) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel()

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(watch, group.cancel_scope.cancel)
            yield
            group.cancel_scope.cancel()
    except BaseExceptionGroup as errors:  # Of one task only.
        raise errors.exceptions[0] from None
    finally:
        completion.cancel()


async def _events(completion: Completion) -> AsyncIterator[str]:
    """Server-sent events."""
    try:
        async for chunk in completion.chunks():
            yield f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n"
    except BadRequest as error:
        yield f"data: {json.dumps(error.to_json())}\n\n"
    finally:
        completion.cancel()
    yield "data: [DONE]\n\n"


def _refuse(request: Request | None, error: BadRequest) -> Response:
    headers = {"Retry-After": str(error.retry_after)} if error.retry_after else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(error.to_json(), status_code=error.status, headers=headers)


def _http_error(request: Request, error: HTTPException) -> Response:
    path = f"{request.method} {request.url.path}"
    message = {404: f"no such path: {path}", 405: f"not allowed: {path}"}.get(error.status_code, error.detail)
    return _refuse(request, BadRequest(message, status=error.status_code))


def _fault(request: Request, error: Exception) -> Response:
    """Answer for an error of our own; Starlette then raises it, so that the server's log has the traceback."""
    return _refuse(request, BadRequest("internal error", code="internal_error", status=500))
