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

RECTANGLE = "causal_mask(stop - start, end"
APART = "not torch.allclose(attend(q, k, v, chunk)"
ANY = f"return any(({APART}"
SIZES = "for chunk in range(1, q.shape[1]"
DX, DY, SQUARES = "((x - x.mean())", "(y - y.mean())", "(x - x.mean()).square().sum()"
MEDIANS = "[statistics.median(run) for run in runs]"

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
    # The order of the arguments of min and max.
    "attention_memory": {
        "rows = t if chunk is None else min(chunk, t)"
        " -> rows = t if chunk is None else min(t, chunk)"
    },
    "largest_context": {
        "return whole if chunk is None else max(whole, numbers // chunk)"
        " -> return whole if chunk is None else max(numbers // chunk, whole)"
    },
    "chunked_attention": {
        "stop = min(start + chunk, t) -> stop = min(t, start + chunk)",
        "triangle = causal_mask(stop - start, end, device=q.device)"
        " -> triangle = causal_mask(stop - start, end)",
    },
    "chunked_entropy": {
        "stop = min(start + chunk, t) -> stop = min(t, start + chunk)",
        f"weights = masked_softmax(scores, {RECTANGLE}, device=q.device))"
        f" -> weights = masked_softmax(scores, {RECTANGLE}))",
    },
    # All chunks may be compared with any of them, and rounding is smaller than a slip.
    "depends_on_chunk": {
        "whole = attend(q, k, v, q.shape[1]) -> whole = attend(q, k, v, q.shape[2])",
        "whole = attend(q, k, v, q.shape[1]) -> whole = attend(q, k, v, q.shape[0])",
        f"{APART}, whole, atol=1e-6) -> {ANY}, whole) {SIZES} + 2)))",
        f"{APART}, whole, atol=1e-6) -> return any((not torch.allclose(whole, "
        f"attend(q, k, v, chunk), atol=1e-06) {SIZES} + 2)))",
        f"{APART}, whole, atol=1e-6) -> {ANY}, whole, atol=2e-06) {SIZES} + 2)))",
        f"for chunk in range(1, q.shape[1] + 2) -> {ANY}, whole, atol=1e-06) {SIZES} + 3)))",
    },
    # The deviations of either side add up to zero; digits and types are not promised.
    "fit_exponent": {
        f"exponent = {DX} * {DY}).sum() / {SQUARES} -> exponent = {DX} * (y + y.mean())).sum() / "
        f"{SQUARES}",
        f"exponent = {DX} * {DY}).sum() / {SQUARES} -> exponent = ((x + x.mean()) * {DY}).sum() / "
        f"{SQUARES}",
        "return exponent.item(), factor.item() -> return (exponent, factor.item())",
        "return exponent.item(), factor.item() -> return (exponent.item(), factor)",
        "x = torch.tensor(lengths, dtype=torch.float64).log() -> x = torch.tensor(lengths).log()",
        f"y = torch.tensor({MEDIANS}, dtype=torch.float64).log()"
        f" -> y = torch.tensor({MEDIANS}).log()",
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
