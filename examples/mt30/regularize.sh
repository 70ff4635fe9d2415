#!/bin/sh
# Regularises the rewards of the bundled student: a fit to what its teacher and it visit, and twice a longer one that has
# episodes which plans with the rewards of the last fit drove. Scores plans of the published budget from two starts a
# task. About two hours of one core with units for bf16, and 40 minutes for the score. Needs the extras train, envs and
# export.
# Usage: examples/mt30/regularize.sh FOLDER
set -eu
folder=$1
export OMP_NUM_THREADS=1

drive() {
  tdmpc-opt collect --policy "$1" --mode policy --episodes "$2" --noise "$3" --seed "$4" --output "$5"
}
fit() {
  output=$1
  shift
  tdmpc-opt regularize mt30-1m --data "$folder/exact" "$folder/little-noise" "$folder/noise" "$folder/student" "$@" \
    --matmul medium --output "$output"
}
drive weights/mt30-teacher.safetensors 40 0 3000 "$folder/exact"
drive weights/mt30-teacher.safetensors 40 0.2 3000 "$folder/little-noise"
drive weights/mt30-teacher.safetensors 40 0.5 3000 "$folder/noise"
drive mt30-1m 60 0.25 4000 "$folder/student"
planned() {
  tdmpc-opt collect --policy "$1" --mode planner --preset realtime --seed "$2" --output "$3" --episodes "$4" \
    --tasks "$5"
}
# Where plans of the second fit lost most, and their neighbours of the same body.
lost=finger-turn-easy,finger-turn-hard,fish-swim,hopper-hop,hopper-hop-backwards,cheetah-run,cheetah-run-front,\
cheetah-run-back,cheetah-run-backwards,cheetah-jump,cartpole-swingup-sparse,hopper-stand

# A dataset that is named several times is drawn as often.
fit "$folder/first.safetensors"
a=$folder/planned-1
planned "$folder/first.safetensors" 5000 "$a" 15 mt30
fit "$folder/second.safetensors" "$a" "$a" "$a" "$a" "$a" --updates 24000
b=$folder/planned-2 c=$folder/planned-lost
planned "$folder/second.safetensors" 6000 "$b" 15 mt30
planned "$folder/second.safetensors" 7000 "$c" 40 "$lost"
fit "$folder/mt30-1m-regularized.safetensors" "$a" "$a" "$a" "$b" "$b" "$b" "$c" "$c" --updates 40000
tdmpc-opt evaluate "$folder/mt30-1m-regularized.safetensors" --preset published --seed 10002 --episodes 2 \
  --output "$folder/mt30-1m-regularized-published.json"
