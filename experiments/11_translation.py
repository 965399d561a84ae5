"""English number words translated into German ones, by the three ways that can (chapter 11).

The library's own `Transformer`, two layers that read and two that write, in both norm orders;
and as many parameters in a decoder-only model, which reads the source, a start token and the
target as one text: five of the library's `EncoderLayer`s behind a mask, once causal throughout,
once with a source that sees itself whole (a prefix language model). Numbers of up to nine digits,
one in ten of them held out from all training. Exact match is counted with teacher forcing, which
is the same as writing greedily: a translation is right if every token is the likeliest behind
the right ones before it. For the encoder-decoder it is counted by writing as well.

Then cross-attention as alignment: how often the source word that a head looks at most is the one
that is being translated. Each seed makes a model and the texts it reads. All runs: about half an
hour on one core; one run of the encoder-decoder: between one and two minutes.
"""

import math
import time

import torch
from torch import nn

from experiments._record import record
from solutions.embeddings import Embedding, count_parameters
from solutions.encoder_decoder import (
    EncoderLayer,
    Transformer,
    greedy_decode,
    translation_loss,
)
from solutions.masking import causal_mask
from solutions.numerals import (
    END,
    PADDING,
    START,
    VOCABULARY,
    draw_numbers,
    number_words,
    to_batch,
)
from solutions.positional_encoding import sinusoidal_encoding
from solutions.residuals_and_norms import LayerNorm

SEEDS = list(range(5))
WIDTH, HEADS, FF, LAYERS, JOINED_LAYERS = 64, 4, 128, 2, 5
STEPS, BATCH, RATE, WARMUP = 1000, 64, 2e-3, 200
BETAS, EPS = (0.9, 0.98), 1e-9  # as in Vaswani et al. 2017, section 5.3
TESTS, TEST_SEED, EVERY = 3000, 1000, 50
LONGEST = 24  # tokens written
SHOWN = 21_000_342


class Joined(nn.Module):
    """A decoder-only translator, pre-norm: source and target in one sequence, one stack."""

    def __init__(self, prefix):
        super().__init__()
        self.prefix = prefix  # whether the source sees itself whole
        self.embedding = Embedding(len(VOCABULARY), WIDTH, PADDING, std=WIDTH**-0.5)
        self.layers = nn.ModuleList(
            EncoderLayer(WIDTH, HEADS, FF, dropout=0.0, norm_first=True)
            for _ in range(JOINED_LAYERS)
        )
        self.norm = LayerNorm(WIDTH)

    def forward(self, source, target):
        s = source.shape[1]
        tokens = torch.cat([source, target], dim=1)
        real = tokens != PADDING
        # Counted without the padding between the two, so that nothing shows how long it is.
        positions = (real.cumsum(1) - 1).clamp(min=0)  # (B, S + T)
        x = math.sqrt(WIDTH) * self.embedding(tokens) + sinusoidal_encoding(positions, WIDTH)
        mask = causal_mask(tokens.shape[1])
        if self.prefix:
            mask[:s, :s] = True
        mask = mask & real[:, None, None]  # (B, 1, S + T, S + T)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x[:, s:]) @ self.embedding.weight.T


def make(kind):
    if kind.startswith("encoder-decoder"):
        return Transformer(
            len(VOCABULARY), WIDTH, HEADS, FF, LAYERS, LAYERS,
            padding_idx=PADDING, dropout=0.0, norm_first=kind.endswith("pre-norm"),
        )  # fmt: skip
    return Joined(prefix=kind.startswith("prefix"))


KINDS = (
    "encoder-decoder, post-norm",
    "encoder-decoder, pre-norm",
    "decoder-only, pre-norm",
    "prefix decoder, pre-norm",
)


@torch.no_grad()
def right(model, source, target):
    """For each translation, whether it is right to the last token."""
    model.eval()
    inputs, labels = target[:, :-1], target[:, 1:]
    found = model(source, inputs).argmax(-1)
    model.train()
    return ((found == labels) | (labels == PADDING)).all(dim=1)


