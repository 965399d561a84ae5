"""The machinery of checks: what it compares, says, forbids and forgives."""

import linecache
import math
import textwrap

import numpy as np
import pytest
import torch
from torch import nn

from autograder import syntax
from autograder.checking import (
    MEDIA_TYPE,
    SEED_VARIABLE,
    Chapter,
    Result,
    chapters,
    find_chapter,
)
from autograder.comparing import Mismatch, compare
from autograder.subjects import LearnerError, Local
from tests.toy import double, make_chapter


def words(found, expected, **kwargs) -> str:
    """What `compare` says, headline and details; empty if it finds no difference."""
    try:
        compare(found, expected, **kwargs)
    except Mismatch as m:
        return " | ".join([m.headline, *(f"{label}: {text}" for label, text in m.details)])
    return ""


def typed(code: str, name: str):
    """Define something the way a notebook cell does, so that its lines can be found."""
    filename = f"<cell {name}>"
    code = textwrap.dedent(code).lstrip()
    linecache.cache[filename] = (len(code), None, code.splitlines(True), filename)
    namespace = {"torch": torch, "nn": nn}
    exec(compile(code, filename, "exec"), namespace)
    return namespace[name]


# ---------------------------------------------------------------------------- comparing


@pytest.mark.parametrize(
    "found, expected",
    [
        (torch.ones(2), torch.ones(2)),
        (torch.ones(2).double(), torch.ones(2)),  # a float64 answer is an answer
        (torch.ones(2) + 1e-6, torch.ones(2)),
        (torch.tensor([math.nan, math.inf]), torch.tensor([math.nan, math.inf])),
        (torch.ones(3, 2).t(), torch.ones(2, 3)),  # not contiguous
        (torch.ones(1).expand(4), torch.ones(4)),
        (torch.tensor(3), 3),
        (torch.tensor(0.5), 0.5),
        (np.float64(0.5), 0.5),
        (3.0, 3),
        ([1, 2], (1, 2)),
        (torch.Size([1, 2]), (1, 2)),
        ({"a": [torch.zeros(1)]}, {"a": (torch.zeros(1),)}),
        (True, True),
        (None, None),
    ],
)
def test_what_is_right_is_accepted(found, expected):
    assert words(found, expected) == ""


@pytest.mark.parametrize(
    "found, expected, said",
    [
        (None, torch.ones(2), "did you forget to return it?"),
        (torch.ones(3, 2), torch.ones(2, 3), "axis 0 and axis 1 are swapped"),
        (torch.ones(2, 4), torch.ones(2, 3), "axis 1 should be 3, and is 4"),
        (torch.ones(2, 3, 1), torch.ones(2, 3), "2 axes expected, 3 found"),
        (torch.ones(2, 3), torch.ones(3), "1 axis expected, 2 found"),
        (torch.ones(2).long(), torch.ones(2), "should hold floating-point values"),
        (torch.ones(2), torch.ones(2).bool(), "should hold boolean values"),
        (torch.tensor([1.0, math.nan]), torch.ones(2), "holds NaN"),
        (torch.tensor([1.0, math.inf]), torch.ones(2), "holds an infinite value"),
        (torch.tensor([1.0, 2.0]), torch.ones(2), "expected at [1]: 1 | found at [1]: 2"),
        (torch.tensor([1.0, 2.0]), torch.ones(2), "1 of 2 elements, by up to 1"),
        (torch.ones(2) + 1e-3, torch.ones(2), "wrong values"),
        (torch.ones(2, dtype=torch.float64) + 1e-6, torch.ones(2, dtype=torch.float64), "wrong"),
        (1.0, torch.ones(()), "should be a tensor"),
        ("3", 3, "should be a number, and is a string"),
        (True, 1, "should be a number, and is True or False"),
        (4, 3, "wrong number"),
        (1, True, "should be True or False"),
        ([1], [1, 2], "should have 2 items, and has 1"),
        (5, [1, 2], "should be a list"),
        ({"a": 1}, {"b": 1}, "missing: 'b' | not expected: 'a'"),
        ({"a": 2}, {"a": 1}, "Item 'a' of the result"),
        ([1, 3], [1, 2], "Item 1 of the result"),
        (None, 3, "did you forget to return it?"),
        ("b", "a", "differs"),
    ],
)
def test_what_is_wrong_is_named(found, expected, said):
    assert said.lower() in words(found, expected).lower()


