"""A GPT trained from scratch, on a CPU, to the known floor of its language (chapter 14).

The language is that of `solutions.stories`, in which -ln p of every token is known exactly. The
windows start where a story starts and fill the model's context window, so that the lowest loss
that there can be is known as well. Each is judged on windows that it has not seen. Three seeds,
each with a world (who finds what), a text and a model of its own; the first is kept as the
checkpoint `solutions/weights/gpt.safetensors`.

With a number of steps as an argument it trains the first seed for so long, and keeps nothing.
"""

import sys
import time

import torch

from experiments._decoder import Test
from experiments._gpt import fit
from experiments._record import record
from solutions.gpt import CHECKPOINT, GPT, GPTConfig, generate, save
from solutions.stories import Stories
from solutions.training import AdamW

SEEDS = [0, 1, 2]
WINDOW = 64  # tokens: the context window, and the length of the windows of text
SIZES = {"n_positions": WINDOW, "d_model": 64, "n_layers": 4, "n_heads": 4, "std": 0.125}
BATCH, STEPS, WARMUP, EVERY = 24, 2500, 100, 100
PEAK, DECAY = 2e-3, 0.01
TEXT, TESTS = 1_000_000, 512


def language_of(seed):
    """Its settings, which are kept with the checkpoint."""
    return {"names": 8, "things": 10, "places": 6, "colours": 4, "seed": seed}


def tests(language, seed):
    return Test(language, TESTS, 1000 + seed, length=WINDOW)


def groups(model):
    """The parameters for the optimizer: weight decay is for the matrices."""
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def by_depth(model, test):
    """Loss above the floor, in nats, if the stream is read behind 0, 1, ... L blocks."""
    inputs, targets = test.windows[:, :-1], test.windows[:, 1:]
    found = []
    for depth in range(model.config.n_layers + 1):
        with torch.no_grad():
            logits = model.read(model.stream(inputs, depth))
        losses = torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none")
        found.append((losses - test.perfect).mean().item())
    return found


def run(seed, steps=STEPS, sizes=SIZES, peak=PEAK, keep=False):
    """Train one model, and say how its excess over the floor went down."""
    language = Stories(**language_of(seed))
    draw = torch.Generator().manual_seed(seed)
    text = language.stream(TEXT, draw)
    test = tests(language, seed)
    torch.manual_seed(seed)
    model = GPT(GPTConfig(len(language), **sizes))
    optimizer = AdamW(groups(model), betas=(0.9, 0.99), weight_decay=DECAY)
    curve, excess, seconds = [], [test.excess(model)], 0.0
    for first in range(0, steps, EVERY):
        start = time.perf_counter()
        losses = fit(
            model, optimizer, text, draw, range(first, min(first + EVERY, steps)),
            batch=BATCH, peak=peak, warmup=WARMUP, total=steps,
        )  # fmt: skip
        seconds += time.perf_counter() - start
        curve += [round(x, 4) for x in losses]
        excess.append(test.excess(model))
        print(
            f"seed {seed}, step {first + EVERY}: {excess[-1]:.4f} nats above the floor, "
            f"{100 * excess[-1] / test.perfect.mean():.2f} %, {seconds:.0f} s of training",
            flush=True,
        )
    if keep:
        save(model, CHECKPOINT, language=language_of(seed), seed=seed)
    return {
        "seed": seed, "curve": curve, "excess": excess, "depths": by_depth(model, test),
        "perfect_on_test": test.perfect.mean().item(),
        "floor": language.floor_of_windows(WINDOW).mean().item(),
        "parameters": sum(p.numel() for p in model.parameters()), "minutes": seconds / 60,
        "text": language.decode(generate(model, torch.zeros(1, 1, dtype=torch.long), 100)[0, 1:]),
    }  # fmt: skip


def main():
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        run(SEEDS[0], int(sys.argv[1]))
        return
    results = [run(seed, keep=seed == SEEDS[0]) for seed in SEEDS]
    record(
        __file__,
        seeds=SEEDS,
        settings={
            **SIZES, "language": language_of("of the run"), "weight_decay": DECAY, "batch": BATCH,
            "steps": STEPS, "peak": PEAK, "warmup": WARMUP, "every": EVERY, "text": TEXT,
            "tests": TESTS, "optimizer": "AdamW", "threads": 1,
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
