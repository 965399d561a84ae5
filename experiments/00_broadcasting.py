"""Loops against broadcasting: all distances between two sets of N points (chapter 00).

Four ways to compute the same table: two Python loops, one loop over rows, broadcasting, and
`torch.cdist`. They are timed in turn, in an order shuffled anew in each round, on one thread. A
minute or so. Only ratios are worth comparing between machines; run it while nothing else computes.
"""

import random
import time

import torch

from experiments._record import record
from solutions.start import pairwise_distance

SIZES = [4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048]
LARGEST_FOR_TWO_LOOPS = 128  # beyond, a round takes minutes
WIDTH = 16
ROUNDS = 11
MINIMUM = 2e-3  # seconds: short calls are repeated until a timing takes this long
SEED = 0


def two_loops(a, b):
    table = torch.empty(len(a), len(b))
    for n in range(len(a)):
        for m in range(len(b)):
            table[n, m] = torch.linalg.vector_norm(a[n] - b[m])
    return table


def one_loop(a, b):
    return torch.stack([torch.linalg.vector_norm(row - b, dim=-1) for row in a])


def library(a, b):
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


WAYS = {
    "two loops": two_loops,
    "one loop": one_loop,
    "broadcast": pairwise_distance,
    "cdist": library,
}


def repeats(way, a, b):
    """How many calls make a timing long enough to be read off the clock."""
    start = time.perf_counter()
    way(a, b)
    return max(1, int(MINIMUM / (time.perf_counter() - start)))


def seconds(way, a, b, count):
    start = time.perf_counter()
    for _ in range(count):
        way(a, b)
    return (time.perf_counter() - start) / count


def main():
    torch.set_num_threads(1)
    generator, order = torch.Generator().manual_seed(SEED), random.Random(SEED)
    rows = []
    for size in SIZES:
        a, b = torch.randn(2, size, WIDTH, generator=generator)
        ways = {k: w for k, w in WAYS.items() if k != "two loops" or size <= LARGEST_FOR_TWO_LOOPS}
        for way in ways.values():
            torch.testing.assert_close(way(a, b), pairwise_distance(a, b))
        counts = {name: repeats(way, a, b) for name, way in ways.items()}
        times = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name in order.sample(list(ways), len(ways)):
                times[name].append(seconds(ways[name], a, b, counts[name]))
        rows += [{"size": size, "way": name, "seconds": found} for name, found in times.items()]
        print(f"{size:5} points: done")
    record(
        __file__,
        seeds=[SEED],
        settings={"width": WIDTH, "rounds": ROUNDS, "threads": 1, "dtype": "float32"},
        results=rows,
    )


if __name__ == "__main__":
    main()
