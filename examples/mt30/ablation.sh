#!/bin/sh
# Ablation of the distillation terms: 8 tasks of 8 domains, the same data, 2,000 updates and seeds in every row. About
# 1.3 hours on two cores. A second call continues an interrupted one. Needs the extras train and envs.
# Usage: examples/mt30/ablation.sh TEACHER FOLDER
set -eu
tasks=walker-walk,cheetah-run,reacher-easy,cartpole-swingup,cup-spin,finger-spin,pendulum-spin,fish-swim

# Each row: its name, with a teacher or plain, and its options. The reward term alone is the paper's.
rows() {
  cat <<'ROWS'
none plain
reward-d0.05 teacher --terms.reward-mse 0.05
reward-d0.25 teacher --terms.reward-mse 0.25
reward-d0.4 teacher --terms.reward-mse 0.4
reward-d0.55 teacher --terms.reward-mse 0.55
reward-d0.9 teacher --terms.reward-mse 0.9
reward-kl teacher --terms.reward-mse 0 --terms.reward-kl 0.1 --reward-steps all
value-kl teacher --terms.reward-mse 0 --terms.value-kl 0.1
latent teacher --terms.reward-mse 0 --terms.latent 1
policy-of-teacher teacher --terms.reward-mse 0 --terms.policy-mse 20
policy-of-experts teacher --terms.reward-mse 0 --terms.policy-mse 20 --policy-teacher experts
full teacher --terms.reward-mse 0 --terms.policy-mse 20 --policy-teacher experts --terms.reward-kl 0.1 --terms.value-kl 0.1 --reward-steps all
ROWS
}

# One row with one seed: train, then score the policy and the planner.
one() {
  teacher=$1 work=$2 seed=$3 name=$4 kind=$5
  shift 5
  run=$work/runs/$name-$seed
  if [ "$kind" = teacher ]; then
    set -- "$@" --teacher "$teacher" --teacher-cache "$work/cache"
  fi
  tdmpc-opt train "$@" --data "$work/data" --output "$run" --seed "$seed" --updates 2000 \
    --lr-zero-at 2000 --batch-size 64 --lr 1e-3 --encoder-lr-scale 1 --save-every 500 --log-every 100
  tdmpc-opt evaluate "$run/model.safetensors" --mode policy --episodes 5 --seed 0 \
    --workers 1 --output "$work/policy-$name-$seed.json"
  tdmpc-opt evaluate "$run/model.safetensors" --preset realtime --episodes 2 --seed 0 \
    --workers 1 --output "$work/planner-$name-$seed.json"
}

if [ "$1" = one ]; then
  shift
  one "$@"
  exit
fi
teacher=$1 work=$2
export OMP_NUM_THREADS=1
"$(dirname "$0")/collect.sh" "$work/data" "$tasks"
for seed in 0 1 2; do
  rows | sed "s|^|$teacher $work $seed |"
done | xargs -P 2 -L 1 "$0" one
for how in policy planner; do
  # Files in the order of the rows.
  # shellcheck disable=SC2046
  tdmpc-opt ablation --plot "$work/$how.png" \
    $(rows | sed "s|\([^ ]*\).*|$work/$how-\1-0.json $work/$how-\1-1.json $work/$how-\1-2.json|")
done
