"""The small decoder that the experiments of chapter 12 train, and how those judge a model."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from solutions.stories import Stories

SIZES = {"names": 8, "things": 10, "places": 6, "colours": 4}  # of the language
LENGTH = 48  # tokens graded in a window


class Block(nn.Module):
    """Attention and a small network for each token, each beside the stream (pre-norm)."""

    def __init__(self, width: int, heads: int, masked: bool):
        super().__init__()
        self.heads, self.masked = heads, masked
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x):
        b, t, d = x.shape
        qkv = self.qkv(self.norms[0](x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, K)
        output = F.scaled_dot_product_attention(q, k, v, is_causal=self.masked)
        x = x + self.mix(output.transpose(1, 2).reshape(b, t, d))
        return x + self.think(self.norms[1](x))


class Decoder(nn.Module):
    """Embedding, learned positions, two blocks, and a linear map to the tokens."""

    def __init__(self, vocab: int, width: int, heads: int = 2, masked: bool = True):
        super().__init__()
        self.token, self.position = nn.Embedding(vocab, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width, heads, masked) for _ in range(2)))
        self.norm, self.answer = nn.LayerNorm(width), nn.Linear(width, vocab)
        for table in (self.token, self.position):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, tokens):
        x = self.token(tokens) + self.position.weight[: tokens.shape[1]]
        return self.answer(self.norm(self.blocks(x)))  # (B, T, V)


def decoder(vocab: int, width: int, seed: int, **more: Any) -> Decoder:
    """A decoder whose initial weights are drawn from a seed."""
    torch.manual_seed(seed)
    return Decoder(vocab, width, **more)


class Test:
    """Windows that start where a story starts, and what a perfect model's loss on them is."""

    def __init__(self, language: Stories, n: int, seed: int, length: int = LENGTH):
        text = language.stream(60 * n + 1000, torch.Generator().manual_seed(seed))
        starts = (text == 0).nonzero().flatten()
        starts = starts[starts < len(text) - length][:n]
        if len(starts) < n:
            raise ValueError(f"{len(starts)} windows found, {n} expected")
        self.windows = text[starts[:, None] + torch.arange(length + 1)]
        surprises = language.surprises(text)
        self.perfect = surprises[starts[:, None] + 1 + torch.arange(length)]  # (n, T)

    @torch.no_grad()
    def losses(self, model: nn.Module) -> Tensor:
        """Loss of each token, (n, T), in nats."""
        model.eval()
        inputs, targets = self.windows[:, :-1], self.windows[:, 1:]
        return F.cross_entropy(model(inputs).mT, targets, reduction="none")

    def excess(self, model: nn.Module) -> float:
        """How far the model's loss is above the perfect model's, on these very windows."""
        return (self.losses(model) - self.perfect).mean().item()
