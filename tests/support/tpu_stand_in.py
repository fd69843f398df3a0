"""Stand-ins for gcloud, kubectl and xpk that record their calls and can fail, and the arguments that most tests give."""

from __future__ import annotations

import os
import pathlib
import stat
import subprocess

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "tpu_scripts"
SLICE = ("--name=lacy", "--zone=us-west4-a")
TRAIN = ("--config=experiments/paper_334m.py:lacy", "--workdir=gs://b/runs/lacy")
MISSING = "ERROR: (gcloud.compute.tpus.queued-resources.describe) NOT_FOUND: Resource not found"

_STAND_IN = """#!/usr/bin/env bash
call="${0##*/} $*"
printf '%s\\n' "$call" >>"$CALLS"
if [[ $call == "kubectl apply"* ]]; then cat >"$CALLS.stdin"; fi
for reply in "$REPLIES"/*; do
  [ -f "$reply" ] || continue
  { read -r pattern; read -r code; } <"$reply"
  if [[ $call == *"$pattern"* ]]; then
    tail -n +3 "$reply"
    [[ $reply != *.once ]] || rm "$reply"
    exit "$code"
  fi
done
"""


class Cloud:
    """gcloud and kubectl on a PATH of their own; everything succeeds silently unless told otherwise."""

    def __init__(self, folder: pathlib.Path):
        self.folder, self.count = folder, 0
        self.calls_file = folder / "calls"
        self.calls_file.write_text("")
        (folder / "bin").mkdir()
        (folder / "replies").mkdir()
        for name in ("gcloud", "kubectl", "xpk"):
            path = folder / "bin" / name
            path.write_text(_STAND_IN)
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    def reply(self, pattern: str, output: str = "", code: int = 0, once: bool = False) -> None:
        """Answer calls that contain `pattern`; earlier replies are tried first."""
        self.count += 1
        name = f"{self.count:03d}" + (".once" if once else "")
        (self.folder / "replies" / name).write_text(f"{pattern}\n{code}\n{output}\n")

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess:
        return self._run([str(SCRIPTS / f"{script}.sh"), *arguments])

    def shell(self, line: str) -> subprocess.CompletedProcess:
        """Run a shell line, in the root of the repository."""
        return self._run(["bash", "-c", line], cwd=SCRIPTS.parent)

    @property
    def environment(self) -> dict[str, str]:
        """In which the stand-ins are found, and nobody waits."""
        return {
            **os.environ, "PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "CALLS": str(self.calls_file),
            "REPLIES": str(self.folder / "replies"), "LACY_POLL_S": "1", "LACY_MINUTE_S": "0",
        }  # fmt: skip

    def _run(self, words: list[str], cwd: pathlib.Path | None = None) -> subprocess.CompletedProcess:
        environment = self.environment
        return subprocess.run(words, cwd=cwd, capture_output=True, text=True, env=environment, timeout=60)

    @property
    def calls(self) -> list[str]:
        return self.calls_file.read_text().splitlines()

    def changes(self) -> list[str]:
        return [call for call in self.calls if " describe " not in call and " list " not in call]