def train(kind, seed, test):
    """A trained model, its loss at each step, its share of right translations, and the time."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = make(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, betas=BETAS, eps=EPS)
    losses, shares, seconds = [], [], 0.0
    for step in range(STEPS):
        start = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = RATE * min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))
        source, target = to_batch(draw_numbers(BATCH, generator, unseen=False))
        loss = translation_loss(model, source, target, PADDING)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds += time.perf_counter() - start
        if (step + 1) % EVERY == 0:
            few = [part[:500] for part in test]
            shares.append(right(model, *few).double().mean().item())
    return model, losses, shares, seconds


def unseen():
    """The test: held-out numbers, each once, in a random order; what to read, what to write."""
    generator = torch.Generator().manual_seed(TEST_SEED)
    numbers = draw_numbers(2 * TESTS, generator, unseen=True).unique()
    numbers = numbers[torch.randperm(len(numbers), generator=generator)][:TESTS]
    return numbers, to_batch(numbers)


@torch.no_grad()
def alignment(model, numbers, source, target):
    """Share of German words for which each head looks most at the English word that they translate.

    Counted once at the step that writes the word, and once at the step that has just read it.
    """
    model.eval()
    _, weights = model.decode(target, model.encode(source), source)  # (L, B, H, n, S)
    most = weights.argmax(-1)  # (L, B, H, n)
    hits = torch.zeros(2, *most.shape[:1], most.shape[2], dtype=torch.float64)
    words = 0
    for b, number in enumerate(numbers.tolist()):
        for i, origin in enumerate(number_words(number).origins):
            if origin is not None:
                words += 1
                hits[0] += most[:, b, :, i] == origin  # behind i words: writes word i
                hits[1] += most[:, b, :, i + 1] == origin  # has read word i
    return {"writing": (hits[0] / words).tolist(), "read": (hits[1] / words).tolist()}


def main():
    torch.set_num_threads(1)
    numbers, test = unseen()
    results = []
    for kind in KINDS:
        for seed in SEEDS:
            model, losses, shares, seconds = train(kind, seed, test)
            found = right(model, *test)
            result = {
                "kind": kind, "seed": seed, "parameters": count_parameters(model),
                "right": found.double().mean().item(), "shares": shares, "seconds": seconds,
                "losses": [round(x, 5) for x in losses[::10]],
                "wrong": [int(n) for n in numbers[~found][:5]],
            }  # fmt: skip
            if kind.startswith("encoder"):
                written = greedy_decode(model, test[0], START, END, LONGEST)
                width = max(written.shape[1], test[1].shape[1] - 1)
                padded = [
                    torch.cat([x, x.new_zeros(len(x), width - x.shape[1])], dim=1)
                    for x in (written, test[1][:, 1:])
                ]
                result["right_written"] = (padded[0] == padded[1]).all(1).double().mean().item()
                result["alignment"] = alignment(model, numbers[:500], *(x[:500] for x in test))
                if seed == 0:
                    source, target = to_batch(torch.tensor([SHOWN]))
                    with torch.no_grad():
                        _, weights = model.decode(target[:, :-1], model.encode(source), source)
                    result["weights"] = [
                        [[[round(w, 3) for w in row] for row in head] for head in layer]
                        for layer in weights[:, 0].tolist()
                    ]
            results.append(result)
            print(
                f"{kind}, seed {seed}: {result['right']:.2%} of {len(numbers)} unseen numbers "
                f"right, {result['parameters']} parameters, {seconds:.0f} s",
                flush=True,
            )
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "width": WIDTH, "heads": HEADS, "d_ff": FF, "layers": LAYERS,
            "joined_layers": JOINED_LAYERS, "steps": STEPS, "batch": BATCH, "rate": RATE,
            "warmup": WARMUP, "optimizer": "Adam", "betas": BETAS, "eps": EPS, "dropout": 0.0,
            "tests": len(numbers), "every": EVERY, "shown": SHOWN, "threads": 1,
        },
        results=results,
    )  # fmt: skip


if __name__ == "__main__":
    main()
