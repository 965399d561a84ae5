"""How the time of attention, and of the rest of its layer, grows with the length (chapter 08).

One layer of width 128 with two heads, on one core: its products of each token with a weight matrix,
and attention written in four ways. Each round draws new inputs and measures every way at every
length once, in an order of its own, so that a busy moment of the machine does not hit one way
alone. Seconds are those that the processor spent on this process; waiting for other programs does
not count. A run of less than 0.1 s is repeated within the round, and its fastest counts.

The plain way is measured once more, at some lengths, in a process whose C library keeps the memory
that it has and does not give large pieces back to the operating system after each operation
(glibc, on Linux).

Under two minutes on one core.
"""

import argparse
import json
import os
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from experiments._record import record
from solutions.attention_bottleneck import chunked_attention, fit_exponent
from solutions.masking import masked_attention

ROUNDS = list(range(5))
LENGTHS = [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192]
WIDTH, HEADS, CHUNK = 128, 2, 128
KEPT_LENGTHS = [1024, 2048, 4096]
FITTED_FROM = 2048  # below it, what a call costs by itself shows
SHORTEST = 0.1  # seconds
KEEP = {"MALLOC_MMAP_THRESHOLD_": str(8 << 30), "MALLOC_TRIM_THRESHOLD_": str(16 << 30)}


def ways(n, generator):
    """What is measured at length n: functions without arguments, by name."""

    def draw(*shape):
        return torch.randn(shape, generator=generator)

    x = draw(n, WIDTH)
    projections = draw(4, WIDTH, WIDTH) / WIDTH**0.5
    up = draw(WIDTH, 4 * WIDTH) / WIDTH**0.5
    down = draw(4 * WIDTH, WIDTH) / (4 * WIDTH) ** 0.5
    q, k, v = draw(3, HEADS, n, WIDTH // HEADS)
    return {
        "rest of the layer": lambda: [*(x @ w for w in projections), (x @ up).relu_() @ down],
        "plain": lambda: masked_attention(q, k, v),
        "chunked": lambda: chunked_attention(q, k, v, chunk=CHUNK),
        "chunked, causal": lambda: chunked_attention(q, k, v, chunk=CHUNK, causal=True),
        "fused": lambda: F.scaled_dot_product_attention(q[None], k[None], v[None]),
    }


def seconds(run):
    """How long a run takes: the fastest of as many as fit into SHORTEST."""
    found, spent = [], 0.0
    while not found or spent < SHORTEST:
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
        spent += found[-1]
    return min(found)


def plain(seed):
    """Seconds of the plain way at some lengths, the longest first, each after two other runs."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for n in sorted(KEPT_LENGTHS, reverse=True):
        run = ways(n, generator)["plain"]
        run()
        run()
        found[n] = seconds(run)
    return [found[n] for n in KEPT_LENGTHS]


def plain_with_memory_kept(seed):
    """The same in a process of its own, whose C library was told to keep its memory."""
    code = [sys.executable, __file__, "--plain", str(seed)]
    found = subprocess.run(
        code, capture_output=True, text=True, check=True, env={**os.environ, **KEEP}
    )
    return json.loads(found.stdout)


def main():
    torch.set_num_threads(1)
    runs, kept = {}, []
    for seed in ROUNDS:
        generator = torch.Generator().manual_seed(seed)
        names = list(ways(8, generator))
        jobs = [(n, name) for n in LENGTHS for name in names]
        for i in torch.randperm(len(jobs), generator=generator).tolist():
            n, name = jobs[i]
            run = ways(n, generator)[name]
            runs.setdefault(name, {}).setdefault(n, []).append(seconds(run))
        kept.append(plain_with_memory_kept(seed))
        print(f"round {seed + 1} of {len(ROUNDS)}")
    for name in names:
        fitted = [n for n in LENGTHS if n >= FITTED_FROM]
        exponent, _ = fit_exponent(fitted, [runs[name][n] for n in fitted])
        print(f"{name:18} exponent {exponent:.2f}")
    record(
        __file__,
        seeds=ROUNDS,
        settings={
            "lengths": LENGTHS, "width": WIDTH, "heads": HEADS, "feed_forward": 4 * WIDTH,
            "chunk": CHUNK, "fitted_from": FITTED_FROM, "dtype": "float32", "threads": 1,
            "kept_lengths": KEPT_LENGTHS,
        },
        results={
            "runs": {name: [runs[name][n] for n in LENGTHS] for name in names},
            "plain, memory kept": [list(run) for run in zip(*kept)],
        },
    )  # fmt: skip


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--plain", type=int, metavar="SEED")
    asked = parser.parse_args().plain
    with torch.no_grad():
        if asked is None:
            main()
        else:
            print(json.dumps(plain(asked)))
