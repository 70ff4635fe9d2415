#!/bin/sh
# The experts of MT30 by SAC on batched physics. Killed, it goes on when called again.
# Usage: examples/mt30/experts.sh FOLDER [STEPS]
# One million agent steps take 6 to 15 minutes of one core a task; two tasks run at once on two. cheetah, walker and
# hopper tasks gain by two to three million and by other seeds (--seed): the steps and the seed of each committed expert
# are in its file. Episodes planned in the simulator start two cheetah tasks (docs/mt30-student.md), and those of a
# finished expert start the tasks of the same body that random actions rarely solve. SAC does not learn acrobot-swingup;
# its expert imitates plans, 60,000 in 80 minutes of one core. A second training, started by the episodes of the first
# one's expert, solves starts on which that failed; its experts are in FOLDER/again.
set -eu
experts=$1 steps=${2:-1000000}
planned=cheetah-run-back,cheetah-jump
others=$(python -c "
from tdmpc_opt.schema import MT30
apart = '$planned,acrobot-swingup,hopper-hop,reacher-three-hard'.split(',')
print(*(name for name in MT30.names if name not in apart), sep=',')")

tdmpc-opt experts --tasks "$planned" --steps "$steps" --output "$experts" \
  --warm-up plan --envs 32 --warm-up-episodes 32
tdmpc-opt experts --tasks "$others" --steps "$steps" --output "$experts"
start() {
  tdmpc-opt experts --tasks "$1" --steps "$steps" --output "$experts" \
    --warm-up "$experts" --warm-up-task "$2" --warm-up-episodes 64
}
start hopper-hop hopper-stand
start reacher-three-hard reacher-three-easy
tdmpc-opt experts --tasks acrobot-swingup --method plan --steps 60000 --hidden 256 --envs 8 --output "$experts"
for task in finger-turn-easy reacher-three-easy hopper-stand finger-spin fish-swim hopper-hop-backwards; do
  tdmpc-opt experts --tasks "$task" --steps "$steps" --output "$experts/again" \
    --warm-up "$experts" --warm-up-task "$task" --warm-up-episodes 64
done
