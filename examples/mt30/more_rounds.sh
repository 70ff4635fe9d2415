#!/bin/sh
# More rounds for an agent that `distill` wrote: it drives some tasks with noise, and what it learns from (`experts`, or a
# teacher) labels its states. About 40 minutes of one core with units for bf16 for a teacher of 5M parameters, and 20 for
# a student of 1M. A second call continues an interrupted one. Needs the extras train, envs and export.
# Usage: examples/mt30/more_rounds.sh LABELS START SIZE SEED TASKS FOLDER [DATASET...]
set -eu
labels=$1 start=$2 size=$3 seed=$4 tasks=$5 folder=$6
shift 6
export OMP_NUM_THREADS=1

for noise in 0 0.2 0.5; do
  tdmpc-opt collect --policy "$labels" --mode policy --episodes 40 --noise "$noise" --seed "$seed" \
    --output "$folder/data-$noise"
done
tdmpc-opt dagger --start "$start" --teacher "$labels" --data "$folder/data-0" "$folder/data-0.2" "$folder/data-0.5" "$@" \
  --size "$size" --matmul medium --tasks "$tasks" \
  --rounds 6 --updates 2700 --episodes 50 --noise 0.25 --on-policy-share 0.4 --batch-size 64 --behaviour-batch 128 \
  --weights.behaviour 20 --weights.entropy 3e-3 --lr 8e-4 --lr-zero-at 16200 --encoder-lr-scale 1 --td-lambda 1 \
  --seed "$seed" --output "$folder/rounds"
tdmpc-opt quantize "$folder/rounds/model.safetensors" --format fp16 --output "$folder/model-fp16.safetensors"
tdmpc-opt evaluate "$folder/model-fp16.safetensors" --mode policy --seed 500000 --output "$folder/policy.json"
