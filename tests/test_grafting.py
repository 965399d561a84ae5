"""Whatever a submission is, what comes out is the release with the learner's text in it."""

import copy
import json
import random

import nbformat
import pytest

from autograder.classroom import Classroom
from autograder.grafting import MAX_BYTES, graft
from tests.toy import TEXT, make_chapter


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    root = tmp_path_factory.mktemp("graft")
    (root / "solutions" / "notebooks").mkdir(parents=True)
    (root / "solutions" / "notebooks" / "90_toy.md").write_text(TEXT)
    return nbformat.read(Classroom(root / "class").add(root, make_chapter()), as_version=4)


MINE = "def double(x):\n    return x + x"


def submission(release, **texts):
    notebook = copy.deepcopy(release)
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name in texts:
            cell.source = texts[name]
    return notebook


def as_bytes(notebook):
    return json.dumps(notebook).encode()


def by_id(notebook, name):
    return next(c for c in notebook.cells if c.metadata.get("nbgrader", {}).get("grade_id") == name)


def outline(notebook):
    return [(c.cell_type, c.id, json.dumps(c.metadata, sort_keys=True)) for c in notebook.cells]


def test_the_learners_text_goes_in_and_all_else_is_the_releases(release):
    found = graft(as_bytes(submission(release, double=MINE)), release)
    assert by_id(found.notebook, "double").source == MINE
    assert outline(found.notebook) == outline(release)
    assert found.answered == {"double"} and found.oddities == []


def test_an_untouched_notebook_answers_nothing(release):
    found = graft(as_bytes(release), release)
    assert found.answered == set() and found.oddities == []
    assert found.notebook == release


def test_own_cells_stay_where_they_stood_with_nothing_but_their_text(release):
    theirs = submission(release, double=MINE)
    cell = nbformat.v4.new_code_cell("helper = 1", metadata={"tags": ["skip-execution"]})
    cell.outputs = [nbformat.v4.new_output("stream", text="x")]
    at = theirs.cells.index(by_id(theirs, "count"))
    theirs.cells.insert(at, cell)
    found = graft(as_bytes(theirs), release).notebook
    texts = [c.source for c in found.cells]
    own = found.cells[texts.index("helper = 1")]
    assert own.metadata == {} and own.outputs == []
    assert texts.index("check(double)") < texts.index("helper = 1")
    assert own.id.startswith("own-")
    nbformat.validate(found)


def test_tags_metadata_order_duplicates_and_changed_checks_do_not_survive(release):
    theirs = submission(release, double=MINE)
    for c in theirs.cells:
        c.metadata["tags"] = ["skip-execution", "raises-exception"]
    by_id(theirs, "check-double").source = "100"
    by_id(theirs, "check-double").metadata.nbgrader.points = 100
    by_id(theirs, "check-count").metadata.nbgrader.schema_version = 99
    by_id(theirs, "check-Scale").metadata.nbgrader.grade_id = "check-double"
    theirs.cells.reverse()
    theirs.metadata = {"kernelspec": {"name": "evil", "display_name": "evil"}}
    found = graft(as_bytes(theirs), release)
    assert outline(found.notebook) == outline(release)
    assert found.notebook.metadata == release.metadata
    assert by_id(found.notebook, "check-double").source == "check(double)"
    assert any("checks were changed" in o for o in found.oddities)


def test_of_a_copied_cell_the_last_one_that_was_written_counts(release):
    theirs = submission(release)
    stub = by_id(theirs, "double")
    first, last = copy.deepcopy(stub), copy.deepcopy(stub)
    first.source, last.source = "first = 1", "last = 2"
    at = theirs.cells.index(stub)
    theirs.cells[at:at] = [first, last]
    found = graft(as_bytes(theirs), release)
    assert by_id(found.notebook, "double").source == "last = 2"
    assert "the last one counts" in " ".join(found.oddities)


