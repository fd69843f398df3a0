#!/usr/bin/env bash
# Writes the constraints file to stdout: the newest versions that setup.cfg allows, as pip installs them with the newest and
# the oldest supported Python. What differs between the two carries a marker. `make constraints`.
set -euo pipefail
export LC_ALL=C # sort and comm agree on an order.
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for name in newest oldest; do
  python=$(if [ $name = oldest ]; then tools/find_python.sh 3.11; else tools/find_python.sh; fi)
  : >"$folder/none.txt"
  make --silent VENV="$folder/$name" PYTHON="$python" TESTED="$folder/none.txt" "$folder/$name/.installed-test" >&2
  "$folder/$name/bin/python" -m pip install --quiet --no-compile --editable ".[docs]" >&2
  # Builds of one version for other hardware ("2.13.0+cpu") are the same version.
  "$folder/$name/bin/python" -m pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$//' | sort >"$folder/$name.txt"
done
echo "# Versions that were tested together, with Python 3.12 or newer and with 3.11. Written by \`make constraints\`."
comm -12 "$folder/newest.txt" "$folder/oldest.txt"
comm -23 "$folder/newest.txt" "$folder/oldest.txt" | sed 's/$/ ; python_version >= "3.12"/'
comm -13 "$folder/newest.txt" "$folder/oldest.txt" | sed 's/$/ ; python_version < "3.12"/'
