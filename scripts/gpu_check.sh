#!/usr/bin/env bash
# Puts every claim that needs a GPU to the test, in under 10 minutes, and prints a verdict each.
#
#   bash scripts/gpu_check.sh               with .venv/bin/python, or python3 if there is none
#   bash scripts/gpu_check.sh result.json   also keeps the verdicts
#   PYTHON=/path/to/python bash scripts/gpu_check.sh
#
# Wants an NVIDIA GPU with its driver; what else is missing (tensorrt, trtexec, a GPU build of
# onnxruntime) leaves its claims "not tested", with the reason. The whole log is kept, and its
# place is told at the end. Exit code 0: every claim that was tested holds; 1: one fails; 3:
# none could be tested.
set -uo pipefail
result=()
if [ "$#" -gt 0 ]; then result=("$(realpath -m "$1")"); fi
cd "$(dirname "$0")/.." || exit 1
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v python3)
folder=$(mktemp -d)
touch "$folder/claims"

# Only the files that have such tests: the rest may want what this machine lacks. Those of
# engines come first, for the time may run out.
mapfile -t files < <(grep -rlE --include='test_*.py' 'mark\.gpu' tests | sort)
# INT lets pytest end in order; where it is ignored, as behind nohup, KILL loses no verdict.
PYTHONPATH="scripts${PYTHONPATH:+:$PYTHONPATH}" CLAIMS_FD=3 \
  timeout --signal=INT --kill-after=15 "${SECONDS_AT_MOST:-570}" \
  "$python" -m pytest -m gpu -p verdicts --claims "$folder/claims" -p no:randomly \
  -p no:cacheprovider -q --basetemp="$folder/pytest" "${files[@]}" 3>&1 >"$folder/log" 2>&1
code=$?
# The models of the tests fill gigabytes.
rm -rf "$folder/pytest"
if [ ! -s "$folder/claims" ]; then
  tail -n 20 "$folder/log"
  exit 1
fi
"$python" scripts/verdicts.py "$folder/claims" "$code" "${result[@]}"
status=$?
echo "log: $folder/log"
exit "$status"
