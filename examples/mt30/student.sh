#!/bin/sh
# The MT30 student out of the committed experts, about two hours on two cores: the same network with
# its experts as teachers and without any, the same data, updates and seed; then rounds of correction
# where the student goes itself, more of them on tasks where it stays behind its experts. Killed, it
# goes on when called again.
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
  name=$1 start=$2
  shift 2
  tdmpc-opt dagger --output "$work/$name" --start "$work/$start/model.safetensors" \
    --teacher experts --updates 2500 --on-policy-share 0.3 --workers 1 $common $imitate "$@"
  tdmpc-opt quantize "$work/$name/model.safetensors" --format fp16 --output "$work/$name.safetensors"
  tdmpc-opt evaluate "$work/$name.safetensors" --mode policy --workers 1 \
    --output "$work/$name-policy.json"
}

"$here/collect.sh" "$work/data"
learn untaught & # plain TD-MPC2: nobody says what to do
untaught=$!
# shellcheck disable=SC2086
learn taught $imitate
correct corrected taught --data "$work/data" --rounds 6 --lr-zero-at 15000 --episodes 4
correct again corrected --data "$work/data" "$work/corrected/data" --rounds 4 --lr-zero-at 10000 \
  --episodes 8 --tasks walker-walk,cheetah-run,finger-turn-easy,finger-turn-hard,fish-swim,\
hopper-stand,hopper-hop,reacher-three-easy,reacher-three-hard
# What it forgot meanwhile comes back where it meets all tasks again.
correct last again --data "$work/data" "$work/corrected/data" "$work/again/data" --rounds 2 \
  --lr-zero-at 5000 --episodes 4
wait "$untaught"
# How close plans have to keep to so good a policy is stored beside the weights.
tdmpc-opt tune-planner "$work/last.safetensors" --trials 4 --max-samples 32 --max-iterations 1 \
  --episodes 1 --engine auto --no-score-full --output "$work/tuning" \
  --store "$work/mt30-1m.safetensors"
