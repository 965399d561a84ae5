"""What layers are worth, and how the weights start, in models trained alike (chapter 14).

The model and the language of `14_training`, trained for 1,200 steps: with 0, 1, 2, 3 and 4 blocks;
and with 4 blocks from weights with the standard deviation 0.02 of GPT-2, which is twelve times as
wide or more. Three seeds. Ten minutes on one core.
"""

import importlib

import torch

from experiments._record import record

training = importlib.import_module("experiments.14_training")

STEPS = 1200
RUNS = [{"n_layers": n} for n in range(5)] + [{"std": 0.02}]


def main():
    torch.set_num_threads(1)
    results = []
    for change in RUNS:
        for seed in training.SEEDS:
            found = training.run(seed, STEPS, training.SIZES | change)
            kept = ("seed", "excess", "perfect_on_test", "floor", "parameters")
            results.append({"change": change, **{name: found[name] for name in kept}})
    record(
        __file__,
        seeds=training.SEEDS,
        settings={
            **training.SIZES, "language": training.language_of("of the run"), "steps": STEPS,
            "peak": training.PEAK, "batch": training.BATCH, "every": training.EVERY,
            "tests": training.TESTS, "threads": 1,
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
