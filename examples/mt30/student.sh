#!/bin/sh
# The MT30 student out of the committed experts, about two hours on two cores: the same network with
# its experts as teachers and without any, the same data, updates and seed; then rounds of correction
# where the student goes itself. Killed, it goes on when called again.
# Usage: examples/mt30/student.sh FOLDER
set -eu
work=$1
mkdir -p "$work"
here=$(dirname "$0")
export OMP_NUM_THREADS=1 # one run a core

common="--batch-size 128 --td-lambda 1 --lr 1e-3 --encoder-lr-scale 1 --save-every 500"
imitate="--behaviour-batch 128 --weights.behaviour 20 --weights.entropy 3e-3"

# $common and $imitate are lists of words.
# shellcheck disable=SC2086
learn() {
  name=$1
  shift
  tdmpc-opt train --data "$work/data" --output "$work/$name" --updates 15000 --lr-zero-at 15000 \
    $common "$@"
  tdmpc-opt evaluate "$work/$name/model.safetensors" --mode policy --workers 1 \
    --output "$work/$name-policy.json"
}

# shellcheck disable=SC2086
correct() {
  tdmpc-opt dagger --data "$work/data" --output "$work/corrected" \
    --start "$work/taught/model.safetensors" --teacher experts --rounds 6 --updates 2500 \
    --lr-zero-at 15000 --episodes 4 --on-policy-share 0.3 --workers 1 $common $imitate
}

"$here/collect.sh" "$work/data"
learn untaught & # plain TD-MPC2: nobody says what to do
untaught=$!
# shellcheck disable=SC2086
learn taught $imitate
correct
wait "$untaught"
tdmpc-opt quantize "$work/corrected/model.safetensors" --format fp16 \
  --output "$work/mt30-1m.safetensors"
tdmpc-opt evaluate "$work/mt30-1m.safetensors" --mode policy --output "$work/corrected-policy.json"