def test_a_cell_that_lost_its_mark_is_found_by_its_name(release):
    theirs = submission(release, double=MINE)
    for c in theirs.cells:
        c.metadata = {}
    found = graft(as_bytes(theirs), release)
    assert by_id(found.notebook, "double").source == MINE
    assert any("lost its mark" in o for o in found.oddities)
    assert [c.source for c in found.notebook.cells].count(MINE) == 1


def test_a_deleted_cell_is_the_stub_again_and_its_check_stays(release):
    theirs = submission(release, double=MINE)
    theirs.cells = [c for c in theirs.cells if "double" not in c.id]
    found = graft(as_bytes(theirs), release)
    assert outline(found.notebook) == outline(release)
    assert "the cell of double is missing" in found.oddities


def test_what_is_missing_is_said_in_one_line(release):
    theirs = submission(release)
    theirs.cells = [c for c in theirs.cells if not c.metadata.get("nbgrader", {}).get("solution")]
    (line,) = graft(as_bytes(theirs), release).oddities
    assert line.startswith("the cells of ") and line.endswith(" are missing")
    assert graft(b'{"cells": []}', release).oddities == [line]
    assert len(graft(b"{", release).oddities) == len(graft(None, release).oddities) == 1


def test_imports_added_to_a_given_cell_are_kept_as_an_own_cell(release):
    theirs = submission(release)
    given = next(c for c in theirs.cells if c.cell_type == "code")
    given.source += "\nimport math"
    found = graft(as_bytes(theirs), release).notebook
    assert [c for c in found.cells if c.id.startswith("own-")][0].source == given.source


@pytest.mark.parametrize(
    "data, said",
    [
        (None, "no notebook"),
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"null", "no cells"),
        (b"[]", "no cells"),
        (b'{"cells": 3}', "no cells"),
        (b'{"cells": [1, {"source": 5}, {"cell_type": []}]}', "some cells are broken"),
        (b" " * (MAX_BYTES + 1), "larger than"),
        (json.dumps({"cells": [{}] * 1001}).encode(), "first 1000 of 1001"),
    ],
)
def test_a_file_that_is_no_notebook_gives_the_release_and_a_reason(release, data, said):
    found = graft(data, release)
    assert outline(found.notebook) == outline(release)
    assert said in " ".join(found.oddities)


def test_mutated_notebooks_never_break_the_graft(release):
    """Thousands of broken files: no exception, and nothing of them but text."""
    rng = random.Random(0)
    junk = [None, 0, -1, 1e400, True, "", "x" * 50, [], {}, [[]], {"a": 1}, "\ud800", "%%bash\nls"]

    def mutate(value, depth=0):
        if rng.random() < 0.03:
            return rng.choice(junk)
        if isinstance(value, dict):
            items = list(value.items())
            if items and rng.random() < 0.05:
                items.pop(rng.randrange(len(items)))
            return {k: mutate(v, depth + 1) for k, v in items}
        if isinstance(value, list):
            new = [mutate(v, depth + 1) for v in value]
            if new and rng.random() < 0.05:
                new.append(copy.deepcopy(rng.choice(new)))
            return new
        return value

    plain = json.loads(json.dumps(submission(release, double=MINE)))
    locked = {c.id: c.source for c in release.cells if not _solution(c)}
    for turn in range(2000):
        found = graft(json.dumps(mutate(plain)).encode(), release).notebook
        kept = [c for c in found.cells if not c.id.startswith("own-")]
        assert [c.id for c in kept] == [c.id for c in release.cells]
        assert all(c.source == locked[c.id] for c in kept if c.id in locked)
        if turn % 20 == 0:  # slow
            nbformat.validate(found)
    raw = bytearray(json.dumps(plain).encode())
    for _ in range(2000):
        broken = bytearray(raw)
        for _ in range(rng.randrange(1, 20)):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        if rng.random() < 0.3:
            del broken[rng.randrange(len(broken)) :]
        found = graft(bytes(broken), release).notebook
        assert all(c.source == locked[c.id] for c in found.cells if c.id in locked)


def _solution(cell):
    return cell.metadata.get("nbgrader", {}).get("solution", False)
