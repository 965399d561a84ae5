"""Take from a submission what the learner wrote, and put it into the released notebook.

A submission is an untrusted file. Only text survives the graft: that of the solution cells, and
that of plain code cells which the learner added. Everything else (tags, metadata, duplicates,
deletions, order, schema versions, attachments, outputs) is the release's own.
"""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass, field
from typing import Any

import nbformat
from nbformat import NotebookNode

MAX_BYTES = 20_000_000  # of a submitted file; outputs are the only thing that makes one this large
MAX_CELLS = 1_000
MAX_TEXT = 200_000  # characters of a cell


@dataclass
class Graft:
    """A notebook that is safe to handle, and what was odd about the submission.

    Args:
        notebook: the release with the learner's text in it.
        oddities: what the instructor may want to know, a sentence each.
        answered: names of the solution cells that hold the learner's text.
    """

    notebook: NotebookNode
    oddities: list[str] = field(default_factory=list)
    answered: set[str] = field(default_factory=set)


@dataclass
class _Cell:
    kind: str
    text: str
    grade_id: str


def graft(submitted: bytes | None, release: NotebookNode) -> Graft:
    """Put a learner's text into the release.

    Args:
        submitted: the file's bytes, whatever they are; None if there is no file.
        release: nbgrader's release version of the notebook. Left unchanged.

    Returns:
        A notebook with all cells of the release in their order, and the learner's own code cells
        behind the cell that they stood behind.
    """
    result = Graft(nbformat.from_dict(json.loads(json.dumps(release))))
    cells = _cells(submitted, result.oddities)
    known = {_grade_id(c): c for c in result.notebook.cells if _grade_id(c)}
    solutions = {i: c for i, c in known.items() if c.metadata.nbgrader.get("solution")}
    chosen = _solutions(cells, solutions, result.oddities)
    for name, cell in solutions.items():
        if name in chosen:
            if chosen[name].text.strip() != cell.source.strip():
                result.answered.add(name)
            cell.source = chosen[name].text
    missing = [name for name in solutions if name not in chosen]
    if missing and (cells or not result.oddities):  # or else it has been said why
        of = f"cell of {missing[0]} is" if len(missing) == 1 else f"cells of {_all(missing)} are"
        result.oddities.append(f"the {of} missing")
    _add_own_cells(result, cells, known, list(chosen.values()))
    for cell in result.notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    return result


def _cells(submitted: bytes | None, oddities: list[str]) -> list[_Cell]:
    """The cells of a submitted file, as far as it has any."""
    if submitted is None:
        oddities.append("there is no notebook")
        return []
    if len(submitted) > MAX_BYTES:
        oddities.append(f"the file is larger than {MAX_BYTES // 1_000_000} MB, and was not read")
        return []
    try:
        data = json.loads(submitted.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        oddities.append("the file is not a notebook (not JSON); was it cut off?")
        return []
    raw = data.get("cells") if isinstance(data, dict) else None
    if raw is None and isinstance(data, dict) and isinstance(data.get("worksheets"), list):
        raw = [c for w in data["worksheets"] if isinstance(w, dict) for c in w.get("cells") or []]
    if not isinstance(raw, list):
        oddities.append("the file is not a notebook (it has no cells)")
        return []
    if len(raw) > MAX_CELLS:
        oddities.append(f"only the first {MAX_CELLS} of {len(raw)} cells were read")
    cells = [cell for item in raw[:MAX_CELLS] if (cell := _cell(item)) is not None]
    if len(cells) < min(len(raw), MAX_CELLS):
        oddities.append("some cells are broken, and were left out")
    return cells


def _cell(item: Any) -> _Cell | None:
    if not isinstance(item, dict):
        return None
    text = item.get("source", item.get("input", ""))
    if isinstance(text, list) and all(isinstance(line, str) for line in text):
        text = "".join(text)
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        return None
    # A lone surrogate cannot be written to any file.
    text = text.encode("utf-8", "replace").decode("utf-8")
    metadata = item.get("metadata")
    mark = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    grade_id = mark.get("grade_id") if isinstance(mark, dict) else None
    return _Cell(
        "code" if item.get("cell_type") == "code" else "other",
        text,
        grade_id if isinstance(grade_id, str) else "",
    )


def _all(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _grade_id(cell: NotebookNode) -> str:
    return cell.metadata.get("nbgrader", {}).get("grade_id", "")


def _solutions(
    cells: list[_Cell], solutions: dict[str, NotebookNode], oddities: list[str]
) -> dict[str, _Cell]:
    """The learner's cell for each solution: by its mark, or else by what it defines."""
    chosen: dict[str, _Cell] = {}
    for name, cell in solutions.items():
        marked = [c for c in cells if c.kind == "code" and c.grade_id == name]
        written = [c for c in marked if c.text.strip() != cell.source.strip()]
        if len(written) > 1:
            oddities.append(f"the cell of {name} is there {len(marked)} times; the last one counts")
        if not marked:
            # Some editors drop the marks; the name of what is defined is as good.
            marked = [c for c in cells if c.kind == "code" and not c.grade_id and _defines(c, name)]
            if marked:
                oddities.append(f"the cell of {name} has lost its mark, and was found by its name")
        if marked:
            chosen[name] = (written or marked)[-1]
    return chosen


def _defines(cell: _Cell, name: str) -> bool:
    try:
        body = ast.parse(cell.text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return any(getattr(node, "name", None) == name for node in body)


def _add_own_cells(
    result: Graft, cells: list[_Cell], known: dict[str, NotebookNode], used: list[_Cell]
) -> None:
    """Put the learner's other code cells behind the known cell that they stood behind."""
    texts = {c.source.strip() for c in result.notebook.cells}
    own: dict[str, list[str]] = {}
    anchor, edited = "", []
    for cell in cells:
        if cell.grade_id in known:
            anchor = cell.grade_id
            mark = known[anchor].metadata.nbgrader
            changed = cell.text.strip() != known[anchor].source.strip()
            if mark.get("grade") and changed:
                edited.append(anchor)
            # A changed import cell is the learner's code, too; a changed check is not.
            if not changed or mark.get("grade") or mark.get("solution"):
                continue
        elif any(cell is one for one in used):
            continue
        if cell.kind == "code" and cell.text.strip() and cell.text.strip() not in texts:
            own.setdefault(anchor, []).append(cell.text)
    if edited:
        result.oddities.append(
            f"checks were changed, and put back: {', '.join(sorted(set(edited)))}"
        )
    notebook = result.notebook
    new: list[NotebookNode] = []
    for cell in [None, *notebook.cells]:
        if cell is not None:
            new.append(cell)
        name = "" if cell is None else _grade_id(cell)
        for text in own.pop(name, []) if (cell is None or name) else []:
            added = nbformat.v4.new_code_cell(text)
            added.id = f"own-{sum(c.id.startswith('own-') for c in new)}"
            new.append(added)
    notebook.cells = new
