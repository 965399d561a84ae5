"""How well a symbol is recalled after a distance, learned from scratch (chapter 01).

A sequence starts with one of 8 symbols, marked. Noise follows: symbols of the same 8, unmarked.
At the end the model is to say which symbol was marked; `distance` tokens lie between the two. Each
model has a first and a last linear map of the same size around it, and is trained anew for each
distance. Chance is 1 in 8. Four minutes on one core.
"""

import time

import torch
from torch import nn
from torch.nn import functional as F

from experiments._record import record
from solutions.why_transformers import attention_pool

SEEDS = list(range(3))
DISTANCES = [2, 5, 10, 20, 40, 80]
SYMBOLS, WIDTH = 8, 32
STEPS, BATCH, RATE, CLIP = 600, 32, 3e-3, 1.0
TESTS = 1000


class Recurrent(nn.Module):
    """Reads from left to right and answers from the last state."""

    def __init__(self, layer):
        super().__init__()
        self.read, self.layer = nn.Linear(SYMBOLS + 1, WIDTH), layer
        self.answer = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, x):
        return self.answer(self.layer(self.read(x))[0][:, -1])


class Pool(nn.Module):
    """The last token asks, all tokens answer."""

    def __init__(self):
        super().__init__()
        self.read = nn.Linear(SYMBOLS + 1, WIDTH)
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.answer = nn.Linear(WIDTH, SYMBOLS)

    def forward(self, x):
        x = self.read(x)
        query = self.query(x[:, -1]) / WIDTH**0.5
        return self.answer(attention_pool(query, self.key(x), self.value(x))[0])


def rnn(rotation=False):
    layer = nn.RNN(WIDTH, WIDTH, batch_first=True)
    if rotation:
        nn.init.orthogonal_(layer.weight_hh_l0)
    return Recurrent(layer)


def lstm(forget_bias=0.0):
    layer = nn.LSTM(WIDTH, WIDTH, batch_first=True)
    with torch.no_grad():
        layer.bias_ih_l0[WIDTH : 2 * WIDTH] += forget_bias  # input, forget, cell, output
    return Recurrent(layer)


MODELS = {
    "RNN": rnn,
    "RNN, rotation": lambda: rnn(rotation=True),
    "LSTM": lstm,
    "LSTM, forget bias + 4": lambda: lstm(4.0),
    "attention": Pool,
}


def sequences(n, distance, generator):
    """n sequences of distance + 2 tokens (marked symbol, noise, a token that asks), and answers."""
    symbols = torch.randint(SYMBOLS, (n, distance + 2), generator=generator)
    x = F.one_hot(symbols, SYMBOLS + 1).float()  # the last column: marked or not
    x[:, 0, -1] = 1
    x[:, -1] = 0
    return x, symbols[:, 0]


def accuracy_after_training(make, distance, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    for _ in range(STEPS):
        x, answers = sequences(BATCH, distance, generator)
        loss = F.cross_entropy(model(x), answers)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    with torch.no_grad():
        x, answers = sequences(TESTS, distance, torch.Generator().manual_seed(10**6 + seed))
        return (model(x).argmax(-1) == answers).float().mean().item()


def main():
    torch.set_num_threads(1)
    results = []
    for name, make in MODELS.items():
        for distance in DISTANCES:
            start = time.perf_counter()
            found = [accuracy_after_training(make, distance, seed) for seed in SEEDS]
            results += [
                {"model": name, "distance": distance, "seed": seed, "accuracy": round(value, 4)}
                for seed, value in zip(SEEDS, found)
            ]
            shown = " ".join(f"{value:.0%}" for value in found)
            print(
                f"{name:22} {distance:3}: {shown}  ({time.perf_counter() - start:.0f} s)",
                flush=True,
            )
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "symbols": SYMBOLS, "width": WIDTH, "steps": STEPS, "batch": BATCH, "rate": RATE,
            "clip": CLIP, "tests": TESTS, "optimizer": "Adam", "distances": DISTANCES,
            "parameters": {
                name: sum(p.numel() for p in make().parameters()) for name, make in MODELS.items()
            },
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
