"""A real completions server on localhost for tests: it does what `behaviour` says and counts what it sees."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import time


class CompletionsServer:
    """Answers POST /v1/completions and /v1/chat/completions, GET /v1/models.

    Attributes:
      behaviour: prompt -> text to answer with, or (status, body, headers), or raises; may sleep.
      requests: JSON bodies received, in order. connections: sockets opened. most_at_once: requests in hand.
    """

    def __init__(self, behaviour):
        self.behaviour, self.requests, self.headers = behaviour, [], []
        self.connections = self.most_at_once = self._at_once = 0
        self.lock = threading.Lock()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self):
                super().setup()
                with owner.lock:
                    owner.connections += 1

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.reply(200, {"data": [{"id": "served-model"}]})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with owner.lock:
                    owner.requests.append(body)
                    owner.headers.append(dict(self.headers))
                    owner._at_once += 1
                    owner.most_at_once = max(owner.most_at_once, owner._at_once)
                chat = self.path.endswith("/chat/completions")
                prompt = body["messages"][0]["content"] if chat else body["prompt"]
                answer = owner.behaviour(prompt)
                with owner.lock:
                    owner._at_once -= 1
                if isinstance(answer, tuple):
                    return self.reply(*answer)
                choice = {"message": {"content": answer}} if chat else {"text": answer}
                usage = {"prompt_tokens": len(prompt.split()), "completion_tokens": len(answer.split())}
                return self.reply(200, {"choices": [choice], "usage": usage})

            def reply(self, status, body, headers=()):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                with contextlib.suppress(OSError):  # The client may have gone.
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(data)))
                    for name, value in headers:
                        self.send_header(name, value)
                    self.end_headers()
                    self.wfile.write(data)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


class InTurn:
    """A behaviour that takes answers from a list; the last one repeats. Numbers are seconds to sleep before it."""

    def __init__(self, *answers):
        self.answers, self.calls, self.lock = answers, 0, threading.Lock()

    def __call__(self, prompt):
        with self.lock:
            answer = self.answers[min(self.calls, len(self.answers) - 1)]
            self.calls += 1
        if isinstance(answer, float):
            time.sleep(answer)
            return " slow"
        return answer
