"""Training a language model: the loss, the batches, the optimizer, the loop (chapter 12)."""

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from solutions.masking import teacher_forcing


def cross_entropy(
    logits: Float[Tensor, "*batch V"], targets: Int[Tensor, "*batch"], ignore_index: int = -100
) -> Float[Tensor, ""]:
    """Average the surprise -ln p(target), where p is the softmax of the logits.

    Args:
        logits: scores of all V tokens, however large, on the last axis. Left unchanged.
        targets: the id of the right token, from 0 to V - 1, or ignore_index. At least one target
            is not ignored.
        ignore_index: marks targets that count for nothing: neither in the sum nor in the number
            by which it is divided.

    Returns:
        The mean in nats, a tensor without axes, in the dtype of the logits. Gradients flow back
        to the logits, and are 0 where the target is ignored.

    Source: Blanchard, Higham and Higham 2021, section 1 (the shifted logarithm).
    """
    counted = targets != ignore_index
    logits, targets = logits[counted], targets[counted]  # (N, V), (N)
    shifted = logits - logits.amax(-1, keepdim=True)
    log_p = shifted - shifted.exp().sum(-1, keepdim=True).log()  # (N, V)
    return -log_p.gather(-1, targets[:, None]).mean()


def perplexity(losses: Float[Tensor, "n"], counts: Int[Tensor, "n"]) -> Float[Tensor, ""]:
    """Say among how many equally likely tokens a model with these losses chooses.

    Args:
        losses: mean cross-entropy of each of n batches, in nats.
        counts: how many tokens were graded in each. A batch in which none was counts for nothing,
            even though its mean is NaN.

    Returns:
        exp of the mean over all graded tokens, which all count alike; a tensor without axes, in
        the dtype of the losses.

    Source: Jelinek et al. 1977, who named it.
    """
    graded = counts > 0
    total = (losses[graded] * counts[graded]).sum()
    return (total / counts.sum()).exp()


def get_batch(
    tokens: Int[Tensor, "n"],
    batch: int,
    length: int,
    generator: torch.Generator,
    starts: Int[Tensor, "m"] | None = None,
) -> tuple[Int[Tensor, "B T"], Int[Tensor, "B T"]]:
    """Cut windows out of a long text, at random places, to read and to predict.

    Each place is drawn evenly from all those allowed, independently of the others: the same one
    may come twice. All randomness comes from the generator.

    Args:
        tokens: the text, more than length tokens.
        batch: number of windows, B.
        length: tokens to predict in each, T: a window needs T + 1 tokens, all within the text.
        generator: where the randomness comes from.
        starts: indices at which a window may start; those too close to the end are passed over.
            None for every index at which there is room.

    Returns:
        inputs: the first T tokens of each window.
        targets: for each of them the token that follows it.
    """
    room = len(tokens) - length  # number of windows that fit
    starts = torch.arange(room) if starts is None else starts[starts < room]
    chosen = starts[torch.randint(len(starts), (batch,), generator=generator)]  # (B)
    windows = tokens[chosen[:, None] + torch.arange(length + 1)]  # (B, T + 1)
    return teacher_forcing(windows)


