"""tests/support/warm_python.py: its processes are like others of this Python."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import warm_python

_SHOW = """
import json, os, random, sys
ours = [name for name in sys.modules if name.split(".")[0] == "lacy_jax"]
print(json.dumps([sys.argv, os.getcwd(), dict(os.environ), __name__, ours, sys.stdin.read(), random.random()]))
sys.exit(3)
"""


def test_a_process_has_what_it_is_given_and_nothing_of_ours(tmp_path):
    script = tmp_path / "show.py"
    script.write_text(_SHOW)
    for command, first in ((["-c", _SHOW], "-c"), ([str(script)], str(script))):
        done = [
            warm_python.run([sys.executable, *command, "a b"], input="typed", cwd=tmp_path, env={"ONE": "1"})
            for _ in range(2)
        ]
        assert [one.returncode for one in done] == [3, 3], done
        (*found, draw), (*again, other) = (json.loads(one.stdout) for one in done)
        assert found == again == [[first, "a b"], str(tmp_path), {"ONE": "1"}, "__main__", [], "typed"]
        assert draw != other


def test_it_can_start_itself_anew(tmp_path):
    """As `lacy_jax.__main__.restart_with_huge_pages` does."""
    script = tmp_path / "again.py"
    script.write_text(
        "import os, sys\n"
        "if 'AGAIN' not in os.environ:\n"
        "    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {'AGAIN': '1'})\n"
        "print(sys.argv[1:])\n"
    )
    done = warm_python.run([sys.executable, str(script), "a b"], env={})
    assert (done.returncode, done.stdout) == (0, "['a b']\n"), done.stderr


def test_it_ends_as_others_do(tmp_path):
    pipe = subprocess.PIPE
    failed = warm_python.run([sys.executable, "-c", "import atexit; atexit.register(print, 'bye'); 1 / 0"])
    assert (failed.returncode, failed.stdout) == (1, "bye\n")
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n")
    with pytest.raises(subprocess.CalledProcessError):
        warm_python.run([sys.executable, "-c", "exit(1)"], check=True)
    with pytest.raises(subprocess.TimeoutExpired):
        warm_python.run([sys.executable, "-c", "import time; time.sleep(100)"], timeout=0.5)
    process = warm_python.Popen(
        [sys.executable, "-m", "http.server", "0", "-b", "127.0.0.1"], stdout=pipe, stderr=pipe
    )
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
