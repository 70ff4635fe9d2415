#!/bin/sh
# Train the published student further without experts: its policy imitates its planner, first on episodes of both, then
# in on-policy rounds. About four hours on one core. A second call continues an interrupted one. Needs the extras train,
# envs and export.
# Usage: examples/mt30/released.sh RELEASED FOLDER
set -eu
released=$1 work=$2
mkdir -p "$work"
export OMP_NUM_THREADS=1

# Tasks on which plans scored above the policy, and tasks on which the policy lost return by imitating plans.
better=reacher-easy,reacher-hard,reacher-three-easy,pendulum-swingup,cup-catch,acrobot-swingup,\
finger-turn-easy,finger-turn-hard,cup-spin,pendulum-spin,finger-spin,walker-run,walker-walk
kept=cartpole-swingup,cartpole-balance-sparse,fish-swim,cheetah-jump

planner=$work/planner.onnx
collect() { tdmpc-opt collect --workers 1 "$@"; }
learn() {
  output=$1
  shift
  tdmpc-opt train --output "$work/$output" --sampling return --batch-size 32 --td-lambda 1 \
    --weights.behaviour 20 --weights.entropy 3e-3 --encoder-lr-scale 1 --save-every 500 "$@"
}
score() {
  tdmpc-opt evaluate "$1" --mode policy --seed 0 --workers 1 --output "$work/$2-policy.json"
}

test -f "$planner" || tdmpc-opt export "$released" --preset realtime --output "$planner"
own=$work/data
collect --output "$own" --policy "$released" --episodes 8 --seed 1000
collect --output "$own" --policy "$released" --episodes 8 --seed 2000 --noise 0.2
planned=$better,cartpole-balance,hopper-stand
collect --output "$own" --policy "$planner" --tasks "$planned" --episodes 10
collect --output "$own" --policy "$planner" --tasks "$planned" --episodes 20 --seed 3000 --noise 0.2

learn cloned --start "$released" --data "$own" --behaviour-batch 256 --lr 1e-3 \
  --updates 7000 --lr-zero-at 7000
score "$work/cloned/model.safetensors" cloned
# Single states instead of slices, and more of them in each update: the loss was still falling.
learn longer --start "$work/cloned/model.safetensors" --data "$own" --horizon 1 --behaviour-batch 768 \
  --lr 1e-3 --updates 10100 --lr-zero-at 16000

# Label the states that the policy visits by the planner, or by the published policy.
visited=$work/visited
label() {
  labeller=$1
  driver=$2
  shift 2
  collect --output "$visited" --policy "$work/$driver/model.safetensors" --label "$labeller" "$@"
}
correct() {
  output=$1 start=$2 share=$3 updates=$4
  learn "$output" --start "$work/$start/model.safetensors" --data "$own" --on-policy "$visited" \
    --on-policy-share "$share" --horizon 1 --behaviour-batch 768 --lr 7e-4 \
    --updates "$updates" --lr-zero-at "$updates"
}
label "$released" longer --tasks "$kept" --episodes 8 --seed 5000
label "$planner" longer --tasks "$better" --episodes 8 --seed 5000
correct corrected longer 0.4 9000

# The policy scores much lower from starts that it has not seen, so collect many more of them.
starts=reacher-easy,reacher-hard,reacher-three-easy,cup-catch,acrobot-swingup,finger-turn-easy,\
finger-turn-hard
label "$planner" corrected --episodes 16 --seed 6000 \
  --tasks "$starts,pendulum-swingup,finger-spin,walker-run,walker-walk"
label "$planner" corrected --tasks "$starts" --episodes 48 --seed 7000
correct more corrected 0.5 10000
score "$work/more/model.safetensors" more

# Repeat the published policy's labels on the tasks that lost return.
again() {
  output=$1 driver=$2 tasks=$3 episodes=$4 seed=$5
  label "$planner" "$driver" --tasks "$tasks" --episodes "$episodes" --seed "$seed"
  label "$released" "$driver" --tasks "$kept" --episodes 32 --seed "$seed"
  label "$planner" "$driver" --tasks walker-run,walker-walk --episodes 16 --seed "$seed"
  correct "$output" "$driver" 0.5 8000
}
again third more "$starts" 32 8000
again last third "$starts,pendulum-swingup" 48 9000
tdmpc-opt quantize "$work/last/model.safetensors" --format fp16 \
  --output "$work/released-1m-improved.safetensors"
score "$work/released-1m-improved.safetensors" improved
