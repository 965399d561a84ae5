"""Train at one length, read up to eight times that, with five schemes of positions (chapter 07).

The language of chapter 05: over eight letters, the two letters before decide which three may come
next, with the probabilities 0.6, 0.3 and 0.1. So the best possible loss is known, and is the same
at every position: the entropy of those three numbers. What is needed to reach it is near, and it is
about order: which letter is the last, and which the last but one. A small transformer learns it
from texts of 32 letters, and then reads texts of 256. About four minutes on one core.
"""

import torch

from experiments._positional import SCHEMES, Model, losses, train
from experiments._record import record
from solutions.masking import teacher_forcing
from solutions.positional_encoding import positions_named

SEEDS = list(range(3))
LETTERS, LENGTH, FACTOR = 8, 32, 8
WIDTH, HEADS, LAYERS = 32, 4, 2
STEPS, BATCH, RATE = 500, 32, 3e-3
TESTS = 200
PROBABILITIES = torch.tensor([0.6, 0.3, 0.1])


def language(generator):
    """Probability of each next letter after each pair of letters: (LETTERS, LETTERS, LETTERS)."""
    table = torch.zeros(LETTERS, LETTERS, LETTERS)
    for a in range(LETTERS):
        for b in range(LETTERS):
            table[a, b, torch.randperm(LETTERS, generator=generator)[:3]] = PROBABILITIES
    return table


def write(table, n, length, generator):
    """n texts of length + 1 letters. The first letter follows nothing; the second, it alone."""
    text = torch.randint(LETTERS, (n, 1), generator=generator)
    while text.shape[1] <= length:
        before = table[text[:, -2:][:, 0], text[:, -1]]
        text = torch.cat([text, torch.multinomial(before, 1, generator=generator)], dim=1)
    return text


def run(name, seed):
    """One model: its training curve, and its loss at each position of long texts."""
    generator = torch.Generator().manual_seed(seed)
    table = language(generator)
    torch.manual_seed(seed)
    longest = FACTOR * LENGTH
    scheme = positions_named(name, d_model=WIDTH, n_heads=HEADS, max_length=longest)
    model = Model(LETTERS, WIDTH, HEADS, LAYERS, scheme)
    curve = train(
        model, lambda: teacher_forcing(write(table, BATCH, LENGTH, generator)), STEPS, RATE
    )
    inputs, targets = teacher_forcing(write(table, TESTS, longest, generator))
    with torch.no_grad():
        loss = losses(model(inputs), targets).mean(0)
    return {"curve": curve, "loss": [round(x, 4) for x in loss.tolist()]}


def main():
    torch.set_num_threads(1)
    results = []
    for seed in SEEDS:
        for name in SCHEMES:
            found = run(name, seed)
            results.append({"scheme": name, "seed": seed, **found})
            parts = torch.tensor(found["loss"]).unflatten(0, (FACTOR, LENGTH)).mean(1)
            print(f"seed {seed}, {name:10}: loss", "  ".join(f"{x:.2f}" for x in parts))
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "letters": LETTERS, "length": LENGTH, "factor": FACTOR, "width": WIDTH, "heads": HEADS,
            "layers": LAYERS, "steps": STEPS, "batch": BATCH, "rate": RATE, "tests": TESTS,
            "optimizer": "AdamW", "probabilities": [round(p, 3) for p in PROBABILITIES.tolist()],
            "entropy": -(PROBABILITIES.double() * PROBABILITIES.double().log()).sum().item(),
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
