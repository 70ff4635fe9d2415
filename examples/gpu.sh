#!/bin/sh
# Checks and measurements on a machine with a CUDA GPU, in about 12 minutes: the tests that need a GPU, updates of a 1M
# student with teachers of 48M and 317M random weights against plain torch, and labels by planning of a 317M teacher.
# Usage, from a clone of the repository with the extras train, envs and dev installed: examples/gpu.sh FOLDER
set -eu
out=$1
mkdir -p "$out"

python -m pytest -q -m gpu tests
for teacher in 48 317; do
  timeout 180 python benchmarks/training_throughput.py --device cuda --teacher "$teacher" --batch-size 1024 \
    --rounds 5 --output "$out/bench-gpu-$teacher.json"
done
timeout 180 python benchmarks/planner_labels.py --device cuda --size 317 --states 1 32 512 \
  --output "$out/bench-gpu-planner-labels.json"
