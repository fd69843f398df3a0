"""Installed versions, versions that were tested together, and the commit. It imports nothing that it reports on."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import pathlib
import subprocess
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from lacy_jax.errors import LacyError

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]


def version(package: str) -> str | None:
    """Installed version without the build tag ("2.13.0+cpu" gives 2.13.0); None if the package is not installed.

    "unknown" for a libtpu that TPU_LIBRARY_PATH names instead of the installed one.
    """
    # JAX sets TPU_LIBRARY_PATH too, to the installed package.
    if package == "libtpu" and (used := os.environ.get("TPU_LIBRARY_PATH")):
        installed = importlib.util.find_spec("libtpu")
        folders = installed.submodule_search_locations if installed else None
        if os.path.dirname(used) not in (folders or ()):
            return "unknown"
    try:
        return importlib.metadata.version(package).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def tested_versions() -> dict[str, str]:
    """Package -> version in `constraints.txt` for the running Python: the versions that were tested together."""
    found: dict[str, str] = {}
    for line in (_PACKAGE / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                found[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return found


def requirements(package: str, extra: str = "") -> list[Requirement]:
    """The requirements of an installed package on this machine: those without extras, or only those of `extra`.

    Raises:
      LacyError: the package is not installed.
    """
    found = []
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise LacyError(
            f"{package} is not installed (though it may be importable): pip install {package}"
        ) from None
    for line in lines:
        requirement = Requirement(line)
        needed = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if extra:
            needed = not needed and requirement.marker.evaluate({"extra": extra})  # type: ignore[union-attr]
        if needed:
            found.append(requirement)
    return found


def wanted_libtpu() -> SpecifierSet | None:
    """The libtpu versions that the installed jax requires with its extra `tpu`; None if it names none."""
    asked = (one.specifier for one in requirements("jax", "tpu") if one.name == "libtpu")
    return next(asked, None)


def source_commit() -> dict[str, Any] | None:
    """Commit of the source and whether it had changes, from git, or else as written into an archive, image or wheel."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # Fails if the package is installed inside somebody else's repository.
        git("ls-files", "--error-unmatch", "__init__.py")
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        written = (_PACKAGE / "commit.txt").read_text().strip()
        return None if written.startswith("$") else {"commit": written, "changed": None}
