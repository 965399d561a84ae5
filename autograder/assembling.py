"""The learner's own library: `solutions` with their finished cells in place of its symbols."""

from __future__ import annotations

import ast
import builtins
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from nbformat import NotebookNode
from rich.table import Table

from autograder import drawing, running, syntax
from autograder.checking import Chapter, Exercise, chapters

MARK = "# Yours, from exercises/"
# The library's GPT takes PyTorch's norm, for speed. A learner's takes the one that they wrote.
NORM = "residuals_and_norms.LayerNorm"
TORCH_NORM = re.compile(r"^from torch\.nn import LayerNorm\b.*\n", re.M)
OWN_NORM = "from solutions.residuals_and_norms import LayerNorm\n"
SIGNATURE = (
    '"""Your own library, written by `python3 course.py assemble`. Edit the notebooks, not this."""'
)


class AssembleError(Exception):
    """The library could not be written; the message says why."""


@dataclass
class Part:
    """One exercise's symbol in the assembled library.

    Args:
        exercise: whose symbol.
        yours: whether it is the learner's.
        reason: why it is not.
    """

    exercise: Exercise
    yours: bool
    reason: str = ""


def assemble(root: Path, target: Path, only: list[Chapter] | None = None) -> list[Part]:
    """Write the package: a copy of `solutions` in which every cell that passes its check is used.

    With it goes a picture of whose its parts are, `parts.svg`.

    Args:
        root: the course's folder.
        target: folder of the package; its name becomes the package's. It may exist if an earlier
            call made it.
        only: chapters to look at; all by default.

    Raises:
        AssembleError: the folder holds something else, or its name cannot be imported.
    """
    package = target.name
    if not package.isidentifier() or package in ("solutions", "autograder"):
        raise AssembleError(f"{package!r} cannot be the name of the package")
    if not _may_write(target):
        raise AssembleError(f"{target} holds something else; name another folder with --to")
    modules = {p.stem: p.read_text(encoding="utf-8") for p in (root / "solutions").glob("*.py")}
    parts: list[Part] = []
    for chapter in chapters() if only is None else only:
        for exercise, code, reason in _finished(root, chapter):
            module = exercise.reference.__module__.removeprefix("solutions.")
            if module not in modules:
                continue  # a prediction, say: no library holds it
            if code is not None:
                modules[module] = _replaced(modules[module], exercise, code)
            parts.append(Part(exercise, code is not None, reason))
    if any(p.yours and p.exercise.symbol == NORM for p in parts) and "gpt" in modules:
        modules["gpt"] = TORCH_NORM.sub(OWN_NORM, modules["gpt"])
    # What modules read beside themselves, such as trained weights, comes along.
    beside = shutil.ignore_patterns("*.py", "*.pyc", "__pycache__", "notebooks")
    shutil.copytree(root / "solutions", target, ignore=beside, dirs_exist_ok=True)
    modules["__init__"] = SIGNATURE + "\n"
    for name, text in modules.items():
        text = re.sub(r"\b(from|import) solutions\b", rf"\1 {package}", text)
        (target / f"{name}.py").write_text(text, encoding="utf-8")
    _try(target, modules)
    drawing.draw(parts, target / "parts.svg")
    return parts


def _may_write(target: Path) -> bool:
    """Whether the folder is new, empty, or an earlier assembly."""
    if not target.exists():
        return True
    if not target.is_dir():
        return False
    start = target / "__init__.py"
    return not any(target.iterdir()) or (
        start.exists() and start.read_text(encoding="utf-8").startswith(SIGNATURE)
    )


