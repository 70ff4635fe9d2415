#!/bin/sh
# Collect the dataset of the MT30 student from the committed experts, about 12 minutes on two cores. A second call
# continues an interrupted one. Needs the extras train and envs.
# Usage: examples/mt30/collect.sh FOLDER [TASKS]
set -eu
data=$1 tasks=${2:-mt30}

# The label of every state is the expert's action without noise: noise and weak policies lead to states that a
# student will visit.
collect() { tdmpc-opt collect --tasks "$tasks" --output "$data" "$@"; }
collect --policy experts --noise 0 --episodes 20 --seed 0
collect --policy experts --noise 0.2 --episodes 20 --seed 1000
collect --policy experts --noise 0.5 --episodes 20 --seed 2000
collect --policy experts/early --noise 0.2 --label experts --episodes 10 --seed 3000
collect --policy random --label experts --episodes 10 --seed 4000
tdmpc-opt data info "$data" --card "$data/card.md"
