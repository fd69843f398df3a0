"""What tpu_scripts runs on a worker, here on this machine: installing, and starting a run that outlives the connection."""

from __future__ import annotations

import os
import subprocess
import time

from tpu_stand_in import SCRIPTS


def test_a_worker_starts_a_run_once_and_records_how_it_ended(tmp_path):
    """The part that runs on a worker, with a command in place of training."""
    (tmp_path / "lacy_jax").mkdir()
    script = str(SCRIPTS / "remote" / "start.sh")
    environment = {**os.environ, "HOME": str(tmp_path)}

    def start(*command: str) -> str:
        return subprocess.run(
            ["bash", script, "run", *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        ).stdout

    gate, folder = tmp_path / "gate", tmp_path / "lacy_runs" / "run"
    waits = ("bash", "-c", f'echo begin; until [ -e "{gate}" ]; do sleep 0.05; done; exit 3')
    assert start(*waits).startswith("started")
    assert start(*waits).startswith("already running")
    gate.touch()
    deadline = time.monotonic() + 20
    while not (folder / "exit").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (folder / "exit").read_text() == "3\n"
    assert (folder / "log.txt").read_text() == "begin\n"
    assert start("true").startswith("started")


def test_a_worker_with_this_commit_is_left_alone(tmp_path):
    (tmp_path / "lacy_jax").mkdir()
    (tmp_path / "lacy_jax" / ".installed").write_text("abc\n")
    done = subprocess.run(
        ["bash", str(SCRIPTS / "remote" / "install.sh"), "abc"], env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "lacy_jax abc is installed\n")


_PYTHON = """#!/usr/bin/env bash
case "$*" in
  "-c import ensurepip"*) echo "3.12 $0" ;;
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip "*) echo pip >>"$HOME/pip" && [ ! -e "$HOME/offline" ] ;;
esac
"""


def test_an_installation_that_failed_is_made_up_for_by_the_same_command(tmp_path):
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python3.12"
    python.write_text(_PYTHON)
    python.chmod(0o755)
    archive = ["tar", "-czf", tmp_path / "lacy.tar.gz", "-C", SCRIPTS.parent, "tools/find_python.sh"]
    subprocess.run(archive, check=True)
    (tmp_path / "offline").touch()

    def install() -> int:
        environment = {
            **os.environ,
            "HOME": str(tmp_path),
            "PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin",  # Without the Python of the tests.
            "PYENV_ROOT": str(tmp_path),
        }
        script = str(SCRIPTS / "remote" / "install.sh")
        return subprocess.run(
            ["bash", script, "abc"], env=environment, capture_output=True, timeout=30
        ).returncode

    stamp = tmp_path / "lacy_jax" / ".installed"
    assert install() != 0
    assert not stamp.exists()
    (tmp_path / "offline").unlink()
    assert install() == 0
    assert stamp.read_text() == "abc\n"
    assert install() == 0
    assert (tmp_path / "pip").read_text() == "pip\n" * 2
