"""`lacy doctor` says what is there, and marks what will not work."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
from packaging.specifiers import SpecifierSet

from lacy_jax import cli
from lacy_jax.setup import doctor, versions


@pytest.fixture
def quick(monkeypatch):
    """The devices of this process are known to be there: no second JAX is started."""
    there = json.dumps({"platform": "cpu", "kind": "cpu", "count": 8, "memory_bytes": 0})
    done = subprocess.CompletedProcess([], 0, f"noise\n{there}\n", "")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: done)
    monkeypatch.setattr(versions, "source_commit", lambda: {"commit": "0123456789abcdef", "changed": True})


def line(findings: list[doctor.Finding], topic: str) -> doctor.Finding:
    return next(one for one in findings if one.topic == topic)


def test_the_page_has_a_line_for_everything(quick, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(versions, "version", lambda name: versions.tested_versions().get(name.lower(), "1"))
    monkeypatch.setattr(versions, "wanted_libtpu", lambda: SpecifierSet())
    assert cli.main(["doctor", f"--workdir={tmp_path}/new"]) == 0
    page = capsys.readouterr().out
    for topic in (
        "lacy_jax ",
        "devices ",
        "versions ",
        "libtpu ",
        "extra labels",
        "extra tpu",
        "disk ",
        "storage ",
    ):
        assert f"\n  {topic}" in f"\n{page}"
    assert "commit 0123456789ab with changes" in page
    assert "8 x cpu (cpu)" in page
    assert "files can be written, read and removed" in page
    assert page.endswith("no problems\n")
    assert len(page.splitlines()) < 30
    assert list((tmp_path / "new").iterdir()) == []


def test_what_will_not_work_is_marked_and_is_the_exit_status(quick, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(versions, "version", lambda name: "0.0.7")
    monkeypatch.setattr(versions, "wanted_libtpu", lambda: SpecifierSet("==0.0.50.*"))
    assert cli.main(["doctor", f"--workdir={tmp_path}/file/below"]) == 1
    page = capsys.readouterr().out
    assert "! libtpu" in page
    assert "0.0.7, but jax 0.0.7 asks for ==0.0.50.*: pip install 'jax[tpu]==0.0.7'" in page
    assert "! storage" in page
    assert "2 problems, marked with !" in page


def test_packages_are_compared_with_the_tested_ones(quick, monkeypatch):
    tested = versions.tested_versions()
    installed = {**tested, "flax": "0.1", "optax": None}
    monkeypatch.setattr(versions, "version", lambda name: installed.get(name.lower().replace("_", "-"), "1"))
    found = line(doctor.examine(), "versions")
    assert f"flax 0.1 ({tested['flax']})" in found.text
    assert "missing: optax" in found.text
    assert found.problem
    assert found.data["flax"] == {"installed": "0.1", "tested": tested["flax"]}
    assert not line(doctor.examine(), "storage").problem


def test_no_libtpu_is_no_problem_and_another_by_path_is_said(quick, monkeypatch):
    monkeypatch.setattr(versions, "version", lambda name: None if name == "libtpu" else "1")
    assert not line(doctor.examine(), "libtpu").problem
    monkeypatch.setattr(versions, "version", lambda name: "unknown" if name == "libtpu" else "1")
    monkeypatch.setenv("TPU_LIBRARY_PATH", "/lib/libtpu.so")
    assert line(doctor.examine(), "libtpu").text.startswith("/lib/libtpu.so, by TPU_LIBRARY_PATH")


def test_devices_that_do_not_answer_are_waited_for_in_vain_only_so_long(monkeypatch):
    def never(*arguments, timeout, **more):
        raise subprocess.TimeoutExpired("python", timeout)

    monkeypatch.setattr(versions, "source_commit", lambda: None)
    monkeypatch.setattr(doctor.subprocess, "run", never)
    found = line(doctor.examine(), "devices")
    assert found.problem
    assert "found none in 60 s; without an accelerator set JAX_PLATFORMS=cpu" in found.text
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: TPU is in use\n")
    monkeypatch.setattr(doctor.subprocess, "run", lambda *a, **k: failed)
    assert "RuntimeError: TPU is in use" in line(doctor.examine(), "devices").text


def test_the_devices_are_asked_for_in_a_process_of_their_own(monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    found = line(doctor.examine(), "devices")
    assert found.data["platform"] == "cpu"
    assert found.text.endswith(f"{os.cpu_count()} CPU cores")


def test_a_bucket_that_cannot_be_reached_is_one_line(quick, monkeypatch):
    class HttpError(Exception):
        """As gcsfs raises it: no OSError."""

    class Bucket:
        parent = property(lambda self: self)
        name = "x"

        def __truediv__(self, name):
            return self

        def __fspath__(self):
            return "gs://bucket/runs/x"

        def __getattr__(self, name):
            raise HttpError("403 Forbidden\nmore")

    monkeypatch.setattr(doctor.epath, "Path", lambda path: Bucket())
    monkeypatch.setattr(doctor.files, "check_storage", lambda path: None)
    found = line(doctor.examine("gs://bucket/runs"), "storage")
    assert found.problem
    assert found.text == "gs://bucket/runs: HttpError: 403 Forbidden"
