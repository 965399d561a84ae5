"""What training makes of attention with and without the division by √d (chapter 04).

One attention head learns to answer riddles: "a fox a river and an apple : what is ripe ? ..."; at
each adjective the answer is the noun that it fits. Three ways: no division ("none"), division by √d
("root"), and no division but query weights that start √d times smaller ("init"), so that both begin
with the same scores. Each is trained at several learning rates, so that none suffers from a rate
that only suits another. About twenty minutes on one core.
"""

import torch
from torch import nn
from torch.nn import functional as F

from experiments._record import record
from solutions.self_attention import SelfAttention, attention_entropy, softmax

KINDS = [  # nouns, and what may be said of them
    (["fox", "horse", "owl", "bear"], ["tired", "hungry", "shy", "young"]),
    (["river", "road", "field", "hill"], ["wide", "frozen", "steep", "muddy"]),
    (["apple", "cake", "soup", "cheese"], ["ripe", "salty", "fresh", "stale"]),
]
WORDS = [word for nouns, adjectives in KINDS for word in nouns + adjectives]
WORDS += ["a", "an", "and", ":", "what", "is", "?"]
ID = {word: i for i, word in enumerate(WORDS)}
IGNORE = -100

SEEDS = list(range(5))
WIDTHS = [4, 16, 64, 256]
WAYS = ["none", "root", "init"]
RATES = [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2]
STEPS, BATCH, D_MODEL = 300, 64, 32
RIDDLES, TESTS = 4000, 500


def riddle(generator):
    """Words of one riddle, and the answer at each of them (IGNORE where none is asked)."""
    choices = torch.randint(4, (len(KINDS), 2), generator=generator).tolist()
    pairs = [(nouns[i], adjectives[j]) for (nouns, adjectives), (i, j) in zip(KINDS, choices)]
    first, second, third = (
        f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
        for noun in (pairs[i][0] for i in torch.randperm(3, generator=generator))
    )
    asked = " ".join(f"what is {pairs[i][1]} ?" for i in torch.randperm(3, generator=generator))
    words = f"{first} {second} and {third} : {asked}".split()
    answers = [IGNORE] * len(words)
    for noun, adjective in pairs:
        answers[words.index(adjective)] = ID[noun]
    return [ID[w] for w in words], answers


class Answerer(nn.Module):
    """An embedding, one attention head, and a linear map to the words."""

    def __init__(self, d_head, scale):
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), D_MODEL)
        self.attend = SelfAttention(D_MODEL, d_head)
        self.answer = nn.Linear(d_head, len(WORDS))
        self.scale = scale

    def forward(self, ids):
        x = self.embed(ids)
        a = self.attend
        weights = softmax(a.query(x) @ a.key(x).mT * self.scale)
        return self.answer(weights @ a.value(x)), weights


def train(d_head, way, rate, seed, data, tests):
    """Train one model; how well it then does on riddles that it has not seen."""
    torch.manual_seed(seed)
    model = Answerer(d_head, d_head**-0.5 if way == "root" else 1.0)
    if way == "init":
        with torch.no_grad():
            model.attend.query.weight *= d_head**-0.5
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(STEPS):
        pick = torch.randint(RIDDLES, (BATCH,))
        logits, _ = model(data[0][pick])
        loss = F.cross_entropy(logits.flatten(0, 1), data[1][pick].flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logits, weights = model(tests[0])
        asked = tests[1] != IGNORE
        loss = F.cross_entropy(logits[asked], tests[1][asked]).item()
        right = (logits.argmax(-1) == tests[1])[asked].float().mean().item()
        entropy = attention_entropy(weights)[asked].mean().item()
    return {"loss": loss, "accuracy": right, "entropy": entropy}


def main():
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # saturated weights are denormal numbers, and those are slow
    generator = torch.Generator().manual_seed(4)
    both = [riddle(generator) for _ in range(RIDDLES + TESTS)]
    ids, answers = (torch.tensor(column) for column in zip(*both))
    data, tests = (ids[:RIDDLES], answers[:RIDDLES]), (ids[RIDDLES:], answers[RIDDLES:])
    rows = []
    for d in WIDTHS:
        for way in WAYS:
            for rate in RATES:
                for seed in SEEDS:
                    found = train(d, way, rate, seed, data, tests)
                    rows.append({"width": d, "way": way, "rate": rate, "seed": seed, **found})
                print(f"width {d:3}, {way}, rate {rate}: loss {found['loss']:.3f}")
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "widths": WIDTHS,
            "ways": WAYS, "rates": RATES, "steps": STEPS, "batch": BATCH, "d_model": D_MODEL,
            "riddles": RIDDLES, "tests": TESTS, "optimizer": "Adam",
        },
        results=rows,
    )  # fmt: skip


if __name__ == "__main__":
    main()
