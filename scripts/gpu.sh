#!/usr/bin/env bash
# What a GPU can tell in eight minutes, the most valuable first; each part has its own time limit.
#
#   bash scripts/gpu.sh [--device cuda] [--tiny]
#
# It needs no network: packages are installed from wheels in $WHEELS (default: wheels/) where that
# folder exists, beside what the machine's python3 has. CIFAR-10 comes from $DATA (default:
# cifar10-jpeg.tar.gz), a tree of train/CLASS/IMAGE and test/CLASS/IMAGE, packed or unpacked. Logs
# and run folders go to $OUT (default: runs/gpu), and into $OUT/gpu.tar.gz at the end; what an
# earlier call has finished there is not done again. `--device cpu --tiny` rehearses all of it on
# scikit-learn's digits.
set -uo pipefail
cd "$(dirname "$0")/.."

device=cuda tiny=
while [ $# -gt 0 ]; do
    case $1 in
        --device) device=$2; shift ;;
        --tiny) tiny=1 ;;
        *) echo "error: unknown argument $1; expected --device NAME or --tiny" >&2; exit 2 ;;
    esac
    shift
done
out=$(mkdir -p "${OUT:-runs/gpu}" && cd "${OUT:-runs/gpu}" && pwd)
wheels=${WHEELS:-wheels} data=${DATA:-cifar10-jpeg.tar.gz}

if [ -n "$tiny" ]; then
    images=(--data digits16) timed=(--dataset digits16 --finetune-steps 1)
    epochs=1 deep=vgg8 long=1 steps=2 search=4 final=2 together=(2) scale=10
else
    images=(--data cifar10 --data-root "$out/cifar10")
    timed=(--dataset cifar10 --data-root "$out/cifar10")
    epochs=3 deep=resnet56 long=12 steps=30 search=30 final=700 together=(4 16) scale=1
fi

prepare() {
    if [ -d "$wheels" ]; then
        python3 -m venv --system-site-packages "$out/venv"
        "$out/venv/bin/pip" install --quiet --no-index --find-links "$wheels" -e '.[test]' || return
    fi
    if [ -z "$tiny" ] && [ ! -d "$out/cifar10/train" ]; then
        if [ -d "$data" ]; then ln -sfn "$(realpath "$data")" "$out/cifar10"
        else mkdir -p "$out/cifar10" && tar -xzf "$data" -C "$out/cifar10"; fi
    fi
}

# part NAME SECONDS COMMAND...: run it once, with a time limit, its output in NAME.log
part() {
    local name=$1 limit=$(($2 * scale)) start=$SECONDS status=0
    shift 2
    [ -e "$out/$name.done" ] && { echo "$name: done before"; return; }
    timeout --signal=TERM --kill-after=10 "$limit" "$@" >>"$out/$name.log" 2>&1 || status=$?
    case $status in
        0) touch "$out/$name.done"; echo "$name: done in $((SECONDS - start)) s" ;;
        124) echo "$name: stopped after $limit s" ;;
        *) echo "$name: failed with status $status: $(tail -n 1 "$out/$name.log")" ;;
    esac
}

# experiment NAME SECONDS COMMAND OPTIONS...: one that goes on where an earlier call has stopped it
experiment() {
    local name=$1 limit=$2 command=$3
    shift 3
    if [ -e "$out/$name/config.json" ]; then set -- --resume "$out/$name"
    else set -- "$@" --device "$device" --out "$out/$name"; fi
    part "$name" "$limit" "$python" -m experiments "$command" "$@"
}

prepare || { echo "error: the preparation has failed" >&2; exit 1; }
python=$(command -v python3)
[ -x "$out/venv/bin/python" ] && python=$out/venv/bin/python

part device 60 "$python" -c "import torch
print(torch.__version__, torch.cuda.get_device_name() if '$device' != 'cpu' else 'cpu')"
# without a GPU these tests are only looked for
part tests 120 "$python" -m pytest -q -m gpu -n 0 $([ "$device" = cpu ] && echo --collect-only)
for model in resnet20 "$deep"; do
    # env.step against the bare loop that trains and scores the same, and images a second
    experiment "step-$model" 60 throughput --parts step --model "$model" --random-weights \
        "${timed[@]}" --methods magnitude --steps "$steps"
done
for bf16 in True False; do # the same training in bfloat16 and in float32: speed and accuracy
    experiment "train-bf16-$bf16" 60 train --model resnet20 "${images[@]}" --epochs "$epochs" \
        --bf16 "$bf16" --channels-last True
done
experiment "train-$deep" 120 train --model "$deep" "${images[@]}" --epochs "$long" --bf16 True \
    --channels-last True
if [ -e "$out/train-bf16-True/table.csv" ]; then
    experiment search 90 compress --model resnet20 "${images[@]}" \
        --weights "$out/train-bf16-True/model.safetensors" --macs 0.5 --evaluations "$search" \
        --final-finetune-steps "$final" --no-onnx
fi
# candidates a second, one by one and several in one pass
experiment candidates 60 throughput --parts candidates --model resnet20 --random-weights \
    "${timed[@]}" --methods magnitude --flops-budget 0.5 --candidates "${together[@]}"
grep -h "" "$out"/device.log "$out"/*/table.csv 2>/dev/null
archive=$(mktemp) # elsewhere first: it is no part of itself
tar -czf "$archive" -C "$out" --exclude=cifar10 --exclude=venv --exclude=gpu.tar.gz .
mv "$archive" "$out/gpu.tar.gz"
