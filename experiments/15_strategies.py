"""What each decoding strategy writes: how likely, how right, how varied (chapter 15).

A small GPT learns the language of `solutions.stories`, in which the probability of every text is
known exactly. Then each strategy writes stories, and each is judged by the language itself: how
surprising its tokens are there, how often a token comes that cannot stand where it stands, and how
much the stories differ from each other. Beside them stand as many stories of the language itself.
Two models a seed, one trained for long and one that has stopped early; three seeds. Twenty minutes
on one core.
"""

import math
from collections import Counter

import torch

from experiments._gpt import fit
from experiments._record import record
from solutions.decoding import (
    beam_search,
    frequency_penalty,
    greedy,
    min_p,
    repetition_penalty,
    sample,
    temperature,
    top_k,
    top_p,
)
from solutions.gpt import GPT, GPTConfig, next_logits
from solutions.stories import Stories
from solutions.training import AdamW

SEEDS = [0, 1, 2]
LANGUAGE = {"names": 8, "things": 10, "places": 6, "colours": 4}
SIZES = {"d_model": 64, "n_layers": 2, "n_heads": 4}
WINDOW, BATCH, WARMUP, PEAK = 96, 16, 60, 4e-3
STEPS = {"long": 3000, "short": 300}
TEXT, STORIES, LIMIT, RUN = 1_000_000, 400, 100, 300
BEAMS, ALPHAS = [1, 2, 4, 8, 16, 32], [0.0, 1.0]

#: What is done to the logits, given all ids so far, before a token is drawn.
SAMPLED = {
    **{f"temperature {t}": (lambda x, ids, t=t: temperature(x, t)) for t in (0.5, 0.7, 1.0, 1.3)},
    **{f"top-k {k}": (lambda x, ids, k=k: top_k(x, k)) for k in (2, 5, 20)},
    **{f"top-p {p}": (lambda x, ids, p=p: top_p(x, p)) for p in (0.5, 0.8, 0.9, 0.95)},
    **{f"min-p {p}": (lambda x, ids, p=p: min_p(x, p)) for p in (0.05, 0.2)},
    "penalty 1.2": lambda x, ids: repetition_penalty(x, ids, 1.2),
    "frequency 0.5": lambda x, ids: frequency_penalty(x, ids, 0.5),
}
#: For one long text without a break.
ENDLESS = {
    "greedy": lambda x, ids, draw: greedy(x),
    "greedy, penalty 1.2": lambda x, ids, draw: greedy(repetition_penalty(x, ids, 1.2)),
    "top-p 0.9": lambda x, ids, draw: sample(top_p(x, 0.9), draw),
    "temperature 1.0": lambda x, ids, draw: sample(x, draw),
}


def learn(language, seed, steps):
    """A model of the language."""
    draw = torch.Generator().manual_seed(seed)
    text = language.stream(TEXT, draw)
    torch.manual_seed(seed)
    model = GPT(GPTConfig(len(language), WINDOW, **SIZES))
    optimizer = AdamW(model.parameters(), betas=(0.9, 0.99))
    losses = fit(
        model, optimizer, text, draw, range(steps),
        batch=BATCH, peak=PEAK, warmup=WARMUP, total=steps,
    )  # fmt: skip
    return model.eval(), sum(losses[-20:]) / 20


def stories(model, change, draw):
    """STORIES stories, each of LIMIT tokens at most, and what the model thinks of each token."""
    ids, costs = torch.zeros(STORIES, 1, dtype=torch.long), torch.zeros(STORIES, 0)
    found, surprises = [], []
    for _ in range(LIMIT):
        logits = next_logits(model, ids)
        chosen = sample(change(logits, ids), draw)
        cost = -logits.log_softmax(-1).gather(-1, chosen[:, None])
        ids, costs = torch.cat([ids, chosen[:, None]], 1), torch.cat([costs, cost], 1)
        over = chosen == 0
        found += ids[over, 1:].tolist()
        surprises += costs[over].flatten().tolist()
        ids, costs = ids[~over], costs[~over]
        if not len(ids):
            break
    found += ids[:, 1:].tolist()
    surprises += costs.flatten().tolist()
    return found, sum(surprises) / len(surprises)


def ngrams(text, n=4):
    return [tuple(text[i : i + n]) for i in range(len(text) - n + 1)]


