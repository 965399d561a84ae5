"""The same merges as `tokenizers`, the same ids as `tiktoken`, and where not (chapter 02).

Merges are compared with Hugging Face's trainer twice: with the order of its alphabet made that of
the bytes, and as it comes. Ids are compared with tiktoken, given our ranks, on the whole corpus and
on random text; the cutting into chunks, on every character there is. Two minutes.
"""

import json
import random
import unicodedata

import tiktoken
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from experiments._record import record
from solutions.tokens import (
    GPT2_PATTERN,
    BPETokenizer,
    english_text,
    pretokenize,
    train_bpe,
    vocabulary,
)

SEEDS = list(range(5))
SIZE = 4096
TEXTS = 4_000  # random texts a seed


def byte_letters():
    """The letter with which GPT-2's files, and `tokenizers`, write each byte."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in shown]
    return {b: chr(b) for b in shown} | {b: chr(256 + i) for i, b in enumerate(rest)}


def trained_by_tokenizers(text, letters, cutter):
    """The merges of Hugging Face's trainer, as pairs of bytes."""
    model = Tokenizer(models.BPE())
    model.pre_tokenizer = cutter
    alphabet = list(letters.values())
    trainer = trainers.BpeTrainer(vocab_size=SIZE, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator([text], trainer)
    value = {letter: byte for byte, letter in letters.items()}
    merges = json.loads(model.to_str())["model"]["merges"]
    return [tuple(bytes(value[c] for c in half) for half in pair) for pair in merges]


def compare_merges(text):
    """Our merges against theirs, with the order of the alphabet aligned and as it comes."""
    merges = train_bpe(text, SIZE)
    tokens = vocabulary(merges)
    ours = [(tokens[left], tokens[right]) for left, right in merges]
    in_order = {b: chr(0x4E00 + b) for b in range(256)}
    spelled = " ".join("".join(in_order[b] for b in c.encode()) for c in pretokenize(text))
    found = {
        "aligned": trained_by_tokenizers(spelled, in_order, pre_tokenizers.Split(" ", "removed")),
        "as it comes": trained_by_tokenizers(
            text, byte_letters(), pre_tokenizers.ByteLevel(add_prefix_space=False)
        ),
    }
    rows = {}
    for name, theirs in found.items():
        differing = [i for i, (a, b) in enumerate(zip(ours, theirs)) if a != b]
        first = differing[0] if differing else None
        rows[name] = {
            "merges": len(theirs),
            "same place": sum(a == b for a, b in zip(ours, theirs)),
            "same merge": len(set(ours) & set(theirs)),
            "same token": len({a + b for a, b in ours} & {a + b for a, b in theirs}),
            "first difference": first,
            "ours there": None if first is None else [half.decode() for half in ours[first]],
            "theirs there": None if first is None else [half.decode() for half in theirs[first]],
        }
    return rows


def random_text(rng):
    """Letters, signs and white space, mixed with characters from all of Unicode."""
    parts = []
    for _ in range(rng.randrange(60)):
        kind = rng.random()
        if kind < 0.5:
            parts.append(chr(rng.randrange(32, 127)))
        elif kind < 0.7:
            parts.append(rng.choice(" \n\t\r'"))
        elif kind < 0.85:
            parts.append(chr(rng.randrange(0xA0, 0x3000)))
        else:
            parts.append(chr(rng.choice([rng.randrange(0xD800), rng.randrange(0xE000, 0x110000)])))
    return "".join(parts)


def compare_ids(tokenizer, text):
    """On the corpus and on random texts: as many ids as tiktoken's, and as much text back."""
    theirs = tiktoken.Encoding(
        "ours", pat_str=GPT2_PATTERN.pattern, mergeable_ranks=tokenizer.ranks, special_tokens={}
    )
    ids = tokenizer.encode(text)
    rows = {"corpus ids": len(ids), "corpus same": ids == theirs.encode_ordinary(text)}
    rows |= {"texts": 0, "texts same": 0, "texts back": 0}
    for seed in SEEDS:
        rng = random.Random(seed)
        for _ in range(TEXTS):
            sample = random_text(rng)
            ids = tokenizer.encode(sample)
            rows["texts"] += 1
            rows["texts same"] += ids == theirs.encode_ordinary(sample)
            rows["texts back"] += tokenizer.decode(ids) == sample
    return rows


def compare_chunks():
    """For every character: is it cut from a letter, a digit, a sign, a tab as by `tokenizers`?"""
    cutter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rows = {"characters": 0, "differing": 0, "of these unknown to this Python": 0}
    for code in [*range(0xD800), *range(0xE000, 0x110000)]:
        c = chr(code)
        rows["characters"] += 1
        if any(
            len(pretokenize(before + c)) != len(cutter.pre_tokenize_str(before + c))
            for before in "a1!\t"
        ):
            rows["differing"] += 1
            rows["of these unknown to this Python"] += unicodedata.category(c) == "Cn"
    return rows


def main():
    text = english_text()
    results = {"merges": compare_merges(text)}
    print("merges:", results["merges"])
    results["ids"] = compare_ids(BPETokenizer.train(text, SIZE), text)
    print("ids:", results["ids"])
    results["chunks"] = compare_chunks()
    print("chunks:", results["chunks"])
    record(
        __file__,
        seeds=SEEDS,
        packages=("regex", "tokenizers", "tiktoken"),
        versions={"unicode of this Python": unicodedata.unidata_version},
        settings={"vocab_size": SIZE, "random texts a seed": TEXTS, "text": "pydoc_data.topics"},
        results=results,
    )


if __name__ == "__main__":
    main()
