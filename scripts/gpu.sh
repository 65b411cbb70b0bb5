#!/usr/bin/env bash
# What a GPU can tell in eight minutes, the most valuable first.
#
#   bash scripts/gpu.sh [--device cuda] [--tiny]
#
# Everything together takes at most $LIMIT seconds (480): a part gets its own time or what is left,
# less what stopping and packing it may take. What is finished is not done again, and training,
# search and timings go on where a call has left them. They lie in $WORK (runs/gpu), and after each
# part in gpu.tar.gz of the folder $OUT (runs); where $WORK is not there, the archive $ARCHIVE
# (gpu.tar.gz) of an earlier call is taken up.
#
# It needs no network. Packages come from wheels in $WHEELS (wheels/), beside what the machine's
# python3 has. On a machine with PyTorch, torchvision, NumPy, SciPy, pandas, scikit-learn, matplotlib,
# rich, filelock, safetensors, ONNX and pytest (with pytest-xdist and pytest-timeout) these are
#   pip download --no-deps -d wheels cma docstring-parser farama-notifications gymnasium onnxscript \
#     platformdirs stable-baselines3 torch-pruning typeguard tyro
# CIFAR-10 comes from $DATA (cifar10-jpeg.tar.gz), a tree of train/CLASS/IMAGE and
# test/CLASS/IMAGE, packed or unpacked. `--device cpu --tiny` rehearses all of it on digits.
set -uo pipefail
cd "$(dirname "$0")/.."

device=cuda tiny=
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=${2:?--device needs a name}; shift ;;
        --tiny) tiny=1 ;;
        *) echo "error: unknown argument $1; expected --device NAME or --tiny" >&2; exit 2 ;;
    esac
    shift
done
limit=${LIMIT:-480} reserve=15 n_failed=0
case $limit in
    *[!0-9]*) echo "error: LIMIT must be a number of seconds, got $limit" >&2; exit 2 ;;