def _finished(root: Path, chapter: Chapter):
    """Each exercise with the code to use for it, or None and the reason."""
    try:
        notebook = running.read_notebook(root, chapter)
    except running.RunError as error:
        yield from ((e, None, str(error)) for e in chapter.exercises.values())
        return
    cells = _solution_cells(notebook)
    if all("NotImplementedError" in cells.get(name, "") for name in chapter.exercises):
        yield from ((e, None, "not started") for e in chapter.exercises.values())
        return
    try:
        results = running.check_notebook(root, chapter)
    except running.RunError as error:
        yield from ((e, None, str(error)) for e in chapter.exercises.values())
        return
    for name, exercise in chapter.exercises.items():
        result = results[name]
        if name not in cells or result is None:
            yield exercise, None, "its cell or its check is missing or does not run"
        elif result.status == "unfinished":
            yield exercise, None, "still to do"
        elif result.status != "passed":
            yield exercise, None, "does not pass its check yet"
        else:
            yield exercise, _self_contained(cells[name], notebook, exercise), ""


def _solution_cells(notebook: NotebookNode) -> dict[str, str]:
    found = {}
    for cell in notebook.cells:
        meta = cell.metadata.get("nbgrader", {})
        if meta.get("solution") and cell.cell_type == "code":
            found[meta.get("grade_id")] = cell.source
    return found


def _self_contained(code: str, notebook: NotebookNode, exercise: Exercise) -> str:
    """The cell's code with the imports and helpers that it takes from other cells ahead of it."""
    provided: dict[str, str] = {}
    for cell in notebook.cells:
        if cell.cell_type != "code" or cell.metadata.get("nbgrader", {}).get("solution"):
            continue
        for node in _statements(cell.source):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                for alias in node.names:
                    single = type(node)(**{**vars(node), "names": [alias]})
                    name = (alias.asname or alias.name).partition(".")[0]
                    provided[name] = ast.unparse(single)
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Assign)):
                for name in _defined([node]):
                    provided[name] = ast.unparse(node)
    ahead: list[str] = []
    todo = [code]
    while todo:
        for name in sorted(_free_names(todo.pop())):
            text = provided.pop(name, None)
            if text is not None and name not in exercise.chapter.exercises:
                ahead.insert(0, text)
                todo.append(text)
    return "\n".join([*dict.fromkeys(ahead), "", code.strip()]).lstrip("\n")


def _statements(source: str) -> list[ast.stmt]:
    # Magics and shell lines are no Python; the rest of their cell still is.
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    try:
        return ast.parse("\n".join(lines)).body
    except SyntaxError:
        return []


def _defined(nodes: list[ast.stmt]) -> set[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names |= {n.id for t in node.targets for n in ast.walk(t) if isinstance(n, ast.Name)}
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names |= {(a.asname or a.name).partition(".")[0] for a in node.names}
    return names


def _free_names(code: str) -> set[str]:
    """The names that code takes from the notebook, without what is local to its functions."""
    statements = ast.parse(code).body
    read = set().union(*(syntax.globals_of(statement)[1] for statement in statements))
    return read - _defined(statements) - set(dir(builtins))


def _replaced(module: str, exercise: Exercise, code: str) -> str:
    """The module with one symbol's definition replaced by the learner's code."""
    for node in ast.parse(module).body:
        if getattr(node, "name", None) == exercise.name:
            break
    else:
        raise AssembleError(f"solutions has no {exercise.symbol}")
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    lines = module.splitlines()
    lines[first - 1 : node.end_lineno] = [f"{MARK}{exercise.chapter.slug}", *code.splitlines()]
    return "\n".join(lines) + "\n"


def _try(target: Path, modules: dict[str, str]) -> None:
    """Import the package in a process of its own, so that what is written is known to work."""
    names = [f"{target.name}.{m}" for m in sorted(modules) if m != "__init__"]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [sys.executable, "-c", code, *names],
        cwd=target.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if done.returncode:
        raise AssembleError(
            f"{target} was written, but does not import: {done.stderr.strip().splitlines()[-1]}"
        )


def table(parts: list[Part]) -> Table:
    """Which parts are the learner's."""
    shown = Table(title="Your library")
    for column in ("part", "whose", ""):
        shown.add_column(column)
    for part in parts:
        whose = "[green]yours[/]" if part.yours else "reference"
        shown.add_row(part.exercise.symbol, whose, part.reason)
    return shown
