#!/usr/bin/env bash
# Puts every claim that needs a GPU to the test, in under 10 minutes, and prints a verdict each.
#
#   bash scripts/gpu_check.sh               with .venv/bin/python, or python3 if there is none
#   PYTHON=/path/to/python bash scripts/gpu_check.sh
#
# Wants an NVIDIA GPU with its driver; what else is missing (tensorrt, trtexec, torch with CUDA)
# leaves its claims "not tested", with the reason. Exit code 0: every claim that was tested
# holds; 1: one fails; 3: none could be tested.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# Only the files that have such tests: the rest may want what this machine lacks.
mapfile -t files < <(grep -rlE --include='test_*.py' 'mark\.gpu' tests)
timeout --signal=INT --kill-after=20 570 "$python" -m pytest -m gpu -p no:randomly -p no:cacheprovider -q \
  --junitxml="$folder/claims.xml" "${files[@]}" >"$folder/log" 2>&1
code=$?
if [ "$code" -eq 124 ] || [ "$code" -eq 137 ]; then
  echo "stopped after 10 minutes; what was done:"
fi
if [ ! -s "$folder/claims.xml" ]; then
  tail -n 20 "$folder/log"
  exit 1
fi
"$python" scripts/verdicts.py "$folder/claims.xml" "$@"
