from __future__ import annotations

import pathlib

import pytest
import tpu_stand_in


@pytest.fixture
def cloud(tmp_path: pathlib.Path) -> tpu_stand_in.Cloud:
    """Stand-ins on a PATH of their own."""
    return tpu_stand_in.Cloud(tmp_path)
