"""What training without the causal mask does to the loss, and to generation (chapter 05).

A made-up language over eight letters: the two letters before decide which three may come next, with
the probabilities 0.6, 0.3 and 0.1. So the best possible loss is known exactly, and is the same at
every position: the entropy of those three numbers. A one-block transformer learns it with a causal
mask, with one that reaches a single position too far, and with none. Each seed makes a language, a
model and the data. Under three minutes on one core.
"""

import torch
from torch import nn
from torch.nn import functional as F

from experiments._record import record
from solutions.masking import causal_mask, masked_attention, teacher_forcing

SEEDS = list(range(5))
LETTERS, LENGTH, WIDTH = 8, 16, 48
STEPS, BATCH, RATE, WARMUP = 700, 64, 3e-3, 50
TESTS = 2000
PROBABILITIES = torch.tensor([0.6, 0.3, 0.1])
MASKS = {
    "causal": causal_mask(LENGTH),
    "one too far": causal_mask(LENGTH + 1)[1:, :LENGTH],
    "none": torch.ones(LENGTH, LENGTH, dtype=torch.bool),
}


def language(generator):
    """Probability of each next letter after each pair of letters: (LETTERS, LETTERS, LETTERS)."""
    table = torch.zeros(LETTERS, LETTERS, LETTERS)
    for a in range(LETTERS):
        for b in range(LETTERS):
            table[a, b, torch.randperm(LETTERS, generator=generator)[:3]] = PROBABILITIES
    return table


def write(table, n, generator):
    """n texts of LENGTH + 1 letters. The first letter follows nothing; the second, it alone."""
    text = torch.randint(LETTERS, (n, 1), generator=generator)
    while text.shape[1] <= LENGTH:
        before = table[text[:, -2:][:, 0], text[:, -1]]
        text = torch.cat([text, torch.multinomial(before, 1, generator=generator)], dim=1)
    return text


def allowed_share(table, text):
    """Share of the letters after the first that the language allows where they stand."""
    padded = torch.cat([text[:, :1], text], dim=1)
    return (table[padded[:, :-2], padded[:, 1:-1], padded[:, 2:]] > 0).float().mean().item()


def repeated_share(text):
    """Share of the letters after the first that repeat the letter before them."""
    return (text[:, 1:] == text[:, :-1]).float().mean().item()


class Model(nn.Module):
    """Embedding, learned positions, one block of one head, and a linear map to the letters."""

    def __init__(self):
        super().__init__()
        self.letter = nn.Embedding(LETTERS, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(3))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.think = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )
        self.answer = nn.Linear(WIDTH, LETTERS)

    def forward(self, text, mask):
        t = text.shape[1]
        x = self.letter(text) + self.position.weight[:t]  # (B, T, D)
        q, k, v = self.qkv(self.norms[0](x)).chunk(3, dim=-1)
        x = x + self.mix(masked_attention(q, k, v, mask[:t, :t])[0])
        x = x + self.think(self.norms[1](x))
        return self.answer(self.norms[2](x))  # (B, T, LETTERS)


def losses(logits, targets):
    """Cross-entropy of each target, in nats."""
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def train(table, mask, seed, steps=STEPS):
    """A trained model, and its training loss every ten steps."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * (1 - step / steps)
    )
    curve = []
    for step in range(steps):
        inputs, targets = teacher_forcing(write(table, BATCH, generator))
        loss = losses(model(inputs, mask), targets).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
        if step % 10 == 0:
            curve.append(loss.item())
    return model, curve


@torch.no_grad()
def generate(model, mask, n, generator):
    """n texts of LENGTH + 1 letters, written by the model one letter at a time."""
    text = torch.randint(LETTERS, (n, 1), generator=generator)
    while text.shape[1] <= LENGTH:
        next_letter = model(text, mask)[:, -1].softmax(dim=-1)
        text = torch.cat([text, torch.multinomial(next_letter, 1, generator=generator)], dim=1)
    return text


@torch.no_grad()
def judge(model, table, mask, seed):
    """How the model does on new texts: read whole, as in training, and up to each letter only."""
    generator = torch.Generator().manual_seed(1000 + seed)
    inputs, targets = teacher_forcing(write(table, TESTS, generator))
    whole = losses(model(inputs, mask), targets).mean(0)
    prefix = torch.stack(
        [
            losses(model(inputs[:, : t + 1], mask)[:, -1:], targets[:, t : t + 1]).mean()
            for t in range(LENGTH)
        ]
    )
    text = generate(model, mask, TESTS, generator)
    return {
        "loss_whole": whole.tolist(),
        "loss_prefix": prefix.tolist(),
        "allowed": allowed_share(table, text),
        "repeated": repeated_share(text),
        "repeated_in_language": repeated_share(inputs),
        "samples": ["".join("abcdefgh"[i] for i in row) for row in text[:4].tolist()],
    }


def main():
    torch.set_num_threads(1)
    results = []
    for seed in SEEDS:
        table = language(torch.Generator().manual_seed(seed))
        for name, mask in MASKS.items():
            model, curve = train(table, mask, seed)
            found = judge(model, table, mask, seed)
            results.append({"mask": name, "seed": seed, "curve": curve, **found})
            whole, prefix = (sum(found[key]) / LENGTH for key in ("loss_whole", "loss_prefix"))
            print(
                f"seed {seed}, mask {name:11}: loss {whole:.3f} reading all, {prefix:.3f} reading "
                f"what is written; {found['allowed']:.1%} of its letters are allowed"
            )
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "letters": LETTERS, "length": LENGTH, "width": WIDTH, "steps": STEPS, "batch": BATCH,
            "rate": RATE, "warmup": WARMUP, "tests": TESTS, "optimizer": "AdamW",
            "probabilities": [round(p, 3) for p in PROBABILITIES.tolist()],
            "entropy": -(PROBABILITIES.double() * PROBABILITIES.double().log()).sum().item(),
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