def test_axes_are_called_by_their_names():
    said = words(torch.ones(2, 5, 4), torch.ones(2, 5, 3), axes=["*batch", "T", "K"])
    assert "axis 2 (K) should be 3, and is 4" in said
    assert "expected shape: (2, T=5, K=3)" in said
    pair = (torch.ones(2), torch.ones(3))
    assert "axis 0 (S)" in words((torch.ones(2), torch.ones(4)), pair, axes=[["T"], ["S"]])


def test_the_tolerance_is_that_of_the_coarser_dtype_and_can_be_widened():
    exact = torch.ones(2, dtype=torch.float64)
    assert words(exact + 1e-6, exact)
    assert not words((exact + 1e-6).float(), exact)
    assert words(torch.ones(2) + 1e-3, torch.ones(2))
    assert not words(torch.ones(2) + 1e-3, torch.ones(2), tol=100)


def test_the_dtype_counts_where_it_is_asked_for():
    assert "wrong dtype" in words(torch.ones(2).double(), torch.ones(2), dtype=True)


# ------------------------------------------------------------------------------ results


def check(answer, name="double", **kwargs) -> Result:
    return make_chapter().exercises[name].check(Local(answer), **kwargs)


def test_points_are_earned_group_by_group():
    def spoils_its_input(x):
        x += x.clone()
        return x

    result = check(spoils_its_input)
    assert (result.earned, result.points, result.status) == (2, 3, "partial")
    assert "changes its input `x` in place" in str(result)


def test_an_error_of_torchs_own_is_not_taken_for_a_stub():
    def double(x):
        return x & x

    result = check(double)
    assert result.status == "failed" and "NotImplementedError" in str(result)


def test_a_known_mistake_is_told_once():
    result = check(lambda x: x**2)
    assert str(result).count("You squared it.") == 1
    assert result.groups[0].hint == "Add it to itself."
    assert "Hint" not in str(result), "the diagnosis takes the hint's place"


def test_an_unknown_mistake_gets_the_hint():
    assert "Hint: Add it to itself." in str(check(lambda x: 3 * x))


def test_an_exception_shows_the_learners_line_not_ours():
    answer = typed(
        """
        def double(x):
            y = x + x
            return y @ torch.ones(7)
        """,
        "double",
    )
    failure = check(answer).groups[0].failure
    assert failure.headline == "Your code raised RuntimeError in line 3 of your cell"
    assert failure.code == "return y @ torch.ones(7)"
    assert "autograder" not in str(check(answer))


def test_the_call_that_fails_is_shown_with_its_inputs():
    failure = check(lambda x: 3 * x).groups[0].failure
    assert failure.call.startswith("double(x=[[")


def test_prints_are_shown_and_cost_nothing():
    def chatty(x):
        print("shape", tuple(x.shape))
        return x + x

    result = check(chatty)
    assert result.status == "passed"
    assert "Your code printed:" in str(result) and "shape (2, 3)" in str(result)


@pytest.mark.filterwarnings("ignore:careful")
def test_warnings_and_giant_prints_are_harmless(capfd):
    import sys
    import warnings

    def noisy(x):
        warnings.warn("careful", stacklevel=1)  # on stderr, for which nbgrader takes all points
        print("x" * 100_000)
        print("to stderr", file=sys.stderr)
        return x + x

    result = check(noisy)
    assert result.status == "passed" and len(result.printed) <= 4_000
    assert capfd.readouterr().err == ""


def test_exit_is_an_error_like_any_other():
    assert "SystemExit" in str(check(lambda x: exit(1)))


def test_the_learner_cannot_spoil_the_random_numbers_or_the_inputs():
    def meddling(x):
        torch.manual_seed(0)
        result = x + x
        x.zero_()
        return result

    assert check(meddling).groups[0].passed


