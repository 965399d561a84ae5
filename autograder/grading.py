"""Grade a learner's own notebooks, or a class's submissions, with nbgrader."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import os
import re
import shutil
import stat
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nbformat import NotebookNode
from nbgrader.api import Gradebook
from nbgrader.utils import is_grade, parse_utc
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from autograder import building, dispatch, grafting, recording, running
from autograder.building import notebook_path
from autograder.checking import Chapter, Result
from autograder.checking import chapters as every_chapter
from autograder.classroom import Classroom, NbgraderError
from autograder.dispatch import Done
from autograder.engine import Engine, Outcome, Task
from autograder.sandbox.warming import Warm

ME = "me"
WORTH_A_WORKER = 20  # submissions: fewer are graded while a process starts
LAYOUT = "<student>/<assignment>/<notebook>.ipynb, such as "
CONFIG = """\
# Written once by `course.py grade --submitted`; yours to extend.
# It makes `nbgrader export` and nbgrader's other commands work in this folder.
import os
from pathlib import Path

from autograder.classroom import Classroom

c = get_config()  # noqa: F821
# A gradebook on a server: the address that was given as --db, in the environment.
db = os.environ.get("COURSE_DB", "")
c.merge(Classroom(Path(__file__).parent, submitted="{submitted}", db=db).config())
"""


class GradingError(Exception):
    """Nothing can be graded; the message is one line that says why and what to do."""


@dataclass
class Graded:
    """The outcome of one submission.

    Args:
        results: what each exercise's check said; None where it did not report.
        score: points, with any that an instructor gave by hand.
        odd: sentences on what was wrong with the submission.
        feedback: the page for the student.
        seconds: how long each phase of the run took.
        fault: what went wrong on the grader's side, if it did; then nothing was recorded.
    """

    chapter: Chapter
    student: str
    results: dict[str, Result | None] = field(default_factory=dict)
    score: float = 0.0
    odd: list[str] = field(default_factory=list)
    feedback: Path | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    fault: str = ""


# ------------------------------------------------------------------------- submissions


@dataclass
class Found:
    """A submission.

    Args:
        file: the notebook; None if there is none.
        timestamp: of the handing in, as text; empty if there is none.
        odd: what is wrong with its folder.
    """

    student: str
    chapter: Chapter
    file: Path | None
    timestamp: str = ""
    odd: list[str] = field(default_factory=list)

    def data(self) -> bytes | None:
        """The file, up to the size from which on it is refused; None for what is no file."""
        # A link could lead to another student's work, or to the grader's own files; what is no
        # plain file could keep the grader waiting.
        try:
            file = os.open(self.file or "", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        except OSError:
            return None
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            return None
        with os.fdopen(file, "rb") as opened:
            return opened.read(grafting.MAX_BYTES + 1)

    def digest(self, released: str, data: bytes | None) -> str:
        """What its grade depends on, apart from the code of the course."""
        digest = hashlib.sha256(released.encode())
        digest.update(repr((self.timestamp, self.odd)).encode())
        digest.update(b"" if data is None else b"file" + data)
        return digest.hexdigest()


def _add(root: Path, classroom: Classroom, chapter: Chapter, book: Gradebook) -> None:
    """Make a chapter ready to be graded.

    Raises:
        GradingError: the gradebook has marks for other exercises than this course's.
    """
    try:
        classroom.add(root, chapter)
    except NbgraderError as error:
        if "Cannot add or remove cells" not in str(error):
            raise
        if classroom.folder == root / "my_grades":  # nothing in there that is not made again
            recording.forget(book, chapter)
            classroom.add(root, chapter)
            return
        raise GradingError(
            f"{classroom.shown_db.removeprefix('sqlite:///')} was made for another version of "
            f"{chapter.slug}, with other exercises. Move it away to grade anew."
        ) from None
    finally:
        book.db.expire_all()  # nbgrader has written past us


class _Batch:
    """Submissions of one class on their way from files to marks and feedback.

    Args:
        classroom: whose. Its chapters must have been added.
        book: its gradebook, open.
    """

    def __init__(self, classroom: Classroom, book: Gradebook):
        self.classroom = classroom
        self.recorder = recording.Recorder(classroom, book)
        self.released: dict[str, str] = {}

    def release(self, chapter: Chapter) -> str:
        """nbgrader's release version, as JSON."""
        if chapter.slug not in self.released:
            path = self.classroom.released(chapter)
            self.released[chapter.slug] = path.read_text(encoding="utf-8")
        return self.released[chapter.slug]

    def is_graded(self, one: Found) -> bool:
        """Whether a submission was graded as it is now."""
        record = recording.read_record(self.classroom.folder, one.chapter.slug, one.student)
        return record.get("digest") == one.digest(self.release(one.chapter), one.data())

    def task(self, one: Found) -> Task:
        """A submission as the engine takes it."""
        chapter, data, released = one.chapter, one.data(), self.release(one.chapter)
        digest = one.digest(released, data)
        about = {
            "title": f"{chapter.number} · {chapter.title}",
            "student": "" if one.student == ME else one.student,
            "date": datetime.date.today().isoformat(),
            "digest": digest,
            "timestamp": one.timestamp,
            "exercises": {
                f"check-{e.name}": f"{e.number} {e.name}" for e in chapter.exercises.values()
            },
        }
        # Whoever hands in the same again, and later, meets the same inputs.
        key = hashlib.sha256(b"" if data is None else data).hexdigest()
        secret = recording.seed(self.classroom.folder, chapter.slug, one.student, key)
        return Task(chapter, one.student, data, released, secret, tuple(one.odd), about)

    def record(self, task: Task, outcome: Outcome) -> dict:
        """Keep the marks of a run, and the run itself. Returns the marks."""
        chapter, student, room = task.chapter, task.student, self.classroom
        recording.record_path(room.folder, chapter.slug, student).unlink(missing_ok=True)
        # What nbgrader's own commands would grade, should somebody use them.
        unrun = {"outputs": [], "execution_count": None}
        cells = [{**c, **unrun} if c.cell_type == "code" else c for c in outcome.notebook.cells]
        bare = {**outcome.notebook, "cells": cells}
        recording.write_notebook(room.collected(chapter, student), bare)
        stamp = room.collected(chapter, student).parent / "timestamp.txt"
        stamp.unlink(missing_ok=True)
        if timestamp := task.about["timestamp"]:
            stamp.write_text(timestamp)
        marks = self.recorder.record(chapter, student, outcome.notebook, timestamp)
        recording.write_notebook(room.autograded(chapter, student), outcome.notebook)
        return marks

    def finish(self, done: Done) -> Graded:
        """Keep the feedback, and note that the submission is graded."""
        task, chapter, student = done.task, done.task.chapter, done.task.student
        graded = Graded(chapter, student, odd=done.outcome.odd, seconds=done.outcome.seconds)
        if done.outcome.fault:
            graded.fault = done.outcome.fault
            return graded
        graded.results = _results(done.outcome.notebook, chapter)
        graded.score = done.marks["score"] + done.marks["late_penalty"]
        graded.feedback = self.classroom.feedback(chapter, student)
        recording.write(graded.feedback, done.page)
        record = {"digest": task.about["digest"], "odd": graded.odd}
        recording.write_record(self.classroom.folder, chapter.slug, student, record)
        return graded


