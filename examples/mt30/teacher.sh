#!/bin/sh
# Train the ablation's teacher, a world model of size 5, on the dataset and its experts' labels. About 40 minutes on
# one core. A second call continues an interrupted one. Needs the extras train and envs.
# Usage: examples/mt30/teacher.sh DATA FOLDER
set -eu
data=$1 work=$2
mkdir -p "$work"
export OMP_NUM_THREADS=1
tdmpc-opt train --size 5 --data "$data" --output "$work/teacher" --updates 6000 --lr-zero-at 6000 \
  --batch-size 64 --behaviour-batch 128 --weights.behaviour 20 --weights.entropy 3e-3 --td-lambda 1 \
  --lr 1e-3 --encoder-lr-scale 1 --save-every 250
tdmpc-opt quantize "$work/teacher/model.safetensors" --format fp16 --output "$work/mt30-5m-teacher.safetensors"
tdmpc-opt evaluate "$work/mt30-5m-teacher.safetensors" --mode policy --seed 0 --workers 1 \
  --output "$work/teacher-policy.json"
