"""What is kept of a graded run: marks in nbgrader's gradebook, feedback, and what was graded.

One process writes; it holds the gradebook open for a whole batch.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import hashlib
import hmac
import json
import os
import secrets
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import alembic.config
import nbformat
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from nbformat import NotebookNode
from nbgrader.api import (
    Base,
    BaseCell,
    Comment,
    Grade,
    Gradebook,
    MissingEntry,
    Student,
    SubmittedNotebook,
)
from nbgrader.dbutil import ALEMBIC_DIR
from nbgrader.plugins import CsvExportPlugin
from nbgrader.preprocessors import AssignLatePenalties
from nbgrader.utils import compute_checksum, determine_grade, is_grade, is_solution
from sqlalchemy import create_engine, inspect
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError
from sqlalchemy.orm import joinedload

from autograder.checking import Chapter
from autograder.classroom import PRIVATE, Classroom

COURSE = "attention-to-detail"


class RecordingError(Exception):
    """The gradebook cannot be used; the message is one line that says why and what to do."""


# ------------------------------------------------------------------------------- secrets


def secret(folder: Path) -> bytes:
    """A class's secret, made at first use and readable by its owner alone."""
    path = folder / PRIVATE / "secret"
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f"secret.{os.getpid()}")
    try:
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(secrets.token_hex(32))
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # whole or not at all, and never over one that is there
    finally:
        draft.unlink(missing_ok=True)
    return bytes.fromhex(path.read_text())


def seed(folder: Path, assignment: str, student: str, digest: str) -> str:
    """Hexadecimal digits that nobody without the class's secret can foresee.

    Args:
        folder: the class's.
        assignment: which.
        student: whose.
        digest: of what was handed in, so that a second attempt meets other inputs, and the same
            submission always the same.
    """
    text = json.dumps([assignment, student, digest])
    return hmac.new(secret(folder), text.encode(), hashlib.sha256).hexdigest()[:32]


# ------------------------------------------------------------------------------- records


def record_path(folder: Path, assignment: str, student: str) -> Path:
    """Where it is kept what is known about a submission's grading."""
    return folder / PRIVATE / "records" / assignment / f"{student}.json"


