#!/bin/sh
# A released checkpoint improved from itself and what it collects alone, without any expert: its policy
# learns what its planner does, first from episodes that either drives, then where the policy goes
# itself. About an hour and a half on one core. Killed, it goes on when called again.
# Usage: examples/mt30/released.sh RELEASED FOLDER
set -eu
released=$1 work=$2
mkdir -p "$work"
export OMP_NUM_THREADS=1

planner=$work/planner.onnx
data=$work/data
common="--batch-size 128 --behaviour-batch 128 --weights.behaviour 20 --weights.entropy 3e-3
  --td-lambda 1 --lr 1e-3 --encoder-lr-scale 1 --save-every 500"

collect() { tdmpc-opt collect --output "$data" --workers 1 "$@"; }

test -f "$planner" || tdmpc-opt export "$released" --preset balanced --output "$planner"
collect --policy "$planner" --episodes 4
collect --policy "$released" --episodes 8 --seed 1000
collect --policy "$released" --episodes 8 --seed 2000 --noise 0.2

# $common is a list of words.
# shellcheck disable=SC2086
tdmpc-opt train --start "$released" --data "$data" --output "$work/cloned" --sampling return \
  --updates 3000 --lr-zero-at 3000 $common
tdmpc-opt evaluate "$work/cloned/model.safetensors" --mode policy --workers 1 \
  --output "$work/cloned-policy.json"

# shellcheck disable=SC2086
tdmpc-opt dagger --start "$work/cloned/model.safetensors" --teacher "$released" --label "$planner" \
  --data "$data" --output "$work/corrected" --sampling return --rounds 2 --updates 1500 \
  --lr-zero-at 3000 --episodes 1 --on-policy-share 0.5 --terms.reward-mse 0 --workers 1 $common
tdmpc-opt quantize "$work/corrected/model.safetensors" --format fp16 \
  --output "$work/released-corrected.safetensors"
tdmpc-opt evaluate "$work/released-corrected.safetensors" --mode policy --workers 1 \
  --output "$work/corrected-policy.json"
