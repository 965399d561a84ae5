"""How fast the tokenizer trains and encodes, beside `tokenizers` and `tiktoken` (chapter 02).

All on one thread, in turns, several times. Needs a quiet machine. Two to three minutes.
"""

import os

os.environ["RAYON_NUM_THREADS"] = "1"  # before `tokenizers` is imported
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import random
import statistics
import time
from collections import Counter

import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from experiments._record import record
from solutions.tokens import (
    GPT2_PATTERN,
    BPETokenizer,
    count_pairs,
    encode_chunk,
    english_text,
    merge,
    pretokenize,
    train_bpe,
    vocabulary,
)

SEED = 0
SIZE = 4096
REPEATS = 5
RECOUNTS = 20  # merges for which the slow way is timed; it takes as long for each further one
LENGTHS = [125, 250, 500, 1000, 2000, 4000]


def seconds(function, *args):
    """The time of one call."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def recounted(text, merges):
    """Training in the obvious way: count everything again after each merge."""
    words = Counter(pretokenize(text))
    chunks, counts = [list(w.encode()) for w in words], list(words.values())
    for i in range(merges):
        pairs = count_pairs(chunks, counts)
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        chunks = [merge(ids, best, 256 + i) for ids in chunks]


def trained_by_tokenizers(text):
    """Hugging Face's trainer, on the same text with the same cutting."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator([text], trainer)
    return model


def main():
    text = english_text()
    tokenizer = BPETokenizer.train(text, SIZE)
    theirs = trained_by_tokenizers(text)
    open_ai = tiktoken.Encoding(
        "ours", pat_str=GPT2_PATTERN.pattern, mergeable_ranks=tokenizer.ranks, special_tokens={}
    )
    work = {
        "train, ours": (train_bpe, text, SIZE),
        f"train, recounting, {RECOUNTS} merges": (recounted, text, RECOUNTS),
        "train, tokenizers": (trained_by_tokenizers, text),
        "encode, ours": (tokenizer.encode, text),
        "encode, tokenizers": (theirs.encode, text),
        "encode, tiktoken": (open_ai.encode_ordinary, text),
        "decode, ours": (tokenizer.decode, tokenizer.encode(text)),
    }
    times = {name: [] for name in work}
    for repeat in range(REPEATS):  # in turns, so that a slow minute hits all
        for name, (function, *args) in work.items():
            times[name].append(seconds(function, *args))
        print(f"round {repeat}: " + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in times.items()))
    rng = random.Random(SEED)
    long_chunks = []
    for length in LENGTHS:
        chunk = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=length))
        ours = [seconds(encode_chunk, chunk.encode(), tokenizer.ranks) for _ in range(REPEATS)]
        other = [seconds(open_ai.encode_ordinary, chunk) for _ in range(REPEATS)]
        long_chunks.append(
            {
                "length": length,
                "ours": statistics.median(ours),
                "tiktoken": statistics.median(other),
            }
        )
    chunks = pretokenize(text)
    record(
        __file__,
        seeds=[SEED],
        packages=("regex", "tokenizers", "tiktoken"),
        machine={"threads": 1},
        settings={
            "vocab_size": SIZE, "repeats": REPEATS, "recounts": RECOUNTS,
            "bytes": len(text.encode()), "characters": len(text), "chunks": len(chunks),
            "different chunks": len(set(chunks)),
            "longest chunk": max(len(c.encode()) for c in chunks),
            "merges": len(vocabulary(train_bpe(text, SIZE))) - 256,
        },
        results={"seconds": times, "long chunks": long_chunks},
    )  # fmt: skip


if __name__ == "__main__":
    main()
