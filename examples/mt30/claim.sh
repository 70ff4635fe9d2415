#!/bin/sh
# The paper's claim: the same student of the same data, updates and seeds without a teacher, cloning the data's own
# actions, with the paper's reward term, and with labels as well (the recipe of `distill`). 8 tasks of 8 domains, 3
# seeds. A second call continues an interrupted one; a run whose two scores are in FOLDER is not repeated. Needs the
# extras train and envs.
# Usage: examples/mt30/claim.sh TEACHER FOLDER [UPDATES]
set -eu
tasks=walker-walk,cheetah-run,reacher-easy,cartpole-swingup,cup-spin,finger-spin,pendulum-spin,fish-swim

# Each row: its name, its data, and its options. A row that imitates draws 128 further slices for that.
rows() {
  cat <<'ROWS'
plain data
full data --behaviour-batch 128 --weights.behaviour 20 --terms.reward-mse 0.4 --teacher
cloned actions --behaviour-batch 128 --weights.behaviour 20
paper data --terms.reward-mse 0.4 --teacher
ROWS
}

score() {
  output=$1.json
  shift
  tdmpc-opt evaluate "$@" --seed 10000 --episodes 10 --workers 1 --output "$output"
}

# One row with one seed: train, then score the policy and the planner.
one() {
  teacher=$1 work=$2 seed=$3 name=$4 data=$5
  shift 5
  run=$work/runs/$name-$seed
  if grep -qs '"complete": true' "$work/planner-$name-$seed.json"; then return; fi
  case " $* " in *' --teacher '*) set -- "$@" "$teacher" ;; esac
  tdmpc-opt train --data "$work/$data" --output "$run" --seed "$seed" --updates "$updates" \
    --lr-zero-at "$updates" --batch-size 64 --lr 1e-3 --encoder-lr-scale 1 --td-lambda 1 \
    --weights.entropy 3e-3 --log-every 100 "$@"
  score "$work/policy-$name-$seed" "$run/model.safetensors" --mode policy
  score "$work/planner-$name-$seed" "$run/model.safetensors" --preset realtime
}

if [ "$1" = one ]; then
  shift
  one "$@"
  exit
fi
teacher=$1 work=$2
export updates="${3:-4000}" OMP_NUM_THREADS=1
# Episodes of the teacher alone differ too little to learn values from: without a teacher the planner then scores 12.
collect() { tdmpc-opt collect --tasks "$tasks" --episodes 20 --output "$work/data" "$@"; }
collect --policy "$teacher" --noise 0 --seed 0
collect --policy "$teacher" --noise 0.2 --seed 1000
collect --policy "$teacher" --noise 0.5 --seed 2000
collect --policy experts/early --label "$teacher" --noise 0.2 --seed 3000
collect --policy random --label "$teacher" --seed 4000
# The official layout has no labels: what is imported from it has the actions that were taken.
tdmpc-opt data export "$work/data" --output "$work/shards"
tdmpc-opt data import "$work"/shards/*.pt --output "$work/actions"
score "$work/random" random --tasks "$tasks"
score "$work/teacher" "$teacher" --tasks "$tasks" --mode policy
for seed in 0 1 2; do
  rows | sed "s|^|$teacher $work $seed |"
done | xargs -P 2 -L 1 "$0" one
for how in policy planner; do
  # Files in the order of the rows; the actions that `cloned` imitates are another dataset, which is refused here.
  # shellcheck disable=SC2046
  tdmpc-opt ablation --plot "$work/$how.png" \
    $(rows | grep -v cloned | sed "s|\([^ ]*\).*|$work/$how-\1-0.json $work/$how-\1-1.json $work/$how-\1-2.json|")
done
