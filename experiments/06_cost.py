"""What more heads cost at equal width: parameters, numbers kept, and time (chapter 06).

One layer of width 256 on sequences of 64 to 1,024 tokens, with 1 to 32 heads: the course's layer,
which makes the table of weights, and the same layer with PyTorch's fused attention, which does not.
Forward passes on one core, without gradients; each time is the fastest of several calls, in rounds
that go through all settings in turn, so that a busy moment does not hit one of them alone.
About a minute.
"""

import time
from statistics import median

import torch
from torch.nn import functional as F

from experiments._record import record
from solutions.multi_head_attention import MultiHeadAttention, merge_heads, split_heads

SEEDS = [0, 1, 2, 3, 4]  # of the rounds
WIDTH, BATCH = 256, 1
LENGTHS, HEADS = [64, 256, 1024], [1, 2, 4, 8, 16, 32]
CALLS = {64: 20, 256: 8, 1024: 2}


def fused(layer, x):
    """The output of the layer, by PyTorch's fused attention."""
    q, k, v = (
        split_heads(part(x), layer.n_heads) for part in (layer.query, layer.key, layer.value)
    )
    return layer.output(merge_heads(F.scaled_dot_product_attention(q, k, v)))


def seconds(run, calls):
    """Time of the fastest call."""
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    found = {}
    for seed in SEEDS:
        torch.manual_seed(seed)
        for length in LENGTHS:
            x = torch.randn(BATCH, length, WIDTH)
            for n_heads in HEADS:
                layer = MultiHeadAttention(WIDTH, n_heads)
                for way, run in {
                    "course": lambda layer=layer, x=x: layer(x)[0],
                    "fused": lambda layer=layer, x=x: fused(layer, x),
                }.items():
                    run()  # warm
                    times = found.setdefault((way, length, n_heads), [])
                    times.append(seconds(run, CALLS[length]))
                torch.testing.assert_close(layer(x)[0], fused(layer, x), rtol=1e-4, atol=1e-5)
    results = []
    for (way, length, n_heads), times in found.items():
        layer = MultiHeadAttention(WIDTH, n_heads)
        results.append({
            "way": way, "length": length, "n_heads": n_heads, "seconds": times,
            "parameters": sum(p.numel() for p in layer.parameters()),
            "weights": BATCH * n_heads * length**2 if way == "course" else 0,
        })  # fmt: skip
        print(f"{way:6} T={length:4} H={n_heads:2}: {1e3 * median(times):8.2f} ms")
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "width": WIDTH, "batch": BATCH, "lengths": LENGTHS, "heads": HEADS, "threads": 1,
            "calls": {str(k): v for k, v in CALLS.items()},
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
