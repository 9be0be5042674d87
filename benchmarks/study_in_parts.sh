#!/usr/bin/env bash
# A comparison of three families on one GPU, as fast as it can be: what does not wait for one another runs side by side.
# Small trainings leave most of a GPU idle; ten processes fill it.
#
#   benchmarks/study_in_parts.sh STUDY SOURCE VALIDATION OUT [RESULTS]
#
# RESULTS, if given, gets an archive of all that is small (reports, scores, logs, pictures) after every stage.
set -uo pipefail
STUDY=$1 SOURCE=$2 VALIDATION=$3 OUT=$4 RESULTS=${5:-}
FAMILIES=${FAMILIES:-next-scale next-token diffusion}
PYTHON=${PYTHON:-python3}
start=$(date +%s)

compare() { # threads, then options
    OMP_NUM_THREADS=$1 "$PYTHON" -m nextscale.cli compare "$STUDY" --data.source "$SOURCE" \
        --data.validation "$VALIDATION" --out "$OUT" --quiet "${@:2}"
}
part() { # threads, part: side by side, each with a log
    local result=done
    compare "$1" --only "$2" >"$OUT.logs/${2/:/-}.txt" 2>&1 || result=failed
    echo "$(($(date +%s) - start)) s: $2 $result"
    keep
}
keep() {
    [ -z "$RESULTS" ] && return
    tar czf "$RESULTS/.part.$BASHPID" --exclude=checkpoints --exclude=model --exclude=best --exclude=tokens \
        --exclude=tensorboard --exclude=reference.npz "$OUT" "$OUT.logs" 2>/dev/null
    mv "$RESULTS/.part.$BASHPID" "$RESULTS/study.tgz"
}

mkdir -p "$OUT.logs"
part 4 reference &
for family in $FAMILIES; do # families that share a tokenizer: the first one trains it
    [ "$family" = diffusion ] || part 2 "tokenizer:$family" &
done
wait
part 2 limits &
for family in $FAMILIES; do part 3 "prior:$family" & done
wait
for family in $FAMILIES; do part 5 "scores:$family" & done
wait
compare 8
keep
