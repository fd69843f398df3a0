"""The server's process: it listens, and when it stops, texts that were begun are finished or returned as they are."""

from __future__ import annotations

import contextlib
import socket
import threading
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from lacy_jax.errors import ConfigError
from lacy_jax.serving.service import Service

_AFTER_S = 5.0
"""Seconds for sending the unfinished texts that are returned at the end."""
_KEEP_ALIVE_S = 75
"""Seconds that an idle connection is kept: longer than clients keep theirs (httpx, and so the openai package: 5, as uvicorn
by itself), or a request is now and then sent on a connection that is just being closed."""


class _Server(uvicorn.Server):
    """At a signal it takes no new texts; after `grace_s` seconds, texts still being written end as they are."""

    def __init__(self, config: uvicorn.Config, service: Service, grace_s: float):
        super().__init__(config)
        self._service, self._grace_s = service, grace_s
        self.closing: threading.Thread | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.closing is None:
            self.closing = threading.Thread(target=self._service.close, args=(self._grace_s,), daemon=True)
            self.closing.start()
        super().handle_exit(sig, frame)


def bind(host: str, port: int) -> socket.socket:
    """Bind an address; clients that connect wait until `listen`.

    Raises:
      ConfigError: the address cannot be used.
    """
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen()
    except OSError as error:
        bound.close()
        raise ConfigError(f"--host={host} --port={port}: {error.strerror or error}") from None
    return bound


def server_config(app: ASGIApp, shutdown_s: float, log_level: str = "warning") -> uvicorn.Config:
    """How uvicorn serves `app`."""
    return uvicorn.Config(
        app, log_level=log_level, access_log=False, server_header=False, lifespan="off",
        timeout_graceful_shutdown=int(shutdown_s), timeout_keep_alive=_KEEP_ALIVE_S,
    )  # fmt: skip


def listen(app: ASGIApp, service: Service, bound: socket.socket, grace_s: float) -> int:
    """Serve until SIGINT or SIGTERM; returns the exit status."""
    server = _Server(server_config(app, grace_s + _AFTER_S), service, grace_s)
    host, port, *_ = bound.getsockname()
    shown = f"[{host}]" if ":" in host else host
    name, partner = service.settings.name, service.partner.name if service.partner else "no partner"
    threading.Thread(target=service.warm_up, daemon=True).start()
    print(
        f"serving {name} with {partner} on http://{shown}:{port}/ (OpenAI API: /v1; Ctrl-C stops)",
        flush=True,
    )
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises the signal again when all is done.
        server.run(sockets=[bound])
    if server.closing is not None:
        server.closing.join()
    else:
        service.close()
    return 0
