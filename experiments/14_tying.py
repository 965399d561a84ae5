"""Why a tied table wants a low learning rate: words that are told alike become alike (chapter 14).

The model and the language of `14_training`, for 1,200 steps of a schedule of 2,500: tied and not
tied, at the rate of `14_training` and at three times that. After every 100 steps: how far the loss
on names of places is above a perfect model's, and how far apart the rows of the table are within
each kind of word. Three seeds. Fifteen minutes on one core.
"""

import importlib

import torch

from experiments._gpt import fit
from experiments._record import record
from solutions.gpt import GPT, GPTConfig
from solutions.stories import Stories
from solutions.training import AdamW

training = importlib.import_module("experiments.14_training")

STEPS, TOTAL, EVERY = 1200, 2500, 100
PEAKS = [training.PEAK, 3 * training.PEAK]


def spread(table, ids):
    """How far the rows of some words are from their mean, as a share of the rows' length."""
    rows = table[ids]
    return ((rows - rows.mean(0)).norm(dim=1).mean() / rows.norm(dim=1).mean()).item()


def run(seed, tied, peak):
    """Train one model, and look into its table on the way."""
    language = Stories(**training.language_of(seed))
    kinds = {name: getattr(language, name) for name in ("places", "things", "colours", "names")}
    kinds = {k: [language.vocabulary.index(w) for w in words] for k, words in kinds.items()}
    draw = torch.Generator().manual_seed(seed)
    text = language.stream(training.TEXT, draw)
    test = training.tests(language, seed)
    here = torch.isin(test.windows[:, 1:], torch.tensor(kinds["places"]))
    torch.manual_seed(seed)
    model = GPT(GPTConfig(len(language), **(training.SIZES | {"tied": tied})))
    optimizer = AdamW(training.groups(model), betas=(0.9, 0.99), weight_decay=training.DECAY)
    above, spreads = [], {kind: [] for kind in kinds}
    for step in range(0, STEPS + 1, EVERY):
        if step:
            fit(
                model, optimizer, text, draw, range(step - EVERY, step),
                batch=training.BATCH, peak=peak, warmup=training.WARMUP, total=TOTAL,
            )  # fmt: skip
        above.append((test.losses(model) - test.perfect)[here].mean().item())
        for kind, ids in kinds.items():
            spreads[kind].append(round(spread(model.embedding.weight.detach(), ids), 4))
    print(f"tied {tied}, peak {peak}, seed {seed}: places {above[-1]:.3f} above", flush=True)
    return {"tied": tied, "peak": peak, "seed": seed, "places": above, "spread": spreads}


def main():
    torch.set_num_threads(1)
    results = [
        run(seed, tied, peak) for tied in (True, False) for peak in PEAKS for seed in training.SEEDS
    ]
    record(
        __file__,
        seeds=training.SEEDS,
        settings={
            **training.SIZES, "language": training.language_of("of the run"), "steps": STEPS,
            "total": TOTAL, "every": EVERY, "peaks": PEAKS, "batch": training.BATCH,
            "tests": training.TESTS, "threads": 1,
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
