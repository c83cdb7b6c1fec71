#!/usr/bin/env bash
# The whole suite in environments of other versions: tests/versions.sh [floor] [pinned] [newest]
#
#   floor     every lower bound of pyproject.toml, of what fastvae, its demo and its tests need, at once
#   pinned    constraints.txt, as `make test`
#   newest    whatever pip finds
#
# Each has a virtual environment of its own in $ENVIRONMENTS, by default .versions, made once and brought up to date by
# the next call. The last lines are a table of what ran. Options for pytest go into $ARGS.
set -uo pipefail
environments=$(realpath -m "${ENVIRONMENTS:-$(dirname "$0")/../.versions}")
cd "$(dirname "$0")/.."
mkdir -p "$environments"
names=("$@")
[ $# -gt 0 ] || names=(floor pinned newest)
eval "args=(${ARGS:-})"

constraints() { # the versions that an environment is held to
  case $1 in
    floor) "${PYTHON:-python3}" tests/floor.py ;;
    pinned) cat constraints.txt ;;
    newest) ;;
    *) echo "tests/versions.sh: no environment is called $1: floor, pinned, newest" >&2; return 2 ;;
  esac
}

for name in "${names[@]}"; do
  constraints "$name" > "$environments/$name.txt" || { rm -f "$environments/$name.txt"; exit 2; }
done
status=0
rows=()
for name in "${names[@]}"; do
  folder=$environments/$name
  [ -x "$folder/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder" || exit 1
  if ! "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade --upgrade-strategy eager \
    --constraint "$environments/$name.txt" --editable '.[demo,test]'; then
    rows+=("| $name | | not installed |")
    status=1
    continue
  fi
  "$folder/bin/python" -m pytest ${args[@]+"${args[@]}"} 2>&1 | tee "$environments/$name.log"
  code=${PIPESTATUS[0]}
  [ "$code" -eq 0 ] || status=1
  result=$(tail -n 1 "$environments/$name.log" | tr -d =)
  rows+=("| $name | $("$folder/bin/python" tests/floor.py --installed) | $result, exit code $code |")
done
printf '\n| environment | versions | result |\n|---|---|---|\n'
printf '%s\n' "${rows[@]}"
exit "$status"
