"""What each part of the recipe is worth: each left out in turn (chapter 12).

A small decoder learns the language of `solutions.stories` with AdamW, warm-up, cosine decay,
clipping and weight decay. Then one part is left out at a time, at a moderate learning rate and at
one four times as large. Judged by how far the loss on new windows ends above the exact floor.
Gradient descent with momentum, in place of AdamW, gets the best of three rates. Three minutes on
one core.
"""

import math

import torch

from experiments._decoder import LENGTH, SIZES, Test, decoder
from experiments._record import record
from solutions.stories import Stories
from solutions.training import AdamW, cosine_schedule, get_batch, train

SEEDS = [0, 1, 2]
WIDTH, BATCH, STEPS, WARMUP, CLIP, DECAY = 48, 16, 300, 30, 1.0, 0.1
PEAKS = [0.01, 0.04]
SGD_PEAKS = [0.1, 0.3, 1.0]
TEXT, TESTS = 400_000, 256
PARTS = ["nothing", "warm-up", "cosine decay", "clipping", "weight decay", "bias correction"]


class Uncorrected(AdamW):
    """AdamW that takes its running means as they are."""

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                m = state["exp_avg"].lerp_(p.grad, 1 - beta1)
                v = state["exp_avg_sq"].lerp_(p.grad.square(), 1 - beta2)
                p.sub_(group["lr"] * m / (v.sqrt() + group["eps"]))


def run(without, peak, seed):
    """One training with a part left out: its curve, its gradients, its end."""
    language = Stories(**SIZES, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    text = language.stream(TEXT, draw)
    starts = (text == 0).nonzero().flatten()
    model = decoder(len(language), WIDTH, seed)
    if without == "AdamW":
        optimizer = torch.optim.SGD(model.parameters(), lr=peak, momentum=0.9)
    else:
        make = Uncorrected if without == "bias correction" else AdamW
        decay = 0.0 if without == "weight decay" else DECAY
        optimizer = make(model.parameters(), betas=(0.9, 0.99), weight_decay=decay)
    history = train(
        model,
        lambda: get_batch(text, BATCH, LENGTH, draw, starts),
        optimizer,
        lambda s: cosine_schedule(
            s,
            peak=peak,
            warmup=0 if without == "warm-up" else WARMUP,
            total=STEPS,
            minimum=peak if without == "cosine decay" else peak / 50,
        ),
        range(STEPS),
        max_norm=math.inf if without == "clipping" else CLIP,
    )
    excess = Test(language, TESTS, 1000 + seed).excess(model)
    return {
        "without": without, "peak": peak, "seed": seed, "excess": excess,
        "curve": [round(x, 4) for x in history["loss"]],
        "norm": [round(x, 4) for x in history["norm"]],
    }  # fmt: skip


def main():
    torch.set_num_threads(1)
    results = []
    plan = [(part, peak) for peak in PEAKS for part in PARTS]
    plan += [("AdamW", peak) for peak in SGD_PEAKS]
    for part, peak in plan:
        for seed in SEEDS:
            results.append(run(part, peak, seed))
        ends = [r["excess"] for r in results[-len(SEEDS) :]]
        print(f"peak {peak}, without {part:16}", " ".join(f"{x:.3f}" for x in ends))
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "language": SIZES, "length": LENGTH, "width": WIDTH, "batch": BATCH, "steps": STEPS,
            "warmup": WARMUP, "clip": CLIP, "weight_decay": DECAY, "peaks": PEAKS,
            "sgd_peaks": SGD_PEAKS, "parts": PARTS, "betas": [0.9, 0.99], "momentum": 0.9,
            "text": TEXT, "tests": TESTS,
            "floor": Stories(**SIZES).floor_of_windows(LENGTH).mean().item(),
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
