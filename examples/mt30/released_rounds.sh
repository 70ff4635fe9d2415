#!/bin/sh
# More rounds for the student that released.sh wrote: it drives tasks with noise, and the published student labels its
# states, by plans or by its policy, where these score more than the student does; elsewhere the labels are its own
# actions. About 80 minutes of one core with units for bf16. A second call continues an interrupted one. Needs the
# extras train, envs and export.
# Usage: examples/mt30/released_rounds.sh RELEASED START FOLDER
set -eu
released=$1 start=$2 folder=$3
mkdir -p "$folder"
export OMP_NUM_THREADS=1

# Chosen by 15 and 20 episodes from starts 500,000 on.
planned=walker-walk,reacher-hard,acrobot-swingup,pendulum-swingup,walker-run-backwards,reacher-three-easy
policy=cartpole-swingup,reacher-three-hard
python - "$released" "$start" "$planned" "$policy" "$folder/labels.json" <<'END'
import sys
from pathlib import Path

from tdmpc_opt.agents.own import Assigned, write_assignment
from tdmpc_opt.schema import MT30

released, start, planned, policy, output = sys.argv[1:]
labels = {name: Assigned(start) for name in MT30.names}
labels |= {name: Assigned(released, "planner", "realtime") for name in planned.split(",")}
labels |= {name: Assigned(released) for name in policy.split(",")}
write_assignment(Path(output), labels)
END
for noise in 0 0.2 0.5; do
  tdmpc-opt collect --policy "$folder/labels.json" --episodes 20 --noise "$noise" --seed 110000 \
    --output "$folder/data-$noise"
done
rounds() {
  output=$1 start=$2
  shift 2
  tdmpc-opt dagger --start "$start" --teacher "$folder/labels.json" \
    --size 1 --matmul medium --updates 2700 --noise 0.25 --batch-size 64 --behaviour-batch 128 --weights.behaviour 20 \
    --weights.entropy 3e-3 --encoder-lr-scale 1 --td-lambda 1 --output "$folder/$output" "$@"
  tdmpc-opt quantize "$folder/$output/model.safetensors" --format fp16 \
    --output "$folder/$output-fp16.safetensors"
}
# On the tasks with other labels than the student's; what these gain, other tasks lose.
rounds first "$start" --data "$folder/data-0" "$folder/data-0.2" "$folder/data-0.5" \
  --tasks "$planned,$policy" --rounds 6 --episodes 30 --on-policy-share 0.4 --lr 8e-4 \
  --lr-zero-at 16200 --seed 110000
# On all tasks, with the episodes of the rounds before.
rounds second "$folder/first-fp16.safetensors" --data "$folder/data-0" "$folder/data-0.2" "$folder/data-0.5" \
  "$folder/first/data" --rounds 3 --episodes 24 --on-policy-share 0.5 --lr 6e-4 --lr-zero-at 8100 --seed 120000
tdmpc-opt evaluate "$folder/second-fp16.safetensors" --mode policy --seed 500000 --episodes 20 \
  --output "$folder/policy.json"
