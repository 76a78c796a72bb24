#!/usr/bin/env bash
# Everything that only a GPU can tell, in stages, most important first; docs/gpu.md has the whole story.
#
#   benchmarks/gpu/measure_all.sh [--out DIR] [--only a,c] [--list] [--rehearse] [--prebuilt DIR]
#                                 [--budget SECONDS] [--bound STAGE=SECONDS] [--networks NAMES] [--python FILE]
#                                 [--driver DIR]       of a rehearsal: a fake CUDA driver, built before
#
# Each stage is a process of its own under timeout(1) and writes DIR/<stage>.json after every row, so a cut-off loses
# what one stage had not done yet. DIR/stages.log holds what all of them printed, DIR/summary.json which ran, how they
# ended and what failed: eight files in all, and one more for each of the stages g and h, which run only where --only
# names them. Exit code: 0 every row measured, 1 some row or stage was not.
set -uo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
python=${PYTHON:-python3} out=${OUT:-gpu-results} only='' budget=530 prebuilt='' networks='' driver='' rehearse=() list=
declare -A bounds=()

usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }
fail() { echo "measure_all.sh: $1" >&2; exit 2; }

while (($#)); do
  case $1 in
    --list) list=1; shift; continue ;;
    --rehearse) rehearse=(--rehearse); shift; continue ;;
    --help | -h) usage; exit 0 ;;
    --out | --only | --budget | --bound | --prebuilt | --networks | --python | --driver) (($# > 1)) || fail "$1 wants a value" ;;
    *) usage >&2; fail "no such option: $1" ;;
  esac
  case $1 in
    --out) out=$2 ;;
    --only) only=$2 ;;
    --budget) [[ $2 =~ ^[0-9]+$ ]] || fail "--budget $2: expected seconds"; budget=$2 ;;
    --bound) [[ $2 =~ ^[a-z]=[0-9]+$ ]] || fail "--bound $2: expected STAGE=SECONDS"; bounds[${2%%=*}]=${2#*=} ;;
    --prebuilt) prebuilt=$(realpath -m "$2") ;;
    --networks) networks=$2 ;;
    --python) python=$2 ;;
    --driver) driver=$2 ;;
  esac
  shift 2
done

command -v timeout >/dev/null || fail "needs timeout(1), of coreutils"
command -v "$python" >/dev/null || fail "there is no $python here; name one with --python"
[[ $python != */* ]] || python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")  # not what a venv links to
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
# the records are written by Python alone: what is wrong with wheels or libraries shows in the stages
record() { env LD_LIBRARY_PATH="${library_path:-}" "$python" -m benchmarks.gpu.record "$@"; }
library_path=${LD_LIBRARY_PATH:-}
stages=$("$python" -m benchmarks.gpu.stages --only "$only") || fail "cannot list the stages"
[[ -z $list ]] || { echo "$stages"; exit 0; }

mkdir -p "$out" || fail "cannot make $out"
out=$(cd "$out" && pwd) log=$out/stages.log
rm -f "$out"/[a-z].json "$out/summary.json"
: > "$log"
scratch=$(mktemp -d) child='' stage='' begun='' began=0 log_start=0
cd "$root" || exit 2

end_stage() {  # exit code
  begun=''
  record end "$out" "$stage" --rc "$1" --seconds "$(seconds_since "$began")" --log "$log" --log-start "$log_start"
}
now() { date +%s.%N; }
seconds_since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.2f", to - from }'; }
stop() {  # exit code
  trap - TERM INT HUP
  if [[ -n $child ]]; then
    kill -s TERM "$child" 2>/dev/null  # timeout(1) passes it on to the stage, and kills it 5 s later
    wait "$child"
  fi
  [[ -z $begun ]] || end_stage "$1"
  rm -rf "$scratch"
  record summary "$out"
  exit "$1"
}
trap 'stop 143' TERM
trap 'stop 130' INT
trap 'stop 129' HUP

if ((${#rehearse[@]})); then
  if [[ -n $driver ]] || driver=$("$python" -m benchmarks.gpu.rehearsal "$scratch/driver" 2>>"$log"); then
    export LD_LIBRARY_PATH=$driver${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  else
    echo "no fake CUDA driver could be built (see $log); the stages find no GPU" >&2
  fi
fi

failed=0
while read -r stage bound title; do
  bound=${bounds[$stage]:-$bound}
  left=$((budget - SECONDS))
  if ((left < 5)); then
    record skip "$out" "$stage" --reason "the budget of $budget s is spent; run it with --only $stage"
    failed=1
    continue
  fi
  if ((left < bound)); then bound=$left; fi
  log_start=$(stat -c %s "$log") began=$(now)
  echo "($stage) $title, at most $bound s" | tee -a "$log"
  begun=1
  record begin "$out" "$stage" --bound "$bound" "${rehearse[@]}"
  timeout -k 5 "$bound" "$python" -m benchmarks.gpu.run_stage "$stage" --out "$out" --bound "$bound" \
    --scratch "$scratch" --networks "$networks" ${prebuilt:+--prebuilt "$prebuilt"} "${rehearse[@]}" \
    </dev/null >>"$log" 2>&1 &
  child=$!
  wait "$child"
  rc=$?
  child=''
  end_stage "$rc"
  ((rc == 0)) || failed=1
done <<<"$stages"
rm -rf "$scratch"
record summary "$out"
exit "$failed"
