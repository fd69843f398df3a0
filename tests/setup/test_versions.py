"""Versions: the constraints file against setup.cfg and what is installed, and the commit of the source."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from lacy_jax.errors import LacyError
from lacy_jax.setup import versions

_ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_every_package_that_setup_cfg_asks_for_has_a_tested_version():
    """To update: make constraints."""
    parsed = configparser.ConfigParser()
    parsed.read(_ROOT / "setup.cfg")
    lists = [parsed["options"]["install_requires"], *parsed["options.extras_require"].values()]
    asked = [Requirement(line) for lines in lists for line in lines.split("\n") if line]
    tested = versions.tested_versions()
    for one in asked:
        pinned = str(one.specifier).startswith("==") and canonicalize_name(one.name) not in tested
        if (
            one.name != "lacy_jax" and not pinned
        ):  # What no other version of is asked for needs no file to say so.
            assert one.specifier.contains(tested[canonicalize_name(one.name)]), one.name


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_tested_libtpu_is_the_one_that_the_tested_jax_asks_for(python):
    """jax[tpu] pins it: `pip download --no-deps jax==X`, then METADATA."""
    pinned = {"0.12.0.1": "0.0.50.", "0.10.2": "0.0.42."}
    found = {}
    for line in (_ROOT / "lacy_jax" / "constraints.txt").read_text().splitlines():
        if not line.startswith("#"):
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate({"python_version": python}):
                assert one.name not in found, f"two versions of {one.name}"
                found[one.name] = str(one.specifier).removeprefix("==")
    assert found["libtpu"].startswith(pinned[found["jax"]])
    assert found["jaxlib"] == found["jax"]


def test_what_jax_asks_for_is_read_from_its_own_metadata():
    wanted = versions.wanted_libtpu()
    assert wanted is not None
    if versions.version("jax") == versions.tested_versions()["jax"]:
        assert wanted.contains(versions.tested_versions()["libtpu"])


def test_versions_leave_the_build_away_and_do_not_guess(monkeypatch):
    libtpu = pytest.importorskip("libtpu")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "2.13.0+cpu")
    assert versions.version("torch") == "2.13.0"
    assert versions.version("libtpu") == "2.13.0"
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/lib/libtpu.so")
    assert versions.version("libtpu") == "unknown"
    monkeypatch.setenv("TPU_LIBRARY_PATH", f"{os.path.dirname(libtpu.__file__)}/libtpu.so")  # JAX does.
    assert versions.version("libtpu") == "2.13.0"


def test_a_package_that_is_not_installed_is_named():
    assert versions.version("no-such-package-at-all") is None
    with pytest.raises(LacyError, match="no-such-package-at-all is not installed"):
        versions.requirements("no-such-package-at-all")


def test_the_commit_is_that_of_this_source_and_not_of_a_repository_around_it(tmp_path):
    """A virtual environment often lies inside the user's own repository."""
    copy = tmp_path / "venv" / "lacy_jax"
    for name in ("__init__.py", "errors.py", "commit.txt", "setup/__init__.py", "setup/versions.py"):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(_ROOT / "lacy_jax" / name, copy / name)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "theirs"]):
        subprocess.run([*git, *command], check=True)
    code = "from lacy_jax.setup.versions import source_commit; print(source_commit())"

    def commit() -> str:
        return subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path / "venv", capture_output=True, text=True, check=True
        ).stdout.strip()

    assert commit() == "None"
    (copy / "commit.txt").write_text("abc123\n")  # As `git archive` does.
    assert commit() == "{'commit': 'abc123', 'changed': None}"


def test_an_archive_of_the_repository_carries_its_commit(tmp_path):
    def git(*arguments: str) -> bytes:
        return subprocess.run(["git", "-C", str(_ROOT), *arguments], capture_output=True, check=True).stdout

    if not (_ROOT / ".git").exists():
        pytest.skip("no git checkout")
    (tmp_path / "tar").write_bytes(git("archive", "HEAD", "lacy_jax/commit.txt"))
    text = subprocess.run(
        ["tar", "-xOf", tmp_path / "tar"], capture_output=True, text=True, check=True
    ).stdout
    assert text == git("rev-parse", "HEAD").decode()