class AdamW(torch.optim.Optimizer):
    """Adam with decoupled weight decay.

    Each parameter p with gradient g keeps running means m of g and v of g squared, from 0 on, and
    the number t of its steps, from 1 on. A step makes, in this order,

        p = p - lr * weight_decay * p
        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g * g
        p = p - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    Args:
        params: the parameters, or dicts that group them: {"params": [...], "lr": ..., ...}, as in
            torch.optim. What a group does not say is taken from the other arguments.
        lr: learning rate.
        betas: beta1 and beta2, from 0 to below 1.
        eps: added to the root.
        weight_decay: share of a parameter, times lr, that each step takes off.

    Source: Loshchilov and Hutter 2019, algorithm 2; Kingma and Ba 2015, algorithm 1.
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
    ):
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, options)  # fills self.param_groups

    @torch.no_grad()
    def step(self) -> None:
        """Change every parameter in place by one step, as the options in its group say now.

        A parameter whose grad is None is passed over: not moved, not decayed, no step counted.
        Gradients are left unchanged. All that is remembered of p is in the dict self.state[p], so
        that `state_dict` and `load_state_dict` take it along.
        """
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]  # a dict of its own, empty at first
                if not state:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                m, v, t = state["exp_avg"], state["exp_avg_sq"], state["step"]
                p.mul_(1 - group["lr"] * group["weight_decay"])
                m.mul_(beta1).add_((1 - beta1) * p.grad)
                v.mul_(beta2).add_((1 - beta2) * p.grad.square())
                root = (v / (1 - beta2**t)).sqrt() + group["eps"]
                p.sub_(group["lr"] * (m / (1 - beta1**t)) / root)


def cosine_schedule(
    step: int, *, peak: float, warmup: int, total: int, minimum: float = 0.0
) -> float:
    """Say what the learning rate is: a straight rise, then half a cosine down.

    It rises in equal parts from peak / (warmup + 1) at step 0 to peak at step `warmup`, and falls
    from there along half a wave of the cosine to the minimum at step `total`, where it stays.

    Args:
        step: number of the step, from 0 on.
        peak: the largest rate.
        warmup: number of steps before the peak; 0 starts at it. Less than total.
        total: number of steps of the whole training.
        minimum: the last rate.

    Source: Loshchilov and Hutter 2017, equation 5, without restarts; the rise is that of
    Goyal et al. 2017, section 2.2.
    """
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / (total - warmup))
    return minimum + (peak - minimum) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def clip_grad_norm(parameters: Iterable[Tensor], max_norm: float) -> Float[Tensor, ""]:
    """Shorten the gradient, if it is too long, without turning it.

    All gradients together count as one long vector. If its length is more than max_norm, each
    gradient is multiplied in place by max_norm / length; otherwise it stays as it is.

    Args:
        parameters: whose grad is looked at; any iterable, which may be walked through only once.
            Those whose grad is None are passed over.
        max_norm: the greatest length allowed, above 0.

    Returns:
        The length before, a tensor without axes; 0 if there is no gradient at all.

    Source: Pascanu et al. 2013, algorithm 1.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
    if norm > max_norm:
        for g in gradients:
            g.mul_(max_norm / norm)
    return norm


def train(
    model: nn.Module,
    batch: Callable[[], tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    steps: Iterable[int],
    max_norm: float = math.inf,
) -> dict[str, list[float]]:
    """Train a model that predicts the next token.

    Each step sets the learning rate of every group of the optimizer, draws one batch, computes the
    loss and its gradient (of this batch alone), clips the gradient, and steps. The model is in
    training mode.

    Args:
        model: turns inputs (B, T) into logits (B, T, V).
        batch: gives inputs and targets, each (B, T); called once a step. Targets of -100 are not
            graded.
        optimizer: of the model's parameters.
        schedule: learning rate by number of step.
        steps: the numbers of the steps, in order: range(0, 300), or range(150, 300) to go on.
        max_norm: greatest length of the gradient.

    Returns:
        For each step, as numbers: "loss", before the step; "norm", the gradient's length before
        clipping; "rate", the learning rate.
    """
    history: dict[str, list[float]] = {"loss": [], "norm": [], "rate": []}
    model.train()
    for step in steps:
        rate = schedule(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        inputs, targets = batch()
        loss = cross_entropy(model(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        norm = clip_grad_norm(model.parameters(), max_norm)
        optimizer.step()
        for key, value in (("loss", loss.item()), ("norm", norm.item()), ("rate", rate)):
            history[key].append(value)
    return history


def snapshot(
    model: nn.Module, optimizer: torch.optim.Optimizer, generator: torch.Generator, step: int
) -> dict[str, Any]:
    """Take down all that training depends on, so that it can go on later as if never interrupted.

    Args:
        model: being trained.
        optimizer: of its parameters.
        generator: that the batches are drawn from.
        step: number of steps done.

    Returns:
        A dict that goes on holding what is now, whatever happens to the model afterwards: "model"
        and "optimizer", their state dicts; "generator" and "random", the states of the generator
        and of torch's own random numbers, from which dropout draws; "step".
    """
    return {
        "model": copy.deepcopy(model.state_dict()),
        "optimizer": copy.deepcopy(optimizer.state_dict()),
        "generator": generator.get_state(),
        "random": torch.get_rng_state(),
        "step": step,
    }


def restore(
    saved: dict[str, Any],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    generator: torch.Generator,
) -> int:
    """Put everything back to where it was when a snapshot was taken.

    Args:
        saved: what `snapshot` returned, or `torch.load` of it. Left unchanged.
        model: of the same kind as then.
        optimizer: of its parameters.
        generator: that the batches are drawn from.

    Returns:
        The number of steps done by then.
    """
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(copy.deepcopy(saved["optimizer"]))
    generator.set_state(saved["generator"])
    torch.set_rng_state(saved["random"])
    return saved["step"]
