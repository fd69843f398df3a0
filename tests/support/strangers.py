"""What every boundary promises of whatever comes in: a value, or an error of one clear line."""

from __future__ import annotations

from lacy_jax.errors import LacyError


def value_or_line(call, *arguments, kinds=(LacyError,), **options):
    """(value, "") or (None, the error's line); anything but an error of `kinds` with one line fails."""
    try:
        return call(*arguments, **options), ""
    except kinds as error:
        line = str(error)
    assert line.strip(), "an error without a word"
    assert "\n" not in line, line
    return None, line
