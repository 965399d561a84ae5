"""The small transformer with which the experiments of chapter 07 compare schemes of positions."""

import torch
from torch import nn
from torch.nn import functional as F

from solutions.masking import causal_mask
from solutions.positional_encoding import Positions, biased_attention

SCHEMES = ["none", "sinusoidal", "learned", "rope", "alibi"]


class Block(nn.Module):
    """Causal attention with several heads, and a small network for each token; pre-norm."""

    def __init__(self, width: int, n_heads: int):
        super().__init__()
        self.n_heads = n_heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.mix = nn.Linear(width, width)
        self.think = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x, scheme: Positions, positions):
        t = x.shape[1]
        heads = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.n_heads, -1))  # (B, T, 3, H, K)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # (B, H, T, K) each
        q, k = scheme.rotate(q, positions), scheme.rotate(k, positions)
        bias = scheme.bias(positions, positions)
        output, _ = biased_attention(q, k, v, bias, causal_mask(t))
        x = x + self.mix(output.transpose(1, 2).flatten(-2))
        return x + self.think(self.norms[1](x))


class Model(nn.Module):
    """Embedding, blocks, and a linear map to the vocabulary, with any scheme of positions."""

    def __init__(self, vocabulary: int, width: int, n_heads: int, n_layers: int, scheme: Positions):
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.scheme = scheme
        self.blocks = nn.ModuleList(Block(width, n_heads) for _ in range(n_layers))
        self.norm, self.answer = nn.LayerNorm(width), nn.Linear(width, vocabulary)

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1])
        x = self.scheme.embed(self.token(tokens), positions)
        for block in self.blocks:
            x = block(x, self.scheme, positions)
        return self.answer(self.norm(x))  # (B, T, V)


def losses(logits, targets):
    """Cross-entropy of each target, in nats; 0 where the target is -100."""
    return F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", ignore_index=-100)


def train(model, draw, steps: int, rate: float, warmup: int = 50):
    """Train on batches (inputs, targets) from draw(); the loss of every tenth step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    rates = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / warmup) * (1 - step / steps)
    )
    curve = []
    for step in range(steps):
        inputs, targets = draw()
        loss = losses(model(inputs), targets).sum() / (targets != -100).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rates.step()
        if step % 10 == 0:
            curve.append(round(loss.item(), 4))
    return curve
