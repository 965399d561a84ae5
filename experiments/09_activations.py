"""ReLU, GELU and SwiGLU at equal parameters, and what single units fire on (chapter 09).

A small transformer of two blocks learns to predict the next letter of Python's own help texts
(`pydoc_data.topics`, which comes with Python). Only its feed-forward layers differ. All have no
bias and exactly the same number of weights: two matrices of width 192, or three of width 128. A
layer without an activation is there for comparison. Each kind tries three learning rates with one
seed, and runs four more seeds at the best of them. For ReLU it is also recorded how many units
fire on a letter, and how much of a unit's activation the letter itself explains, and the one before
it. About four minutes on one core.
"""

import pydoc_data.topics

import torch
from torch import nn
from torch.nn import functional as F

from experiments._record import record
from solutions.feed_forward import FeedForward, SwiGLU, trigger_examples
from solutions.masking import causal_mask, masked_attention, teacher_forcing

SEEDS = list(range(5))
TUNING = SEEDS[:1]
WIDTH, HEADS, BLOCKS, LENGTH = 48, 4, 2, 48
STEPS, BATCH, WARMUP = 300, 16, 30
RATES = [3e-3, 1e-2, 3e-2]
PLAIN, GATED = 4 * WIDTH, 8 * WIDTH // 3
TESTS = 400


class Linear(FeedForward):
    """A feed-forward layer whose activation does nothing."""

    def forward(self, x):
        return self.w_out(self.w_in(x))


KINDS = {
    "none": lambda: Linear(WIDTH, PLAIN, bias=False),
    "relu": lambda: FeedForward(WIDTH, PLAIN, "relu", bias=False),
    "gelu": lambda: FeedForward(WIDTH, PLAIN, "gelu", bias=False),
    "gelu_tanh": lambda: FeedForward(WIDTH, PLAIN, "gelu_tanh", bias=False),
    "swiglu": lambda: SwiGLU(WIDTH, GATED),
}


def text():
    """The help texts as ids of letters (rare ones are one), in a part to learn and one to test."""
    topics = pydoc_data.topics.topics
    joined = "\n".join(topics[name] for name in sorted(topics))
    common = sorted(c for c in set(joined) if joined.count(c) >= 50)
    ids = {c: i for i, c in enumerate(common, start=1)}
    data = torch.tensor([ids.get(c, 0) for c in joined])
    cut = int(0.9 * len(data))
    return data[:cut], data[cut:], ["�", *common]


def batch(data, n, generator):
    starts = torch.randint(len(data) - LENGTH, (n, 1), generator=generator)
    return data[starts + torch.arange(LENGTH + 1)]  # (n, LENGTH + 1)


class Block(nn.Module):
    """Attention, then the feed-forward layer, each on the normalised tokens and added to them."""

    def __init__(self, kind):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(2))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.mix = nn.Linear(WIDTH, WIDTH, bias=False)
        self.feed_forward = KINDS[kind]()

    def forward(self, x, mask):
        b, t, _ = x.shape
        heads = self.qkv(self.norms[0](x)).view(b, t, 3, HEADS, -1)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
        output, _ = masked_attention(q, k, v, mask)
        x = x + self.mix(output.transpose(1, 2).reshape(b, t, WIDTH))
        return x + self.feed_forward(self.norms[1](x))


class Model(nn.Module):
    """Embedding, learned positions, blocks, and a linear map to the letters."""

    def __init__(self, kind, letters):
        super().__init__()
        self.letter, self.position = nn.Embedding(letters, WIDTH), nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block(kind) for _ in range(BLOCKS))
        self.norm, self.answer = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, letters)
        self.register_buffer("mask", causal_mask(LENGTH), persistent=False)

    def forward(self, inputs):
        x = self.letter(inputs) + self.position.weight
        for block in self.blocks:
            x = block(x, self.mask)
        return self.answer(self.norm(x))


def loss_of(model, sequences):
    inputs, targets = teacher_forcing(sequences)
    return F.cross_entropy(model(inputs).transpose(1, 2), targets)


