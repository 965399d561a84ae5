"""No check can be passed by a slightly wrong reference.

Each reference is changed in every small way that `tests.mutants` knows (an operator, a constant, a
dropped call or argument, a swapped pair, a negated condition, a deleted line); the check must
notice. A change that makes no difference in what the docstring promises is listed here.
"""

import pytest

from autograder.checking import chapters
from autograder.subjects import Local
from tests.mutants import mutants

CLOSE = "if not torch.allclose(attend(changed)[:, :t], before[:, :t], atol=1e-6):"

#: Changes that leave the promised behaviour as it is, by exercise.
EQUIVALENT: dict[str, set[str]] = {
    # It sets a flag on the caller's tensor, whose numbers stay.
    "gradient_step": {
        "leaf = point.detach().requires_grad_()  # a start of its own for the graph"
        " -> leaf = point.requires_grad_()"
    },
    # Reverse alphabetical order, too, puts a longer name before its beginning.
    "encode": {
        "names = sorted(specials, key=len, reverse=True) -> names = sorted(specials, reverse=True)"
    },
    # The device shows only where there are two.
    "causal_mask": {"keys = torch.arange(s, device=device) -> keys = torch.arange(s)"},
    "padding_mask": {
        "keys = torch.arange(size, device=lengths.device) -> keys = torch.arange(size)"
    },
    # Any change will do that is large enough to be seen, and small rounding may or may not count.
    "leaks_future": {
        "for t in range(1, x.shape[1]): -> for t in range(0, x.shape[1]):",
        "changed[:, t:] += 1.0 -> changed[:, t:] += 2.0",
        "changed[:, t:] += 1.0 -> changed[:, t:] += -1.0",
        f"{CLOSE} -> if not torch.allclose(attend(changed)[:, :t], before[:, :t]):",
        f"{CLOSE} -> if not torch.allclose(before[:, :t], attend(changed)[:, :t], atol=1e-06):",
        f"{CLOSE} -> if not torch.allclose(attend(changed)[:, :t], before[:, :t], atol=2e-06):",
    },
    "visible_keys": {
        "return [min(i + 1, length) for i in range(t)]"
        " -> return [min(length, i + 1) for i in range(t)]"
    },
    # The boolean index has left two axes: 1 is the last.
    "cross_entropy": {
        "shifted = logits - logits.amax(-1, keepdim=True)"
        " -> shifted = logits - logits.amax(1, keepdim=True)",
        "log_p = shifted - shifted.exp().sum(-1, keepdim=True).log()  # (N, V)"
        " -> log_p = shifted - shifted.exp().sum(1, keepdim=True).log()",
        "return -log_p.gather(-1, targets[:, None]).mean()"
        " -> return -log_p.gather(1, targets[:, None]).mean()",
    },
    # Both formulas give the peak at step `warmup`.
    "cosine_schedule": {
        "step: int, *, peak: float, warmup: int, total: int, minimum: float = 0.0"
        " -> def cosine_schedule(step: int, *, peak: float, warmup: int, total: int, minimum:"
        " float=-0.0) -> float:",
        "if step < warmup: -> if step <= warmup:",
        "progress = min(1.0, (step - warmup) / (total - warmup))"
        " -> progress = min((step - warmup) / (total - warmup), 1.0)",
    },
    # At a length of max_norm itself the factor is 1.
    "clip_grad_norm": {"if norm > max_norm: -> if norm >= max_norm:"},
}

EXERCISES = [e for c in chapters() for e in c.exercises.values()]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.chapter.slug}-{e.name}")
def test_every_small_change_of_the_reference_is_noticed(exercise):
    survivors = {
        change
        for change, answer in mutants(exercise)
        if answer is not None
        and exercise.check(Local(answer), seed=1, graded=True).earned == exercise.points
    }
    assert survivors - EQUIVALENT.get(exercise.name, set()) == set()


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: f"{e.chapter.slug}-{e.name}")
def test_no_listed_change_is_out_of_date(exercise):
    changes = {change for change, _ in mutants(exercise)}
    assert EQUIVALENT.get(exercise.name, set()) <= changes
