"""What a larger vocabulary buys: tokens per character, seen and unseen text (chapter 02).

Byte-level BPE on four fifths of the topics of Python's own reference, tried on the last fifth. A
smaller vocabulary is the beginning of a larger one, so one training gives all. About a minute.
"""

import pydoc_data.topics
import random

from experiments._record import record
from solutions.tokens import encode, pretokenize, train_bpe, vocabulary

SEEDS = list(range(5))
SIZES = [256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]
D_MODEL = 768  # of GPT-2 small


def split(seed):
    """Texts to learn from and texts to be tried on: a fifth of the topics, drawn at random."""
    topics = [text for _, text in sorted(pydoc_data.topics.topics.items())]
    random.Random(seed).shuffle(topics)
    cut = len(topics) // 5
    return "\n".join(topics[cut:]), "\n".join(topics[:cut])


def main():
    rows = []
    for seed in SEEDS:
        texts = dict(zip(("seen", "unseen"), split(seed)))
        tokens = vocabulary(train_bpe(texts["seen"], max(SIZES)))
        for size in SIZES:
            ranks = {token: i for i, token in enumerate(tokens[:size])}
            row = {"seed": seed, "size": size, "reached": len(ranks)}
            for name, text in texts.items():
                ids = encode(text, ranks, {})
                row[f"{name}_characters"] = len(text)
                row[f"{name}_tokens"] = len(ids)
                row[f"{name}_used"] = len(set(ids))
                words = pretokenize(text)
                row[f"{name}_whole"] = sum(w.encode() in ranks for w in words) / len(words)
            rows.append(row)
        print(f"seed {seed}: done")
    record(
        __file__,
        seeds=SEEDS,
        packages=("regex",),
        settings={
            "sizes": SIZES, "d_model": D_MODEL, "text": "pydoc_data.topics", "unseen": "1/5",
        },
        results=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
