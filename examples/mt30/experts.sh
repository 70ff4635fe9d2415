#!/bin/sh
# The experts of MT30 by SAC on batched physics. Killed, it goes on when called again.
# Usage: examples/mt30/experts.sh FOLDER [STEPS]
# One million agent steps take 15 to 30 minutes of one core a task; two tasks run at once on two.
set -eu
experts=$1 steps=${2:-1000000}

tdmpc-opt experts --tasks mt30 --steps "$steps" --output "$experts"
