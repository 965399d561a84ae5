"""A folder that nbgrader grades in: submissions, gradebook, autograded copies, feedback."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import nbformat
from traitlets.config import Config, PyFileConfigLoader

from autograder import building
from autograder.checking import Chapter

PRIVATE = ".nbgrader"  # folder of what the course makes for nbgrader, and of its own records


class NbgraderError(Exception):
    """nbgrader could not do its part; the message is the end of its log."""


@dataclass
class Classroom:
    """nbgrader's view of a class.

    Args:
        folder: holds `submitted/`, `autograded/`, `feedback/` and `gradebook.db`; what the course
            makes for nbgrader (the source and release versions, and the submissions as they are
            graded) is in its `.nbgrader/`.
        submitted: name of the folder of submissions, `<submitted>/<student>/<assignment>/`.
        db: the gradebook's address; a SQLite file in the folder by default.
        sandbox: whether submissions run in the sandbox.
    """

    folder: Path
    submitted: str = "submitted"
    db: str = ""
    sandbox: bool = True

    def __post_init__(self):
        self.folder = Path(self.folder).resolve()
        self.db = self.db or f"sqlite:///{self.folder / 'gradebook.db'}"

    @property
    def shown_db(self) -> str:
        """The gradebook's address, without a password."""
        return re.sub(r"(://[^:/@]*):[^@]*@", r"\1:…@", self.db)

    def source(self, chapter: Chapter) -> Path:
        """nbgrader's source version of a chapter's notebook, solutions and all."""
        return self.folder / PRIVATE / "source" / chapter.slug / f"{chapter.name}.ipynb"

    def released(self, chapter: Chapter) -> Path:
        """nbgrader's release version."""
        return self.folder / PRIVATE / "release" / chapter.slug / f"{chapter.name}.ipynb"

    def collected(self, chapter: Chapter, student: str) -> Path:
        """A submission as nbgrader gets it: the released notebook with the student's code."""
        return self._collected / student / chapter.slug / f"{chapter.name}.ipynb"

    def autograded(self, chapter: Chapter, student: str) -> Path:
        """A submission after it was run."""
        return self.folder / "autograded" / student / chapter.slug / f"{chapter.name}.ipynb"

    def feedback(self, chapter: Chapter, student: str) -> Path:
        """The page that a student gets back."""
        return self.folder / "feedback" / student / chapter.slug / f"{chapter.name}.html"

    @property
    def _collected(self) -> Path:
        return self.folder / PRIVATE / "collected"

    def config(self) -> Config:
        """nbgrader's configuration for this class."""
        c = Config()
        c.CourseDirectory.course_id = "attention-to-detail"
        c.CourseDirectory.root = str(self.folder)
        c.CourseDirectory.source_directory = str(self.folder / PRIVATE / "source")
        c.CourseDirectory.release_directory = str(self.folder / PRIVATE / "release")
        c.CourseDirectory.submitted_directory = str(self._collected)
        c.CourseDirectory.db_url = self.db
        c.ClearSolutions.code_stub = {"python": building.PLACEHOLDER}
        c.GenerateAssignment.preprocessors = [
            "nbgrader.preprocessors.LockCells",
            "nbgrader.preprocessors.ClearSolutions",
            "autograder.building.NameStubs",
            "nbgrader.preprocessors.ClearOutput",
            "nbgrader.preprocessors.CheckCellMetadata",
            "nbgrader.preprocessors.ComputeChecksums",
            "nbgrader.preprocessors.SaveCells",
            "nbgrader.preprocessors.ComputeChecksums",
            "nbgrader.preprocessors.CheckCellMetadata",
        ]
        c.Autograde.autograde_preprocessors = [
            "autograder.executing.GradedExecute",
            "nbgrader.preprocessors.LimitOutput",
            "nbgrader.preprocessors.SaveAutoGrades",
            "nbgrader.preprocessors.AssignLatePenalties",
            "nbgrader.preprocessors.CheckCellMetadata",
        ]
        c.GradedExecute.sandbox = self.sandbox
        templates = Path(__file__).parent / "templates"
        c.HTMLExporter.filters = {"markdown2html": "autograder.feedback.markdown"}
        # What is set for the exporter alone is for formgrader's pages, whose template it extends.
        c.HTMLExporter.template_file = "submission.html.j2"
        c.HTMLExporter.extra_template_paths = [str(templates / "offline")]
        c.GenerateFeedback.HTMLExporter.template_file = "index.html.j2"
        c.GenerateFeedback.HTMLExporter.template_name = "course_feedback"
        c.GenerateFeedback.HTMLExporter.extra_template_basedirs = [str(templates)]
        c.FormgradeExtension.debug = False
        return c

    def full_config(self) -> Config:
        """The same with what the class's own `nbgrader_config.py` says: its late days, say.

        Raises:
            NbgraderError: that file does not run.
        """
        path = self.folder / "nbgrader_config.py"
        config = self.config()
        if path.exists():
            try:
                config.merge(PyFileConfigLoader(path.name, str(path.parent)).load_config())
            except Exception as error:  # whatever an instructor's file may raise
                raise NbgraderError(f"{path}: {type(error).__name__}: {error}") from None
            config.CourseDirectory.db_url = self.db
        return config

    def add(self, root: Path, chapter: Chapter) -> Path:
        """Make a chapter known to nbgrader: its source, its release, its place in the gradebook.

        Args:
            root: the course's folder, which holds the text sources.
            chapter: what to add; adding it again brings it up to date.

        Returns:
            The release version.

        Raises:
            building.BuildError: the text source has a fault.
            NbgraderError: nbgrader refused.
        """
        text_path = building.source_path(root, chapter)
        if not text_path.exists():
            raise building.BuildError(f"{text_path.relative_to(root)} is missing")
        notebook = building.source_notebook(
            chapter, text_path.read_text(encoding="utf-8"), str(text_path.relative_to(root))
        )
        path = self.source(chapter)
        path.parent.mkdir(parents=True, exist_ok=True)
        nbformat.write(notebook, path)
        with api(self.config()) as nbgrader:
            require(nbgrader.generate_assignment(chapter.slug, force=True, create=True))
        return self.released(chapter)


@contextlib.contextmanager
def api(config: Config):
    """nbgrader's API object, quiet, with `alembic` (which it starts as a program) on the PATH."""
    scripts = sysconfig.get_path("scripts")
    if scripts not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = scripts + os.pathsep + os.environ.get("PATH", "")
    from nbgrader.apps.api import NbGraderAPI  # slow to import

    yield NbGraderAPI(config=config, log_level=logging.ERROR)


def require(outcome: dict) -> None:
    """Raise `NbgraderError` unless an API call succeeded."""
    if not outcome["success"]:
        raise NbgraderError(reason(outcome))


def reason(outcome: dict) -> str:
    """Why an API call failed, in a line."""
    text = f"{outcome.get('error', '')}\n{outcome.get('log', '')}".strip() or "no reason given"
    errors = re.findall(r"^\s*([\w.]+(?:Error|Exception): .+)", text, re.MULTILINE)
    # nbgrader's own exception says no more than to look further up.
    told = [line for line in errors if "NbGraderException" not in line]
    return (told or errors or text.splitlines())[-1][:300]
