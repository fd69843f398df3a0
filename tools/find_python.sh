#!/usr/bin/env bash
# Prints the newest supported Python that really starts and can make a virtual environment; exits with 1 if there is none.
#
#   tools/find_python.sh [VERSION...]    of these versions; default: all that are tested, newest first
#
# What is on the path is tried first, then what pyenv has: its shim may be on the path and refuse to start.
set -euo pipefail
TESTED=(3.13 3.12 3.11)
[ $# -gt 0 ] || set -- "${TESTED[@]}"
for version in "$@"; do
  for candidate in "python$version" python3 "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/python3; do
    found=$("$candidate" -c 'import ensurepip, sys, venv; print("%d.%d" % sys.version_info[:2], sys.executable)' 2>/dev/null) || continue
    if [ "${found%% *}" = "$version" ]; then
      echo "${found#* }"
      exit 0
    fi
  done
done
echo "no Python of ${*} found that starts and can make a virtual environment; PYTHON=/path/to/python3 names one" >&2
exit 1