def _results(notebook, chapter: Chapter) -> dict[str, Result | None]:
    checks = NotebookNode(cells=[c for c in notebook.cells if is_grade(c)])
    return running.results(checks, chapter)


# --------------------------------------------------------------------- a learner's own


def grade_own(
    root: Path, chapters: Sequence[Chapter] | None = None, console: Console | None = None
) -> list[Graded]:
    """Grade the notebooks in `exercises/` into `my_grades/`, and show points and what is missing.

    Args:
        root: the course's folder.
        chapters: which; all by default. Notebooks that were not begun are not run.
        console: where to print.

    Raises:
        GradingError: there is no notebook, or the gradebook is damaged.
    """
    console = console or Console()
    chapters = list(every_chapter()) if chapters is None else list(chapters)
    there = [c for c in chapters if notebook_path(root, c).exists()]
    if not there:
        raise GradingError(
            f"no notebook in {root / 'exercises'}; `python3 course.py release` writes them"
        )
    classroom = Classroom(root / "my_grades", sandbox=False)
    begun = [c for c in there if not _as_released(root, c)]
    graded = {}
    with _progress(console) as bar, contextlib.ExitStack() as stack:
        task = bar.add_task("Opening the gradebook", total=len(begun))
        if begun:
            book = stack.enter_context(recording.opened(classroom))
            engine = stack.enter_context(Engine(sandbox=False))
            batch = _Batch(classroom, book)
            batch.recorder.enrol({ME})
        for chapter in begun:
            bar.update(task, description=f"Grading {chapter.slug}")
            _add(root, classroom, chapter, book)
            snapshot = classroom.folder / "submitted" / ME / chapter.slug / f"{chapter.name}.ipynb"
            snapshot.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(notebook_path(root, chapter), snapshot)
            todo = [batch.task(Found(ME, chapter, snapshot))]
            for done in dispatch.here(engine, todo, batch.record):
                graded[chapter.slug] = batch.finish(done)
            bar.advance(task)
    _show_own(console, there, graded)
    return list(graded.values())


