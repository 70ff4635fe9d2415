#!/bin/sh
# The dataset of the MT30 student, out of the committed experts. Killed, it goes on when called again.
# Usage: examples/mt30/collect.sh FOLDER [TASKS]
set -eu
data=$1 tasks=${2:-mt30}

# Labels are the expert's clean action throughout: noise and bad policies lead to states that a
# student will visit, and the expert says what to do there.
collect() { tdmpc-opt collect --tasks "$tasks" --output "$data" "$@"; }
collect --policy experts --noise 0 --episodes 20 --seed 0
collect --policy experts --noise 0.2 --episodes 20 --seed 1000
collect --policy experts --noise 0.5 --episodes 20 --seed 2000
collect --policy experts/early --noise 0.2 --label experts --episodes 10 --seed 3000
collect --policy random --label experts --episodes 10 --seed 4000
tdmpc-opt data info "$data" --card "$data/card.md"
