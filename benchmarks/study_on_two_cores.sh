#!/usr/bin/env bash
# A comparison of three families on two CPU cores: two chains of parts, a thread each. Run again to go on.
#
#   benchmarks/study_on_two_cores.sh STUDY SOURCE VALIDATION OUT
#
# Diffusion's scores take longest, so one chain has little else; times are measured last, when the machine is quiet.
set -uo pipefail
STUDY=$1 SOURCE=$2 VALIDATION=$3 OUT=$4
PYTHON=${PYTHON:-python3}

compare() { # threads, then options
    OMP_NUM_THREADS=$1 "$PYTHON" -m nextscale.cli compare "$STUDY" --data.source "$SOURCE" \
        --data.validation "$VALIDATION" --out "$OUT" --quiet "${@:2}"
}
chain() { # parts
    local part
    for part; do
        compare 1 --only "$part" >>"$OUT.logs/${part/:/-}.txt" 2>&1 || { echo "$(date +%T) $part failed"; return 1; }
        echo "$(date +%T) $part done"
    done
}

mkdir -p "$OUT.logs"
chain tokenizer:next-scale &
chain tokenizer:next-token &
wait
chain prior:diffusion reference scores:diffusion &
chain prior:next-scale prior:next-token scores:next-scale scores:next-token limits &
wait
compare 2
