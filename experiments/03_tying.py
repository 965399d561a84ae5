"""What one table for both ends of a language model saves, and what it costs (chapter 03).

The text is the reference that ships with Python, in 1,025 byte-pair tokens (chapter 02). The model
looks up the four tokens before, maps their vectors through a small network to one vector, and
scores the next token: the neural language model of 2003, with a table for the way in and one for
the way out. Compared are two tables and one for both, each with two starts: standard deviation 0.02
and no scaling, as in GPT-2; or 1/√D and the looked-up vectors scaled by √D, as in Vaswani et al.
Then one table made so wide that there are as many parameters as with two. And, without the
network in between, the bigram model: the row of the last token is the answer. Each seed leaves out
another fifth of the topics, on which the loss is measured; each way gets three learning rates.
About five minutes on one core.
"""

import pydoc_data.topics

import torch
from torch import nn
from torch.nn import functional as F

from experiments._record import record
from solutions.embeddings import Embedding, TiedHead, count_parameters
from solutions.tokens import BPETokenizer, english_text

SEEDS = list(range(5))
TOKENS, CONTEXT, WIDTH, WIDER = 1024, 4, 64, 92
STEPS, BATCH, RATES, START = 400, 256, [0.003, 0.01, 0.03], 0.02
WAYS = {  # width, tied, scaled, with the network
    "two tables": (WIDTH, False, False, True),
    "one table": (WIDTH, True, False, True),
    "two tables, scaled": (WIDTH, False, True, True),
    "one table, scaled": (WIDTH, True, True, True),
    "one table, scaled, wider": (WIDER, True, True, True),
    "bigram, two tables": (WIDTH, False, False, False),
    "bigram, one table": (WIDTH, True, False, False),
}


class Model(nn.Module):
    """Look up, think, score."""

    def __init__(self, vocab_size, width, tied, scaled, network):
        super().__init__()
        std = width**-0.5 if scaled else START
        self.scale = width**0.5 if scaled else 1.0
        self.embedding = Embedding(vocab_size, width, std=std)
        self.head = TiedHead(self.embedding if tied else Embedding(vocab_size, width, std=std))
        self.network = None
        if network:
            self.network = nn.Sequential(
                nn.Linear(CONTEXT * width, 4 * WIDTH), nn.GELU(),
                nn.Linear(4 * WIDTH, width), nn.LayerNorm(width),
            )  # fmt: skip

    def forward(self, ids):
        x = self.scale * self.embedding(ids)  # (B, CONTEXT, D)
        x = x[:, -1] if self.network is None else self.network(x.flatten(1))  # (B, D)
        return self.head(x)  # (B, V)


def windows(texts):
    """What is read, (N, CONTEXT), and what comes next, (N,)."""
    rows = torch.cat([ids.unfold(0, CONTEXT + 1, 1) for ids in texts if len(ids) > CONTEXT])
    return rows[:, :-1], rows[:, -1]


def train(model, inputs, targets, rate, seed):
    """Train with AdamW, the rate going down to 0; returns the loss of the first batch."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    first = None
    for _ in range(STEPS):
        pick = torch.randint(len(inputs), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(inputs[pick]), targets[pick])
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return first


@torch.no_grad()
def loss_on(model, inputs, targets):
    """Mean cross-entropy, in nats a token."""
    parts = zip(inputs.split(4096), targets.split(4096))
    total = sum(F.cross_entropy(model(x), y, reduction="sum").item() for x, y in parts)
    return total / len(inputs)


def main():
    torch.set_num_threads(1)
    tokenizer = BPETokenizer.train(english_text(), TOKENS, ["<|endoftext|>"])
    texts = [torch.tensor(tokenizer.encode(t)) for t in pydoc_data.topics.topics.values()]
    results = []
    for seed in SEEDS:
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(texts), generator=generator).tolist()
        held_out = windows([texts[i] for i in order[: len(texts) // 5]])
        seen = windows([texts[i] for i in order[len(texts) // 5 :]])
        for way, sizes in WAYS.items():
            for rate in RATES:
                torch.manual_seed(seed)
                model = Model(TOKENS + 1, *sizes)
                first = train(model, *seen, rate, seed)
                row = {
                    "seed": seed, "way": way, "rate": rate, "parameters": count_parameters(model),
                    "first": first, "loss": loss_on(model, *held_out),
                }  # fmt: skip
                results.append(row)
                print(f"seed {seed}, {way}, rate {rate}: {row['loss']:.3f}", flush=True)
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "vocabulary": TOKENS + 1, "context": CONTEXT, "width": WIDTH, "wider": WIDER,
            "steps": STEPS, "batch": BATCH, "rates": RATES, "start": START, "optimizer": "AdamW",
            "tokens": sum(map(len, texts)), "ways": list(WAYS),
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
