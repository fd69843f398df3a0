#!/usr/bin/env bash
# Builds sdist and wheel of the commit that is checked out, checks both, and uses the wheel as somebody would who has
# nothing else: in a virtual environment of its own, far from the sources. `tools/wheel_check.sh PYTHON_WITH_BUILD_AND_TWINE`
set -euo pipefail
cd "$(dirname "$0")/.."
python=$(realpath --no-symlinks "$1")
commit=$(git rev-parse HEAD)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

mkdir "$folder/source"
git archive HEAD | tar -x -C "$folder/source"
"$python" -m build --outdir "$folder/dist" "$folder/source" >"$folder/build.log" || { cat "$folder/build.log"; exit 1; }
"$python" -m twine check --strict "$folder"/dist/*

wheel=$(echo "$folder"/dist/*.whl) # Made from the sdist: what is missing there is missing here.

# Every file of the package and every experiment, Python or not.
git ls-files lacy_jax experiments | sed 's|^experiments/|lacy_jax/experiments/|' | sort >"$folder/wanted"
"$python" -m zipfile --list "$wheel" | awk '{print $1}' | sort >"$folder/carried"
missing=$(comm -23 "$folder/wanted" "$folder/carried")
[ -z "$missing" ] || { echo "the wheel lacks: $missing" >&2; exit 1; }

"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile --constraint=lacy_jax/constraints.txt "$wheel"
export PATH="$folder/venv/bin:$PATH" JAX_PLATFORMS=cpu
unset PYTHONPATH
mkdir "$folder/home" && cd "$folder/home"
lacy doctor --workdir=runs | tee doctor.txt
grep -q "commit ${commit:0:12};" doctor.txt || { echo "the wheel does not know its commit" >&2; exit 1; }
lacy init . --template=quickstart >/dev/null
python experiments/quickstart.py --smoke --workdir=runs/quickstart
lacy inspect --config=experiments/quickstart.py:smoke --limit=1 --out=inspect.html
lacy report --workdir=runs/quickstart/lacy --out=report.html
for template in wiki paper continue; do lacy init . --template=$template >/dev/null; done
echo "wheel and sdist of $commit work"