def read_record(folder: Path, assignment: str, student: str) -> dict:
    """The record of a submission; empty while it has none."""
    try:
        record = json.loads(record_path(folder, assignment, student).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def write_record(folder: Path, assignment: str, student: str, record: dict) -> None:
    """Keep a record, as the last step of a grading: what has none is graded again."""
    write(record_path(folder, assignment, student), json.dumps(record, indent=1))


def write(path: Path, text: str) -> None:
    """Write a file whose reader sees the old text or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def write_notebook(path: Path, notebook: NotebookNode) -> None:
    """Write a notebook: on one line, since laying it out would take as long as grading it."""
    write(path, json.dumps(notebook, sort_keys=True, ensure_ascii=False) + "\n")


# ----------------------------------------------------------------------------- gradebook


def gradebook(classroom: Classroom) -> Gradebook:
    """The gradebook, open; made at first use.

    Raises:
        RecordingError: it cannot be opened, or holds something else.
    """
    classroom.folder.mkdir(exist_ok=True)
    try:
        _make_tables(classroom.db)
        book = Gradebook(classroom.db, COURSE)
        list(book.assignments)
    except (ArgumentError, NoSuchModuleError):
        raise RecordingError(
            f"--db takes an address such as postgresql://user@host/grades, not {classroom.shown_db}"
        ) from None
    except ModuleNotFoundError as error:
        package = {"psycopg": "psycopg[binary]", "psycopg2": "psycopg2-binary"}.get(
            error.name, error.name
        )
        raise RecordingError(
            f"{classroom.shown_db} needs a driver: pip install {package}"
        ) from None
    except SQLAlchemyError as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        where = classroom.shown_db.removeprefix("sqlite:///")
        away = " Move it away to start a new one." if where != classroom.shown_db else ""
        raise RecordingError(f"{where} cannot be used as a gradebook ({reason}).{away}") from None
    return book


def _make_tables(url: str) -> None:
    """An empty database becomes a gradebook, whole or not at all.

    nbgrader would start a program only to learn its own version of the tables: two seconds.
    """
    engine = create_engine(url)
    with engine.begin() as connection:
        if not inspect(connection).get_table_names():
            config = alembic.config.Config()
            config.set_main_option("script_location", ALEMBIC_DIR)
            Base.metadata.create_all(connection)
            versions = ScriptDirectory.from_config(config)
            MigrationContext.configure(connection).stamp(versions, "head")
    engine.dispose()


class Recorder:
    """Writes marks into an open gradebook, as nbgrader's own steps would.

    Args:
        classroom: whose.
        book: its gradebook.
    """

    def __init__(self, classroom: Classroom, book: Gradebook):
        self.book = book
        late = AssignLatePenalties(config=classroom.full_config())
        late.init_plugin()
        self._penalty = late.plugin_inst.late_submission_penalty

    def enrol(self, students: Iterable[str]) -> None:
        """Make students known to the gradebook, those who are not yet."""
        known = {student.id for student in self.book.students}
        self.book.db.add_all(Student(id=student) for student in sorted({*students} - known))
        self.book.db.commit()

    def record(
        self, chapter: Chapter, student: str, notebook: NotebookNode | None, timestamp: str = ""
    ) -> dict[str, Any]:
        """Write the marks of a submission; one that was there gets them anew, but for what an
        instructor gave by hand.

        Args:
            chapter: which assignment.
            student: whose, enrolled.
            notebook: as it was run; None gives no points.
            timestamp: of the handing in.

        Returns:
            The marks, for `render`.
        """
        # A flush ahead of each of the many small queries would be most of the work.
        with warnings.catch_warnings(), self.book.db.no_autoflush:
            warnings.simplefilter("ignore")  # SQLAlchemy's, of nbgrader's own code
            return self._record(chapter, student, notebook, timestamp)

    def _record(self, chapter: Chapter, student: str, notebook: Any, timestamp: str) -> dict:
        submission = self.book.update_or_create_submission(
            chapter.slug, student, timestamp=timestamp or None
        )
        kept = self.book.find_submission_notebook(chapter.name, chapter.slug, student)
        cells = {
            c.metadata.nbgrader.grade_id: c
            for c in (notebook.cells if notebook else ())
            if is_grade(c) or is_solution(c)
        }
        for grade in _with_cells(self.book, Grade, kept):
            # No points unless a check gives them, so that no earlier run's can be left over.
            auto = determine_grade(cells[grade.name])[0] if grade.name in cells else 0.0
            grade.auto_score = auto
            grade.needs_manual_grade = auto is None or grade.manual_score is not None
        for comment in _with_cells(self.book, Comment, kept):
            cell = cells.get(comment.name)
            untouched = cell and cell.metadata.nbgrader.get("checksum") == compute_checksum(cell)
            comment.auto_comment = "No response." if untouched else None
        self.book.db.flush()
        kept.late_submission_penalty = None
        if submission.total_seconds_late > 0:
            self.book.db.refresh(kept)
            penalty = self._penalty(student, kept.score, submission.total_seconds_late)
            if penalty is not None:
                kept.late_submission_penalty = min(max(penalty, 0.0), kept.score)
        self.book.db.commit()
        return marks(self.book, chapter, student)


def _with_cells(book: Gradebook, kind: type, notebook: SubmittedNotebook) -> list[Any]:
    """The grades or comments of a submitted notebook, with the cells that they are for, at once."""
    query = book.db.query(kind).options(joinedload(kind.cell))
    return query.filter(kind.notebook_id == notebook.id).all()


def marks(book: Gradebook, chapter: Chapter, student: str) -> dict[str, Any]:
    """What the gradebook holds of a submission, as plain data."""
    kept = book.find_submission_notebook(chapter.name, chapter.slug, student)
    penalty = kept.late_submission_penalty or 0.0
    grades = book.db.query(BaseCell.name, Grade.score, Grade.max_score).join(Grade.cell)
    comments = book.db.query(BaseCell.name, Comment.comment).join(Comment.cell)
    return {
        "grades": {n: [s, most] for n, s, most in grades.filter(Grade.notebook_id == kept.id)},
        "comments": dict(comments.filter(Comment.notebook_id == kept.id).tuples()),
        "score": kept.score - penalty,
        "max_score": kept.max_score,
        "late_penalty": penalty,
    }


def export(classroom: Classroom, book: Gradebook) -> None:
    """Write the marks as CSV: nbgrader's own table, and one with a line for each exercise."""
    plugin = CsvExportPlugin()
    plugin.to = str(classroom.folder / "grades.csv")
    plugin.export(book)
    path = classroom.folder / "grades_by_exercise.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["assignment", "student_id", "exercise", "score", "max_score", "manual"])
        for assignment in sorted(book.assignments, key=lambda a: a.name):
            for submission in sorted(assignment.submissions, key=lambda s: s.student_id):
                for grade in (g for n in submission.notebooks for g in n.grades):
                    manual = "" if grade.manual_score is None else f"{grade.manual_score:g}"
                    out.writerow(
                        [assignment.name, submission.student_id, grade.name.removeprefix("check-")]
                        + [f"{grade.score:g}", f"{grade.max_score:g}", manual]
                    )


# ------------------------------------------------------------------------------ feedback


def render(notebook: NotebookNode, marks: Mapping[str, Any]) -> str:
    """The page that a student gets back: the one of `nbgrader generate_feedback`.

    Args:
        notebook: as it was run.
        marks: from `marks`.
    """
    notebook = nbformat.from_dict(notebook)
    for cell in notebook.cells:
        mark = cell.metadata.get("nbgrader", {})
        if is_solution(cell):
            mark["comment"] = marks["comments"].get(mark["grade_id"])
        if is_grade(cell):
            mark["score"], mark["points"] = marks["grades"][mark["grade_id"]]
    shown = {k: marks[k] for k in ("score", "max_score", "late_penalty")}
    resources = {"nbgrader": {"notebook": "", **shown}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nbconvert's are not for the person who grades
        return _exporter().from_notebook_node(notebook, resources)[0]


@functools.cache
def _exporter():
    from nbgrader.converters import GenerateFeedback

    from autograder.feedback import PageExporter

    config = Classroom(Path()).config()
    config.HTMLExporter.merge(config.GenerateFeedback.HTMLExporter)
    # As nbgrader makes it, but for the step that asks the gradebook, which is done above.
    made = GenerateFeedback(config=config)
    exporter = PageExporter(config=made.config)
    steps = [s for s in made.preprocessors if s.__name__ != "GetGrades"]
    for step in steps:
        exporter.register_preprocessor(step, enabled=True)
    return exporter


@contextlib.contextmanager
def opened(classroom: Classroom) -> Iterator[Gradebook]:
    """The gradebook, closed at the end."""
    book = gradebook(classroom)
    try:
        yield book
    finally:
        book.close()


def forget(book: Gradebook, chapter: Chapter) -> None:
    """Remove an assignment with its marks, if it is there."""
    with contextlib.suppress(MissingEntry):
        book.remove_assignment(chapter.slug)
