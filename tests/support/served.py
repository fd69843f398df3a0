"""A served cascade on localhost, as `lacy serve` runs it, in a thread of the test."""

from __future__ import annotations

import contextlib
import socket
import threading
import time

import uvicorn

from lacy_jax.serving.app import make_app
from lacy_jax.serving.listening import server_config
from lacy_jax.serving.requests import Defaults
from lacy_jax.serving.service import Service, Settings


@contextlib.contextmanager
def served(model, tokenizer, partner=None, *, fitted=None, template=None, app=None, **settings):
    """Gives (address, service); `app`: options of `make_app`, `settings`: of `Settings`."""
    defaults = {"name": "tiny", "gate": "call_prob", "budget": 0.3, "rows": 4, "defaults": Defaults(48)}
    options = {} if fitted is None else {"fitted": fitted}
    service = Service(
        model, tokenizer, partner, Settings(**{**defaults, **settings}), template=template, **options
    )
    bound = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(server_config(make_app(service, **(app or {})), 2, "critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", service
    finally:
        server.should_exit = True
        thread.join(20)
        service.close(0.0)
