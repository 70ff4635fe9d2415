#!/bin/sh
# More rounds for a student that `distill` wrote, on the twelve tasks with the largest losses against its teacher, which
# labels its states. About 20 minutes of one core with units for bf16. A second call continues an interrupted one.
# Needs the extras train, envs and export.
# Usage: examples/mt30/student_rounds.sh TEACHER STUDENT FOLDER
set -eu
teacher=$1 student=$2 folder=$3
export OMP_NUM_THREADS=1

tdmpc-opt dagger --start "$student/work/corrected/model.safetensors" --teacher "$teacher" \
  --data "$student/work/data" "$student/work/corrected/data" --size 1 --matmul medium \
  --tasks finger-turn-easy,finger-turn-hard,fish-swim,reacher-three-hard,reacher-three-easy,reacher-hard,\
reacher-easy,cheetah-run,cheetah-jump,finger-spin,pendulum-swingup,hopper-stand \
  --rounds 4 --updates 2500 --episodes 80 --noise 0.2 --on-policy-share 0.4 --batch-size 64 --behaviour-batch 128 \
  --weights.behaviour 20 --weights.entropy 3e-3 --lr 8e-4 --lr-zero-at 10000 --encoder-lr-scale 1 --td-lambda 1 \
  --seed 40000 --output "$folder"
tdmpc-opt quantize "$folder/model.safetensors" --format fp16 --output "$folder/mt30-1m.safetensors"
tdmpc-opt evaluate "$folder/mt30-1m.safetensors" --seed 10000 \
  --output "$folder/mt30-1m-policy.json"
