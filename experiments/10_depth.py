"""How numbers and gradients fare in an untrained stack of 100 layers (chapter 10).

A layer is attention with one head and a feed-forward network, both with Xavier's uniform weights
and without bias, so a stack of 100 has 200 sublayers. It runs with residual connections and norms
as pre-norm and post-norm arrange them, without the norm, without the residual, and without
either. Random tokens go in; at the top a random gradient, of variance 1 in every number, is sent
back. Recorded behind each layer: the root mean square of the stream and of its gradient, the
gradient of the layer's weights, and how alike the tokens of a sequence have become. Then the
weights' gradients in pre-norm and post-norm at other depths. In float64; about two minutes on one
core.
"""

import math

import torch
from torch import nn

from experiments._record import record
from solutions.residuals_and_norms import LayerNorm, init_scale, residual
from solutions.self_attention import SelfAttention

SEEDS = list(range(5))
LAYERS, WIDTH, LENGTH, BATCH = 100, 48, 16, 2
DEPTHS = [3, 6, 12, 25, 50, 100]
WAYS = ["pre-norm", "post-norm", "no norm", "no residual", "neither"]


def xavier(*layers):
    for layer in layers:
        nn.init.xavier_uniform_(layer.weight)


class Attention(nn.Module):
    """One head as wide as the model, and the projection behind it."""

    def __init__(self):
        super().__init__()
        self.attend = SelfAttention(WIDTH, WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)
        xavier(self.attend.query, self.attend.key, self.attend.value, self.out)

    def forward(self, x):
        return self.out(self.attend(x))


class FeedForward(nn.Module):
    """Two linear maps with a ReLU between them."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH, bias=False)
        self.out = nn.Linear(4 * WIDTH, WIDTH, bias=False)
        xavier(self.up, self.out)

    def forward(self, x):
        return self.out(self.up(x).relu())


def block(x, sublayer, norm, way):
    """One residual block, or what is left of it."""
    if way == "no norm":
        return x + sublayer(x)
    if way == "no residual":
        return sublayer(norm(x))
    if way == "neither":
        return sublayer(x)
    return residual(x, sublayer, norm, norm_first=way != "post-norm")


def rms(x):
    return x.square().mean().sqrt().item()


def known(number):
    """A number that JSON can hold, of five digits; None for what has left the range of float64."""
    return float(f"{number:.5g}") if math.isfinite(number) else None


def likeness(x):
    """Mean cosine between two tokens of a sequence, once the stream's size is left out."""
    x = x / x.norm(dim=-1, keepdim=True)
    t = x.shape[-2]
    return ((x @ x.mT).sum(dim=(-2, -1)) - t).mean().item() / (t * (t - 1))


def run(way, layers, seed):
    """One pass through a fresh stack, and back."""
    torch.manual_seed(seed)
    sublayers = [kind() for _ in range(layers) for kind in (Attention, FeedForward)]
    stack = nn.ModuleList(sublayers).double()
    norm = LayerNorm(WIDTH, dtype=torch.float64)
    if way == "pre-norm, scaled":
        with torch.no_grad():
            for sublayer in stack:
                sublayer.out.weight *= init_scale(layers)
    x = torch.randn(BATCH, LENGTH, WIDTH, dtype=torch.float64, requires_grad=True)
    stream = [x]
    for sublayer in stack:
        x = block(x, sublayer, norm, way)
        x.retain_grad()
        stream.append(x)
    output = norm(x) if way.startswith("pre-norm") else x
    output.backward(torch.randn(output.shape, dtype=output.dtype))
    squares = [sum(p.grad.square().sum().item() for p in part.parameters()) for part in stack]
    return {
        "way": way,
        "layers": layers,
        "seed": seed,
        # At the start, and behind each layer.
        "stream": [known(rms(x.detach())) for x in stream[::2]],
        "gradient": [known(rms(x.grad)) for x in stream[::2]],
        "likeness": [known(likeness(x.detach())) for x in stream[::2]],
        # Root of the sum of the squares of all gradients of a layer's weights.
        "weights": [known(math.sqrt(a + b)) for a, b in zip(squares[::2], squares[1::2])],
    }


def main():
    torch.set_num_threads(1)
    deep, depths = [], []
    for way in [*WAYS, "pre-norm, scaled"]:
        for seed in SEEDS:
            deep.append(run(way, LAYERS, seed))
        ends = [(r["stream"][-1], r["gradient"][0], r["likeness"][-1]) for r in deep[-len(SEEDS) :]]
        shown = "; ".join(f"{a:.2g}, {b:.2g}, {c:.2f}" for a, b, c in ends)
        print(f"{way:17} stream at the top, gradient at the bottom, likeness: {shown}")
    for layers in DEPTHS:
        for way in ("pre-norm", "post-norm"):
            for seed in SEEDS:
                found = run(way, layers, seed)
                depths.append(
                    {
                        "way": way,
                        "layers": layers,
                        "seed": seed,
                        "stream": found["stream"][-1],
                        "last": found["weights"][-1],
                        "first": found["weights"][0],
                    }
                )
        print(f"{layers} layers done")
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "layers": LAYERS, "width": WIDTH, "length": LENGTH, "batch": BATCH, "depths": DEPTHS,
            "ways": WAYS, "dtype": "float64",
        },
        results={"deep": deep, "depths": depths},
    )  # fmt: skip


if __name__ == "__main__":
    main()
