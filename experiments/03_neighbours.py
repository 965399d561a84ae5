"""What is near what, learned from which words stand together (chapter 03).

The words are those of the reference texts that ship with Python, from 10 occurrences on. Each seed
leaves out a fifth of the topics and makes five tables from the same rest: random rows, the counts
of neighbours as they are, their positive pointwise mutual information (PPMI), its largest singular
vectors, and a skip-gram model trained on the same counts. None of them is told how a word is
spelled. So the test is whether the plural (word + s) is among the ten nearest of its singular; and
whether singular : plural carries over to other pairs (the analogy). About two minutes on one core.
"""

import pydoc_data.topics
import re
from collections import Counter

import torch

from experiments._record import record
from solutions.embeddings import cooccurrence, nearest, ppmi

SEEDS = list(range(5))
WINDOW, LEAST, WIDTH, NEAREST = 4, 10, 32, 10
WIDTHS = [2, 4, 8, 16, 32, 64, 128]
STEPS, RATE, START = 150, 0.03, 0.1


def topics():
    """The words of each topic, in small letters."""
    return [re.findall("[a-z]+", text.lower()) for text in pydoc_data.topics.topics.values()]


def vocabulary_of(texts):
    """The words that occur often enough, the most frequent first."""
    counted = Counter(word for words in texts for word in words).most_common()
    return [word for word, count in counted if count >= LEAST]


def ids_of(texts, vocabulary):
    """All texts as one row of ids, -1 for other words and between the texts."""
    number = {word: i for i, word in enumerate(vocabulary)}
    gap = ["", *[""] * WINDOW]
    return torch.tensor([number.get(w, -1) for words in texts for w in [*words, *gap]])


def plurals(vocabulary):
    """Ids of singular and plural, for words of four letters or more."""
    number = {word: i for i, word in enumerate(vocabulary)}
    return torch.tensor(
        [
            (number[word], number[word + "s"])
            for word in vocabulary
            if len(word) >= 4 and not word.endswith("s") and word + "s" in number
        ]
    )


def singular_vectors(matrix, width):
    """The best table of a given width: rows whose products come closest to the matrix."""
    u, s, _ = torch.linalg.svd(matrix)
    return u[:, :width] * s[:width].sqrt()


def skip_gram(counts, width, seed):
    """The input table of a skip-gram model, trained with the full softmax on all pairs at once."""
    generator = torch.Generator().manual_seed(seed)
    tables = [START * torch.randn(len(counts), width, generator=generator) for _ in range(2)]
    word, context = (table.requires_grad_() for table in tables)
    optimizer = torch.optim.Adam([word, context], lr=RATE)
    for _ in range(STEPS):
        logits = word @ context.T
        loss = counts.sum(1) @ logits.logsumexp(1) - (counts * logits).sum()
        optimizer.zero_grad()
        (loss / counts.sum()).backward()
        optimizer.step()
    return word.detach()


def found(table, pairs):
    """Share of singulars that have their plural among the nearest."""
    ids, _ = nearest(table[pairs[:, 0]], table, NEAREST, exclude=pairs[:, :1])
    return (ids == pairs[:, 1:]).any(1).float().mean().item()


def analogies(table, pairs):
    """a is to b as c is to what? For each pair (a, b) and the next three pairs (c, d)."""
    unit = torch.nn.functional.normalize(table)
    asked = torch.cat([torch.cat([pairs, pairs.roll(-i, 0)], dim=1) for i in (1, 2, 3)])
    a, b, c, d = asked.T
    query = unit[b] - unit[a] + unit[c]
    right = {}
    without, _ = nearest(query, table, 1, exclude=asked[:, :3])
    right["excluding"] = (without[:, 0] == d).float().mean().item()
    plain, _ = nearest(query, table, 1)
    right["plain"] = (plain[:, 0] == d).float().mean().item()
    right["plain finds c"] = (plain[:, 0] == c).float().mean().item()
    right["plain finds b"] = (plain[:, 0] == b).float().mean().item()
    only_c, _ = nearest(unit[c], table, 1, exclude=asked[:, :3])
    right["nearest of c"] = (only_c[:, 0] == d).float().mean().item()
    return right


def overlap(one, other):
    """Share of the ten nearest of a word that two tables have in common."""
    own = torch.arange(len(one))[:, None]
    (a, _), (b, _) = (nearest(t, t, NEAREST, exclude=own) for t in (one, other))
    return (a[:, :, None] == b[:, None, :]).any(2).float().mean().item()


def main():
    torch.set_num_threads(1)
    texts = topics()
    vocabulary = vocabulary_of(texts)
    pairs, size = plurals(vocabulary), len(vocabulary)
    results = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(texts), generator=generator).tolist()
        kept = [texts[i] for i in order[len(texts) // 5 :]]
        counts = cooccurrence(ids_of(kept, vocabulary), size, WINDOW)
        met = counts.sum(1) > 0
        sound = counts + torch.diag((~met).float())  # a word without neighbours meets itself
        information = ppmi(sound)
        learned = skip_gram(counts, WIDTH, seed)
        tables = {
            "random": torch.randn(size, WIDTH, generator=generator),
            "counts": sound,
            "PPMI": information,
            "PPMI, singular vectors": singular_vectors(information, WIDTH),
            "skip-gram": learned,
        }
        again = skip_gram(counts, WIDTH, seed + 100)
        row = {
            "seed": seed,
            "words": int(counts.sum().item()) // (2 * WINDOW),
            "found": {name: found(table, pairs) for name, table in tables.items()},
            "widths": {w: found(singular_vectors(information, w), pairs) for w in WIDTHS},
            "analogies": {name: analogies(table, pairs) for name, table in tables.items()},
            "overlap of two starts": overlap(learned, again),
            "correlation of two starts": torch.corrcoef(
                torch.stack([learned.flatten(), again.flatten()])
            )[0, 1].item(),
            "overlap of chance": overlap(tables["random"], learned),
        }
        results.append(row)
        print(f"seed {seed}:", ", ".join(f"{k} {v:.2f}" for k, v in row["found"].items()))
        print("   ", row["widths"], "\n   ", row["analogies"]["PPMI, singular vectors"])
        print("   ", {k: v for k, v in row.items() if "of" in k})
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "words": sum(map(len, texts)), "vocabulary": size, "least": LEAST, "window": WINDOW,
            "width": WIDTH, "nearest": NEAREST, "pairs": len(pairs), "widths": WIDTHS,
            "steps": STEPS, "rate": RATE, "start": START, "optimizer": "Adam",
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
