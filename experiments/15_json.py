"""JSON by luck and JSON by constraint (chapter 15).

A small GPT over byte-pair tokens learns to write records as JSON (`solutions.records`). Then it
writes a thousand: freely; kept to JSON's grammar; kept to the records' schema. At temperatures 1
and 1.5, with room for any record and with less; and the same with a model that has learned
nothing. What was written is judged by Python's own parser. Three seeds, each with a text and a
model of its own; the first is kept as the checkpoint `solutions/weights/records.safetensors`.
Twenty minutes on one core.

With a number as an argument the checkpoint writes, the samples drawn from that seed; nothing is
kept.
"""

import json
import math
import sys
import time

import torch

from experiments._gpt import fit
from experiments._record import record
from solutions.decoding import JsonConstraint, sample, temperature
from solutions.gpt import GPT, GPTConfig, next_logits, save
from solutions.json_grammar import JSON, schema_rules
from solutions.records import CHECKPOINT, SCHEMA, corpus, is_record, tokenizer_of, trained
from solutions.tokens import train_bpe
from solutions.training import AdamW

SEEDS = [0, 1, 2]
VOCAB, WINDOW, BATCH, STEPS, WARMUP = 512, 144, 16, 1000, 50
SIZES = {"d_model": 64, "n_layers": 2, "n_heads": 4}
PEAK, TEXT = 6e-3, 6_000
SAMPLES, ROWS = 1000, 250
BUDGETS = {"long": WINDOW - 1, "short": 90}  # tokens; a record has 70 on average


def learn(seed):
    """A model and its tokenizer, and its loss at the end."""
    text = corpus(TEXT, seed)
    merges = train_bpe(text[:200_000].replace("<end>", "\n"), VOCAB - 1)
    tokenizer = tokenizer_of(merges)
    end = len(tokenizer) - 1
    ids = torch.tensor([end, *tokenizer.encode(text, special=True)])
    draw = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = GPT(GPTConfig(len(tokenizer), WINDOW, **SIZES))
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.99))
    losses = fit(
        model, optimizer, ids, draw, range(STEPS),
        batch=BATCH, peak=PEAK, warmup=WARMUP, total=STEPS, boundary=end,
    )  # fmt: skip
    if seed == SEEDS[0]:
        save(model, CHECKPOINT, merges=merges, seed=seed)
    return model.eval(), tokenizer, sum(losses[-50:]) / 50


def judge(data):
    """Whether it is JSON, is of the schema's form, and is a record."""
    try:
        found = json.loads(data.decode(), parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError, RecursionError):
        return "no JSON"
    if is_record(found):
        return "a record"
    return "of the form" if of_form(found, SCHEMA) else "JSON"


def of_form(found, schema):
    """Whether a value fits a schema of the kinds that SCHEMA uses."""
    if "anyOf" in schema:
        return any(of_form(found, option) for option in schema["anyOf"])
    if schema["type"] == "object":
        parts = schema["properties"]
        return (
            isinstance(found, dict)
            and list(found) == list(parts)
            and all(of_form(found[name], part) for name, part in parts.items())
        )
    if schema["type"] == "array":
        return isinstance(found, list) and all(of_form(x, schema["items"]) for x in found)
    kinds = {"string": str, "integer": int, "null": type(None)}
    return type(found) is kinds[schema["type"]]


@torch.no_grad()
def write(model, tokenizer, way, t, budget, seed):
    """Many texts, what became of them, and what it took."""
    end = len(tokenizer) - 1
    rules = {"json": JSON, "schema": schema_rules(SCHEMA)}.get(way)
    constraint = rules and JsonConstraint(tokenizer.ranks, end, rules)
    draw = torch.Generator().manual_seed(seed)
    counts = dict.fromkeys(["unfinished", "no JSON", "JSON", "of the form", "a record"], 0)
    lengths, removed, examples = [], [], {}
    seconds = time.perf_counter()
    for _ in range(SAMPLES // ROWS):
        ids = torch.full((ROWS, 1), end)  # those that are not over yet
        states = [constraint.start] * ROWS if constraint else None
        for left in range(budget, -1, -1):
            logits = temperature(next_logits(model, ids), t)
            if constraint:
                allowed = torch.stack([constraint.mask(state, left) for state in states])
                removed.append(logits.softmax(-1).masked_fill(allowed, 0).sum(-1))
                logits = logits.masked_fill(~allowed, -math.inf)
            chosen = sample(logits, draw)
            if constraint:
                moves = zip(states, chosen.tolist())
                states = [constraint.advance(s, i) for s, i in moves if i != end]
            for row in ids[chosen == end, 1:].tolist():
                data = b"".join(tokenizer.tokens[i] for i in row)
                verdict = judge(data)
                counts[verdict] += 1
                lengths.append(len(row))
                examples.setdefault(verdict, data.decode(errors="replace")[:300])
            ids = torch.cat([ids, chosen[:, None]], dim=1)[chosen != end]
            if not len(ids):
                break
        counts["unfinished"] += len(ids)
    seconds = time.perf_counter() - seconds
    removed = torch.cat(removed) if removed else torch.zeros(1)
    return {
        "way": way, "temperature": t, "budget": budget, "counts": counts, "examples": examples,
        "mean_length": sum(lengths) / len(lengths) if lengths else None,
        "states": len(constraint.costs) if constraint else 0, "steps": len(removed),
        "removed_mean": removed.mean().item(),
        "removed_over_half": (removed > 0.5).float().mean().item(),
        "seconds": seconds,
    }  # fmt: skip


def main():
    torch.set_num_threads(1)
    if len(sys.argv) > 1:
        model, tokenizer = trained()
        for way in ("free", "json", "schema"):
            for t in (1.0, 1.5):
                found = write(model, tokenizer, way, t, BUDGETS["long"], int(sys.argv[1]))
                print(way, t, found["counts"])
        return
    results = []
    for seed in SEEDS:
        model, tokenizer, loss = learn(seed)
        print(f"seed {seed}: loss {loss:.3f}", flush=True)
        torch.manual_seed(seed)
        fresh = GPT(model.config).eval()
        plan = [("long", 1.0), ("long", 1.5), ("short", 1.0)]
        plan = [(model, "trained", *how) for how in plan] + [(fresh, "untrained", "short", 1.0)]
        for who, name, room, t in plan:
            for way in ("free", "json", "schema"):
                found = write(who, tokenizer, way, t, BUDGETS[room], 1000 + seed)
                results.append({"seed": seed, "model": name, "room": room, "loss": loss, **found})
                print(name, room, way, t, found["counts"], f"{found['seconds']:.0f} s", flush=True)
    parameters = sum(p.numel() for p in model.parameters())
    constraint = JsonConstraint(tokenizer.ranks, VOCAB - 1, schema_rules(SCHEMA))
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "vocabulary": VOCAB, "window": WINDOW, **SIZES, "parameters": parameters,
            "batch": BATCH, "steps": STEPS, "peak": PEAK, "warmup": WARMUP, "records": TEXT,
            "samples": SAMPLES, "budgets": BUDGETS, "shortest": constraint.needs(constraint.start),
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
