#!/bin/sh
# Train the MT30 student from the committed experts, about 2.5 hours on two cores: a student with the experts' labels
# and a control without, on the same data, updates and seed; then on-policy rounds (DAgger). A second call continues
# an interrupted one. Needs the extras train, envs and tune.
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
  tdmpc-opt evaluate "$work/$name/model.safetensors" --mode policy --seed 0 --workers 1 \
    --output "$work/$name-policy.json"
}

# shellcheck disable=SC2086
correct() {
  name=$1 start=$2
  shift 2
  tdmpc-opt dagger --output "$work/$name" --start "$work/$start/model.safetensors" \
    --teacher experts --updates 2500 --on-policy-share 0.3 --workers 1 $common $imitate "$@"
  tdmpc-opt quantize "$work/$name/model.safetensors" --format fp16 --output "$work/$name.safetensors"
  tdmpc-opt evaluate "$work/$name.safetensors" --mode policy --seed 0 --workers 1 \
    --output "$work/$name-policy.json"
}

"$here/collect.sh" "$work/data"
learn untaught & # the control: plain TD-MPC2
untaught=$!
# shellcheck disable=SC2086
learn taught $imitate
correct corrected taught --data "$work/data" --rounds 6 --lr-zero-at 15000 --episodes 4
correct again corrected --data "$work/data" "$work/corrected/data" --rounds 4 --lr-zero-at 10000 \
  --episodes 8 --tasks walker-walk,cheetah-run,finger-turn-easy,finger-turn-hard,fish-swim,\
hopper-stand,hopper-hop,reacher-three-easy,reacher-three-hard
# The rounds on nine tasks reduce the return of others, so two rounds on all tasks follow.
correct last again --data "$work/data" "$work/corrected/data" "$work/again/data" --rounds 2 \
  --lr-zero-at 5000 --episodes 4
wait "$untaught"
# Search the regularisation of plans and store the presets in the checkpoint.
tdmpc-opt tune-planner "$work/last.safetensors" --trials 4 --max-samples 32 --max-iterations 1 \
  --episodes 1 --engine auto --no-score-full --output "$work/tuning" \
  --store "$work/mt30-1m.safetensors"
