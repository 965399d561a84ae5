"""Pre-norm and post-norm in training, with and without warm-up (chapter 10).

A model of eight layers learns the language of chapter 05: eight letters, of which the two before
decide which three may come next, with the probabilities 0.6, 0.3 and 0.1, so that the lowest
possible loss is known. Adam, three learning rates, with a warm-up over the first 100 steps and
without; pre-norm and post-norm start from the same weights and read the same texts. Each seed
makes a language, a model and the data. The norm and the attention are torch's, which a test shows
to be the library's, for their speed. About two minutes on one core.
"""

import torch
from torch import nn
from torch.nn import functional as F

from experiments._record import record
from solutions.masking import teacher_forcing
from solutions.residuals_and_norms import residual

SEEDS = list(range(5))
LETTERS, LENGTH, WIDTH, LAYERS = 8, 16, 32, 8
STEPS, BATCH, RATES, WARMUPS = 250, 32, [1e-3, 3e-3, 1e-2], [0, 100]
BETAS = (0.9, 0.98)  # as in Vaswani et al. 2017, section 5.3
LAST = 20  # steps over which the final loss is averaged
PROBABILITIES = torch.tensor([0.6, 0.3, 0.1])


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


class Attention(nn.Module):
    """One causal head as wide as the model, and the projection behind it."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.out = nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True))


def feed_forward():
    return nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))


class Model(nn.Module):
    """Letters and positions, a stack of residual blocks, and a linear map to the letters."""

    def __init__(self, norm_first):
        super().__init__()
        self.norm_first = norm_first
        self.letter = nn.Embedding(LETTERS, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.sublayers = nn.ModuleList(
            kind() for _ in range(LAYERS) for kind in (Attention, feed_forward)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in self.sublayers)
        self.answer = nn.Linear(WIDTH, LETTERS)
        for p in [*self.sublayers.parameters(), self.answer.weight]:
            if p.ndim == 2:
                nn.init.xavier_uniform_(p)
        self.final = nn.LayerNorm(WIDTH) if norm_first else nn.Identity()

    def forward(self, text):
        x = self.letter(text) + self.position.weight  # (B, T, D)
        for sublayer, norm in zip(self.sublayers, self.norms):
            x = residual(x, sublayer, norm, self.norm_first)
        return self.answer(self.final(x))  # (B, T, LETTERS)


def texts_of(seed):
    """All the texts that are read with one seed: (STEPS, BATCH, LENGTH + 1)."""
    generator = torch.Generator().manual_seed(seed)
    texts = write(language(generator), STEPS * BATCH, generator)
    return texts.view(STEPS, BATCH, LENGTH + 1)


def train(texts, norm_first, rate, warmup, seed):
    """The training loss at every step."""
    torch.manual_seed(seed)
    model = Model(norm_first)
    optimizer = torch.optim.Adam(model.parameters(), lr=rate, betas=BETAS, fused=True)
    curve = []
    for step, batch in enumerate(texts):
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / warmup) if warmup else rate
        inputs, targets = teacher_forcing(batch)
        loss = F.cross_entropy(model(inputs).transpose(1, 2), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def main():
    torch.set_num_threads(1)
    results, texts = [], [texts_of(seed) for seed in SEEDS]
    for norm_first in (True, False):
        for warmup in WARMUPS:
            for rate in RATES:
                ends = []
                for seed in SEEDS:
                    curve = train(texts[seed], norm_first, rate, warmup, seed)
                    ends.append(sum(curve[-LAST:]) / LAST)
                    results.append(
                        {
                            "order": "pre-norm" if norm_first else "post-norm",
                            "warmup": warmup,
                            "rate": rate,
                            "seed": seed,
                            "loss": ends[-1],
                            "curve": [round(loss, 4) for loss in curve[::5]],
                        }
                    )
                print(
                    f"{results[-1]['order']:9} warm-up {warmup:3} rate {rate:g}:",
                    " ".join(f"{loss:.3f}" for loss in ends),
                )
    entropy = -(PROBABILITIES.double() * PROBABILITIES.double().log()).sum().item()
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "letters": LETTERS, "length": LENGTH, "width": WIDTH, "layers": LAYERS, "steps": STEPS,
            "batch": BATCH, "rates": RATES, "warmups": WARMUPS, "optimizer": "Adam", "betas": BETAS,
            "entropy": entropy, "last": LAST,
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
