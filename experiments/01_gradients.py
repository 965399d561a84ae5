"""How much of a gradient survives the way back through time, or through attention (chapter 01).

Each model reads 128 random tokens. For each of them: how strongly does the last output depend on
it? That is the Frobenius norm of the derivative of the output's 64 numbers with respect to the
token's 8, before any training. Seconds on one core.
"""

import torch
from torch import nn

from experiments._record import record
from solutions.why_transformers import attention_pool, rnn

SEEDS = list(range(10))
LENGTH, D, N = 128, 8, 64


def uniform(*shape, generator, bound):
    """Numbers between -bound and bound, as torch.nn initialises recurrent layers."""
    return (2 * torch.rand(*shape, generator=generator, dtype=torch.float64) - 1) * bound


def orthogonal(generator):
    """A random rotation: it keeps the length of every state."""
    square = torch.randn(N, N, generator=generator, dtype=torch.float64)
    return torch.linalg.qr(square).Q


def recurrent(w_h):
    """An rnn with these weights from state to state, and PyTorch's initial ones elsewhere."""

    def make(generator):
        bound = N**-0.5
        w_x = uniform(D, N, generator=generator, bound=bound)
        b = uniform(N, generator=generator, bound=bound)
        b = b + uniform(N, generator=generator, bound=bound)  # torch.nn.RNN has two
        matrix = w_h(generator)
        return lambda x: rnn(x, w_x, matrix, b)[1]

    return make


def lstm(forget_bias):
    """An nn.LSTM; `forget_bias` is added to PyTorch's initial biases of the forget gate."""

    def make(generator):
        layer = nn.LSTM(D, N, batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            for parameter in layer.parameters():
                bound = N**-0.5
                parameter.copy_(uniform(*parameter.shape, generator=generator, bound=bound))
            layer.bias_ih_l0[N : 2 * N] += forget_bias  # the gates: input, forget, cell, output
        return lambda x: layer(x)[0][:, -1]

    return make


def attention(generator):
    """The last token asks; all tokens answer, through random projections."""
    bound = D**-0.5
    w_q = uniform(D, N, generator=generator, bound=bound)
    w_k = uniform(D, N, generator=generator, bound=bound)
    w_v = uniform(D, N, generator=generator, bound=bound)
    return lambda x: attention_pool(x[:, -1] @ w_q / N**0.5, x @ w_k, x @ w_v)[0]


MODELS = {
    "RNN, as PyTorch starts it": recurrent(lambda g: uniform(N, N, generator=g, bound=N**-0.5)),
    "RNN, rotation": recurrent(orthogonal),
    "RNN, random x 3": recurrent(
        lambda g: 3 * torch.randn(N, N, generator=g, dtype=torch.float64) / N**0.5
    ),
    "LSTM, as PyTorch starts it": lstm(0.0),
    "LSTM, forget bias + 4": lstm(4.0),
    "attention": attention,
}


def norms(model, x):
    """Norm of the derivative of the last output with respect to each token, by distance."""
    copies = x.expand(N, LENGTH, D).clone().requires_grad_()  # one for each number of the output
    model(copies).diagonal().sum().backward()  # so copy i gets the derivative of output i
    return copies.grad.square().sum(dim=(0, 2)).sqrt().flip(0).tolist()


def main():
    torch.set_num_threads(1)
    results = []
    for seed in SEEDS:
        for name, make in MODELS.items():
            generator = torch.Generator().manual_seed(seed)
            x = torch.randn(1, LENGTH, D, generator=generator, dtype=torch.float64)
            found = norms(make(generator), x)
            results.append(
                {"model": name, "seed": seed, "norms": [float(f"{v:.4g}") for v in found]}
            )
            shown = "  ".join(f"{found[d]:.1e}" for d in (0, 10, 50, 100))
            print(f"seed {seed}, {name:28}: {shown}")
    record(
        __file__,
        seeds=SEEDS,
        settings={"length": LENGTH, "token_width": D, "state_width": N, "dtype": "float64"},
        results=results,
    )


if __name__ == "__main__":
    main()
