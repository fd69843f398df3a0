"""Python processes that begin with the libraries loaded: forks of one process that has loaded them and nothing else.

Loading JAX, Flax, Optax and Orbax takes seconds of a core, and the suite starts more than a hundred processes. `Popen` and
`run` are those of `subprocess` for commands of this Python: `-m MODULE`, `-c CODE` or a script, with arguments. A fork gets
the environment, the folder and the files that it is given, is `__main__` of what it runs, is a child of the test's
process, and ends as every Python process does. lacy_jax itself is not loaded before, so it is imported as everywhere.

Not for tests of what a process loads, nor for `python -m lacy_jax`, which starts itself anew. Elsewhere than on Linux, where a
process cannot adopt others, these are ordinary processes.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import importlib
import json
import os
import random
import runpy
import socket
import subprocess
import sys
import threading
import types
from collections.abc import Sequence
from typing import Any

_LIBRARIES = ("flax.nnx", "optax.contrib", "orbax.checkpoint", "grain", "tensorflow_datasets", "scipy.stats")
_ADOPT_ORPHANS = 36  # PR_SET_CHILD_SUBREAPER of prctl(2).
_STANDARD = ("stdin", "stdout", "stderr")
_MOST = 1 << 17
"""Bytes of a request: an environment and a command."""


class Popen(subprocess.Popen):
    """`subprocess.Popen([sys.executable, ...])`, from a process that has loaded the libraries."""

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        if not sys.platform.startswith("linux"):
            super()._execute_child(args, *rest)  # type: ignore[misc]
            return
        assert args[0] == sys.executable
        folder, environment = rest[4], rest[5]
        given = rest[
            9:15
        ]  # Pipes of input, output and errors: (the child's end, ours), (ours, the child's end) twice.
        ends = [own if own != -1 else usual for own, usual in zip((given[0], given[3], given[5]), range(3))]
        request = {
            "arguments": list(map(str, args[1:])),
            "folder": str(folder or os.getcwd()),
            "environment": dict(os.environ if environment is None else environment),
        }
        self.pid = _nursery().fork(request, ends)
        self._child_created = True
        self._close_pipe_fds(*given)  # type: ignore[attr-defined]


def run(
    command: Sequence[str],
    *,
    input: str | None = None,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run(..., capture_output=True, text=True)`."""
    pipe = subprocess.PIPE
    stdin = pipe if input is not None else subprocess.DEVNULL
    with Popen(command, stdin=stdin, stdout=pipe, stderr=pipe, text=True, **options) as process:
        try:
            out, err = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


class _Nursery:
    """The process that forks; one for each process that tests."""

    def __init__(self) -> None:
        # What it forks is orphaned at once, and falls to this process, which can wait for it as for its own.
        ctypes.CDLL(None, use_errno=True).prctl(_ADOPT_ORPHANS, 1, 0, 0, 0)
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._one_at_a_time = threading.Lock()
        with theirs:
            subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL
            )  # fmt: skip

    def fork(self, request: dict[str, Any], ends: Sequence[int]) -> int:
        """Id of a new process that does what is asked, with these files as its standard ones."""
        with self._one_at_a_time:
            socket.send_fds(self._socket, [json.dumps(request).encode()], ends)
            return int(self._socket.recv(_MOST))


@functools.cache
def _nursery() -> _Nursery:
    return _Nursery()


# -- the process that forks ------------------------------------------------------------------------------------------------


def _fork_until_it_is_left(control: socket.socket) -> list[str]:
    """Fork once for each request; returns in the fork, with the arguments of its Python."""
    for name in _LIBRARIES:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # Forks need not look through what all share.
    while True:
        message, ends, _, _ = socket.recv_fds(control, _MOST, len(_STANDARD))
        if not message:
            os._exit(0)
        reader, writer = os.pipe()
        between = os.fork()
        if between == 0:
            child = os.fork()
            if child:
                os.write(writer, str(child).encode())
                os._exit(0)
            for descriptor in (reader, writer):
                os.close(descriptor)
            control.close()
            return _settle(json.loads(message), ends)
        os.waitpid(between, 0)  # Before the id is told: then the orphan has its new parent.
        for descriptor in (writer, *ends):
            os.close(descriptor)
        control.send(os.read(reader, 20))
        os.close(reader)


def _settle(request: dict[str, Any], ends: Sequence[int]) -> list[str]:
    for number, descriptor in enumerate(ends):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["folder"])
    random.seed()  # Else all forks draw the same.
    sys.modules["numpy"].random.seed()
    return request["arguments"]


def _become(arguments: Sequence[str]) -> None:
    """Run what Python would with these arguments, as `__main__`."""
    first, *rest = arguments
    sys.orig_argv = [sys.executable, *arguments]  # What a program that starts itself anew starts.
    if first == "-c":
        code, *rest = rest
        sys.argv, sys.path[0] = ["-c", *rest], ""
        main = types.ModuleType("__main__")
        sys.modules["__main__"] = main
        exec(compile(code, "<string>", "exec"), main.__dict__)
    elif first == "-m":
        name, *rest = rest
        sys.argv, sys.path[0] = ["-m", *rest], os.getcwd()
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = [first, *rest], os.path.dirname(os.path.abspath(first))
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    _become(_fork_until_it_is_left(socket.socket(fileno=int(sys.argv[1]))))
