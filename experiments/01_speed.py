"""How long an RNN and attention take for a sequence, against its length (chapter 01).

One sequence of width 64, on one thread: forward alone, and forward with backward. The `rnn` of the
chapter is a loop in Python; `torch.nn.RNN` is the same in C++. Attention lets every token ask every
token. Beside it, what one step of an RNN costs for a batch of sequences: a step waits for the last
one, the sequences of a batch do not wait for each other. Needs a quiet machine. Two minutes.
"""

import statistics
import time

import torch
from torch import nn

from experiments._record import record
from solutions.why_transformers import rnn

SEED = 0
WIDTH = 64
LENGTHS = [16, 32, 64, 128, 256, 512, 1024, 2048, 4096]
BATCHES = [1, 4, 16, 64, 256]
BATCH_LENGTH = 64
REPEATS = 9


def attention(x, w_q, w_k, w_v):
    """Each token asks each token, at once."""
    scores = (x @ w_q) @ (x @ w_k).transpose(1, 2) / WIDTH**0.5  # (B, T, T)
    return torch.softmax(scores, dim=-1) @ (x @ w_v)


def seconds(function, x, backward):
    """Processor time and wall-clock time of one call."""
    start = time.process_time(), time.perf_counter()
    output = function(x)
    if backward:
        output.sum().backward()
    return time.process_time() - start[0], time.perf_counter() - start[1]


def measured(functions, make_inputs, points):
    """The fastest call and the median by name, in turns, so that a slow minute hits all."""
    rows = []
    for point in points:
        x = make_inputs(point)
        for backward in (False, True):
            times = {name: [] for name in functions}
            with torch.set_grad_enabled(backward):
                for function in functions.values():
                    seconds(function, x, backward)  # warm up
                for _ in range(REPEATS):
                    for name, function in functions.items():
                        times[name].append(seconds(function, x, backward))
            for name, pairs in times.items():
                values, wall = zip(*pairs)
                rows.append(
                    {
                        "model": name, "at": point, "backward": backward,
                        "fastest": min(values), "median": statistics.median(values),
                        "fastest_wall": min(wall), "median_wall": statistics.median(wall),
                    }
                )  # fmt: skip
            shown = ", ".join(f"{k} {1000 * min(v)[0]:.2f} ms" for k, v in times.items())
            print(f"{point:5} {'with' if backward else 'without'} backward: {shown}", flush=True)
    return rows


def main():
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(SEED)

    def weights():
        matrix = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
        return matrix.requires_grad_()

    w_q, w_k, w_v, w_x, w_h = (weights() for _ in range(5))
    b = torch.zeros(WIDTH, requires_grad=True)
    layer = nn.RNN(WIDTH, WIDTH, batch_first=True)
    functions = {
        "rnn, our loop": lambda x: rnn(x, w_x, w_h, b)[0],
        "torch.nn.RNN": lambda x: layer(x)[0],
        "attention": lambda x: attention(x, w_q, w_k, w_v),
    }
    by_length = measured(
        functions, lambda n: torch.randn(1, n, WIDTH, generator=generator), LENGTHS
    )
    by_batch = measured(
        {"torch.nn.RNN": functions["torch.nn.RNN"]},
        lambda b: torch.randn(b, BATCH_LENGTH, WIDTH, generator=generator),
        BATCHES,
    )
    record(
        __file__,
        seeds=[SEED],
        machine={"threads": 1},
        settings={
            "width": WIDTH, "lengths": LENGTHS, "batches": BATCHES, "batch_length": BATCH_LENGTH,
            "repeats": REPEATS,
        },
        results={"by_length": by_length, "by_batch": by_batch},
    )  # fmt: skip


if __name__ == "__main__":
    main()
