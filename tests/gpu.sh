#!/usr/bin/env bash
# What only a GPU can show: kernels against brute force, the fused path against the reference, graphs against the same
# kernels without one; the engine's table; the whole daemon with answers open; how long a start from saved weights takes.
# Usage: bash tests/gpu.sh [FOLDER] [SECONDS] [PART…]   (default: tests table)
# parts: tests table qwen four six eight ten forty hundred past long start
# qwen: Qwen3.5's fused path held to its oracles, then its table in four sizes; 240 s are enough for both.
# four to ten: cameras that move; forty: four that move, 36 that stand still; hundred: Qwen3.5-4B at its trained rate, with
# READERS processes that decode. past: what snapshots cost and when a question about the past is answered; long: Offline reads.
# Every part has a limit of its own and writes into FOLDER as it ends (default gpu-run); one that fails stops no other.
# DEVICE=cpu PRESET=nano rehearses it on a machine without a GPU: tests are skipped there, and the table fails.
set -u
cd "$(dirname "$0")/.."
out=${1:-gpu-run} seconds=${2:-240}
shift $(($# < 2 ? $# : 2))
parts=${*:-tests table}
device=${DEVICE:-cuda} preset=${PRESET:-4b} watched=${WATCHED:-20}
mkdir -p "$out"
out=$(cd "$out" && pwd)
logs=$(mktemp -d)
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 OMP_NUM_THREADS=2
export STREAMER_TEST_APART=1 # each group is a process of its own
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$logs/triton}

left() { echo $((seconds - SECONDS - 4)); }
say() { echo "== $SECONDS s: $*"; }
enough() { # SECONDS WHAT
    [ "$(left)" -ge "$1" ] && return
    say "$2 left out: needs $1 s, $(left) s are left" | tee -a "$out/left-out.txt"
    return 1
}
least() { echo $(($1 < $2 ? $1 : $2)); }

group() { # NAME FILE [PYTEST OPTIONS]
    local name=$1 code
    shift
    timeout "$(least "${checked:-300}" "$(left)")" python3 -m pytest -q -s -p no:cacheprovider --confcutdir=tests/model "$@" > "$logs/$name" 2>&1
    code=$?
    {
        echo "== $name: exit $code"
        cat "$logs/$name"
    } >> "$out/tests.txt"
    say "$name: exit $code (5: no test, 124: out of time)"
    grep -E "^E  |passed|failed|skipped|^FAILED|^ERROR|fp8|^delta|^values" "$logs/$name" | cut -c1-170 | tail -14
}

run_tests() {
    enough 60 tests || return
    group kernels tests/model/test_kernels.py &
    group training-kernels tests/model/test_training_kernels.py &
    group offline tests/model/test_gpu_offline.py &
    group training-stages tests/model/test_gpu_training.py &
    group float32 tests/model/test_gpu_fast.py -k "float32 and not no_farther" &
    group bfloat16-small tests/model/test_gpu_fast.py -k "no_farther and small" &
    group bfloat16-wide tests/model/test_gpu_fast.py -k "no_farther and wide" &
    group bfloat16-thousand tests/model/test_gpu_fast.py -k "thousand" &
    group graph-small tests/model/test_gpu_fast.py -k "to_the_bit and small" &
    group graph-wide tests/model/test_gpu_fast.py -k "to_the_bit and wide" &
    group products-fp8 tests/model/test_gpu_products.py &
    group nano-fp8 tests/model/test_gpu_exam.py -k fp8 &
    group age-fp8 tests/model/test_gpu_fast.py -k "age or fp8 or early" &
    wait
}

run_qwen() {
    enough 100 qwen || return
    local checked=140 file=tests/model/test_gpu_qwen.py size limit
    group qwen-attention-bf16 $file -k "attention and bfloat16" &
    group qwen-attention-f32 $file -k "attention and float32" &
    group qwen-delta $file -k "delta_rule" &
    for size in 0.8b 4b 27b; do group "qwen-float32-$size" $file -k "plain_path_in_float32 and $size" & done
    for size in 0.8b 4b; do group "qwen-bfloat16-$size" $file -k "no_farther and $size" & done
    for size in model-qwen3.5-0.8b model-qwen3.5-9b fp8-qwen3.5-0.8b fp8-qwen3.5-9b; do
        group "qwen-graph-$size" "$file::test_a_graph_is_the_same_kernels_to_the_bit[$size]" &
    done
    group qwen-together $file -k "together or outlier" &
    group qwen-kernels tests/model/test_kernels.py -k "attention or mixing or between or counts or one_row" &
    for size in 0.8b 2b 4b 9b; do
        timeout 140 python3 -m tests.model.qwen_speed --warm $size > "$logs/warm-$size" 2>&1 &
    done
    wait
    say "qwen: compiled"
    grep -hE "Error|failed" "$logs"/warm-* | cut -c1-170 | head -8
    limit=$(left)
    timeout "$limit" python3 -m tests.model.qwen_speed --budget-seconds $((limit - 25)) > "$out/qwen.txt" 2>&1
    say "qwen: exit $?"
    grep -vE "^  floor|^\[" "$out/qwen.txt" | cut -c1-130 | tail -125
}

run_table() {
    enough 40 table || return
    local limit
    limit=$(left)
    timeout "$limit" python3 -m model.serving.roofline --preset "$preset" --budget-seconds $((limit - 12)) --profile > "$out/table.txt" 2>&1
    say "table: exit $?"
    grep -vE "^\[" "$out/table.txt" | cut -c1-150 | tail -120
}

watch() { # NAME STREAMS ASKERS OPEN DTYPE
    enough 30 "$1" || return
    timeout "$(left)" python3 -m streamer.cli.main bench --device "$device" --preset "$preset" --random-weights --no-floor --json \
        --streams "$2" --askers "$3" --open "$4" --dtype "$5" --deadline 0.08 --seconds "$watched" > "$out/$1.json" 2> "$logs/$1"
    say "$1: exit $?"
    tail -12 "$logs/$1" | cut -c1-200 | tee -a "$out/daemon.txt"
    grep -E "start_s|frames_per|_p50|_p99|late|drops|answers|open|cores|cpu_share|overload|stale|rate" "$out/$1.json"
}

crowd() { # NAME PRESET MOVING STILL ASKERS
    enough 130 "$1" || return # of which a start with nothing compiled takes 55 to 77
    timeout "$(left)" python3 -m tests.streamer.cameras --device "$device" --preset "$2" --random-weights --dtype $half \
        --moving "$3" --still "$4" --askers "$5" --seconds "$watched" ${READERS:+--readers "$READERS"} > "$out/$1.json" 2> "$logs/$1"
    say "$1: exit $?"
    tail -12 "$logs/$1" | cut -c1-200 | tee -a "$out/daemon.txt"
    cut -c1-200 "$out/$1.json"
}

run_past() {
    enough 60 past || return
    timeout "$(left)" python3 -m tests.memory.measure --daemon --starts 0 --seconds "$watched" \
        --model "{\"name\": \"$preset\", \"device\": \"$device\", \"dtype\": \"$half\", \"random_weights\": true}" > "$out/past.txt" 2>&1
    say "past: exit $?"
    tail -20 "$out/past.txt" | cut -c1-200
}

run_long() {
    enough 60 long || return
    timeout "$(left)" python3 -m tests.model.offline_speed --only offline > "$out/long.txt" 2>&1
    say "long: exit $?"
    tail -8 "$out/long.txt" | cut -c1-200
}

run_start() { # once the weights are on the disk
    enough 90 start || return
    timeout "$(left)" python3 -m tests.streamer.start "$logs/checkpoint" --device "$device" --preset "$preset" --dtype "$half" \
        > "$out/start.txt" 2>&1
    say "start: exit $?"
    tail -8 "$out/start.txt" | cut -c1-200
}

half=bfloat16
small=fp8
[ "$device" = cpu ] && half=float32 small=float32
for part in $parts; do
    say "$part"
    case $part in
        tests) run_tests ;;
        table) run_table ;;
        qwen) run_qwen ;;
        four) watch four 4 1 4 $half ;;
        six) watch six 6 1 4 $small ;;
        eight) watch eight 8 3 0 $small ;;
        ten) watch ten 10 1 0 $small ;;
        forty) crowd forty "$preset" 4 36 1 ;;
        hundred) crowd hundred qwen3.5-4b 100 0 4 ;;
        past) run_past ;;
        long) run_long ;;
        start) run_start ;;
        *) echo "no part $part: tests table qwen four six eight ten forty hundred past long start" ;;
    esac
done
rm -rf "$logs"
say end
