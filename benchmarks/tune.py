"""`lacy plan --tune` for the presets of experiments/: what it finds, which tests hold the presets to (tests/planning/test_tune.py).

    python benchmarks/tune.py                           # search what docs/results/plan/ lacks, print the tables
    python benchmarks/tune.py llama --compilations=20   # this one, on from where it was
    python benchmarks/tune.py --table                   # print the tables of what is there; compiles nothing

Needs the extra `tpu`. Compiled programs stay in runs/tuned/, so that a search goes on where it was; each takes about a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

_ROOT = pathlib.Path(__file__).resolve().parents[1]
RESULTS = _ROOT / "docs" / "results" / "plan"
WORK = _ROOT / "runs" / "tuned"
SEARCHES = {
    "llama": ("--config=experiments/paper_334m.py:llama", "--topology=v5e-16"),
}
GIB = 2**30


def stored(name: str) -> pathlib.Path:
    """Where its result is kept."""
    return RESULTS / f"tuned_334m_{name}_v5e-16.json"


def search(name: str, compilations: int) -> None:
    """Run `lacy plan --tune` and keep what it says.

    Raises:
      CalledProcessError: it failed; its message is on stderr.
    """
    words = ["plan", *SEARCHES[name], "--tune", f"--workdir={WORK / name}", f"--compilations={compilations}"]
    print("lacy", *words, file=sys.stderr, flush=True)
    path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-m", "lacy_jax.cli", *words], cwd=_ROOT, env=environment, stdout=sys.stderr, check=True)  # fmt: skip
    shutil.copy(WORK / name / "tuning.json", stored(name))


def table() -> str:
    """Markdown of what is stored, a table for each search."""
    parts = []
    for name, given in SEARCHES.items():
        if not stored(name).exists():
            continue
        found = json.loads(stored(name).read_text())
        title = given[0].rpartition("/")[2]
        lines = [f"| `{title}` on v5e-16, {found['programs']} programs | estimate, ms | lower bound | saves | GiB a chip |", "|---|---|---|---|---|"]  # fmt: skip
        for row in found["best"]:
            changes = " ".join(f"{field}={value}" for field, value in row["changes"].items())
            lines.append(
                f"| {f'`{changes}`' if changes else 'as given'} | {row['step_s'] * 1e3:.1f} | {row['lower_bound_s'] * 1e3:.1f} | "
                f"{row['saves_s'] * 1e3:.1f} | {row['used'] / GIB:.2f} |"
            )
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"search only these: {', '.join(SEARCHES)}")
    parser.add_argument("--compilations", type=int, default=20, metavar="N", help="of each search (default 20)")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="print the tables of what is stored; compile nothing")  # fmt: skip
    options = parser.parse_args(argv)
    unknown = [name for name in options.names if name not in SEARCHES]
    if unknown:
        parser.error(f"no search {unknown[0]!r}: {', '.join(SEARCHES)}")
    for name in () if options.table else options.names or SEARCHES:
        if options.names or not stored(name).exists():
            try:
                search(name, options.compilations)
            except subprocess.CalledProcessError as error:
                parser.error(
                    f"{shlex.join(error.cmd)} failed (status {error.returncode}); its message is above"
                )
    print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