esac
limit=$((10#$limit))

folder() {
    mkdir -p "$1" 2>/dev/null || { echo "error: cannot make the folder $1" >&2; exit 1; }
}

folder "${OUT:-runs}"
out=$(cd "${OUT:-runs}" && pwd) || exit 1
work=${WORK:-$PWD/runs/gpu${tiny:+-tiny}}
folder "$(dirname "$work")"
[ ! -e "$work" ] || folder "$work" # it may be a file
wheels=${WHEELS:-wheels} data=${DATA:-cifar10-jpeg.tar.gz} earlier=${ARCHIVE:-gpu.tar.gz}

if [ -n "$tiny" ]; then
    images=(--data digits16) timed=(--dataset digits16 --finetune-steps 1)
    epochs=1 deep=vgg8 steps=2 search=4 final=2 together=(2)
else
    images=(--data cifar10 --data-root "$work/cifar10")
    timed=(--dataset cifar10 --data-root "$work/cifar10")
    epochs=3 deep=resnet56 steps=30 search=30 final=700 together=(4 16)
fi

# left RESERVE: seconds until all but a reserve is spent, at least 1
left() {
    local seconds=$((limit - SECONDS - $1))
    echo $((seconds > 1 ? seconds : 1))
}

# within RESERVE COMMAND...: run it for as long as that
within() {
    local seconds
    seconds=$(left "$1")
    shift
    timeout --kill-after=5 "$seconds" "$@"
}

# unpack ARCHIVE FOLDER: all of it or nothing, so that a call which was cut short leaves no half of it
unpack() {
    rm -rf "$2.new" && mkdir -p "$2.new" && within "$reserve" tar -xzf "$1" -C "$2.new" &&
        rm -rf "$2" && mv "$2.new" "$2"
}

prepare() {
    if [ ! -d "$work" ] && [ -f "$earlier" ]; then unpack "$earlier" "$work" || return; fi
    mkdir -p "$work" || return
    export PYTHONPATH=$PWD:$work/site
    if [ -d "$wheels" ] && [ ! -d "$work/site" ]; then
        rm -rf "$work/site.new"
        within "$reserve" python3 -m pip install --quiet --no-index --no-deps \
            --target "$work/site.new" "$wheels"/*.whl &&
            mv "$work/site.new" "$work/site" || return
    fi
    # what `pip install -e .` would write without building: name, version, commands
    within "$reserve" python3 -c 'import importlib.metadata as m; m.version("compress-env")' \
        2>"$work/metadata.log" ||
        within "$reserve" python3 -c 'from setuptools import setup; setup()' -q egg_info \
            >>"$work/metadata.log" 2>&1 || return
    if [ -z "$tiny" ] && [ ! -e "$work/cifar10/train" ]; then
        if [ -d "$data" ]; then ln -sfn "$(realpath "$data")" "$work/cifar10"
        else unpack "$data" "$work/cifar10" || return; fi
    fi
    within "$reserve" python3 -c 'import compress_env, agents, experiments'
}

pack() {
    local archive=
    if archive=$(mktemp "$out/.gpu.XXXXXX") &&
        within 0 tar -cf - -C "$work" --exclude='./cifar10*' --exclude='./site*' . |
        within 0 gzip -1 >"$archive" && mv "$archive" "$out/gpu.tar.gz"; then return; fi
    [ -z "$archive" ] || rm -f "$archive"
    echo "error: cannot pack $work into $out/gpu.tar.gz" >&2
    n_failed=$((n_failed + 1))
}

# part NAME SECONDS COMMAND...: run it once, with a time limit, its output in NAME.log
part() {
    local name=$1 seconds=$2 left=$((limit - SECONDS - reserve)) start=$SECONDS status=0
    shift 2
    [ -e "$work/$name.done" ] && { echo "$name: done before"; return; }
    [ "$left" -lt 10 ] && { echo "$name: no time left"; return; }
    # A rehearsal asks whether a part runs, not how fast the machine is.
    [ -n "$tiny" ] && seconds=$left
    timeout --signal=TERM --kill-after=5 $((seconds < left ? seconds : left)) "$@" \
        >>"$work/$name.log" 2>&1 || status=$?
    case $status in
        0) touch "$work/$name.done"; echo "$name: done in $((SECONDS - start)) s" ;;
        124 | 137) echo "$name: stopped after $((SECONDS - start)) s" ;;
        *) n_failed=$((n_failed + 1))
           echo "$name: failed with status $status: $(tail -n 1 "$work/$name.log")" ;;
    esac
    pack
}

# experiment NAME SECONDS COMMAND OPTIONS...: one that goes on where an earlier call has stopped it
experiment() {
    local name=$1 seconds=$2 command=$3 places=()
    shift 3
    if [ -e "$work/$name/config.json" ]; then
        while [ $# -gt 0 ]; do # $WORK may have been elsewhere then
            case $1 in --data-root | --weights) places+=("$1" "$2") ;; esac
            shift
        done
        set -- ${places[@]+"${places[@]}"} --resume "$work/$name"
    else set -- "$@" --device "$device" --out "$work/$name"; fi
    part "$name" "$seconds" python3 -m experiments "$command" "$@"
}

# fitting SECONDS: epochs of ResNet-56 that take so long, by those of ResNet-20, a third of its work
fitting() {
    within "$reserve" python3 - "$work/train-bf16-True/epochs.csv" "$1" <<'PYTHON'
import sys
import pandas as pd

seconds = pd.read_csv(sys.argv[1])["seconds"].min()
print(max(1, int(float(sys.argv[2]) / (3.0 * seconds))))
PYTHON
}

prepare || { echo "error: the preparation has failed after $SECONDS of $limit s" >&2; exit 1; }

part device 60 python3 -c "import torch
print(torch.__version__, torch.cuda.get_device_name() if '$device' != 'cpu' else 'cpu')"
# without a GPU these tests are only looked for
part tests 120 python3 -m pytest -q -m gpu -n 0 $([ "$device" = cpu ] && echo --collect-only)
# env.step against the bare loop that trains and scores the same, and how much memory both take
experiment step-resnet20 60 throughput --parts step --model resnet20 --random-weights \
    "${timed[@]}" --methods magnitude --steps "$steps"
for bf16 in True False; do # the same training in bfloat16 and as PyTorch has float32 (TF32)
    experiment "train-bf16-$bf16" 60 train --model resnet20 "${images[@]}" --epochs "$epochs" \
        --bf16 "$bf16" --channels-last True
done
experiment "step-$deep" 75 throughput --parts step --model "$deep" --random-weights \
    "${timed[@]}" --methods magnitude --steps "$steps"
if [ -e "$work/train-bf16-True/table.csv" ]; then
    experiment search 90 compress --model resnet20 "${images[@]}" \
        --weights "$work/train-bf16-True/model.safetensors" --macs 0.5 --evaluations "$search" \
        --final-finetune-steps "$final" --no-onnx
fi
# candidates a second, one by one and several in one pass
experiment candidates 60 throughput --parts candidates --model resnet20 --random-weights \
    "${timed[@]}" --methods magnitude --flops-budget 0.5 --candidates "${together[@]}"
if [ -e "$work/train-bf16-True/epochs.csv" ]; then # as many epochs as the rest of the time has
    rest=$(left 45)
    [ -n "$tiny" ] && rest=5
    experiment "train-$deep" 300 train --model "$deep" "${images[@]}" --bf16 True \
        --channels-last True --epochs "$(fitting "$rest")"
fi
grep -h "" "$work"/device.log "$work"/*/table.csv 2>/dev/null
[ ! -e "$out/gpu.tar.gz" ] || echo "all of it: $out/gpu.tar.gz"
exit $((n_failed > 0))
