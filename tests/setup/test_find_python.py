"""tools/find_python.sh: the newest supported Python that starts."""

from __future__ import annotations

import pathlib
import subprocess

import pytest

_SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "tools" / "find_python.sh"


@pytest.fixture
def find(tmp_path):
    """Runs the script where only the given interpreters are; each is (place, version or "" = refuses to start)."""

    def run(interpreters: list[tuple[str, str]], *versions: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "bin").mkdir()
        for place, version in interpreters:
            path = tmp_path / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f'#!/bin/bash\n[ "{version}" ] && echo "{version} $0"\n')
            path.chmod(0o755)
        (tmp_path / "bin" / "bash").symlink_to("/bin/bash")
        environment = {"PATH": str(tmp_path / "bin"), "PYENV_ROOT": str(tmp_path / "pyenv"), "HOME": str(tmp_path)}  # fmt: skip
        return subprocess.run(
            ["/bin/bash", _SCRIPT, *versions], env=environment, capture_output=True, text=True
        )

    return run


def test_a_shim_that_refuses_to_start_is_passed_over_for_what_pyenv_has(find, tmp_path):
    real = "pyenv/versions/3.13.0/bin/python3"
    found = find([("bin/python3.13", ""), ("bin/python3.12", "3.12"), (real, "3.13")])
    assert (found.returncode, found.stdout) == (0, f"{tmp_path / real}\n")


def test_the_newest_that_starts_is_taken_whatever_its_name(find, tmp_path):
    found = find([("bin/python3.13", ""), ("bin/python3", "3.12"), ("bin/python3.11", "3.11")])
    assert found.stdout == f"{tmp_path / 'bin/python3'}\n"


def test_only_the_versions_that_are_asked_for_count_and_none_is_one_line(find):
    found = find([("bin/python3.12", "3.12"), ("bin/python3", "3.14")], "3.11")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.count("\n") == 1
    assert "no Python of 3.11 found" in found.stderr