def test_a_module_with_other_parameters_is_told_which():
    class Scale(nn.Module):
        def __init__(self, start=1.0):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([start]))

        def forward(self, x):
            return x * self.scale

    text = str(check(Scale, "Scale"))
    assert "`factor` is missing" in text and "`scale` is not expected" in text


def test_a_module_written_as_a_plain_class_is_explained():
    class Scale:
        def __init__(self, start=1.0):
            self.factor = start

    assert "Scale is not an nn.Module" in str(check(Scale, "Scale"))


def test_a_module_can_be_required_to_refuse_its_arguments():
    class Positive(nn.Module):
        """A module that takes positive numbers alone."""

        def __init__(self, start):
            super().__init__()
            if start <= 0:
                raise ValueError(f"start={start} is not positive")

    class Anything(Positive):
        def __init__(self, start):
            nn.Module.__init__(self)

    exercise = Chapter("90_toy", "A toy").exercise(Positive, difficulty=1, minutes=5)

    @exercise.group("refused", points=2)
    def _(t):
        t.raises(ValueError, -3, naming="-3")

    @exercise.mistake("You take any number.")
    def _takes_anything(start):
        return Anything(start)

    assert exercise.check(Local(Positive)).status == "passed"
    result = exercise.check(Local(Anything))
    assert result.groups[0].failure.headline == (
        "This call should raise ValueError, and returns a result"
    )
    assert result.groups[0].diagnosis == "You take any number."


def test_every_result_survives_the_way_through_a_notebook():
    for answer in (double, lambda x: x**2, lambda x: 1 / 0, lambda x: None):
        result = check(answer)
        assert Result.from_dict(result.as_dict()) == result


def test_html_escapes_what_the_learner_wrote():
    def wrong(x):
        raise ValueError("<script>alert(1)</script>")

    html = check(wrong)._repr_mimebundle_()["text/html"]
    assert "<script>" not in html and "&lt;script&gt;" in html


def test_the_plain_text_is_the_number_that_nbgrader_reads():
    bundle = check(lambda x: x + x)._repr_mimebundle_()
    assert bundle["text/plain"] == "3"
    assert bundle[MEDIA_TYPE]["earned"] == 3


# -------------------------------------------------------------------------------- check


def test_check_finds_the_exercise_by_name(capsys):
    chapter = make_chapter()
    answer = typed("def double(x):\n    return x + x", "double")
    assert chapter.check(answer).status == "passed"
    assert "All correct" in capsys.readouterr().out


@pytest.mark.parametrize(
    "wrong, said",
    [
        (torch.ones(2), "takes the function or class itself"),
        (None, "takes the function or class itself"),
        (print, "No exercise of this chapter is called print"),
        (double, "the course's own solution"),
    ],
)
def test_check_explains_what_it_wants(wrong, said):
    result = make_chapter().check(wrong)
    assert said in str(result) and repr(result) == "0"


def test_a_forbidden_call_is_refused_with_its_line():
    answer = typed("def double(x):\n    return torch.add(x, x)", "double")
    result = make_chapter().check(answer)
    assert result.status == "refused" and repr(result) == "0"
    assert "`torch.add` in line 2" in str(result)


def test_a_graded_run_has_other_inputs_and_further_cases(monkeypatch):
    seen = []

    def double(x):
        seen.append(x)
        return x + x

    chapter = make_chapter()
    chapter.check(double)
    public = len(seen)
    monkeypatch.setenv(SEED_VARIABLE, "abc123")
    chapter.check(double)
    assert len(seen) == 2 * public + 1
    assert not torch.equal(seen[0], seen[public])


