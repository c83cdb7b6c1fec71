#!/usr/bin/env bash
# The whole suite in environments of other versions: tests/versions.sh [floor] [pinned] [newest]
#
#   floor     every lower bound of pyproject.toml at once
#   pinned    constraints.txt, as `make test`
#   newest    whatever pip finds
#
# Each has a virtual environment of its own in $ENVIRONMENTS, made once and brought up to date by the next call. The last
# lines are a table of what ran: for the README. Options for pytest go into $ARGS.
set -uo pipefail
cd "$(dirname "$0")/.."
environments=${ENVIRONMENTS:-$PWD/.versions}
mkdir -p "$environments"

constraints() { # the versions that an environment is held to
  case $1 in
    floor) "${PYTHON:-python3}" tests/floor.py ;;
    pinned) cat constraints.txt ;;
    newest) ;;
    *) echo "tests/versions.sh: no environment is called $1: floor, pinned, newest" >&2; exit 2 ;;
  esac
}

status=0
for name in "${@:-floor pinned newest}"; do
  for name in $name; do
    folder=$environments/$name
    constraints "$name" > "$environments/$name.txt" || exit 2
    [ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder" || exit 1
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade --constraint "$environments/$name.txt" \
      --editable '.[demo,test]' || { echo "$name: not installed"; status=1; continue; }
    "$folder/bin/python" -m pytest ${ARGS:-} > "$environments/$name.log" 2>&1 || status=1
    versions=$("$folder/bin/python" tests/floor.py --installed)
    echo "| $name | $versions | $(tail -n 1 "$environments/$name.log" | tr -d =) |" | tee "$environments/$name.row"
  done
done
echo
printf '| environment | versions | result |\n|---|---|---|\n'
cat "$environments"/*.row
exit "$status"
