#!/usr/bin/env bash
# Builds and times every model of this bundle with trtexec, and packs what came out.
#
# Needs bash, an NVIDIA GPU with its driver, and trtexec of TensorRT 10 or 11: on the PATH, in
# $TRTEXEC, or in /usr/src/tensorrt/bin. Nothing is installed, no network is used, and nothing
# outside this folder is written.
#
#   bash run.sh            all of it; a second run starts anew
#   ROUNDS=20 bash run.sh  more rounds of timing (10 by default), in turns over the models
set -uo pipefail
cd "$(dirname "$0")" || exit 1
rounds=${ROUNDS:-10}

find_trtexec() {
  local place
  for place in "${TRTEXEC:-}" "$(command -v trtexec)" /usr/src/tensorrt/bin/trtexec \
    /opt/tensorrt/bin/trtexec /usr/local/tensorrt/bin/trtexec; do
    if [ -n "$place" ] && [ -x "$place" ]; then
      echo "$place"
      return 0
    fi
  done
  return 1
}

trtexec=$(find_trtexec) || {
  echo "trtexec | is neither on the PATH nor in /usr/src/tensorrt/bin; it comes with TensorRT;" \
    "give its path: TRTEXEC=/path/to/trtexec bash run.sh" >&2
  exit 1
}
help=$("$trtexec" --help 2>&1)
has() { grep -q -- "--$1\b" <<<"$help"; }

# What TensorRT 11 does by itself, 10 wants by name.
typed=()
if has stronglyTyped && ! grep -qxE -- '--(fp16|bf16|int8|fp8)' commands/*.args; then
  typed=(--stronglyTyped)
fi
steady=()
for option in useCudaGraph useSpinWait noDataTransfers; do
  if has "$option"; then steady+=("--$option"); fi
done
separate=()
if has separateProfileRun; then separate=(--separateProfileRun); fi

rm -rf results
mkdir -p results
cp manifest.json results/
{
  nvidia-smi --query-gpu=name,compute_cap,driver_version,memory.total --format=csv,noheader,nounits
} >results/gpu.csv 2>/dev/null
printf '%s\n' "$help" | head -n 1 >results/trtexec.txt

names=()
failed=0
while IFS= read -r -d '' file; do
  names+=("$(basename "$file" .args)")
done < <(find commands -name '*.args' -print0 | sort -z)

# Each model keeps timings of its own: one built twice shows what choosing kernels anew does.
for name in "${names[@]}"; do
  out=results/$name
  mkdir -p "$out"
  mapfile -t arguments <"commands/$name.args"
  echo "building $name"
  "$trtexec" "${arguments[@]}" "${typed[@]}" "${steady[@]}" "${separate[@]}" \
    --saveEngine="$out/model.engine" --timingCacheFile="timing.$name.cache" \
    --verbose --profilingVerbosity=detailed --exportLayerInfo="$out/layers.json" \
    --exportProfile="$out/profile.json" --exportTimes="$out/times.0.json" \
    >"$out/build.log" 2>&1
  status=$?
  echo "$status" >"$out/status"
  if [ "$status" -ne 0 ]; then
    failed=1
    echo "  failed with exit code $status; see $out/build.log" >&2
    grep -m 3 '\[E\]' "$out/build.log" >&2
    continue
  fi
  grep -E '\(Sparsity\)|Engine built in|GPU Compute Time: min' "$out/build.log" | cut -c 1-160
  wc -c <"$out/model.engine" >"$out/bytes"
done

# In turns, forth and back, so that a GPU that warms up or slows down does so for all.
turns=("${names[@]}")
for ((round = 1; round <= rounds; round++)); do
  for name in "${turns[@]}"; do
    out=results/$name
    [ -f "$out/model.engine" ] || continue
    mapfile -t shapes < <(grep -- '^--optShapes=' "commands/$name.args" | sed 's/optShapes/shapes/')
    echo "timing $name, round $round of $rounds"
    "$trtexec" --loadEngine="$out/model.engine" "${shapes[@]}" "${steady[@]}" \
      --duration=1 --exportTimes="$out/times.$round.json" >"$out/time.$round.log" 2>&1 || {
      failed=1
      echo "  failed; see $out/time.$round.log" >&2
    }
  done
  back=()
  for name in "${turns[@]}"; do back=("$name" "${back[@]}"); done
  turns=("${back[@]}")
done

# Engines run on this GPU and version alone: they stay here.
tar -cf results.tar --exclude='*.engine' results
echo "packed results.tar; take it back, unpack it, and: patch-compile bench --import results/"
exit "$failed"
