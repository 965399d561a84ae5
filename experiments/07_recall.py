"""Fetch something from far away, beyond the length of training; and RoPE, extended (chapter 07).

A text is a row of pairs: a key letter, then the value that goes with it in this text. Whoever sees
a key for the second time can know the value, by going back to it. Models with RoPE and with ALiBi
learn this from texts of 32 tokens. Then they are asked for a pair that stands in the first quarter
of a text and nowhere else, in texts of up to 256 tokens. RoPE is asked as it is, with position
interpolation, and with an NTK-aware base; and once more after it went on training, for a tenth of
the steps, on texts of 128 tokens. About five minutes on one core.
"""

import copy

import torch

from experiments._positional import Model, train
from experiments._record import record
from solutions.positional_encoding import RotaryPositions, ntk_base, positions_named

SEEDS = list(range(3))
KEYS = VALUES = 16
LENGTH, LENGTHS = 32, [32, 64, 128, 256]
WIDTH, HEADS, LAYERS = 32, 2, 2
STEPS, BATCH, RATE, BASE = 600, 64, 3e-3, 10_000.0
TUNED_LENGTH, TUNED_STEPS, TUNED_BATCH, TUNED_RATE = 128, 60, 16, 1e-3
TESTS = 400
NOTHING = -100  # the target where there is nothing to know


def tokens_of(keys, generator):
    """Texts with these keys (N, P), each with its value in that text: (N, 2 P)."""
    values = torch.randint(VALUES, (len(keys), KEYS), generator=generator).gather(1, keys)
    return torch.stack([keys, KEYS + values], dim=-1).flatten(1)


def lesson(n, length, generator):
    """Texts, and as targets the values of the keys that have been there before."""
    keys = torch.randint(KEYS, (n, length // 2), generator=generator)
    tokens = tokens_of(keys, generator)
    seen = (keys[:, :, None] == keys[:, None, :]).tril(-1).any(-1)  # (N, P)
    targets = torch.full_like(tokens, NOTHING)
    targets[:, 0::2] = torch.where(seen, tokens[:, 1::2], NOTHING)
    return tokens, targets


def question(n, length, generator):
    """Texts that end in a key which stands once before, in their first quarter; and its value."""
    pairs = length // 2
    keys = torch.randint(1, KEYS, (n, pairs), generator=generator)
    keys[torch.arange(n), torch.randint(pairs // 4, (n,), generator=generator)] = 0
    keys[:, -1] = 0
    keys = (keys + torch.randint(KEYS, (n, 1), generator=generator)) % KEYS  # any key, not always 0
    tokens = tokens_of(keys, generator)
    return tokens[:, :-1], tokens[:, -1]


@torch.no_grad()
def accuracy(model, length, seed):
    """Share of the questions at this length that are answered."""
    tokens, answers = question(TESTS, length, torch.Generator().manual_seed(1000 + seed))
    return (model(tokens)[:, -1].argmax(-1) == answers).float().mean().item()


def extended(way, factor):
    """RoPE for texts that are so many times longer."""
    width = WIDTH // HEADS
    if way == "interpolation":
        return RotaryPositions(width, BASE, scale=factor)
    return RotaryPositions(width, BASE if way == "as it is" else ntk_base(BASE, factor, width))


def trained(name, seed, generator):
    """A model with one scheme, trained on short texts."""
    torch.manual_seed(seed)
    scheme = positions_named(name, d_model=WIDTH, n_heads=HEADS, max_length=LENGTHS[-1], base=BASE)
    model = Model(KEYS + VALUES, WIDTH, HEADS, LAYERS, scheme)
    train(model, lambda: lesson(BATCH, LENGTH, generator), STEPS, RATE)
    return model


def tuned(model, way, generator):
    """The model, gone on with on longer texts, its RoPE extended to them."""
    model = copy.deepcopy(model)
    model.scheme = extended(way, TUNED_LENGTH / LENGTH)
    longer = (TUNED_BATCH, TUNED_LENGTH, generator)
    train(model, lambda: lesson(*longer), TUNED_STEPS, TUNED_RATE, warmup=10)
    return model


def main():
    torch.set_num_threads(1)
    results = []

    def note(scheme, seed, found):
        results.append({"scheme": scheme, "seed": seed, "accuracy": found})
        print(f"seed {seed}, {scheme:26}:", "  ".join(f"{share:.0%}" for share in found))

    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        model = trained("alibi", seed, generator)
        note("alibi", seed, [accuracy(model, length, seed) for length in LENGTHS])
        model = trained("rope", seed, generator)
        for way in ["as it is", "interpolation", "ntk"]:
            found = []
            for length in LENGTHS:
                model.scheme = extended(way, length / LENGTH)
                found.append(accuracy(model, length, seed))
            note(f"rope, {way}", seed, found)
            longer = tuned(model, way, generator)
            found = [accuracy(longer, length, seed) for length in LENGTHS]
            note(f"rope, {way}, tuned", seed, found)
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "keys": KEYS, "values": VALUES, "length": LENGTH, "lengths": LENGTHS, "width": WIDTH,
            "heads": HEADS, "layers": LAYERS, "steps": STEPS, "batch": BATCH, "rate": RATE,
            "base": BASE, "tuned_length": TUNED_LENGTH, "tuned_steps": TUNED_STEPS,
            "tuned_batch": TUNED_BATCH, "tuned_rate": TUNED_RATE, "tests": TESTS,
            "optimizer": "AdamW",
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
