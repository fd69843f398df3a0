"""`lacy doctor`: what this machine offers to lacy_jax, on one page. It imports nothing that it examines."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import uuid
from typing import Any

from etils import epath
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import lacy_jax
from lacy_jax import files
from lacy_jax.errors import LacyError
from lacy_jax.setup import versions

_DEVICES = """
import jax, json
found = jax.devices()
memory = (found[0].memory_stats() or {}).get("bytes_limit", 0)
print(json.dumps({"platform": found[0].platform, "kind": found[0].device_kind, "count": len(found), "memory_bytes": memory}))
"""
# JAX may search for minutes for a TPU that does not exist.
_PATIENCE_S = 60


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the page.

    Attributes:
      topic: the subject.
      text: what was found.
      data: the same for programs.
      problem: whether something will not work; `text` then says what to do.
    """

    topic: str
    text: str
    data: dict[str, Any]
    problem: bool = False


def examine(workdir: str = "") -> list[Finding]:
    """Examine everything.

    Args:
      workdir: folder or bucket for runs, tested by writing, reading and removing a small file; "" = not tested.
    """
    return [_source(), _devices(), _versions(), _libtpu(), *_extras(), _disk(), _storage(workdir)]


def page(findings: list[Finding]) -> str:
    """The findings for people; problems are marked with `!`."""
    width = max(len(one.topic) for one in findings)
    lines = [f"{'!' if one.problem else ' '} {one.topic:<{width}}  {one.text}" for one in findings]
    problems = sum(one.problem for one in findings)
    total = f"{problems} problem{'s' * (problems > 1)}, marked with !" if problems else "no problems"
    return "\n".join([*lines, "", total])


def _gib(size: float) -> str:
    return f"{size / 2**30:,.0f} GiB"


def _source() -> Finding:
    commit = versions.source_commit()
    said = (
        f"commit {commit['commit'][:12]}{' with changes' if commit['changed'] else ''}"
        if commit
        else "no commit known"
    )
    text = f"{lacy_jax.__version__}, {said}; Python {platform.python_version()} on {platform.platform()}"
    return Finding("lacy_jax", text, {"version": lacy_jax.__version__, "git": commit, "python": platform.python_version()})  # fmt: skip


def _devices() -> Finding:
    advice = "without an accelerator set JAX_PLATFORMS=cpu"
    try:
        done = subprocess.run(
            [sys.executable, "-c", _DEVICES], capture_output=True, text=True, timeout=_PATIENCE_S
        )
    except subprocess.TimeoutExpired:
        return Finding("devices", f"JAX found none in {_PATIENCE_S} s; {advice}", {}, problem=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return Finding("devices", f"JAX does not start: {last}; {advice}", {}, problem=True)
    found = json.loads(done.stdout.splitlines()[-1])
    memory = f", {_gib(found['memory_bytes'])} each" if found["memory_bytes"] else ""
    text = f"{found['count']} x {found['kind']} ({found['platform']}){memory}; {os.cpu_count()} CPU cores"
    return Finding("devices", text, found)


def _versions() -> Finding:
    tested = versions.tested_versions()
    names: list[str] = [canonicalize_name(one.name) for one in versions.requirements("lacy_jax")]
    packages = {name: {"installed": versions.version(name), "tested": tested.get(name)} for name in names}
    missing = [name for name, row in packages.items() if row["installed"] is None]
    other = [name for name, row in packages.items() if row["installed"] not in (row["tested"], None)]
    text = f"jax {versions.version('jax')}; {len(names) - len(missing) - len(other)} of {len(names)} packages as tested"
    if other:
        text += "; not as tested: " + ", ".join(
            f"{name} {packages[name]['installed']} ({packages[name]['tested']})" for name in other
        )
    if missing:
        text += f"; missing: {', '.join(missing)}: pip install lacy_jax"
    return Finding("versions", text, packages, problem=bool(missing))


def _libtpu() -> Finding:
    installed, wanted = versions.version("libtpu"), versions.wanted_libtpu() or SpecifierSet()
    data = {"installed": installed, "wanted": str(wanted)}
    if installed is None:
        return Finding(
            "libtpu", "not installed; needed for TPUs and for lacy plan: pip install 'lacy_jax[tpu]'", data
        )
    if installed == "unknown":
        return Finding(
            "libtpu", f"{os.environ['TPU_LIBRARY_PATH']}, by TPU_LIBRARY_PATH; jax asks for {wanted}", data
        )
    if installed in wanted:
        return Finding("libtpu", f"{installed}, as jax {versions.version('jax')} asks for", data)
    text = f"{installed}, but jax {versions.version('jax')} asks for {wanted}: pip install 'jax[tpu]=={versions.version('jax')}'"
    return Finding("libtpu", text, data, problem=True)


def _extras() -> list[Finding]:
    extras = importlib.metadata.metadata("lacy_jax").get_all("Provides-Extra") or []
    found = []
    for extra in extras:
        names = [one.name for one in versions.requirements("lacy_jax", extra)]
        missing = [name for name in names if versions.version(name) is None]
        text = (
            f"lacks {', '.join(missing)}: pip install 'lacy_jax[{extra}]'"
            if missing
            else f"has {', '.join(names)}"
        )
        found.append(Finding(f"extra {extra}", text, {"missing": missing}))
    return found


def _disk() -> Finding:
    usage = shutil.disk_usage(".")
    text = f"{_gib(usage.free)} of {_gib(usage.total)} free in {os.getcwd()}"
    return Finding("disk", text, {"free_bytes": usage.free, "total_bytes": usage.total})


def _storage(workdir: str) -> Finding:
    if not workdir:
        return Finding(
            "storage",
            "not tried; --workdir=gs://BUCKET/FOLDER or a folder writes and removes a small file",
            {},
        )
    path = epath.Path(workdir) / f".lacy_doctor_{uuid.uuid4().hex[:8]}"
    data = {"workdir": workdir}
    try:
        files.check_storage(workdir)
        files.write_text(path, "written by lacy doctor\n")
        read = path.read_text()
        path.unlink()
    except LacyError as error:
        return Finding("storage", str(error), data, problem=True)
    except (
        Exception
    ) as error:  # Each file system has its own errors; all mean that runs cannot be stored there.
        first = (str(error).splitlines() or [""])[0]
        return Finding("storage", f"{workdir}: {type(error).__name__}: {first}", data, problem=True)
    if read != "written by lacy doctor\n":
        return Finding(
            "storage", f"{workdir}: reading gives other content than was written", data, problem=True
        )
    return Finding("storage", f"{workdir}: files can be written, read and removed", data)
