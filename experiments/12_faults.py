"""Loss curves that go wrong, each with its cause (chapter 12).

The same small decoder, the same language, and one fault at a time: in the learning rate, in the
data, in the loop. For each the training loss, the length of the gradient, and the loss on new
windows. Three seeds. Two minutes on one core.
"""

import torch

from experiments._decoder import LENGTH, SIZES, Test, decoder
from experiments._record import record
from solutions.stories import Stories
from solutions.training import AdamW, cosine_schedule, get_batch, train

SEEDS = [0, 1, 2]
WIDTH, BATCH, STEPS, WARMUP, PEAK, EVERY = 48, 16, 300, 30, 0.01, 25
BAD_STEP = 150
SMALL_TEXT = 2_000  # tokens: forty stories
TEXT, TESTS = 300_000, 128


class NeverCleared(AdamW):
    """An optimizer whose gradients add up, as if zero_grad had been forgotten."""

    def zero_grad(self, set_to_none=True):
        pass


def fault(name, seed):
    """One training with a fault."""
    language = Stories(**SIZES, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    text = language.stream(SMALL_TEXT if name == "too little text" else TEXT, draw)
    starts = (text == 0).nonzero().flatten()
    model = decoder(len(language), WIDTH, seed, masked=name != "no mask")
    make = NeverCleared if name == "gradients not cleared" else AdamW
    optimizer = make(model.parameters(), betas=(0.9, 0.99), weight_decay=0.1)
    factor = {"rate too high": 100.0, "rate too low": 0.02}.get(name, 1.0)
    drawn = 0

    def batch():
        nonlocal drawn
        inputs, targets = get_batch(text, BATCH, LENGTH, draw, starts)
        if name == "targets not shifted":
            targets = inputs
        if name.startswith("bad batch") and drawn == BAD_STEP:
            # One token, repeated: a broken file, say.
            inputs, targets = torch.full_like(inputs, 5), torch.full_like(targets, 5)
        drawn += 1
        return inputs, targets

    test = Test(language, TESTS, 1000 + seed)
    history, new = {"loss": [], "norm": [], "rate": []}, [test.losses(model).mean().item()]
    for first in range(0, STEPS, EVERY):
        more = train(
            model,
            batch,
            optimizer,
            lambda s: (
                factor
                * cosine_schedule(s, peak=PEAK, warmup=WARMUP, total=STEPS, minimum=PEAK / 50)
            ),
            range(first, first + EVERY),
            max_norm=1.0 if "unclipped" not in name else float("inf"),
        )
        history = {key: history[key] + more[key] for key in history}
        new.append(test.losses(model).mean().item())
    return {
        "fault": name, "seed": seed, "new": new,
        "curve": [round(x, 4) for x in history["loss"]],
        "norm": [round(x, 4) for x in history["norm"]],
    }  # fmt: skip


FAULTS = [
    "none", "rate too high", "rate too low", "no mask", "targets not shifted",
    "gradients not cleared", "too little text", "bad batch", "bad batch, unclipped",
]  # fmt: skip


def main():
    torch.set_num_threads(1)
    results = []
    for name in FAULTS:
        for seed in SEEDS:
            results.append(fault(name, seed))
        ends = [(r["curve"][-1], r["new"][-1]) for r in results[-len(SEEDS) :]]
        print(f"{name:22}", "  ".join(f"{a:.3f} ({b:.3f} on new)" for a, b in ends))
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "language": SIZES, "length": LENGTH, "width": WIDTH, "batch": BATCH, "steps": STEPS,
            "warmup": WARMUP, "peak": PEAK, "every": EVERY, "bad_step": BAD_STEP, "text": TEXT,
            "small_text": SMALL_TEXT, "tests": TESTS, "faults": FAULTS,
            "floor": Stories(**SIZES).floor_of_windows(LENGTH).mean().item(),
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
