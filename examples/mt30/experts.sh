#!/bin/sh
# The experts of MT30 by SAC on batched physics. Killed, it goes on when called again.
# Usage: examples/mt30/experts.sh FOLDER [STEPS]
# One million agent steps take 15 to 30 minutes of one core a task; two tasks run at once on two. Episodes planned in
# the simulator start cheetah-run, whose SAC otherwise ends in a slower gait (docs/mt30-student.md), and those of the
# finished expert of walker-walk start walker-run.
set -eu
experts=$1 steps=${2:-1000000}
others=$(python -c "
from tdmpc_opt.schema import MT30
print(*(name for name in MT30.names if name not in ('cheetah-run', 'walker-run')), sep=',')")

tdmpc-opt experts --tasks cheetah-run --steps "$steps" --output "$experts" \
  --warm-up plan --envs 32 --warm-up-episodes 32
tdmpc-opt experts --tasks "$others" --steps "$steps" --output "$experts"
tdmpc-opt experts --tasks walker-run --steps "$steps" --output "$experts" \
  --warm-up "$experts" --warm-up-task walker-walk --warm-up-episodes 64
