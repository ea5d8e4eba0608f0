#!/usr/bin/env bash
# What only a GPU can show: kernels against brute force, the fused path against the reference, graphs against the same
# kernels without one, then the engine's table. Usage: bash tests/gpu.sh [FOLDER] [SECONDS]
# Every part writes into FOLDER as it goes (default gpu-run); one that fails does not stop the others.
set -u
cd "$(dirname "$0")/.."
out=${1:-gpu-run} seconds=${2:-240} begin=$SECONDS
mkdir -p "$out"
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2 STREAMER_TEST_APART=1 # each group is a process of its own
tests="python3 -m pytest -q -s -p no:cacheprovider --confcutdir=tests/model"
share=$((seconds / 2 - 10))

timeout "$share" $tests tests/model/test_kernels.py > "$out/kernels.txt" 2>&1 &
timeout "$share" $tests tests/model/test_training_kernels.py > "$out/training-kernels.txt" 2>&1 &
for group in "float32 and not no_farther" "no_farther and small" "no_farther and wide" "to_the_bit and small" "to_the_bit and wide" "age or fp8"; do
    timeout "$share" $tests tests/model/test_gpu_fast.py -k "$group" > "$out/fast ${group}.txt" 2>&1 &
done
wait
for file in "$out"/kernels.txt "$out"/training-kernels.txt "$out"/fast*.txt; do
    echo "== $(basename "$file" .txt)"
    grep -E "^E  |passed|failed|skipped|^FAILED|^ERROR|fp8|^delta|^values" "$file" | cut -c1-170 | tail -14
done
left=$((seconds - (SECONDS - begin) - 4))
echo "== the engine's table, $left s"
timeout "$left" python3 -m model.benchmark --preset 4b --budget-seconds $((left - 12)) --profile > "$out/benchmark.txt" 2>&1
grep -vE "^\[" "$out/benchmark.txt" | cut -c1-150 | tail -120
