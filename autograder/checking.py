"""What a check is: an exercise's card, its groups of cases, and the mistakes it knows.

A module of `autograder.checks` declares one `Chapter` and its exercises::

    chapter = Chapter("04_self_attention", "Self-attention")
    check = chapter.check

    softmax = chapter.exercise(reference.softmax, difficulty=2, minutes=10,
                               forbidden=["torch.softmax"])

    @softmax.group("values", points=2, hint="Every row sums to 1.")
    def _(t: Trial):
        t.same(t.randn(3, 5), dim=-1)

    @softmax.mistake("You normalised over the first axis instead of `dim`.")
    def over_the_first_axis(scores, dim=-1):
        e = (scores - scores.amax(0, keepdim=True)).exp()
        return e / e.sum(0, keepdim=True)

The same code runs in a learner's kernel and in the grader. It may reach the learner's symbol only
through the `Trial`, so that the symbol may live in another process.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import inspect
import os
import pkgutil
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from autograder import reporting, syntax
from autograder.comparing import Mismatch, compare, describe, same, shape_text, show
from autograder.subjects import LearnerError, Local, cloned, detached, float_tensors, in_notebook

#: The grader sets this to the seed of the graded run, as hexadecimal digits.
SEED_VARIABLE = "AUTOGRADER_SEED"

#: How a call is written in messages: most calls are never spoken of, so it is made when needed.
Words = str | Callable[[], str]

MEDIA_TYPE = "application/vnd.attention-to-detail.check+json"


# ------------------------------------------------------------------------------- results


@dataclass
class Failure:
    """Why a group failed.

    Args:
        headline: one sentence.
        call: the call that shows it.
        details: label and text of further lines.
        line: number of the learner's line that raised, from 1, and its text.
        code: that line.
    """

    headline: str
    call: str = ""
    details: list[tuple[str, str]] = field(default_factory=list)
    line: int | None = None
    code: str = ""


@dataclass
class GroupResult:
    """A group's outcome."""

    title: str
    points: int
    passed: bool
    failure: Failure | None = None
    diagnosis: str = ""
    hint: str = ""


