"""One head against many of equal cost, and a head removed at a time (chapter 06).

A village of twelve people. Each has a name, a hat of one of eight colours, and four relations: the
names of a mother, a boss, a neighbour and a friend in the village. Asked of everyone: what colour
is the hat of each of your four relations? All models are one attention layer of the same width,
with the same number of parameters whatever the number of heads; besides, there is one head of twice
the width, a readout with a hidden layer, and eight heads that are split by the wrong reshape. Each
seed makes a model and its data. About six minutes on one core.
"""

import torch
from torch import nn
from torch.nn import functional as F

from experiments._record import record
from solutions.masking import masked_attention
from solutions.multi_head_attention import MultiHeadAttention

SEEDS = list(range(5))
PEOPLE, NAMES, COLOURS = 12, 16, 8
RELATIONS = ["mother", "boss", "neighbour", "friend"]
WIDTH, HEADS = 64, [1, 2, 4, 8, 16, 32, 64]
STEPS, BATCH, RATE, WARMUP, TESTS = 1000, 64, 3e-3, 50, 1000

#: Name of each kind of model: its width, its heads, its readout, its way of splitting.
MODELS = {
    **{f"{h} heads": (WIDTH, h, "linear", "right") for h in HEADS},
    "1 head, twice as wide": (2 * WIDTH, 1, "linear", "right"),
    "1 head, hidden layer": (WIDTH, 1, "hidden", "right"),
    "8 heads, hidden layer": (WIDTH, 8, "hidden", "right"),
    "8 heads, wrong reshape": (WIDTH, 8, "linear", "wrong"),
}


def villages(n, generator):
    """n villages: names (n, T), hats (n, T), relations' names and hats (n, T, R) both."""
    names = torch.rand(n, NAMES, generator=generator).argsort(-1)[:, :PEOPLE]
    hats = torch.randint(COLOURS, (n, PEOPLE), generator=generator)
    who = torch.randint(PEOPLE, (n, PEOPLE, len(RELATIONS)), generator=generator)
    related = [known.gather(1, who.flatten(1)).view(who.shape) for known in (names, hats)]
    return names, hats, *related


class WrongReshape(MultiHeadAttention):
    """Splits and merges by `view` alone: a head gets a stretch of the sequence, not a slice."""

    def forward(self, x):
        shape = *x.shape[:-2], self.n_heads, x.shape[-2], self.d_head
        q, k, v = (part(x).view(shape) for part in (self.query, self.key, self.value))
        heads, weights = masked_attention(q, k, v)
        return self.output(heads.reshape(x.shape)), weights


class Model(nn.Module):
    """Embeddings of what each person knows, one attention layer, and a readout."""

    def __init__(self, width, n_heads, readout, split):
        super().__init__()
        self.name, self.hat = nn.Embedding(NAMES, width), nn.Embedding(COLOURS, width)
        self.relations = nn.ModuleList(nn.Embedding(NAMES, width) for _ in RELATIONS)
        kind = MultiHeadAttention if split == "right" else WrongReshape
        self.attend = kind(width, n_heads)
        answers = len(RELATIONS) * COLOURS
        self.readout = nn.Linear(width, answers)
        if readout == "hidden":
            self.readout = nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(),
                nn.Linear(4 * width, answers),
            )  # fmt: skip

    def forward(self, names, hats, related):
        x = self.name(names) + self.hat(hats)  # (B, T, D)
        x = x + sum(table(related[..., r]) for r, table in enumerate(self.relations))
        found, weights = self.attend(x)
        return self.readout(x + found).unflatten(-1, (len(RELATIONS), COLOURS)), weights


def train(kind, seed):
    """A trained model, and its training loss every twenty steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Model(*kind)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * (1 - step / STEPS)
    )
    curve = []
    for step in range(STEPS):
        names, hats, related, answers = villages(BATCH, generator)
        logits, _ = model(names, hats, related)
        loss = F.cross_entropy(logits.flatten(0, -2), answers.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if step % 20 == 0:
            curve.append(loss.item())
    return model, curve


@torch.no_grad()
def accuracy(model, village, without=()):
    """Share of right answers for each relation, with some heads' contributions left out."""
    names, hats, related, answers = village
    weight = model.attend.output.weight
    kept = weight.clone()
    for head in without:  # a head's contribution goes through its own columns
        weight[:, head * model.attend.d_head : (head + 1) * model.attend.d_head] = 0
    logits, _ = model(names, hats, related)
    weight.copy_(kept)
    return (logits.argmax(-1) == answers).double().mean((0, 1))


@torch.no_grad()
def looks(model, village):
    """How much of each head's weight goes to the person of each relation: (H, R)."""
    names, hats, related, _ = village
    _, weights = model(names, hats, related)  # (B, H, T, S)
    there = related[..., None] == names[:, None, None]  # (B, T, R, S)
    return torch.einsum("bhts,btrs->hr", weights, there.float()) / (len(names) * PEOPLE)


def prune(model, choose, judge):
    """Remove the head that is missed least, again and again; accuracy after each removal."""
    left, gone = list(range(model.attend.n_heads)), []
    curve = [accuracy(model, judge).mean().item()]
    while left:
        best = max(left, key=lambda head: accuracy(model, choose, [*gone, head]).mean().item())
        left.remove(best)
        gone.append(best)
        curve.append(accuracy(model, judge, gone).mean().item())
    return {"order": gone, "accuracy": curve}


@torch.no_grad()
def example(model, village):
    """The first village, and where each head looks in it."""
    names, hats, related, answers = village
    _, weights = model(names, hats, related)
    return {
        "names": names[0].tolist(), "hats": hats[0].tolist(), "related": related[0].tolist(),
        "weights": [[[round(w, 3) for w in row] for row in head] for head in weights[0].tolist()],
    }  # fmt: skip


def guess(village):
    """Share of right answers of one who always says the village's most frequent colour."""
    _, hats, _, answers = village
    common = F.one_hot(hats, COLOURS).sum(1).argmax(-1)  # (n,)
    return (answers == common[:, None, None]).double().mean().item()


def main():
    torch.set_num_threads(1)
    results, guesses = [], []
    for seed in SEEDS:
        draw = torch.Generator().manual_seed(1000 + seed)
        judge, choose = villages(TESTS, draw), villages(TESTS // 2, draw)
        guesses.append(guess(judge))
        for name, kind in MODELS.items():
            model, curve = train(kind, seed)
            found = accuracy(model, judge)
            run = {
                "model": name, "seed": seed, "n_heads": kind[1],
                "parameters": sum(p.numel() for p in model.attend.parameters()),
                "accuracy": found.tolist(), "curve": curve,
            }  # fmt: skip
            if kind[1] == 8 and kind[3] == "right":
                run["without"] = [accuracy(model, judge, [h]).tolist() for h in range(8)]
                run["looks"] = looks(model, judge).tolist()
                run["pruning"] = prune(model, choose, judge)
            if name == "8 heads" and seed == 0:
                run["example"] = example(model, judge)
            results.append(run)
            print(f"seed {seed}, {name:22}: {found.mean():6.1%} right", flush=True)
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "people": PEOPLE, "names": NAMES, "colours": COLOURS, "relations": RELATIONS,
            "width": WIDTH, "heads": HEADS, "steps": STEPS, "batch": BATCH, "rate": RATE,
            "warmup": WARMUP, "tests": TESTS, "optimizer": "AdamW",
            "guess": sum(guesses) / len(guesses),
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
