#!/bin/sh
# A released checkpoint improved from itself and what it collects alone, without any expert: its policy
# learns what its planner does, first from episodes that either drives, then where the policy goes
# itself, round after round. About four hours on one core. Killed, it goes on when called
# again.
# Usage: examples/mt30/released.sh RELEASED FOLDER
set -eu
released=$1 work=$2
mkdir -p "$work"
export OMP_NUM_THREADS=1

# Tasks on which plans earned more than the policy in its own episodes, and those on which a policy
# that learnt from plans went too far from one that had done better.
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
  tdmpc-opt evaluate "$1" --mode policy --workers 1 --output "$work/$2-policy.json"
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
# More states an update, each on its own: what imitation lacked was to see them.
learn longer --start "$work/cloned/model.safetensors" --data "$own" --horizon 1 --behaviour-batch 768 \
  --lr 1e-3 --updates 10100 --lr-zero-at 16000

# Where the policy goes itself, the planner says what it would do, or the policy of the start.
visited=$work/visited
says() {
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
says "$released" longer --tasks "$kept" --episodes 8 --seed 5000
says "$planner" longer --tasks "$better" --episodes 8 --seed 5000
correct corrected longer 0.4 9000

# From starts it had not seen it did much worse than in its own episodes, so many more of them.
starts=reacher-easy,reacher-hard,reacher-three-easy,cup-catch,acrobot-swingup,finger-turn-easy,\
finger-turn-hard
says "$planner" corrected --episodes 16 --seed 6000 \
  --tasks "$starts,pendulum-swingup,finger-spin,walker-run,walker-walk"
says "$planner" corrected --tasks "$starts" --episodes 48 --seed 7000
correct more corrected 0.5 10000
score "$work/more/model.safetensors" more

# What had slipped meanwhile is said again by the policy of the start.
again() {
  output=$1 driver=$2 tasks=$3 episodes=$4 seed=$5
  says "$planner" "$driver" --tasks "$tasks" --episodes "$episodes" --seed "$seed"
  says "$released" "$driver" --tasks "$kept" --episodes 32 --seed "$seed"
  says "$planner" "$driver" --tasks walker-run,walker-walk --episodes 16 --seed "$seed"
  correct "$output" "$driver" 0.5 8000
}
again third more "$starts" 32 8000
again last third "$starts,pendulum-swingup" 48 9000
tdmpc-opt quantize "$work/last/model.safetensors" --format fp16 \
  --output "$work/released-1m-improved.safetensors"
score "$work/released-1m-improved.safetensors" improved
