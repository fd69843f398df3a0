#!/usr/bin/env bash
# Runs on a worker: unpack ~/lacy.tar.gz and install it. `install.sh COMMIT`; does nothing if that commit is installed.
set -euo pipefail
commit=$1
stamp=$HOME/lacy_jax/.installed
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$commit" ]; then
  echo "lacy_jax $commit is installed"
  exit 0
fi
rm -f "$stamp"
mkdir -p "$HOME/lacy_jax"
tar -xzf "$HOME/lacy.tar.gz" -C "$HOME/lacy_jax"
cd "$HOME/lacy_jax"
if ! python=$(tools/find_python.sh 3.13 3.12 2>/dev/null); then # TPU VM images bring Python 3.10, and jax 0.12 needs 3.12.
  python3 -m pip install --quiet --user uv
  python3 -m uv python install --quiet 3.13
  python=$(python3 -m uv python find 3.13)
fi
[ -x .venv/bin/python ] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --constraint=lacy_jax/constraints.txt --editable ".[tpu]"
echo "$commit" >"$stamp"
echo "installed lacy_jax $commit"
