#!/usr/bin/env bash
# Every MNIST preset of the paper, narrowed, on MNIST-5k, and full-precision references beside them.
# Usage: results/mnist5k/run.sh DIR; each run goes to DIR/NAME, and is skipped where it is there.
set -euo pipefail
into=$1
train() {
    local name=$1
    shift
    [ -e "$into/$name" ] || binep train "$@" --dataset mnist5k --threads 1 --run-dir "$into/$name"
}
FC1="--layers.1.size 512 --epochs 20"
FC2="--layers.1.size 512 --layers.2.size 512 --free-steps 60 --layers.1.threshold 2e-6 --layers.2.threshold 2e-6 --layers.3.threshold 2e-6 --epochs 10"
CONV="--layers.1.size 8 --layers.2.size 16 --free-steps 60 --epochs 5"
BFC2="--layers.1.size 512 --layers.2.size 512 --layers.3.size 500 --output-copies 50 --nudged-steps 40 --epochs 10"
BCONV="--layers.1.size 16 --layers.2.size 32 --layers.3.size 100 --output-copies 10 --free-steps 40 --nudged-steps 20 --epochs 10"
train mnist-fc1-ep mnist-fc1-ep $FC1
train mnist-fc1-bptt-paper-threshold mnist-fc1-bptt $FC1
train mnist-fc1-bptt mnist-fc1-bptt $FC1 --layers.1.threshold 5e-6 --layers.2.threshold 5e-6
train mnist-fc1-ep-alpha mnist-fc1-ep-alpha --epochs 20
train mnist-bits-fc1-ep mnist-bits-fc1-ep --layers.1.size 1024 --epochs 20
train mnist-bits-fc1-ep-alpha mnist-bits-fc1-ep-alpha --epochs 20
train reference-fc1-512 mnist-fc1-ep --synapses real $FC1 --layers.1.weight-lr 0.3 --layers.2.weight-lr 0.1
train reference-fc1-100 mnist-fc1-ep-alpha --synapses real --epochs 20 --layers.1.weight-lr 0.3 --layers.2.weight-lr 0.1
train reference-fc1-1024 mnist-fc1-ep --synapses real --layers.1.size 1024 --epochs 20 --layers.1.weight-lr 0.3 --layers.2.weight-lr 0.1
train reference-fc2-512 mnist-fc2-ep --synapses real $FC2 --layers.1.weight-lr 0.3 --layers.2.weight-lr 0.1 --layers.3.weight-lr 0.1
train mnist-fc2-ep mnist-fc2-ep $FC2
train mnist-fc2-bptt mnist-fc2-bptt $FC2
train mnist-fc2-ep-alpha mnist-fc2-ep-alpha $FC2
train mnist-bits-fc2-ep mnist-bits-fc2-ep $BFC2
train mnist-bits-fc2-ep-alpha mnist-bits-fc2-ep-alpha $BFC2
train mnist-conv-ep mnist-conv-ep $CONV
train reference-conv-8-16 mnist-conv-ep --synapses real $CONV --layers.1.weight-lr 0.1 --layers.2.weight-lr 0.1 --layers.3.weight-lr 0.1
train mnist-bits-conv-ep mnist-bits-conv-ep $BCONV
train mnist-bits-conv-ep-alpha mnist-bits-conv-ep-alpha $BCONV
train mnist-conv-bptt mnist-conv-bptt $CONV
train mnist-conv-ep-alpha mnist-conv-ep-alpha $CONV
train reference-conv-16-32 mnist-conv-ep --synapses real --layers.1.size 16 --layers.1.padding 1 --layers.1.pool 3 --layers.2.size 32 --layers.2.padding 1 --layers.2.pool 3 --free-steps 60 --epochs 10 --layers.1.weight-lr 0.1 --layers.2.weight-lr 0.1 --layers.3.weight-lr 0.1
