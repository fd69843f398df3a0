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
python=""
for candidate in python3.12 python3.11 python3; do
  if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then # TPU VM images bring Python 3.10.
  sudo apt-get -o DPkg::Lock::Timeout=600 update -qq
  sudo apt-get -o DPkg::Lock::Timeout=600 install -y -qq python3.11 python3.11-venv
  python=python3.11
fi
[ -x "$HOME/lacy_jax/.venv/bin/python" ] || "$python" -m venv "$HOME/lacy_jax/.venv"
"$HOME/lacy_jax/.venv/bin/python" -m pip install --quiet --editable "$HOME/lacy_jax[tpu]"
echo "$commit" >"$stamp"
echo "installed lacy_jax $commit"
