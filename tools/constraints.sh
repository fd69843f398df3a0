#!/usr/bin/env bash
# Writes the constraints file to stdout: the newest versions that setup.cfg allows, as pip chooses them for the newest and
# the oldest supported Python; nothing is installed. What differs between the two carries a marker. `make constraints`.
set -euo pipefail
export LC_ALL=C # sort and comm agree on an order.
cd "$(dirname "$0")/.."
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# `pins PYTHON REPORT...`: what these reports of pip would install, ours left out; the lower version of a package in several, as it would
# replace the other. Builds of one version for other hardware ("2.13.0+cpu") are the same version.
pins() {
  "$1" - "${@:2}" <<'PYTHON'
import json, sys
from pip._vendor.packaging.version import Version
found = {}
for path in sys.argv[1:]:
    for one in json.load(open(path))["install"]:
        name, version = one["metadata"]["name"], one["metadata"]["version"].split("+")[0]
        # Beam asks for protobuf below 7, SentencePiece for a later one, with which both work: pip cannot know that.
        if name not in found or name != "protobuf" and Version(version) < Version(found[name]):
            found[name] = version
found.pop("lacy_jax")
print(*(f"{name}=={version}" for name, version in found.items()), sep="\n")
PYTHON
}

for name in newest oldest; do
  "$(if [ $name = oldest ]; then tools/find_python.sh 3.11; else tools/find_python.sh; fi)" -m venv "$folder/$name"
  python=$folder/$name/bin/python
  choose=("$python" -m pip install --quiet --dry-run --ignore-installed --report)
  "${choose[@]}" "$folder/$name.json" ".[test,docs,cloud]" >&2
  "${choose[@]}" "$folder/$name-beam.json" apache-beam >&2
  pins "$python" "$folder/$name.json" "$folder/$name-beam.json" | sort >"$folder/$name.txt"
done
echo "# Versions that were tested together, with Python 3.12 or newer and with 3.11. Written by \`make constraints\`."
comm -12 "$folder/newest.txt" "$folder/oldest.txt"
comm -23 "$folder/newest.txt" "$folder/oldest.txt" | sed 's/$/ ; python_version >= "3.12"/'
comm -13 "$folder/newest.txt" "$folder/oldest.txt" | sed 's/$/ ; python_version < "3.12"/'