def judge(language, found):
    """What the language says of texts."""
    right, allowed, total, finished, wrong = [], 0, 0.0, 0, 0
    for text in found:
        costs = language.surprises(text)
        kept = (
            costs[: int((~costs.isfinite()).nonzero()[0])] if not costs.isfinite().all() else costs
        )
        allowed += len(kept)
        total += kept.sum().item()
        finished += text[-1] == 0
        wrong += len(kept) < len(text)
        if len(kept) == len(text):
            right.append(text)
    pooled = [gram for text in found for gram in ngrams(text)]
    heroes = Counter(hero(language, text) for text in found)
    return {
        "in_language": len(right) / len(found),
        "errors_per_thousand": 1000 * wrong / (allowed + wrong),
        "surprise": total / allowed,  # of the tokens that the language allows
        "distinct_stories": len({tuple(text) for text in found}) / len(found),
        "distinct_4": len({*pooled}) / len(pooled),
        "repeated_4": sum(len(g) - len({*g}) for g in map(ngrams, found)) / len(pooled),
        "hero_entropy": -sum(n / len(found) * math.log(n / len(found)) for n in heroes.values()),
        "length": sum(map(len, found)) / len(found),
        "finished": finished / len(found),
    }


def hero(language, text):
    """The first name in a text."""
    words = [language.vocabulary[i] for i in text]
    return next((word for word in words if word in language.names), "")


@torch.no_grad()
def beams(language, model):
    """What beam search finds from a story's start, by width and alpha."""
    results = []
    for alpha in ALPHAS:
        for width in BEAMS:
            kept = beam_search(
                lambda ids: next_logits(model, ids).log_softmax(-1),
                torch.zeros(1, dtype=torch.long), width, LIMIT, 0, alpha,
            )  # fmt: skip
            score, best = kept[0]
            results.append({
                "alpha": alpha, "width": width, "log_p": score * len(best) ** alpha,
                "true": max(-1e9, language.log_probability(best)), "length": len(best),
                "text": language.decode(best).strip(),
                **{k: v for k, v in judge(language, [ids for _, ids in kept]).items()
                   if k in ("distinct_4", "in_language", "hero_entropy")},
            })  # fmt: skip
    return results


def endless(language, model, seed):
    """One text of RUN tokens, its stories one after the other."""
    results = []
    for name, choose in ENDLESS.items():
        draw = torch.Generator().manual_seed(seed)
        ids = torch.zeros(1, 1, dtype=torch.long)
        for _ in range(RUN):
            ids = torch.cat([ids, choose(next_logits(model, ids), ids, draw)[:, None]], 1)
        text = ids[0, 1:].tolist()
        told = language.decode(text).strip().split("\n")[:-1]  # the last may not be whole
        costs = language.surprises(text)
        results.append({
            "way": name, "stories": len(told), "distinct": len({*told}),
            "distinct_4": len({*ngrams(text)}) / len(ngrams(text)),
            "until_error": int(costs.isfinite().long().cumprod(0).sum()),
            "text": language.decode(text)[:400],
        })  # fmt: skip
    return results


def main():
    torch.set_num_threads(1)
    results = []
    for seed in SEEDS:
        language = Stories(**LANGUAGE, seed=seed)
        own = language.write(STORIES, torch.Generator().manual_seed(500 + seed))
        truth = {**judge(language, own), "way": "the language itself"}
        for name, steps in STEPS.items():
            model, loss = learn(language, seed, steps)
            print(f"seed {seed}, {steps} steps: loss {loss:.3f}", flush=True)
            ways = []
            for way, change in SAMPLED.items():
                draw = torch.Generator().manual_seed(100 + seed)
                with torch.no_grad():
                    found, own_surprise = stories(model, change, draw)
                ways.append({"way": way, "model_surprise": own_surprise, **judge(language, found)})
                print(
                    {k: v if k == "way" else round(v, 3) for k, v in ways[-1].items()}, flush=True
                )
            results.append({
                "seed": seed, "training": name, "loss": loss, "truth": truth, "ways": ways,
                "beams": beams(language, model), "endless": endless(language, model, seed),
                "floor": language.floor,
                "floor_of_windows": language.floor_of_windows(WINDOW).mean().item(),
            })  # fmt: skip
            for row in [*results[-1]["beams"], *results[-1]["endless"]]:
                print(row, flush=True)
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "language": LANGUAGE, **SIZES, "window": WINDOW, "batch": BATCH, "steps": STEPS,
            "peak": PEAK, "warmup": WARMUP, "text": TEXT, "stories": STORIES, "limit": LIMIT,
            "run": RUN, "ways": [*SAMPLED], "beams": BEAMS, "alphas": ALPHAS,
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
