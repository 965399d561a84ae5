"""Grade one submission: graft it onto the release, run it in a sandbox, check it, show it.

An `Engine` is what a process that grades keeps from one submission to the next: a warm process to
fork sessions from, the modules that notebooks may import, the exporter of feedback. It neither
knows the class's secret nor touches the gradebook: it is given a `Task` and gives back an
`Outcome`, and both are plain data, so that it may run on another machine.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.util
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

from autograder import grafting, syntax
from autograder.checking import Chapter, Result, chapters
from autograder.executing import check_output, in_kernel, outputs_of
from autograder.sandbox import box
from autograder.sandbox.remote import RemoteSubject
from autograder.sandbox.session import Limits, Session, imported, stage
from autograder.sandbox.warming import Warm
from autograder.subjects import LearnerError

LIMITS = Limits(call=5, cell=30, exercise=20, notebook=120)
OUTPUT = 200_000  # characters that are kept of what a whole notebook prints


class EngineError(Exception):
    """This machine cannot grade; the message is one line that says why and what to do."""


@dataclass(frozen=True)
class Task:
    """A submission to be graded.

    Args:
        chapter: which assignment.
        student: whose.
        data: the submitted file, whatever it holds; None if there is none.
        release: nbgrader's release version of the notebook, as JSON.
        seed: of the graded run's inputs, as hexadecimal digits.
        odd: what is known to be wrong with the submission already.
        about: goes into the notebook's metadata, for the feedback.
    """

    chapter: Chapter
    student: str
    data: bytes | None = field(repr=False)
    release: str = field(repr=False)
    seed: str = field(repr=False)
    odd: tuple[str, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Outcome:
    """What came of a task.

    Args:
        notebook: the release with the learner's cells in it, run, with what the checks say.
        odd: sentences on what was wrong with the submission.
        fault: what went wrong on the grader's side; such an outcome is not to be recorded.
        seconds: how long each phase took.
    """

    notebook: NotebookNode | None
    odd: list[str]
    fault: str = ""
    seconds: dict[str, float] = field(default_factory=dict)


class Engine:
    """Grades submissions, one at a time. Use it as a context manager.

    Args:
        sandbox: False runs them in a kernel with the rights of whoever grades.
        hidden: folders that no session may see, wherever they lie.
        limits: what a submission may use.
        warm: a warm process that was started ahead; by default one of its own.

    Raises:
        EngineError: submissions cannot be sandboxed here.
    """

    def __init__(
        self,
        sandbox: bool = True,
        hidden: Sequence[Path] = (),
        limits: Limits = LIMITS,
        warm: Warm | None = None,
    ):
        self.sandbox, self.hidden, self.limits = sandbox, tuple(hidden), limits
        self._lock = threading.Lock()  # torch's random numbers are one sequence for all threads
        self._warm = warm or Warm()
        self._warm.hidden = self.hidden
        self._folder: Path | None = None
        self._modules: dict[str, Path] = {}
        self._exporter: Any = None

    def __enter__(self) -> Engine:
        if self.sandbox:
            self._warm.start()  # it imports while we look
            if problem := box.available():
                self._warm.close()
                raise EngineError(problem)
        return self

    def __exit__(self, *_: object) -> None:
        self._warm.close()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder, self._modules = None, {}

    # ---- grading

    def grade(self, task: Task) -> Outcome:
        """Run and check a submission. Never raises for what is in it."""
        with self._lock:
            return self._grade(task)

    def _grade(self, task: Task) -> Outcome:
        outcome = Outcome(None, [*task.odd])
        with _timed(outcome, "graft"):
            released = nbformat.reads(task.release, as_version=4)
            graft = grafting.graft(task.data, released)
        outcome.notebook = graft.notebook
        outcome.odd += graft.oddities
        if self.sandbox:
            self._run_in_sandbox(task, graft.notebook, outcome)
        else:
            with _timed(outcome, "run"):
                outcome.odd += in_kernel(graft.notebook, task.seed)
        graft.notebook.metadata["grading"] = dict(task.about) | {"odd": outcome.odd}
        return outcome

    def _run_in_sandbox(self, task: Task, notebook: NotebookNode, outcome: Outcome) -> None:
        try:
            with _timed(outcome, "start"):
                folder, stubs = self._given(task)
                session = self._warm.session(folder, stubs, self.limits)
            with session, _timed(outcome, "run"):
                _Run(task, notebook, session, outcome).all()
            fault = session.fault
        except Exception as error:
            # Whatever it is: it is not the learner's, whose errors are data.
            fault = error
        if fault is not None:
            outcome.fault = f"{type(fault).__name__}: {fault}".splitlines()[0][:300]

    def _given(self, task: Task) -> tuple[Path, list[str]]:
        """What a notebook may import: a folder of modules, and names of checks that do nothing."""
        chapter = task.chapter
        stubs = {m for m in _imports(task.release) if m.split(".")[0] in ("autograder", "tests")}
        stubs |= {f"autograder.checks.{c.name}" for c in chapters()}
        if chapter.slug not in self._modules:
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="course-"))
                self._folder.chmod(0o755)  # the boxes' users look into it
            names, own = importable(chapter)
            self._modules[chapter.slug] = stage(_library(), names, self._folder / chapter.slug, own)
        return self._modules[chapter.slug], sorted(stubs)

    # ---- feedback

    def feedback(self, notebook: NotebookNode, marks: Mapping[str, Any]) -> str:
        """The page that a student gets back.

        Args:
            notebook: from an outcome.
            marks: from `recording.marks`.
        """
        from autograder.recording import render  # nbconvert's exporters are slow to import

        return render(notebook, marks)


@contextlib.contextmanager
def _timed(outcome: Outcome, phase: str) -> Iterator[None]:
    start = time.perf_counter()
    try:
        yield
    finally:
        spent = time.perf_counter() - start
        outcome.seconds[phase] = outcome.seconds.get(phase, 0.0) + spent


@functools.lru_cache(100)
def _imports(release: str) -> set[str]:
    """The modules that the code of a notebook, given as JSON, imports."""
    cells = nbformat.reads(release, as_version=4).cells
    return {m for c in cells if c.cell_type == "code" for m in _modules_of(c.source)}


def _library() -> Path:
    return Path(next(iter(importlib.util.find_spec("solutions").submodule_search_locations)))


def _modules_of(text: str) -> set[str]:
    tree = syntax.parsed(text)
    found: set[str] = set()
    for node in ast.walk(tree) if tree else ():
        if isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def importable(chapter: Chapter) -> tuple[list[str], dict[str, set[str]]]:
    """What a chapter's notebook may import from `solutions`, as it may when a learner runs it.

    Returns:
        The modules: all but those of later chapters and what is built on them. And for the
        chapter's own module, the names that are left without a body there: the exercises.
    """
    owner: dict[str, str] = {}
    own: dict[str, set[str]] = {}
    for other in [*chapters(), chapter]:
        for exercise in other.exercises.values():
            package, _, module = exercise.reference.__module__.partition(".")
            if package == "solutions":
                owner[module] = min(owner.get(module, other.slug), other.slug)
                if other.slug == chapter.slug:
                    own.setdefault(module, set()).add(exercise.name)
    library = _library()
    texts = {p.stem: p.read_text("utf-8") for p in library.glob("*.py") if p.stem != "__init__"}
    used = {name: imported(text, library) for name, text in texts.items()}
    allowed = {name for name in texts if owner.get(name, "") <= chapter.slug}
    while dropped := {name for name in allowed if used[name] - allowed}:
        allowed -= dropped
    return sorted(allowed), own


# ------------------------------------------------------------------------- a run, cell by cell


class _Run:
    """One notebook in one session.

    Args:
        task: what is graded.
        notebook: gets the outputs.
        session: where the learner's cells run.
        outcome: gets what was odd.
    """

    def __init__(self, task: Task, notebook: NotebookNode, session: Session, outcome: Outcome):
        self.task, self.notebook, self.session, self.outcome = task, notebook, session, outcome
        self.code = [c for c in notebook.cells if c.cell_type == "code"]
        self.left = OUTPUT
        self.count = 0
        #: Learners' cells that ended with an error, by grade id.
        self.broken: dict[str, LearnerError] = {}

    def all(self) -> None:
        """Run every cell up to the last check. What comes after is to be looked at."""
        checks = [i for i, cell in enumerate(self.code) if _flag(cell, "grade")]
        for cell in self.code[: checks[-1] + 1 if checks else 0]:
            self.count += 1
            cell.execution_count = self.count
            if _flag(cell, "grade"):
                with _timed(self.outcome, "check"):
                    result = self._check(cell)
                cell.outputs = [check_output(result, self.count)]
            else:
                self._cell(cell)
        self.outcome.odd += dict.fromkeys(self.session.odd)

    def _cell(self, cell: NotebookNode) -> None:
        reply = self.session.run(cell.source, _grade_id(cell) or cell.id)
        printed = reply.printed[: self.left]
        self.left -= len(printed)
        cell.outputs = outputs_of(printed, reply.error)
        if reply.error is not None:
            self.broken[_grade_id(cell)] = reply.error

    def _check(self, cell: NotebookNode) -> Result:
        exercise = self.task.chapter.exercises[_grade_id(cell).removeprefix("check-")]
        theirs = {c.id: c.source for c in self.code if not _flag(c, "locked")}
        source = theirs.pop(next(c.id for c in self.code if _grade_id(c) == exercise.name))
        if exercise.forbidden and (ways := syntax.hidden_ways(source)):
            self.outcome.odd.append(
                f"the cell of {exercise.name}, where some functions are ruled out, uses "
                f"{', '.join(ways)}; have a look"
            )
        with self.session.exercise():
            result = exercise.check(
                RemoteSubject(self.session, exercise.name),
                seed=int(self.task.seed, 16),
                graded=True,
                source=source,
                others=list(theirs.values()),
            )
        undefined = ("message", f"name {exercise.name!r} is not defined")
        failures = [group.failure for group in result.groups]
        if failures and all(f and undefined in f.details and f.line is None for f in failures):
            result.status, result.groups = "refused", []
            result.message = self._why_undefined(exercise.name)
        return result

    def _why_undefined(self, name: str) -> str:
        error = self.broken.get(name)
        if error is None:
            return f"The cell above does not define `{name}`."
        where = f" in line {error.line}" if error.line else ""
        what = f": {error.message.splitlines()[0][:200]}" if error.message else ""
        return f"The cell above does not run. It raises {error.kind}{where}{what}"


def _grade_id(cell: NotebookNode) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def _flag(cell: NotebookNode, name: str) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get(name))
