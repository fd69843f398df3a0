"""What is installed, what was tested together, and which commit this is. Imports nothing that it reports on."""

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
    """Installed version, without the build ("2.13.0+cpu" is 2.13.0); None if it is not installed.

    "unknown" for a libtpu that TPU_LIBRARY_PATH names in place of the installed one.
    """
    if package == "libtpu" and (
        used := os.environ.get("TPU_LIBRARY_PATH")
    ):  # JAX sets it too, to the package's.
        installed = importlib.util.find_spec("libtpu")
        folders = installed.submodule_search_locations if installed else None
        if os.path.dirname(used) not in (folders or ()):
            return "unknown"
    try:
        return importlib.metadata.version(package).split("+")[0]
    except importlib.metadata.PackageNotFoundError:
        return None


def tested_versions() -> dict[str, str]:
    """Package -> version of `constraints.txt`, for the Python that runs: the versions that were tested together."""
    found: dict[str, str] = {}
    for line in (_PACKAGE / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate():
                found[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return found


def requirements(package: str, extra: str = "") -> list[Requirement]:
    """What an installed package asks for on this machine: always, or only with `extra`.

    Raises:
      LacyError: it is not installed.
    """
    found = []
    try:
        lines = importlib.metadata.requires(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise LacyError(
            f"{package} is not installed, at most found on the path: pip install {package}"
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
    """Versions of libtpu that the installed jax asks for with its extra `tpu`; None if it does not say."""
    asked = (one.specifier for one in requirements("jax", "tpu") if one.name == "libtpu")
    return next(asked, None)


def source_commit() -> dict[str, Any] | None:
    """Commit of the source and whether it had changes: asked of git, else as written into an archive, image or wheel."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(_PACKAGE), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # Else it is installed below somebody else's repository.
        return {
            "commit": git("rev-parse", "HEAD"),
            "changed": bool(git("status", "--porcelain", "--untracked-files=no")),
        }
    except (OSError, subprocess.SubprocessError):
        written = (_PACKAGE / "commit.txt").read_text().strip()
        return None if written.startswith("$") else {"commit": written, "changed": None}
