#!/bin/sh
# The experts of MT30, some hours on two cores. Killed, it goes on when called again.
# Usage: examples/mt30/experts.sh FOLDER RELEASED
# FOLDER takes the policies; RELEASED is the released 1M checkpoint, whose planner shows the way
# where random actions find no reward.
set -eu
experts=$1
released=$2

train() { tdmpc-opt experts --output "$experts" "$@"; }
sac() { train --algorithm sac --update-ratio 1 --n-steps 1 "$@"; }

planner=$experts/released-realtime.onnx
mkdir -p "$experts"
test -f "$planner" || tdmpc-opt export "$released" --preset realtime --output "$planner"

# CrossQ with three-step returns, the default.
train --steps 60000 --tasks \
walker-stand,walker-walk,cheetah-jump,reacher-easy,reacher-hard,reacher-three-easy,\
cartpole-balance,cup-catch
train --steps 120000 --tasks walker-walk-backwards,cheetah-run-backwards,finger-spin
train --steps 160000 --tasks cheetah-run
train --steps 220000 --tasks fish-swim
train --steps 180000 --tasks cheetah-run-front,cheetah-run-back

# A related task's expert drives first, or the released planner.
train --steps 160000 --tasks walker-run --warm-up "$experts" --warm-up-task walker-walk
train --steps 160000 --tasks walker-run-backwards --warm-up "$experts" \
  --warm-up-task walker-walk-backwards
train --steps 40000 --tasks cartpole-balance-sparse --warm-up "$experts" \
  --warm-up-task cartpole-balance
train --steps 100000 --tasks reacher-three-hard --warm-up "$experts" \
  --warm-up-task reacher-three-easy --warm-up-episodes 40
train --steps 60000 --tasks pendulum-swingup --warm-up "$planner"
train --steps 130000 --tasks finger-turn-easy --warm-up "$planner" --warm-up-episodes 100
train --steps 120000 --tasks hopper-stand --warm-up "$planner" --warm-up-episodes 40
train --steps 160000 --tasks hopper-hop,hopper-hop-backwards --warm-up "$experts" \
  --warm-up-task hopper-stand
train --steps 80000 --tasks acrobot-swingup --warm-up "$planner" --warm-up-episodes 40
train --steps 60000 --tasks finger-turn-hard

# SAC, one update a step, where CrossQ stays below it.
sac --steps 40000 --tasks cartpole-swingup
sac --steps 60000 --tasks cup-spin --warm-up "$planner"
sac --steps 40000 --tasks pendulum-spin --warm-up "$planner"

train --steps 40000 --tasks cartpole-swingup-sparse --warm-up "$experts" \
  --warm-up-task cartpole-swingup
