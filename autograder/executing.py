"""How a notebook's cells become outputs that nbgrader turns into points."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbgrader.preprocessors import Execute, NbGraderPreprocessor
from nbgrader.utils import is_grade
from traitlets import Bool, Integer

from autograder.checking import MEDIA_TYPE, SEED_VARIABLE, Result, find_chapter
from autograder.subjects import LearnerError

# ------------------------------------------------------------------- outputs, written here


def check_output(result: Result, count: int | None = None) -> NotebookNode:
    """What a check says, as the result of its cell."""
    data = result._repr_mimebundle_()
    return _output("execute_result", data=data, execution_count=count, metadata={})


def _output(kind: str, **content: Any) -> NotebookNode:
    """An output. nbformat's own function holds each to its schema, which takes a millisecond."""
    return nbformat.from_dict({"output_type": kind, **content})


def outputs_of(printed: str, error: LearnerError | None) -> list[NotebookNode]:
    """What a learner's cell printed and raised: text, and nothing that a browser would run."""
    outputs = [_output("stream", name="stdout", text=printed)] if printed else []
    if error is not None:
        where = [f"line {error.line}: {error.code}"] if error.line else []
        said = f"{error.kind}: {error.message}" if error.message else error.kind
        outputs.append(
            _output("error", ename=error.kind, evalue=error.message, traceback=[*where, said])
        )
    return outputs


# ----------------------------------------------------------------------------- in a kernel


DEADLINE = 180  # seconds that a whole notebook may run


class Late(Exception):
    """The notebook has run for longer than it may."""


class KernelExecute(Execute):
    """nbgrader's Execute, with a seed, and a deadline for the whole.

    What is run this way has the rights of whoever grades: a learner's own work, and that of
    people who are trusted.
    """

    timeout = Integer(60, help="Seconds that a cell may run.").tag(config=True)
    seed = ""

    def preprocess(self, nb: NotebookNode, resources: dict, km=None) -> tuple:
        self._end = time.monotonic() + DEADLINE
        return super().preprocess(nb, resources, km)

    def preprocess_cell(self, cell: NotebookNode, resources: dict, index: int) -> tuple:
        if time.monotonic() > self._end:
            raise Late
        return super().preprocess_cell(cell, resources, index)

    def start_new_kernel(self, **kwargs) -> None:
        environment = {
            **os.environ,
            SEED_VARIABLE: self.seed,
            "MPLBACKEND": "module://matplotlib_inline.backend_inline",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        }
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        super().start_new_kernel(env=environment, **quiet, **kwargs)


def in_kernel(notebook: NotebookNode, seed: str) -> list[str]:
    """Run a notebook in a kernel, in an empty folder; its outputs come into its cells.

    Args:
        notebook: grafted onto the release. What it says of nbgrader is believed.
        seed: of the graded run's inputs.

    Returns:
        What was odd.
    """
    execute, odd, stopped = KernelExecute(), [], ""
    execute.seed = seed
    try:
        with tempfile.TemporaryDirectory() as folder:
            execute.preprocess(notebook, {"metadata": {"path": folder}})
    except Exception as error:  # what ran before still counts
        late = isinstance(error, Late)
        why = f"it ran for more than {DEADLINE} s" if late else "its kernel died"
        stopped = f"The notebook was stopped before this check: {why}"
        odd.append(f"the notebook was stopped, for {why}; what comes after has no points")
    for cell in notebook.cells:
        if is_grade(cell):
            cell.outputs = _report_first(cell.outputs, stopped)
    return odd


def _report_first(outputs: list, stopped: str) -> list:
    """nbgrader goes by the first result or error, and gives full points where there is none."""
    reports = [o for o in outputs if MEDIA_TYPE in o.get("data", {})]
    if reports:
        report = reports[-1]
        return [report, *(o for o in outputs if o is not report)]
    if any(o.output_type == "error" for o in outputs):
        return [o for o in outputs if o.output_type != "execute_result"]
    message = stopped or "The check gave no result"
    return [_output("error", ename="NotGraded", evalue=message, traceback=[message])]


# --------------------------------------------------------------- in place of nbgrader's own


class GradedExecute(NbGraderPreprocessor):
    """Stands where nbgrader's Execute stands, so that its own commands grade as ours do.

    `course.py grade` collects submissions into the folder that nbgrader reads; from there
    `nbgrader autograde` and formgrader's button run them, one at a time, through this.
    """

    sandbox = Bool(True, help="Run submissions in the sandbox.").tag(config=True)

    def preprocess(self, nb: NotebookNode, resources: dict) -> tuple:
        from autograder.engine import Engine, Task
        from autograder.recording import seed

        directory, ids = self.parent.parent.coursedir, resources["nbgrader"]
        chapter, about = find_chapter(ids["assignment"]), nb.metadata.get("grading", {})
        root = Path(directory.root)
        released = Path(directory.release_directory) / chapter.slug / f"{chapter.name}.ipynb"
        task = Task(
            chapter,
            ids["student"],
            nbformat.writes(nb).encode(),
            released.read_text(encoding="utf-8"),
            seed(root, chapter.slug, ids["student"], about.get("digest", "")),
            tuple(about.get("odd", ())),
            dict(about),
        )
        with Engine(self.sandbox, hidden=[root]) as engine:
            outcome = engine.grade(task)
        if outcome.fault:
            raise RuntimeError(f"the grader itself failed: {outcome.fault}")
        return outcome.notebook, resources
