"""How close a small transformer comes to the known entropy of a language (chapter 12).

The language is that of `solutions.stories`, in which -ln p of every token is known exactly. A
decoder of two blocks is trained on windows that start where a story starts, and judged on windows
that it has not seen, token by token, against a model that knows all probabilities. Three seeds,
each with a world (who finds what), a text and a model of its own. Four minutes on one core.
"""

import torch

from experiments._decoder import LENGTH, SIZES, Test, decoder
from experiments._record import record
from solutions.stories import Stories
from solutions.training import AdamW, cosine_schedule, get_batch, train

SEEDS = [0, 1, 2]
WIDTH, HEADS, BATCH, STEPS, WARMUP, EVERY = 64, 4, 32, 2400, 100, 50
PEAK, DECAY = 4e-3, 0.01
TEXT, TESTS = 1_000_000, 512


def kinds(language):
    """What each token of the vocabulary is, as an index into the names returned with it."""
    groups = {
        "a name": language.names, "a thing": language.things, "a colour": language.colours,
        "a place": language.places, "he, she, him, her": ["he", "she", "him", "her"],
    }  # fmt: skip
    found = torch.zeros(len(language), dtype=torch.long)
    for i, words in enumerate(groups.values(), start=1):
        for word in words:
            found[language.vocabulary.index(word)] = i
    return found, ["any other", *groups]


def landmarks(language, text):
    """Entropy of the next token, for those who know only how frequent tokens, or pairs, are."""
    vocab = len(language)
    pairs = torch.bincount(text[:-1] * vocab + text[1:], minlength=vocab**2).double()
    pairs = pairs.view(vocab, vocab) / pairs.sum()
    single = pairs.sum(0)
    of_pairs = -(pairs[pairs > 0] * pairs[pairs > 0].log()).sum()
    before = pairs.sum(1)
    of_first = -(before[before > 0] * before[before > 0].log()).sum()
    of_single = -(single[single > 0] * single[single > 0].log()).sum()
    return of_single.item(), (of_pairs - of_first).item()


def run(seed):
    """Train one model, and say how its excess over the floor went down."""
    language = Stories(**SIZES, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    text = language.stream(TEXT, draw)
    starts = (text == 0).nonzero().flatten()
    test = Test(language, TESTS, 1000 + seed)
    model = decoder(len(language), WIDTH, seed, heads=HEADS)
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.99), weight_decay=DECAY)
    kind, names = kinds(language)
    here = {name: kind[test.windows[:, 1:]] == i for i, name in enumerate(names)}
    curve, excess, by_kind = [], [], {name: [] for name in names}

    def judge():
        above = test.losses(model) - test.perfect
        excess.append(above.mean().item())
        for name, places in here.items():
            by_kind[name].append(round(above[places].mean().item(), 4))

    judge()
    for first in range(0, STEPS, EVERY):
        history = train(
            model,
            lambda: get_batch(text, BATCH, LENGTH, draw, starts),
            optimizer,
            lambda s: cosine_schedule(s, peak=PEAK, warmup=WARMUP, total=STEPS, minimum=PEAK / 50),
            range(first, first + EVERY),
            max_norm=1.0,
        )
        curve += [round(x, 4) for x in history["loss"]]
        judge()
        if (first + EVERY) % 400 == 0:
            print(
                f"seed {seed}, step {first + EVERY}: {excess[-1]:.4f} above the floor", flush=True
            )
    single, pair = landmarks(language, text)
    return {
        "seed": seed, "curve": curve, "excess": excess, "excess_by_kind": by_kind,
        "share": {name: places.float().mean().item() for name, places in here.items()},
        "perfect": {name: test.perfect[places].mean().item() for name, places in here.items()},
        "perfect_on_test": test.perfect.mean().item(),
        "entropy_of_single": single, "entropy_of_next_given_one": pair,
        "parameters": sum(p.numel() for p in model.parameters()),
    }  # fmt: skip


def main():
    torch.set_num_threads(1)
    results = [run(seed) for seed in SEEDS]
    language = Stories(**SIZES)
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "language": SIZES, "vocabulary": len(language), "length": LENGTH, "width": WIDTH,
            "heads": HEADS, "weight_decay": DECAY, "batch": BATCH, "steps": STEPS, "peak": PEAK,
            "warmup": WARMUP, "every": EVERY, "text": TEXT, "tests": TESTS, "optimizer": "AdamW",
            "floor": language.floor_of_windows(LENGTH).mean().item(),
            "floor_of_stream": language.floor,
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
