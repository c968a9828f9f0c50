"""BinaryFlip alone: a feed-forward network of binary weights, and the same with real ones and Adam.

python results/flips-alone/train.py > results/flips-alone/log.txt
"""

import torch
from torch import nn

import binep
from binep.data.sources import load

EPOCHS, SEEDS = 20, 3


class BinaryLinear(nn.Module):
    """Weights of ±1 over √inputs; the batch normalisation behind it gives them their scale."""

    def __init__(self, inputs, outputs):
        super().__init__()
        heads = torch.rand(outputs, inputs) < 0.5
        self.signs = nn.Parameter(torch.where(heads, -1.0, 1.0))

    def forward(self, x):
        """W x / √inputs."""
        return nn.functional.linear(x, self.signs) / x.shape[1] ** 0.5


class RealLinear(nn.Linear):
    """Weights of float32."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs, bias=False)


def train(linear, seed, x, y, x_test, y_test):
    """The test error after each epoch, in percent."""
    torch.manual_seed(seed)
    network = nn.Sequential(
        *(linear(784, 512), nn.BatchNorm1d(512), nn.ReLU()),
        *(linear(512, 10), nn.BatchNorm1d(10)),
    )
    signs = [p for name, p in network.named_parameters() if name.endswith("signs")]
    others = [p for name, p in network.named_parameters() if not name.endswith("signs")]
    optimizers = [torch.optim.Adam(others, lr=1e-3)]
    if signs:
        optimizers.append(binep.BinaryFlip(signs, gamma=1e-3, threshold=1e-6))
    rates = [torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.05, EPOCHS) for o in optimizers]
    errors = []
    for _ in range(EPOCHS):
        network.train()
        for some in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(network(x[some]), y[some])
            network.zero_grad()
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
        for rate in rates:
            rate.step()
        network.eval()
        with torch.no_grad():
            errors.append(100 * float((network(x_test).argmax(dim=1) != y_test).float().mean()))
    assert all(bool((p.abs() == 1).all()) for p in signs)
    return errors


def main():
    """Print a row of test errors for each kind of weights and seed."""
    torch.set_num_threads(1)
    data = load("mnist5k")
    parts = [
        part
        for split in (data.train, data.test)
        for part in (data.prepare(split.images).flatten(1), split.labels)
    ]
    print("weights,seed," + ",".join(f"epoch{n + 1}" for n in range(EPOCHS)))
    for linear in (BinaryLinear, RealLinear):
        for seed in range(SEEDS):
            errors = train(linear, seed, *parts)
            print(f"{linear.__name__},{seed}," + ",".join(f"{e:.1f}" for e in errors), flush=True)


if __name__ == "__main__":
    main()