def train(kind, data, letters, rate, seed):
    """A trained model. The order of the texts depends on the seed alone, not on the kind."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = Model(kind, letters)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / WARMUP) * (1 - step / STEPS)
    )
    for _ in range(STEPS):
        loss = loss_of(model, batch(data, BATCH, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return model


def explained(activations, labels):
    """Share of each unit's variance that lies between the groups of equal labels."""
    total = activations.var(0, unbiased=False)  # (F,)
    counts = torch.bincount(labels)  # (letters,)
    sums = torch.zeros(len(counts), activations.shape[1]).index_add_(0, labels, activations)
    means = sums / counts[:, None].clamp(min=1)
    between = ((means - activations.mean(0)) ** 2 * counts[:, None]).sum(0) / len(labels)
    return between / total.clamp(min=1e-12)


@torch.no_grad()
def units(model, held_out, names, seed):
    """What the hidden units of each ReLU layer do on texts that were not learned."""
    sequences = batch(held_out, TESTS, torch.Generator().manual_seed(2000 + seed))
    inputs, targets = teacher_forcing(sequences)
    caught = []
    for block in model.blocks:
        layer = block.feed_forward
        layer.w_in.register_forward_hook(lambda _, __, out: caught.append(out.relu()))
    model(inputs)
    found = []
    for a in caught:  # (B, T, F)
        here, before = a[:, 1:].flatten(0, 1), inputs[:, :-1].flatten()
        after = targets[:, 1:].flatten()
        fires = (a > 0).float().mean((0, 1))  # (F,)
        alive = fires > 0
        by_letter = explained(here, inputs[:, 1:].flatten())
        triggers = trigger_examples(a, 8)
        chosen = by_letter.masked_fill(~alive, -1).topk(4).indices.tolist()
        chosen += by_letter.masked_fill(~alive, 2).topk(4, largest=False).indices.tolist()
        found.append(
            {
                "fires": fires.mean().item(),
                "dead": (~alive).float().mean().item(),
                "letter": by_letter[alive].mean().item(),
                "before": explained(here, before)[alive].mean().item(),
                "after": explained(here, after)[alive].mean().item(),
                "by_unit": [round(x, 3) for x in by_letter[alive].tolist()],
                "examples": [
                    {
                        "unit": u,
                        "letter": by_letter[u].item(),
                        "texts": [
                            "".join(names[i] for i in inputs[b, max(0, t - 11) : t + 1].tolist())
                            for b, t in triggers[u].tolist()
                        ],
                    }
                    for u in chosen
                ],
            }
        )
    return found


def main():
    torch.set_num_threads(1)
    data, held_out, names = text()
    tests = batch(held_out, TESTS, torch.Generator().manual_seed(1000))
    losses, found_units = {}, []

    def run(kind, rate, seed):
        model = train(kind, data, len(names), rate, seed)
        with torch.no_grad():
            losses[kind, rate, seed] = loss_of(model, tests).item()
        return model

    best = {}
    for kind in KINDS:
        for rate in RATES:
            for seed in TUNING:
                run(kind, rate, seed)
        best[kind] = min(RATES, key=lambda r: sum(losses[kind, r, seed] for seed in TUNING))
        for seed in SEEDS:
            if kind == "relu" or seed not in TUNING:
                model = run(kind, best[kind], seed)
                if kind == "relu":
                    layers = units(model, held_out, names, seed)
                    found_units.append({"seed": seed, "layers": layers})
        five = torch.tensor([losses[kind, best[kind], seed] for seed in SEEDS])
        print(f"{kind:10} best rate {best[kind]:g}: loss {five.mean():.3f} ± {five.std():.3f}")
    weights = {kind: sum(p.numel() for p in KINDS[kind]().parameters()) for kind in KINDS}
    whole = sum(p.numel() for p in Model("relu", len(names)).parameters())
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "width": WIDTH, "heads": HEADS, "blocks": BLOCKS, "length": LENGTH, "steps": STEPS,
            "batch": BATCH, "warmup": WARMUP, "rates": RATES, "tuning_seeds": TUNING,
            "tests": TESTS, "optimizer": "AdamW", "plain": PLAIN, "gated": GATED,
            "letters": len(names),
            "text": len(data) + len(held_out), "layer_parameters": weights, "parameters": whole,
        },
        results={
            "runs": [
                {"kind": kind, "rate": rate, "seed": seed, "loss": loss}
                for (kind, rate, seed), loss in losses.items()
            ],
            "best": best,
            "units": found_units,
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
