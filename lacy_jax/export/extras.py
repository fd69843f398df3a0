"""Optional packages, imported by name only where they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from lacy_jax.errors import LacyError


def require(module: str, what: str = "this command", extra: str = "export") -> Any:
    """Import an optional package.

    Args:
      module: such as "transformers".
      what: the feature that needs it, for the error.
      extra: the extra in setup.cfg that installs it.

    Returns:
      The module.

    Raises:
      LacyError: it is not installed; the line says how to get it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.split(".")[0]
        raise LacyError(
            f"{what} needs the package {package}, which cannot be imported ({error}); "
            f"pip install 'lacy_jax[{extra}]'"
        ) from error
