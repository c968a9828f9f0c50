#!/usr/bin/env bash
# Thresholds from the first batches (--auto-threshold) beside those chosen by hand, on MNIST-5k and data of one's own.
# Usage: results/auto-threshold/run.sh DIR; two seeds of each go to DIR/NAME, and what is there is skipped.
set -euo pipefail
into=$1
mkdir -p "$into"
train() {
    local name=$1 preset=$2
    shift 2
    for how in hand auto; do
        [ $how = auto ] && set -- "$@" --auto-threshold
        binep train "$preset" "$@" --validation 0.1 --threads 1 --seeds 2 --run-dir "$into/$name-$how"
    done
}
python - "$into/digits.npz" <<'END'
import sys
import numpy as np
from sklearn.datasets import load_digits
x, y = load_digits(return_X_y=True)
x = (x * 255 / 16).round().astype(np.uint8).reshape(-1, 8, 8)
np.savez(sys.argv[1], x_train=x[:1397], y_train=y[:1397], x_test=x[1397:], y_test=y[1397:])
END
MNIST="--dataset mnist5k"
train fc1-32 mnist-fc1-ep $MNIST --layers.1.size 32 --epochs 10
train fc1-128 mnist-fc1-ep $MNIST --layers.1.size 128 --epochs 10
train fc1-512 mnist-fc1-ep $MNIST --layers.1.size 512 --epochs 10
train fc1-2048 mnist-fc1-ep $MNIST --layers.1.size 2048 --epochs 10
train fc2-256 mnist-fc2-ep $MNIST --layers.1.size 256 --layers.2.size 256 --free-steps 60 --layers.1.threshold 2e-6 --layers.2.threshold 2e-6 --layers.3.threshold 2e-6 --epochs 10
train bits-fc1-1024 mnist-bits-fc1-ep $MNIST --layers.1.size 1024 --epochs 10
train digits-128 quickstart --dataset "$into/digits.npz" --layers.1.size 128 --epochs 10
train conv-8-16 mnist-conv-ep $MNIST --layers.1.size 8 --layers.2.size 16 --free-steps 60 --epochs 3
