"""How much of a sequence fits into a state of fixed size, and attention beside it (chapter 01).

A GRU reads n random symbols, each with its position. From its last state alone, all n symbols are
to be told again, by one linear map. Attention asks the same n tokens for each position in turn.
The sequences are short, so that gradients survive: what is tested is how much fits. Chance is 1 in
8. Five minutes on one core.
"""

import time

import torch
from torch import nn
from torch.nn import functional as F

from experiments._record import record
from solutions.why_transformers import attention_pool

SEEDS = list(range(3))
LENGTHS = [2, 4, 8, 16, 32]
STATES = [8, 16, 32, 64]
SYMBOLS, WIDTH = 8, 32
STEPS, BATCH, RATE, CLIP = 500, 64, 2e-2, 1.0
TESTS = 1000


class Recurrent(nn.Module):
    """A GRU with a state of `size` numbers, from the last of which everything is told."""

    def __init__(self, size, n):
        super().__init__()
        self.layer = nn.GRU(SYMBOLS + n, size, batch_first=True)
        self.tell = nn.Linear(size, n * SYMBOLS)

    def forward(self, x):
        return self.tell(self.layer(x)[0][:, -1]).view(len(x), -1, SYMBOLS)


class Pool(nn.Module):
    """For each position one query, made from the position alone."""

    def __init__(self, n):
        super().__init__()
        self.query, self.key = (nn.Linear(size, WIDTH) for size in (n, SYMBOLS + n))
        self.value, self.tell = nn.Linear(SYMBOLS + n, WIDTH), nn.Linear(WIDTH, SYMBOLS)

    def forward(self, x):
        b, n, _ = x.shape
        queries = self.query(torch.eye(n)).expand(b, n, WIDTH)  # (B, n, WIDTH)
        keys = self.key(x)[:, None].expand(b, n, n, WIDTH)  # for each query all keys
        values = self.value(x)[:, None].expand(b, n, n, WIDTH)
        return self.tell(attention_pool(queries, keys, values)[0])  # (B, n, SYMBOLS)


def sequences(b, n, generator):
    """b sequences of n symbols, one-hot with their positions, and the symbols."""
    symbols = torch.randint(SYMBOLS, (b, n), generator=generator)
    places = torch.eye(n).expand(b, n, n)
    return torch.cat([F.one_hot(symbols, SYMBOLS).float(), places], dim=-1), symbols


def accuracy_after_training(make, n, seed):
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make(n)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    rates = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, STEPS)
    for _ in range(STEPS):
        x, symbols = sequences(BATCH, n, generator)
        loss = F.cross_entropy(model(x).transpose(1, 2), symbols)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        rates.step()
    with torch.no_grad():
        x, symbols = sequences(TESTS, n, torch.Generator().manual_seed(10**6 + seed))
        return (model(x).argmax(-1) == symbols).float().mean().item()


def main():
    torch.set_num_threads(1)
    models = {f"GRU, {size}": (lambda n, size=size: Recurrent(size, n)) for size in STATES}
    models["attention"] = Pool
    results = []
    for name, make in models.items():
        for n in LENGTHS:
            start = time.perf_counter()
            found = [accuracy_after_training(make, n, seed) for seed in SEEDS]
            results += [
                {"model": name, "length": n, "seed": seed, "accuracy": round(value, 4)}
                for seed, value in zip(SEEDS, found)
            ]
            shown = " ".join(f"{value:.0%}" for value in found)
            print(f"{name:10} {n:3}: {shown}  ({time.perf_counter() - start:.0f} s)", flush=True)
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "lengths": LENGTHS, "states": STATES, "symbols": SYMBOLS, "width": WIDTH,
            "steps": STEPS, "batch": BATCH, "rate": RATE, "clip": CLIP, "tests": TESTS,
            "optimizer": "Adam",
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