def _as_released(root: Path, chapter: Chapter) -> bool:
    try:
        manifest = json.loads((root / "exercises" / building.MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return building.is_untouched(notebook_path(root, chapter), manifest.get(chapter.slug))


def _show_own(console: Console, chapters: Sequence[Chapter], graded: dict[str, Graded]) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("Exercise", no_wrap=True)
    table.add_column("Points", justify="right", no_wrap=True)
    table.add_column("What is missing")
    for chapter in chapters:
        title = f"[bold]{chapter.number} {escape(chapter.title)}[/]"
        mine = graded.get(chapter.slug)
        if mine is None:
            table.add_row(title, f"0 of {chapter.points}", "[dim]not started[/]")
            continue
        note = "[green]all correct[/]" if mine.score == chapter.points else ""
        odd = "\n".join(f"[yellow]{escape(line)}[/]" for line in mine.odd)
        table.add_row(title, f"[bold]{mine.score:g} of {chapter.points}[/]", odd or note)
        if mine.score == chapter.points:
            continue
        for name, exercise in chapter.exercises.items():
            result = mine.results.get(name)
            earned = result.earned if result else 0
            colour = "green" if earned == exercise.points else "yellow" if earned else "red"
            table.add_row(
                f"  {exercise.number} {name}",
                f"[{colour}]{earned} of {exercise.points}[/]",
                escape(missing(result)),
            )
    console.print(table)
    total = sum(g.score for g in graded.values())
    console.print(f"\n[bold]{total:g} of {sum(c.points for c in chapters)} points.[/]")
    for mine in graded.values():
        if mine.feedback:
            _link(console, f"Feedback on {mine.chapter.number}:", mine.feedback)
    if graded:
        console.print("Next: `python3 course.py progress` says what to do next.")
    else:
        console.print("Next: `python3 course.py learn`, and begin.")


def missing(result: Result | None) -> str:
    """In a line, what a result lacks of full points."""
    if result is None:
        return "the check could not run: the cell above it does not define it"
    if result.status == "unfinished":
        return "to do"
    if result.message:
        return result.message
    for group in result.groups:
        if group.failure:
            return f"{group.title}: {group.diagnosis or group.failure.headline + '.'}"
    return ""


def _link(console: Console, label: str, path: Path) -> None:
    # Unwrapped, or a terminal would not see one address.
    uri = path.as_uri()
    console.print(f"{label} [link={uri}]{escape(uri)}[/link]", soft_wrap=True, highlight=False)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


# --------------------------------------------------------------------------- a class


def open_class(submitted: Path, db: str = "", sandbox: bool = True) -> Classroom:
    """The class whose submissions are in a folder; what grading makes comes beside it.

    Args:
        submitted: the folder of submissions, or the one that holds it as `submitted/`.
        db: the gradebook's address; a SQLite file beside the submissions by default.
        sandbox: whether submissions run in the sandbox.

    Raises:
        GradingError: there is no such folder.
    """
    folder = Path(submitted).resolve()
    if not folder.is_dir():
        raise GradingError(f"{submitted} is {'no folder' if folder.exists() else 'not there'}")
    if (folder / "submitted").is_dir():
        folder = folder / "submitted"
    return Classroom(folder.parent, folder.name, db, sandbox)


def nbgrader_config(submitted: Path, db: str = "") -> dict:
    """nbgrader's configuration for a class, as plain data, for formgrader."""
    return _plain(open_class(submitted, db).config())


def _plain(config: dict) -> dict:
    return {k: _plain(v) if isinstance(v, dict) else v for k, v in config.items()}


def grade_class(
    root: Path,
    submitted: Path,
    chapters: Sequence[Chapter] | None = None,
    force: bool = False,
    console: Console | None = None,
    *,
    workers: int | None = 1,
    scheduler: str = "",
    db: str = "",
    sandbox: bool = True,
    warm: Warm | None = None,
) -> list[Graded]:
    """Grade `<submitted>/<student>/<assignment>/<notebook>.ipynb`, whatever state they are in.

    Beside that folder come `gradebook.db`, `autograded/`, `feedback/<student>/<assignment>/`,
    `grades.csv` (nbgrader's export) and `grades_by_exercise.csv`.

    Args:
        root: the course's folder.
        submitted: see `open_class`.
        chapters: which assignments; all by default.
        force: grade unchanged submissions again, too.
        console: where to print.
        workers: how many processes grade on this machine; None for one on each core, where there
            is enough to do.
        scheduler: address of a running dask scheduler, whose workers grade instead.
        db: the gradebook's address (see `open_class`).
        sandbox: False runs submissions with the rights of whoever grades.
        warm: see `Engine`.

    Returns:
        What was graded in this run, with what could not be graded for a fault of the grader's.

    Raises:
        GradingError: the folder holds no submissions.
        EngineError: this machine, or a worker of the cluster, has no sandbox.
        RecordingError: the gradebook cannot be used.
    """
    console = console or Console()
    chapters = list(every_chapter()) if chapters is None else list(chapters)
    classroom = open_class(submitted, db, sandbox)
    where = classroom.folder / classroom.submitted
    notes: dict[str, list[str]] = {}
    found = list(_found(where, chapters, notes))
    if not found:
        raise GradingError(_no_submissions(where, submitted, chapters))
    began = time.monotonic()
    graded: list[Graded] = []
    # Started first: it imports torch while the gradebook is made.
    if workers is None:
        workers = min(os.cpu_count() or 1, len(found) // WORTH_A_WORKER)
    engine = Engine(sandbox, [classroom.folder], warm=warm)
    pool = dispatch.Pool(engine, min(workers, len(found)), scheduler)
    with pool, recording.opened(classroom) as book, _progress(console) as bar:
        task = bar.add_task("Opening the gradebook", total=len(found))
        recorded = {(a.name, s.student_id) for a in book.assignments for s in a.submissions}
        for slug in sorted({one.chapter.slug for one in found}):
            bar.update(task, description=f"Preparing {slug}")
            _add(root, classroom, next(c for c in chapters if c.slug == slug), book)
        batch = _Batch(classroom, book)
        batch.recorder.enrol({one.student for one in found})
        todo = []
        for one in found:
            if not force and (one.chapter.slug, one.student) in recorded and batch.is_graded(one):
                record = recording.read_record(classroom.folder, one.chapter.slug, one.student)
                notes.setdefault(one.student, []).extend(_about(one.chapter, record["odd"]))
                bar.advance(task)
            else:
                todo.append(one)
        for done in pool.run(map(batch.task, todo), batch.record):
            one = batch.finish(done)
            graded.append(one)
            notes.setdefault(one.student, []).extend(_about(one.chapter, one.odd))
            bar.update(task, description=f"{one.student} {one.chapter.slug}", advance=1)
        recording.export(classroom, book)
        config = classroom.folder / "nbgrader_config.py"
        if not config.exists():
            config.write_text(CONFIG.format(submitted=classroom.submitted))
        took = time.monotonic() - began
        _show_class(
            console, book, classroom, graded, len(found) - len(todo), notes, took, submitted
        )
    return graded


def _about(chapter: Chapter, odd: Sequence[str]) -> list[str]:
    return [f"{chapter.slug}: {line}" for line in odd]


def _found(
    where: Path, chapters: Sequence[Chapter], notes: dict[str, list[str]]
) -> Iterator[Found]:
    """The submissions in a folder; what is there and is none goes to `notes`, by student."""
    slugs = {c.slug: c for c in chapters}
    known = {c.slug for c in every_chapter()} | slugs.keys()
    taken: set[str] = set()
    for person in _visible(where):
        if not person.is_dir() or person.is_symlink():
            notes.setdefault(person.name, []).append("is no folder; ignored")
            continue
        # Characters that nbgrader's paths, patterns or CSV export would stumble over.
        student = re.sub(r'[*?\[\]{}",\x00-\x1f]+', "_", person.name)
        if student != person.name:
            if (where / student).exists() or student in taken:
                notes.setdefault(person.name, []).append(
                    f"has a name that nbgrader cannot use, and {student} is taken; not graded"
                )
                continue
            notes.setdefault(student, []).append(
                f"recorded as {student}, handed in as {person.name}"
            )
        taken.add(student)
        assignments = list(_visible(person))
        if not assignments:
            notes.setdefault(student, []).append("the folder is empty")
        for folder in assignments:
            if folder.name in slugs and folder.is_dir() and not folder.is_symlink():
                yield _look_into(student, slugs[folder.name], folder)
            elif folder.name not in known:
                notes.setdefault(student, []).append(
                    f"{folder.name} is not an assignment of this course; ignored"
                )


def _visible(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith((".", "__MACOSX")))


def _look_into(student: str, chapter: Chapter, folder: Path) -> Found:
    one = Found(student, chapter, folder / f"{chapter.name}.ipynb")
    notebooks = [p for p in _visible(folder) if p.suffix == ".ipynb"]
    others = [p.name for p in _visible(folder) if p not in notebooks and p.name != "timestamp.txt"]
    if one.file not in notebooks:

        def likeness(path: Path) -> tuple[int, float]:
            text = (Found(student, chapter, path).data() or b"").decode("utf-8", "replace")
            return sum(
                f'"check-{name}"' in text for name in chapter.exercises
            ), path.lstat().st_mtime

        one.file = max(notebooks, key=likeness, default=None)
        if one.file:
            one.odd.append(f"{one.file.name} was taken, in place of {chapter.name}.ipynb")
    others += [p.name for p in notebooks if p != one.file]
    if others:
        one.odd.append(f"further files were ignored: {', '.join(others)}")
    stamp = folder / "timestamp.txt"
    if stamp.is_file() and not stamp.is_symlink():
        try:
            text = stamp.read_text(encoding="utf-8").strip()
            one.timestamp = str(parse_utc(text)) if text else ""
        except (ValueError, OverflowError, OSError):
            one.odd.append("timestamp.txt holds no date")
    return one


def _no_submissions(where: Path, given: Path, chapters: Sequence[Chapter]) -> str:
    expected = f"expected {given}/{LAYOUT}alice/{chapters[0].slug}/{chapters[0].name}.ipynb"
    slugs = {c.slug for c in chapters}
    if any(p.name in slugs for p in _visible(where)):
        return f"{given} holds assignments, without a folder for each student: {expected}"
    return f"no submissions in {given}: {expected}"


def _show_class(
    console: Console,
    book: Gradebook,
    classroom: Classroom,
    graded: Sequence[Graded],
    unchanged: int,
    notes: dict[str, list[str]],
    took: float,
    given: Path,
) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("Assignment", no_wrap=True)
    for heading in ("Submissions", "Mean", "Median", "Of"):
        table.add_column(heading, justify="right")
    for assignment in sorted(book.assignments, key=lambda a: a.name):
        scores = [s.score for s in assignment.submissions]
        if scores:
            table.add_row(
                assignment.name,
                str(len(scores)),
                f"{statistics.mean(scores):.1f}",
                f"{statistics.median(scores):g}",
                f"{assignment.max_score:g}",
            )
    console.print(table)
    odd = {student: lines for student, lines in sorted(notes.items()) if lines}
    if odd:
        console.print("\n[bold]What was odd[/]")
        for student, lines in odd.items():
            for line in lines:
                console.print(f"  [yellow]{escape(student)}[/]  {escape(line)}", highlight=False)
    faults = [one for one in graded if one.fault]
    done = len(graded) - len(faults)
    each = f" in {took:.0f} s, {took / done:.2f} s each" if done else ""
    console.print(f"\n[bold]{done} graded[/]{each}.")
    if unchanged:
        console.print(f"{unchanged} unchanged and left as they were; `--force` grades them again.")
    if faults:
        console.print(
            f"\n[bold red]{len(faults)} could not be graded[/], and it is not their fault:"
        )
        for one in faults:
            console.print(
                f"  [red]{escape(one.student)}[/]  {one.chapter.slug}: {escape(one.fault)}",
                highlight=False,
            )
        console.print("The same command grades them, and nothing else, again.")
    console.print(
        f"Points: {classroom.folder}/grades.csv and grades_by_exercise.csv; "
        f"feedback for students: {classroom.folder}/feedback/",
        soft_wrap=True,
        highlight=False,
    )
    console.print(f"Next: `python3 course.py learn --submitted {given}` opens formgrader.")