@dataclass
class Result:
    """What `check` found. Its `repr` is the points alone, which is what nbgrader reads.

    Args:
        status: "passed", "partial", "failed", "unfinished" (a stub is left) or "refused".
        message: what to do, for "unfinished" and "refused".
    """

    exercise: str
    number: str
    points: int
    earned: int
    status: str
    groups: list[GroupResult] = field(default_factory=list)
    message: str = ""
    printed: str = ""

    def as_dict(self) -> dict:
        """Plain data, for the grader's reports."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping) -> Result:
        """The inverse of `as_dict`."""
        groups = []
        for group in data["groups"]:
            failure = group["failure"] and Failure(**group["failure"])
            groups.append(GroupResult(**{**group, "failure": failure}))
        return cls(**{**data, "groups": groups})

    def __repr__(self) -> str:
        return str(self.earned)

    def __str__(self) -> str:
        return reporting.to_text(self)

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict:
        return {
            "text/plain": repr(self),
            "text/html": reporting.to_html(self),
            MEDIA_TYPE: self.as_dict(),
        }


# ------------------------------------------------------------------------------- a trial


class Stop(Exception):
    """The group cannot go on: what it would do next makes no sense after this failure."""


class Inputs:
    """A seeded source of inputs. Two of the same seed draw the same things."""

    def __init__(self, seed: int):
        self.seed = seed
        self.generator = torch.Generator().manual_seed(seed % 2**63)

    def randn(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers."""
        # Drawn in float64 whatever the dtype, so that a change of dtype keeps the numbers.
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def rand(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers from [0, 1)."""
        return torch.rand(shape, generator=self.generator, dtype=torch.float64).to(dtype)

    def randint(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """Whole numbers from [low, high)."""
        return torch.randint(low, high, tuple(shape), generator=self.generator)

    def integer(self, low: int, high: int) -> int:
        """One whole number from [low, high)."""
        return int(self.randint(low, high, ()))

    def randperm(self, n: int) -> Tensor:
        """A random order of 0..n-1."""
        return torch.randperm(n, generator=self.generator)

    def choice(self, items: Sequence) -> Any:
        """One of the items."""
        return items[self.integer(0, len(items))]


class Trial(Inputs):
    """One group's run against one subject: draws inputs, calls, compares, and keeps a transcript.

    Args:
        exercise: what is tested.
        subject: the implementation under test (see `autograder.subjects`).
        seed: of the inputs.
        graded: whether this is a graded run, which adds cases of its own.
        against: a transcript; the run ends where this one's departs from it.
    """

    def __init__(
        self,
        exercise: Exercise,
        subject: Local,
        seed: int,
        graded: bool,
        against: list[Any] | None = None,
    ):
        super().__init__(seed)
        self.exercise, self.subject, self.graded = exercise, subject, graded
        self.against = against
        # For what is random in the implementations (dropout, say): the learner's process may know
        # it, and must not learn from it what inputs are to come.
        digest = hashlib.sha256(f"noise of {seed}".encode()).digest()
        self.noise = int.from_bytes(digest[:7], "big")
        self.transcript: list[Any] = []
        self.failures: list[Failure] = []

    # ---- functions

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the learner's function. The result has the reference's structure, or the group ends.

        Use it for properties over several calls; use `same` where the reference gives the values.
        """
        found, expected, text = self._both(None, args, kwargs)
        self._structure(found, expected, text, self.exercise.axes)
        return found

    def same(self, *args: Any, tol: float = 1.0, dtype: bool = False, **kwargs: Any) -> Any:
        """Call the learner's function and require the reference's result.

        Args:
            tol: factor on the tolerance of the dtype.
            dtype: require the reference's exact dtype as well.
        """
        found, expected, text = self._both(None, args, kwargs)
        self._compare(found, expected, text, self.exercise.axes, tol=tol, dtype=dtype)
        return found

    def same_gradients(self, *args: Any, tol: float = 1.0, **kwargs: Any) -> None:
        """Require the reference's gradients with respect to every floating-point input."""
        self._gradients(None, args, kwargs, tol)

    def raises(self, error: type[Exception], *args: Any, naming: str = "", **kwargs: Any) -> None:
        """Require that the call raises `error` (or a subclass), its message holding `naming`.

        For a module, the call is that of its constructor.
        """

        def run() -> Any:
            if not isinstance(self.exercise.reference, type):
                return self._call(None, args, kwargs)
            self.subject.build(args, kwargs, self.noise)
            return "a module"  # which itself is no plain data

        self._raises(error, naming, self._text(args, kwargs), run)

    def unchanged(self, *args: Any, **kwargs: Any) -> None:
        """Require that the call leaves its inputs as they were."""
        before = [*args, *kwargs.values()]
        after = self._record(
            lambda: self.subject.mutates(args, kwargs, self.noise), self._text(args, kwargs)
        )
        names = self._names(args, kwargs)
        for name, old, new in zip(names, before, after):
            if not same(new, old):
                self.fail(
                    f"Your function changes its input `{name}` in place; the caller still needs it",
                    self._text(args, kwargs),
                )

    def no_graph(self, *args: Any, **kwargs: Any) -> None:
        """Require that the result needs no gradient, even where the inputs do."""
        text = self._text(args, kwargs)
        if self._record(lambda: self.subject.carries_graph(args, kwargs, self.noise), text):
            self.fail(
                "Your result still requires a gradient: it carries the graph that made it, or it "
                "is a leaf that would start the next one",
                text,
            )

    def drive(self, driver: str, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
        """Have a driver use the learner's symbol, and the reference.

        For what lives on objects that do not pass the door, such as an optimizer: see
        `autograder.driving`. Compare the two with `equal` and `require`.

        Args:
            driver: its name.

        Returns:
            What it found with the learner's symbol and with the reference.
        """
        text = f"{self.exercise.name}, used by the check"
        found = self._record(lambda: self.subject.drive(driver, args, kwargs, self.noise), text)
        return found, Local(self.exercise.reference).drive(driver, args, kwargs, self.noise)

    # ---- modules

    def model(self, *args: Any, load: bool = True, **kwargs: Any) -> Model:
        """Construct the learner's module and the reference's, and give both the same weights.

        Args:
            load: False leaves the learner's module as it was constructed.
        """
        return Model(self, args, kwargs, load)

    # ---- statements

    def equal(self, found: Any, expected: Any, statement: str, *, tol: float = 1.0) -> None:
        """Require that two results agree; `statement` says in a sentence what fails if not."""
        try:
            compare(found, expected, tol=tol)
        except Mismatch as mismatch:
            self.fail(statement, "", mismatch.details)

    def require(self, condition: bool, statement: str, **shown: Any) -> None:
        """Require a condition; `statement` says what is wrong where it does not hold."""
        if not condition:
            self.fail(statement, "", [(k, show(v)) for k, v in shown.items()])

    def fail(
        self, headline: str, call: Words = "", details: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Record a failure. The group goes on, for a longer transcript tells mistakes apart."""
        self.failures.append(Failure(headline, _said(call), list(details)))

    # ---- inner workings

    def _both(self, model: Model | None, args: tuple, kwargs: dict) -> tuple[Any, Any, Words]:
        text = self._text(args, kwargs, model)
        found = self._record(lambda: self._call(model, args, kwargs), text)
        return found, self._expected(model, args, kwargs), text

    def _call(self, model: Model | None, args: tuple, kwargs: dict) -> Any:
        if model is None:
            return self.subject.call(args, kwargs, self.noise)
        return self.subject.run(model.handle, args, kwargs, self.noise)

    def _expected(self, model: Model | None, args: tuple, kwargs: dict) -> Any:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.noise)
            target = self.exercise.reference if model is None else model.reference
            return detached(target(*cloned(args), **cloned(kwargs)))

    def _record(self, run: Callable[[], Any], text: Words) -> Any:
        found = self._attempt(run, text)
        self._note(found)
        return found

    def _attempt(self, run: Callable[[], Any], text: Words) -> Any:
        try:
            return run()
        except LearnerError as error:
            self.failures.append(_raised(error, text))
            self._note((error.kind, error.message))
            raise Stop from error

    def _note(self, entry: Any) -> None:
        place = len(self.transcript)
        self.transcript.append(entry)
        if self.against is not None and (
            place >= len(self.against) or not _same_entry(entry, self.against[place])
        ):
            raise Stop

    def _compare(self, found, expected, text, axes, *, tol=1.0, dtype=False):
        try:
            compare(found, expected, tol=tol, dtype=dtype, axes=axes)
        except Mismatch as mismatch:
            self.fail(_sentence(mismatch.headline), text, mismatch.details)
            if mismatch.structural:
                raise Stop from mismatch

    def _structure(self, found, expected, text, axes):
        try:
            compare(found, expected, axes=axes)
        except Mismatch as mismatch:
            if mismatch.structural:
                self.fail(_sentence(mismatch.headline), text, mismatch.details)
                raise Stop from mismatch

    def _raises(self, error, naming, text, run):
        try:
            found = run()
        except LearnerError as raised:
            self._note((raised.kind, raised.message))
            if _is_stub(_raised(raised, text)):
                self.failures.append(_raised(raised, text))
            elif raised.kind not in _subclass_names(error):
                self.fail(
                    f"This call should raise {error.__name__}, and raises {raised.kind}",
                    text,
                    [("message", raised.message)],
                )
            elif naming not in raised.message:
                self.fail(
                    f"The message of the {error.__name__} should name {naming!r}",
                    text,
                    [("message", raised.message)],
                )
        else:
            self._note(found)
            self.fail(
                f"This call should raise {error.__name__}, and returns a result",
                text,
                [("found", describe(found))],
            )

    def _gradients(self, model: Model | None, args: tuple, kwargs: dict, tol: float) -> None:
        found, expected, text = self._both(model, args, kwargs)
        self._structure(found, expected, text, self.exercise.axes if model is None else model.axes)
        outputs = float_tensors(expected)
        draw = Inputs(self.seed + 1)
        cotangents = [draw.randn(*o.shape, dtype=o.dtype) for o in outputs]
        judge = Local(self.exercise.reference)
        handle = None
        if model is not None:
            judge._objects[0], handle = model.reference, 0
        expected = judge.gradients(handle, args, kwargs, cotangents, self.noise)
        subject_handle = None if model is None else model.handle
        found = self._record(
            lambda: self.subject.gradients(subject_handle, args, kwargs, cotangents, self.noise),
            text,
        )
        names = self._names(args, kwargs, model)
        for key, want in expected.items():
            name = _gradient_name(key, names)
            have = found.get(key)
            if want is None:
                continue
            if have is None:
                self.fail(f"No gradient flows to {name}", text)
                continue
            try:
                compare(have, want, tol=tol)
            except Mismatch as mismatch:
                self.fail(f"The gradient of {name} is wrong", text, mismatch.details)

    def _names(self, args: tuple, kwargs: dict, model: Model | None = None) -> list[str]:
        names: list[str] = []
        target = self.exercise.reference if model is None else type(model.reference).forward
        parameters = list(_signature(target).parameters.values())
        for p in parameters if model is None else parameters[1:]:  # without self
            if p.kind is p.VAR_POSITIONAL:
                names += [p.name] * len(args)
            elif p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
                names.append(p.name)
        return names[: len(args)] + list(kwargs)

    def _text(self, args: tuple, kwargs: dict, model: Model | None = None) -> Words:
        return lambda: self._written(args, kwargs, model)

    def _written(self, args: tuple, kwargs: dict, model: Model | None) -> str:
        name = self.exercise.name if model is None else model.text
        parts = []
        for key, value in zip(self._names(args, kwargs, model), [*args, *kwargs.values()]):
            small = not isinstance(value, Tensor) or value.numel() <= 8
            parts.append(
                f"{key}={show(value) if small and not callable(value) else describe(value)}"
            )
        return f"{name}({', '.join(parts)})"


class Model:
    """A module under test beside the reference's, made by `Trial.model`.

    Args:
        trial: the trial it belongs to.
        args: positional arguments of the constructor.
        kwargs: arguments by name.
        load: whether the learner's module gets the reference's weights.
    """

    def __init__(self, trial: Trial, args: tuple, kwargs: dict, load: bool):
        self.trial = trial
        name = trial.exercise.name
        shown = [*map(show, args), *(f"{k}={show(v)}" for k, v in kwargs.items())]
        self.text = f"{name}({', '.join(shown)})"
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(trial.noise)
            self.reference: nn.Module = trial.exercise.reference(*cloned(args), **cloned(kwargs))
        self.handle = trial._attempt(
            lambda: trial.subject.build(args, kwargs, trial.noise), self.text
        )
        if load:
            self.load(self.reference.state_dict())

    def state(self) -> dict[str, Tensor]:
        """The learner's state dict."""
        return self.trial._record(lambda: self.trial.subject.state(self.handle), self.text)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Give both modules these weights; the learner's must have the names and shapes."""
        state = detached(dict(state))
        self.reference.load_state_dict(state)
        have = self.state()
        problems = [f"`{k}` is missing" for k in state if k not in have]
        problems += [f"`{k}` is not expected" for k in have if k not in state]
        problems += [
            f"`{k}` should have shape {shape_text(v.shape)}, and has {shape_text(have[k].shape)}"
            for k, v in state.items()
            if k in have and have[k].shape != v.shape
        ]
        if problems:
            self.trial.fail(
                "The parameters of your module are not those of the docstring: "
                + "; ".join(problems),
                self.text,
                [("expected", ", ".join(f"{k} {shape_text(v.shape)}" for k, v in state.items()))],
            )
            raise Stop
        self.trial._record(lambda: self.trial.subject.load(self.handle, state), self.text)

    def call(self, *args: Any, **kwargs: Any) -> Any:
        """Call the learner's module. The result has the reference's structure."""
        found, expected, text = self.trial._both(self, args, kwargs)
        self.trial._structure(found, expected, text, self.axes)
        return found

    def same(self, *args: Any, tol: float = 1.0, dtype: bool = False, **kwargs: Any) -> Any:
        """Call both modules and require the same result."""
        found, expected, text = self.trial._both(self, args, kwargs)
        self.trial._compare(found, expected, text, self.axes, tol=tol, dtype=dtype)
        return found

    def same_gradients(self, *args: Any, tol: float = 1.0, **kwargs: Any) -> None:
        """Require the reference's gradients for every floating-point input and parameter."""
        self.trial._gradients(self, args, kwargs, tol)

    def raises(self, error: type[Exception], *args: Any, naming: str = "", **kwargs: Any) -> None:
        """Require that the call raises `error`, its message holding `naming`."""
        text = self.trial._text(args, kwargs, self)
        self.trial._raises(error, naming, text, lambda: self.trial._call(self, args, kwargs))

    def same_attribute(self, name: str) -> Any:
        """Require an attribute that the docstring promises, with the reference's value."""
        found = self.trial._record(
            lambda: self.trial.subject.attribute(self.handle, name), f"{self.text}.{name}"
        )
        self.trial._compare(found, getattr(self.reference, name), f"{self.text}.{name}", ())
        return found

    def train(self, mode: bool = True) -> Model:
        """Put both modules in training mode (or, with False, evaluation mode)."""
        self.reference.train(mode)
        self.trial.subject.train(self.handle, mode)
        return self

    def eval(self) -> Model:
        """Put both modules in evaluation mode."""
        return self.train(False)

    @cached_property
    def axes(self) -> list:
        return _axes_of(type(self.reference).forward)


def _said(text: Words) -> str:
    return text if isinstance(text, str) else text()


_signature = functools.lru_cache(1_000)(inspect.signature)


def _raised(error: LearnerError, text: Words) -> Failure:
    where = f" in line {error.line} of your cell" if error.line else ""
    return Failure(
        f"Your code raised {error.kind}{where}",
        _said(text),
        [("message", error.message)] if error.message else [],
        error.line,
        error.code,
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _subclass_names(error: type[Exception]) -> set[str]:
    names, todo = set(), [error]
    while todo:
        names.add((cls := todo.pop()).__name__)
        todo += cls.__subclasses__()
    return names


def _gradient_name(key: str, names: Sequence[str]) -> str:
    kind, _, name = key.partition(" ")
    if kind == "input" and name.isdigit():
        name = names[int(name)]
    return f"the {kind} `{name}`"


def _axes_of(function: Callable) -> list[str] | list[list[str]]:
    """The names of the axes of what a function returns, from its jaxtyping annotation.

    One list for a tensor, a list of lists for a tuple of them; empty where nothing is known.
    """
    annotation = getattr(function, "__annotations__", {}).get("return")
    if isinstance(annotation, str):
        annotation = _evaluated(annotation, function)
    if typing.get_origin(annotation) is tuple:
        return [getattr(a, "dim_str", "").split() for a in typing.get_args(annotation)]
    return getattr(annotation, "dim_str", "").split()


def _evaluated(annotation: str, function: Callable) -> Any:
    try:
        return eval(annotation, function.__globals__)  # noqa: S307  our own reference's text
    except Exception:
        return None


# ----------------------------------------------------------------------------- exercises


@dataclass
class Group:
    """Cases that earn points together."""

    title: str
    points: int
    run: Callable[[Trial], None]
    hint: str = ""


@dataclass
class Mistake:
    """A plausible wrong answer, and the sentence that tells a learner what they did."""

    sentence: str
    answer: Callable

    @property
    def name(self) -> str:
        return self.answer.__name__


@dataclass
class _Run:
    transcript: list
    failures: list[Failure]
    printed: str


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Let torch compute on one thread, as a graded run does: for small tensors that is faster, and
    many times so on a busy machine.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Exercise:
    """One symbol that the learner writes: its card, its check and its known mistakes.

    Args:
        chapter: where it belongs.
        reference: the function or `nn.Module` class of `solutions` (or, for an exercise that no
            library would hold, of the check module itself).
        difficulty: 1 (read it off the page) to 5 (think for a while).
        minutes: how long it takes a learner who has read the chapter.
        forbidden: what may not be used, as dotted names; the operator `@` is given as itself.
        given: methods of a class that the learner is given whole.
        mend: name of the mistake whose body the learner is given to repair, in place of a stub.
    """

    def __init__(
        self,
        chapter: Chapter,
        reference: Callable,
        *,
        difficulty: int,
        minutes: int,
        forbidden: Sequence[str] = (),
        given: Sequence[str] = (),
        mend: str = "",
    ):
        if difficulty not in range(1, 6):
            raise ValueError(f"difficulty is 1 to 5, not {difficulty}")
        self.chapter, self.reference = chapter, reference
        self.name = reference.__name__
        self.difficulty, self.minutes = difficulty, minutes
        self.forbidden, self.given, self.mend = tuple(forbidden), tuple(given), mend
        self.groups: list[Group] = []
        self.mistakes: list[Mistake] = []
        self.alternatives: list[Callable] = []
        self.index = len(chapter.exercises) + 1

    def __repr__(self) -> str:
        return f"<Exercise {self.number} {self.name}>"

    @property
    def number(self) -> str:
        """Chapter and place in it: 04.2."""
        return f"{self.chapter.number}.{self.index}"

    @property
    def points(self) -> int:
        """The sum over the groups."""
        return sum(group.points for group in self.groups)

    @property
    def symbol(self) -> str:
        """Module and name, as a notebook source names it: `self_attention.softmax`."""
        return f"{self.reference.__module__.rsplit('.', 1)[-1]}.{self.name}"

    @cached_property
    def axes(self) -> list:
        """Names of the axes of a function's result, as far as its signature gives them."""
        return [] if isinstance(self.reference, type) else _axes_of(self.reference)

    # ---- declaring

    def group(self, title: str, points: int, hint: str = "") -> Callable:
        """Declare a group of cases: a function of a `Trial`.

        Args:
            title: what it looks at, in a few words.
            points: earned if every case passes.
            hint: shown when it fails and no known mistake explains it.
        """

        def declare(run: Callable[[Trial], None]) -> Callable[[Trial], None]:
            self.groups.append(Group(title, points, run, hint))
            return run

        return declare

    def mistake(self, sentence: str) -> Callable:
        """Declare a wrong implementation; `sentence` tells the learner what they did."""

        def declare(answer: Callable) -> Callable:
            self.mistakes.append(Mistake(sentence, answer))
            return answer

        return declare

    def alternative(self, answer: Callable) -> Callable:
        """Declare a correct solution in another style; a test proves that it passes in full."""
        self.alternatives.append(answer)
        return answer

    # ---- running

    @_one_thread()
    def check(
        self,
        subject: Local,
        *,
        seed: int | None = None,
        graded: bool = False,
        source: str | None = None,
        others: Sequence[str] = (),
    ) -> Result:
        """Test a subject and explain the outcome.

        Args:
            subject: the implementation under test.
            seed: of the inputs; None for the public ones.
            graded: run the further cases of a graded run as well.
            source: the text of the learner's cell, for what is forbidden.
            others: the texts of their other cells, where what they call may come from.
        """
        result = Result(self.name, self.number, self.points, 0, "failed")
        ruled_out = (self.forbidden, f"solutions.{self.chapter.name}")
        uses = syntax.forbidden_uses(source or "", *ruled_out)
        behind = (
            syntax.uses_behind(self.name, [source or "", *others], *ruled_out) if others else []
        )
        if uses or behind:
            result.status, result.message = "refused", self._refusal(uses, behind)
            return result
        runs = [self._run(group, subject, seed, graded) for group in self.groups]
        result.printed = subject.printed
        stub = next((f for run in runs for f in run.failures if _is_stub(f)), None)
        for group, run in zip(self.groups, runs):
            outcome = GroupResult(group.title, group.points, not run.failures)
            if run.failures:
                outcome.failure = run.failures[0]
                outcome.hint = group.hint
            result.groups.append(outcome)
            result.earned += group.points * outcome.passed
        if stub is not None:
            result.status, result.message = "unfinished", self._still_to_do(stub)
            return result
        if result.earned == result.points:
            result.status = "passed"
            return result
        result.status = "partial" if result.earned else "failed"
        self._diagnose(result, runs, seed, graded)
        return result

    @_one_thread()
    def is_solved_by(
        self, subject: Local, *, seed: int | None = None, graded: bool = False
    ) -> bool:
        """Whether a subject passes every group; one that does not is not explained.

        Args:
            subject, seed, graded: as for `check`.
        """
        return not any(self._run(g, subject, seed, graded).failures for g in self.groups)

    def _run(
        self,
        group: Group,
        subject: Local,
        seed: int | None,
        graded: bool,
        against: list[Any] | None = None,
    ) -> _Run:
        trial = Trial(self, subject, self._seed(group, seed), graded, against)
        try:
            group.run(trial)
        except Stop:
            pass
        except Exception as error:
            # After a failure the rest of a group may make no sense. Without one it is our fault,
            # unless the learner's result is odder than the check foresaw.
            if not trial.failures:
                trial.fail(
                    f"The check could not work with your result ({type(error).__name__}: {error})"
                )
        return _Run(trial.transcript, trial.failures, subject.printed)

    def _seed(self, group: Group, seed: int | None) -> int:
        base = "public" if seed is None else f"{seed:x}"
        text = f"{base}/{self.chapter.slug}/{self.name}/{group.title}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")

    def _diagnose(self, result: Result, runs: list[_Run], seed: int | None, graded: bool) -> None:
        """Name the mistake of each failed group: the known wrong answer with equal outputs."""
        failed = [i for i, group in enumerate(result.groups) if not group.passed]
        passed = [i for i, group in enumerate(result.groups) if group.passed]
        matches: dict[int, list[Mistake]] = {i: [] for i in failed}
        everywhere: dict[str, int] = {}

        def alike(subject: Local, i: int) -> _Run | None:
            found = runs[i].transcript
            run = self._run(self.groups[i], subject, seed, graded, found)
            return run if _alike(run.transcript, found) else None

        for mistake in self.mistakes:
            subject = Local(mistake.answer)
            explained = [i for i in failed if (run := alike(subject, i)) and run.failures]
            if not explained:
                continue  # most are not the one, and the other groups need not be run
            agreeing = sum(alike(subject, i) is not None for i in passed)
            everywhere[mistake.name] = len(explained) + agreeing
            for i in explained:
                matches[i].append(mistake)
        for i, candidates in matches.items():
            if candidates:
                best = max(candidates, key=lambda m: everywhere[m.name])
                if best.name != self.mend:  # the bug that was handed out is for them to find
                    result.groups[i].diagnosis = best.sentence

    def _refusal(self, uses: list[syntax.Use], behind: list[syntax.Use]) -> str:
        where = "Your cell uses" if uses else "A cell of yours that it builds on uses"
        found = "; ".join(f"`{use.name}` in line {use.line}" for use in uses or behind)
        return f"{where} what this exercise rules out: {found}. Write it yourself."

    def _still_to_do(self, stub: Failure) -> str:
        text = next((text for label, text in stub.details if label == "message"), "")
        what = text.partition(": ")[2] or f"write {self.name}"
        return (
            f"Still to do: {what}. Replace the line that raises NotImplementedError in the cell "
            "above, run that cell (Shift+Enter), then run this one again."
        )


def _is_stub(failure: Failure) -> bool:
    # torch raises NotImplementedError as well; a stub's names its exercise.
    return failure.headline.startswith("Your code raised NotImplementedError") and any(
        label == "message" and text.startswith("Exercise ") for label, text in failure.details
    )


def _alike(one: list, other: list) -> bool:
    return len(one) == len(other) and all(_same_entry(a, b) for a, b in zip(one, other))


def _same_entry(a: Any, b: Any) -> bool:
    try:
        return same(a, b)
    except TypeError:  # something that is no plain data, such as a module returned by mistake
        return type(a) is type(b)


class Chapter:
    """The exercises of one chapter, in order.

    Args:
        slug: number and name, `04_self_attention`: the name of the page and of the folder.
        title: as in the book.
    """

    def __init__(self, slug: str, title: str):
        self.slug, self.title = slug, title
        self.number, _, self.name = slug.partition("_")
        self.exercises: dict[str, Exercise] = {}

    def __reduce__(self) -> tuple:
        # In another process it is the chapter that is installed there.
        return find_chapter, (self.slug,)

    @property
    def points(self) -> int:
        """The sum over the exercises."""
        return sum(e.points for e in self.exercises.values())

    @property
    def minutes(self) -> int:
        """The sum over the exercises."""
        return sum(e.minutes for e in self.exercises.values())

    def exercise(self, reference: Callable, **card: Any) -> Exercise:
        """Declare the next exercise. See `Exercise` for the card."""
        exercise = Exercise(self, reference, **card)
        self.exercises[exercise.name] = exercise
        return exercise

    def check(self, answer: Callable) -> Result:
        """Check your work: `check(softmax)`. Says what passed, and what is wrong where it did not.

        Args:
            answer: the function or class that you wrote, itself, not a call of it.
        """
        seed = os.environ.get(SEED_VARIABLE)
        name = getattr(answer, "__name__", None)
        if name not in self.exercises:
            result = self._unknown(answer)
        elif answer is self.exercises[name].reference:
            result = self._refused(name, "This is the course's own solution. Check yours.")
        else:
            result = self.exercises[name].check(
                Local(answer),
                seed=int(seed, 16) if seed else None,
                graded=bool(seed),
                source=syntax.source_of(answer),
            )
        if not in_notebook():
            print(result)
        return result

    def _refused(self, name: str, message: str) -> Result:
        exercise = self.exercises[name]
        return Result(name, exercise.number, exercise.points, 0, "refused", message=message)

    def _unknown(self, answer: Any) -> Result:
        known = ", ".join(self.exercises)
        if isinstance(answer, type) or inspect.isroutine(answer):
            message = (
                f"No exercise of this chapter is called {answer.__name__}. There are: {known}."
            )
        else:
            message = (
                "check() takes the function or class itself, as in "
                f"check({next(iter(self.exercises))}), and was given {describe(answer)}."
            )
        return Result("check", self.number, 0, 0, "refused", message=message)


def chapters() -> Iterator[Chapter]:
    """Every chapter that has checks, in the order of the course."""
    from autograder import checks

    modules = [
        importlib.import_module(f"autograder.checks.{m.name}")
        for m in pkgutil.iter_modules(checks.__path__)
    ]
    yield from sorted((m.chapter for m in modules), key=lambda c: c.slug)


def find_chapter(text: str) -> Chapter:
    """The chapter meant by `4`, `04`, `04_self_attention` or `self_attention`.

    Raises:
        LookupError: there is none; the message lists those that there are.
    """
    found = list(chapters())
    for chapter in found:
        if text in (chapter.slug, chapter.name) or (
            text.isdigit() and int(text) == int(chapter.number)
        ):
            return chapter
    raise LookupError(f"no chapter {text!r}. There are: {', '.join(c.slug for c in found)}")
