"""No check can be passed by a slightly wrong reference.

Each reference is changed in every small way that `tests.mutants` knows (an operator, a constant, a
dropped call or argument, a swapped pair, a negated condition, a deleted line); the check must
notice. A change that makes no difference in what the docstring promises is listed here.
"""

import pytest

from autograder.checking import chapters
from autograder.subjects import Local
from tests.mutants import mutants

BOTH = "shifted, scaled = norm(x + 0.5 * amounts), norm(x * (1 + 0.5 * amounts))"
SHIFTED, SCALED = (f"torch.allclose({name}, before, atol=1e-6)," for name in ("shifted", "scaled"))

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
    "LayerNorm": {
        f"self.{name} = nn.Parameter(torch.{kind}(d_model, device=device, dtype=dtype))"
        f" -> self.{name} = nn.Parameter(torch.{kind}(d_model, dtype=dtype))"
        for name, kind in (("weight", "ones"), ("bias", "zeros"))
    },
    "RMSNorm": {
        "self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))"
        " -> self.weight = nn.Parameter(torch.ones(d_model, dtype=dtype))"
    },
    # Any amounts and factors will do that are clearly not 0 and 1, and a slightly other tolerance.
    "invariances": {
        f"{SHIFTED} -> return ({other}, torch.allclose(scaled, before, atol=1e-06))"
        for other in (
            "torch.allclose(shifted, before)",
            "torch.allclose(before, shifted, atol=1e-06)",
            "torch.allclose(shifted, before, atol=2e-06)",
        )
    }
    | {
        f"{SCALED} -> return (torch.allclose(shifted, before, atol=1e-06), {other})"
        for other in (
            "torch.allclose(scaled, before)",
            "torch.allclose(before, scaled, atol=1e-06)",
            "torch.allclose(scaled, before, atol=2e-06)",
        )
    }
    | {
        f"{BOTH} -> shifted, scaled = (norm({plus}), norm({times}))"
        for plus, times in (
            ("x - 0.5 * amounts", "x * (1 + 0.5 * amounts)"),
            ("x + 0.5 / amounts", "x * (1 + 0.5 * amounts)"),
            ("x + 1.0 * amounts", "x * (1 + 0.5 * amounts)"),
            ("x + -0.5 * amounts", "x * (1 + 0.5 * amounts)"),
            ("x + 0.5 * amounts", "x / (1 + 0.5 * amounts)"),
            ("x + 0.5 * amounts", "x * (2 + 0.5 * amounts)"),
            ("x + 0.5 * amounts", "x * (0 + 0.5 * amounts)"),
            ("x + 0.5 * amounts", "x * (1 + 0.5 / amounts)"),
            ("x + 0.5 * amounts", "x * (1 + 1.0 * amounts)"),
        )
    },
    "visible_keys": {
        "return [min(i + 1, length) for i in range(t)]"
        " -> return [min(length, i + 1) for i in range(t)]"
    },
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