@pytest.mark.parametrize(
    "code, found",
    [
        ("y = torch.softmax(x, 0)", ["torch.softmax"]),
        ("y = F.softmax(x, 0)", ["F.softmax"]),
        ("y = x.softmax(0)", ["x.softmax"]),
        ("from torch import softmax as s", ["torch.softmax"]),
        ("import torch.softmax", ["torch.softmax"]),
        ("f = getattr(torch, 'softmax')", ["getattr(torch, 'softmax')"]),
        ("from solutions.self_attention import attention", ["solutions.self_attention.attention"]),
        ("import solutions.self_attention as s", ["solutions.self_attention"]),
        ("from solutions import self_attention", ["solutions.self_attention"]),
        ("def softmax(x): ...\ny = softmax(x)", []),
        ("'torch.softmax'  # torch.softmax", []),
        ("from solutions.start import batched_outer", []),
        ("this is no Python", []),
        ("y = a @ b", []),
    ],
)
def test_forbidden_names_are_found_however_they_are_reached(code, found):
    uses = syntax.forbidden_uses(code, ["torch.softmax"], "solutions.self_attention")
    assert [use.name for use in uses] == found


def test_an_operator_can_be_forbidden():
    assert [u.name for u in syntax.forbidden_uses("y = a @ b.T", ["@"])] == ["a @ b.T"]


NORM = "class Norm(nn.Module):\n    def __init__(self, x):\n        self.x = make(x)"


@pytest.mark.parametrize(
    "cell",
    [
        "make = torch.softmax",
        "def make(x):\n    return helper(x)\n\nhelper = F.softmax",
        "def setup():\n    global make\n    make = torch.softmax\nsetup()",
        "Norm.forward = lambda self, x: x.softmax(0)",
        "def patch():\n    Norm.forward = torch.softmax\npatch()",
        "from somewhere import *\nfrom torch import softmax as make",
        "if True:\n    make = torch.softmax",
    ],
)
def test_a_helper_in_another_cell_is_part_of_the_answer(cell):
    assert syntax.uses_behind("Norm", [NORM, cell], ["torch.softmax"])


@pytest.mark.parametrize(
    "cell",
    [
        # A comparison, by a name that the answer knows only as a local one.
        "x = torch.softmax(torch.ones(3), 0)",
        "class Other(nn.Module):\n    def __init__(self):\n        self.x = torch.softmax",
        "def other(self):\n    make = torch.softmax\n    return make",
        "class Other:\n    make = torch.softmax",
        "expected = [torch.softmax(make, 0) for make in rows]",
        "torch.allclose(Norm(1).x, torch.softmax(a, 0))",
        "def make(",  # cannot be read, so defines nothing
    ],
)
def test_a_cell_that_the_answer_does_not_use_may_use_what_is_ruled_out(cell):
    assert not syntax.uses_behind("Norm", [NORM, cell], ["torch.softmax"])


@pytest.mark.parametrize("name", ["0", "00", "start", "00_start"])
def test_a_chapter_is_found_by_any_of_its_names(name):
    assert find_chapter(name).slug == "00_start"


def test_an_unknown_chapter_is_named_with_those_that_exist():
    with pytest.raises(LookupError, match="no chapter '77'.*00_start"):
        find_chapter("77")


def test_a_card_is_checked():
    with pytest.raises(ValueError, match="difficulty is 1 to 5, not 9"):
        Chapter("91_x", "X").exercise(double, difficulty=9, minutes=1)


# ------------------------------------------------------------------------------ drivers


def test_a_driver_uses_what_does_not_pass_the_door():
    gradients = [[torch.ones(2)], [torch.ones(2)]]
    found = Local(torch.optim.SGD).drive(
        "optimizer_run", ([torch.zeros(2)], gradients, {"lr": 0.5}), {"rates": [0.5, 2.0]}
    )
    first, second = (step[0].tolist() for step in found["parameters"])
    assert (first, second, found["leaves"]) == ([-0.5, -0.5], [-2.5, -2.5], True)


def test_an_error_in_a_driver_is_the_learners():
    with pytest.raises(LearnerError, match="no attribute 'step'"):
        Local(lambda parameters: "no optimizer").drive("optimizer_run", ([], [[]], {}), {})


def test_a_driven_symbol_is_compared_with_the_reference_and_its_mistakes_are_known():
    exercise = next(c for c in chapters() if c.name == "training").exercises["clip_grad_norm"]
    wrong = exercise.check(Local(lambda parameters, max_norm: torch.zeros(())))
    assert wrong.status in ("partial", "failed") and "length that you return" in str(wrong)
