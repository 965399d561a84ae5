"""How the peak memory of attention grows with the length, in use and in training (chapter 08).

Each point is a process of its own, since a process remembers only the most memory that it ever
held. Three instruments look at one head of width 64:

- the operating system: by how much the process's peak (`ru_maxrss`) rises above what it held
  once torch was loaded, the inputs were there and a tiny run had warmed everything up;
- torch's profiler: every allocation and release of its allocator, added up;
- `PeakMemory`, the counter of the chapter.

The C library keeps part of what is released, for the next allocation, and what it keeps counts as
the process's. So the operating system is asked twice: in a process whose C library gives
everything of more than 64 KiB back at once (glibc, on Linux), and at the largest length in one with
the usual settings as well.

Three seeds. Four minutes on one core, most of which goes into starting Python.
"""

import argparse
import json
import os
import resource
import subprocess
import sys

import torch
from torch.profiler import ProfilerActivity, profile

from experiments._record import record
from solutions.attention_bottleneck import chunked_attention, fit_exponent
from solutions.masking import masked_attention
from solutions.peak_memory import PeakMemory

SEEDS = [0, 1, 2]
LENGTHS = [1024, 2048, 3072, 4096]
WIDTH, CHUNK = 64, 128
UNIT = 1024 if sys.platform != "darwin" else 1  # ru_maxrss is in KiB on Linux, in bytes on macOS
WAYS = {
    "plain": (lambda q, k, v: masked_attention(q, k, v)[0], False),
    "chunked": (lambda q, k, v: chunked_attention(q, k, v, chunk=CHUNK), False),
    "plain, training": (lambda q, k, v: masked_attention(q, k, v)[0], True),
    "chunked, training": (lambda q, k, v: chunked_attention(q, k, v, chunk=CHUNK), True),
    "recomputed, training": (
        lambda q, k, v: chunked_attention(q, k, v, chunk=CHUNK, recompute=True),
        True,
    ),
}


def run(way, q, k, v):
    """Attend; in training, go back as well."""
    attend, training = WAYS[way]
    output = attend(*(x.requires_grad_(training) for x in (q, k, v)))
    if training:
        output.sum().backward()
        q.grad = k.grad = v.grad = None
    return output


def profiled(way, q, k, v):
    """The most that torch's allocator had handed out, in bytes."""
    activities = [ProfilerActivity.CPU]
    with profile(activities=activities, profile_memory=True, acc_events=True) as profiler:
        run(way, q, k, v)
    events = profiler.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    now = peak = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return peak


def point(way, n, seed):
    """Measure one way at one length, in this process."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(n, WIDTH, generator=generator) for _ in range(3))
    run(way, *(x[:32].detach().clone() for x in (q, k, v)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run(way, q, k, v)
    system = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * UNIT
    with PeakMemory() as memory:
        run(way, q, k, v)
    return {"system": system, "profiler": profiled(way, q, k, v), "counter": memory.peak}


def fresh(way, n, seed, **settings):
    """Measure one way at one length in a process of its own, with settings of its environment."""
    code = [sys.executable, __file__, "--point", way, str(n), str(seed)]
    environment = {**os.environ, "KINETO_LOG_LEVEL": "99", **settings}
    found = subprocess.run(code, capture_output=True, text=True, check=True, env=environment)
    return json.loads(found.stdout.splitlines()[-1])


def main():
    instruments = ("system", "profiler", "counter")
    results = {way: {name: [[] for _ in LENGTHS] for name in instruments} for way in WAYS}
    usual = {way: [] for way in WAYS}
    for seed in SEEDS:
        for way in WAYS:
            for i, n in enumerate(LENGTHS):
                for name, found in fresh(way, n, seed, MALLOC_MMAP_THRESHOLD_="65536").items():
                    results[way][name][i].append(found)
            usual[way].append(fresh(way, LENGTHS[-1], seed)["system"])
            print(f"seed {seed}, {way}")
    for way in WAYS:
        fits = (fit_exponent(LENGTHS, results[way][name])[0] for name in instruments)
        print(f"{way:22} exponent", ", ".join(f"{e:.2f} ({n})" for e, n in zip(fits, instruments)))
    record(
        __file__,
        seeds=SEEDS,
        settings={"lengths": LENGTHS, "width": WIDTH, "chunk": CHUNK, "dtype": "float32"},
        results={way: {**results[way], "usual settings, longest": usual[way]} for way in WAYS},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--point", nargs=3, metavar=("WAY", "LENGTH", "SEED"))
    asked = parser.parse_args().point
    if asked:
        print(json.dumps(point(asked[0], int(asked[1]), int(asked[2]))))
    else:
        main()
