"""Goodput of a whole run, over all its sessions: what restarts cost, too.

A session is from a start of `lacy train`, or a rewind, until it ends or is killed. `Health` writes when it begins and how
it ends; what a killed session came to is known from its last heartbeat, which the next session keeps.
"""

from __future__ import annotations

import collections
import contextlib
from typing import Any

from etils import epath

from lacy_jax import files
from lacy_jax.errors import LacyError
from lacy_jax.json_lines import objects, split_lines
from lacy_jax.run_files import EVENTS_FILE, HEARTBEAT_FILE
from lacy_jax.training.clock import PHASES

LOST, DOWN = "lost", "down"


def run_goodput(workdir: epath.PathLike) -> dict[str, float] | None:
    """Shares of the time from the first session's start to the last sign of life; they add up to 1.

    Returns:
      `goodput`: in steps whose result the run kept; the phases of `Clock`; `lost`: in steps that were done again, because
      no checkpoint held them; `down`: between sessions. None if the run has no records of sessions.

    Raises:
      DataError: health.jsonl is damaged.
    """
    sessions = _sessions(epath.Path(workdir))
    total = sessions[-1]["time"] - sessions[0]["begun"] if sessions else 0.0
    if total <= 0:
        return None
    seconds: collections.Counter[str] = collections.Counter()
    kept_until, next_begin = float("inf"), sessions[-1]["time"]
    for session in reversed(sessions):
        wall = session["time"] - session["begun"]
        for phase in PHASES:
            seconds[phase] += wall * session[phase]
        done = session["step"] - session["start"]
        if done > 0:
            kept = min(max(kept_until - session["start"], 0), done) / done
            seconds["goodput"] += wall * session["goodput"] * kept
            seconds[LOST] += wall * session["goodput"] * (1 - kept)
        else:  # It was killed before its start-up was over.
            seconds["startup"] += wall * session["goodput"]
        seconds[DOWN] += max(next_begin - session["time"], 0.0)
        kept_until, next_begin = min(kept_until, session["start"]), session["begun"]
    return {name: seconds[name] / total for name in ("goodput", *PHASES, LOST, DOWN)}


def describe_goodput(shares: dict[str, float]) -> str:
    """One line for people."""
    rest = ", ".join(f"{name} {share:.1%}" for name, share in shares.items() if name != "goodput")
    return f"goodput of the run {shares['goodput']:.1%}; {rest}"


def last_heartbeat(workdir: epath.Path) -> dict[str, Any] | None:
    """The last sign of life in a run directory; None if there is none, or it cannot be read."""
    with contextlib.suppress(LacyError):
        return files.read_json(workdir / HEARTBEAT_FILE, "heartbeat")
    return None


def _sessions(workdir: epath.Path) -> list[dict[str, Any]]:
    """Where each session stood at its end, or last, in order."""
    path = workdir / EVENTS_FILE
    found: dict[float, dict[str, Any]] = {}
    if not path.exists():
        return []
    data = path.read_bytes()
    lines = split_lines(data[: data.rfind(b"\n") + 1])  # A kill can cut the last one.
    events = [event for _, event in objects([line for line in lines if line.strip()], str(path))]
    for event in events:
        for standing in (event.get("before"), event if event["event"] == "session" else None):
            if standing and "begun" in standing:
                # A session's own record is later than the heartbeat that the next one found.
                found[standing["begun"]] = max(
                    standing, found.get(standing["begun"], standing), key=lambda one: one["time"]
                )
    beat = last_heartbeat(workdir)
    if beat and "begun" in beat and beat["begun"] not in found:
        found[beat["begun"]] = beat
    return [found[begun] for begun in sorted(found)]
