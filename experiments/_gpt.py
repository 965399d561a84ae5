"""How the experiments of chapters 14 and 15 train a GPT."""

from __future__ import annotations

import torch
from torch import Tensor

from solutions.gpt import GPT
from solutions.training import cosine_schedule, get_batch, train


def fit(
    model: GPT,
    optimizer: torch.optim.Optimizer,
    ids: Tensor,
    draw: torch.Generator,
    steps: range,
    *,
    batch: int,
    peak: float,
    warmup: int,
    total: int,
    boundary: int = 0,
) -> list[float]:
    """Train on windows that fill the model's context and start where a piece of text starts.

    Args:
        model: what is trained.
        optimizer: of its parameters.
        ids: the text, in which `boundary` stands ahead of each piece.
        draw: chooses the windows.
        steps: which steps of the schedule to take.
        batch: windows in a step.
        peak: highest learning rate; the lowest is a fiftieth of it.
        warmup: steps until the peak.
        total: steps of the whole schedule.
        boundary: id between pieces.

    Returns:
        The loss of each step, in nats.
    """
    starts = (ids == boundary).nonzero().flatten()
    history = train(
        model,
        lambda: get_batch(ids, batch, model.config.n_positions, draw, starts),
        optimizer,
        lambda s: cosine_schedule(s, peak=peak, warmup=warmup, total=total, minimum=peak / 50),
        steps,
        max_norm=1.0,
    )
    return history["loss"]
