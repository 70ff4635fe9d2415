#!/bin/sh
# Train the student of released_rounds.sh further: copies of it learn groups of tasks by reinforcement learning, from
# episodes that they drive with noise. Then the student imitates the copies on their tasks and plans of RELEASED on
# acrobot-swingup, in rounds. No expert and no planning in the simulator take part. About two hours of a core with units
# for bf16. A second call continues an interrupted one. Needs the extras train, envs and export.
# Usage: examples/mt30/released_online.sh RELEASED START FOLDER
set -eu
released=$1 start=$2 folder=$3
mkdir -p "$folder"
export OMP_NUM_THREADS=1

# Copy the task embedding of one task to another with the same body, before its training.
embed() {
  python - "$@" <<'END'
import sys
from dataclasses import replace
from pathlib import Path

from tdmpc_opt.checkpoints.load import read_checkpoint
from tdmpc_opt.checkpoints.native import write_native

source, output, *pairs = sys.argv[1:]
checkpoint = read_checkpoint(source)
row = checkpoint.tasks.names.index
table = checkpoint.tensors["task_embedding.weight"].clone()
for task, other in (pair.split("=") for pair in pairs):
    table[row(task)] = table[row(other)]
tensors = {**checkpoint.tensors, "task_embedding.weight": table}
write_native(Path(output), replace(checkpoint, tensors=tensors))
END
}
online() {
  name=$1 begin=$2 rounds=$3 tasks=$4
  run=$folder/$name/run
  for noise in 0.2 0.5; do
    tdmpc-opt collect --policy "$begin" --tasks "$tasks" --episodes 30 --noise "$noise" --seed 290000 \
      --output "$folder/$name/base"
  done
  driver=$begin
  for round in $(seq "$rounds"); do
    # A file for each round: a stopped `train` leaves another student in its folder, which must not drive.
    student=$folder/$name/round-$round.safetensors
    if ! test -e "$student"; then
      tdmpc-opt collect --policy "$driver" --tasks "$tasks" --episodes 4 --noise 0.3 \
        --seed "$((300000 + 1000 * round))" --output "$folder/$name/own"
      tdmpc-opt train --start "$begin" --data "$folder/$name/base" \
        --on-policy "$folder/$name/own" --on-policy-share 0.6 --size 1 --matmul medium \
        --updates "$((1500 * round))" --batch-size 96 --weights.behaviour 0 --weights.value 1 \
        --weights.reward 1 --weights.entropy 1e-4 --lr 4e-4 --td-lambda 1 --seed 140000 \
        --save-every 1500 --keep 1 --output "$run"
      cp "$run/model.safetensors" "$student.part"
      mv "$student.part" "$student"
    fi
    driver=$student
  done
  cp "$driver" "$folder/$name.safetensors"
}
online cartpole "$start" 16 cartpole-swingup,finger-spin,cup-catch,pendulum-swingup
embed "$folder/cartpole.safetensors" "$folder/swingup.safetensors" cartpole-swingup-sparse=cartpole-swingup
online sparse "$folder/swingup.safetensors" 15 cartpole-swingup-sparse,finger-spin,cartpole-swingup
online walker "$start" 15 walker-stand,walker-walk
embed "$folder/walker.safetensors" "$folder/walk.safetensors" walker-run=walker-walk
online run "$folder/walk.safetensors" 13 walker-walk,walker-run
online backwards "$folder/run.safetensors" 16 walker-walk-backwards,walker-run-backwards
online cheetah "$start" 15 cheetah-run,cheetah-run-backwards
embed "$start" "$folder/balance.safetensors" cartpole-balance-sparse=cartpole-balance

# Chosen by ten episodes from starts 500,000 on: the copies' actions, plans of RELEASED on acrobot-swingup, and
# elsewhere the student's own actions.
python - "$released" "$start" "$folder" <<'END'
import sys
from pathlib import Path

from tdmpc_opt.agents.own import Assigned, write_assignment
from tdmpc_opt.schema import MT30

released, start, folder = sys.argv[1:]
better = {
    "cartpole": ("cup-catch", "pendulum-swingup"),
    "sparse": ("cartpole-swingup", "cartpole-swingup-sparse", "finger-spin"),
    "walker": ("walker-stand",),
    "run": ("walker-walk", "walker-run"),
    "backwards": ("walker-walk-backwards", "walker-run-backwards"),
    "cheetah": ("cheetah-run", "cheetah-run-backwards"),
    "balance": ("cartpole-balance-sparse",),
}
labels = {name: Assigned(start) for name in MT30.names}
labels["acrobot-swingup"] = Assigned(released, "planner", "realtime")
for name, tasks in better.items():
    labels |= {task: Assigned(f"{folder}/{name}.safetensors") for task in tasks}
write_assignment(Path(folder, "labels.json"), labels)
END
for noise in 0 0.2 0.5; do
  tdmpc-opt collect --policy "$folder/labels.json" --episodes 30 --noise "$noise" --seed 400000 \
    --output "$folder/data-$noise"
done
tdmpc-opt dagger --start "$start" --teacher "$folder/labels.json" \
  --data "$folder/data-0" "$folder/data-0.2" "$folder/data-0.5" \
  --size 1 --matmul medium --rounds 5 --updates 2700 --episodes 16 --noise 0.25 --on-policy-share 0.4 --batch-size 64 \
  --behaviour-batch 128 --weights.behaviour 20 --weights.entropy 3e-3 --lr 8e-4 --lr-zero-at 13500 \
  --encoder-lr-scale 1 --td-lambda 1 --seed 410000 --output "$folder/rounds"
tdmpc-opt quantize "$folder/rounds/model.safetensors" --format fp16 --output "$folder/model-fp16.safetensors"
tdmpc-opt evaluate "$folder/model-fp16.safetensors" --mode policy --seed 500000 --episodes 20 \
  --output "$folder/policy.json"
