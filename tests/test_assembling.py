"""The learner's own library, assembled from finished cells."""

import ast
import json
import os
import shutil
import subprocess
import sys

import nbformat
import pytest
import torch

from autograder import assembling, building, drawing
from autograder import mine as mine_plugin
from autograder.assembling import AssembleError
from autograder.checking import chapters, find_chapter
from autograder.classroom import Classroom


@pytest.fixture
def course(root, tmp_path):
    """A copy of what `assemble` reads, with untouched notebooks."""
    for folder in ("solutions", "exercises"):
        shutil.copytree(root / folder, tmp_path / folder)
    chapter = find_chapter("start")
    path = building.notebook_path(tmp_path, chapter)
    # Not the one in exercises/, in which a learner may have worked.
    shutil.copyfile(Classroom(tmp_path / "class").add(root, chapter), path)
    return tmp_path, chapter, path


def fill(path, sources, extra=()):
    """Write these solutions, and add these cells at the top."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if name in sources:
            cell.source = sources[name]
    for source in extra:
        notebook.cells.insert(1, nbformat.v4.new_code_cell(source))
    nbformat.write(notebook, path)


MINE = """\
def batched_outer(a, b):
    "Mine, with a helper and an import of its own."
    return rows(a) * columns(b)
"""
HELPERS = """\
import torch as pytorch
def rows(a):
    return a.unsqueeze(-1)
def columns(b):
    return pytorch.unsqueeze(b, -2)
"""


def test_a_passing_cell_takes_the_references_place_with_its_helpers(course):
    root, chapter, path = course
    fill(path, {"batched_outer": MINE}, ["%matplotlib inline\n" + HELPERS])
    parts = assembling.assemble(root, root / "my_transformer", [chapter])
    whose = {p.exercise.name: p.yours for p in parts}
    assert whose["batched_outer"] and sum(whose.values()) == 1
    code = (
        "import torch; from my_transformer.start import batched_outer as f, pairwise_distance;"
        "print(f.__doc__); print(f(torch.ones(2), torch.ones(3)).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True
    )
    assert "Mine, with a helper" in done.stdout and "[2, 3]" in done.stdout


def test_a_local_name_takes_nothing_from_another_cell(course):
    """`rows` is a variable of the function. That another cell calls something else so is its own
    affair."""
    root, chapter, path = course
    mine = "def batched_outer(a, b):\n    rows = a.unsqueeze(-1)\n    return rows * b.unsqueeze(-2)"
    fill(path, {"batched_outer": mine}, ["rows = len('not for the library')"])
    parts = assembling.assemble(root, root / "my_transformer", [chapter])
    assert next(p for p in parts if p.exercise.name == "batched_outer").yours
    assert "not for the library" not in (root / "my_transformer" / "start.py").read_text()


def test_what_fails_or_is_not_started_stays_the_reference(course):
    root, chapter, path = course
    fill(path, {"batched_outer": "def batched_outer(a, b):\n    return a * b"})
    parts = assembling.assemble(root, root / "my_transformer", [chapter])
    reasons = {p.exercise.name: p.reason for p in parts}
    assert reasons["batched_outer"] == "does not pass its check yet"
    assert reasons["pairwise_distance"] == "still to do"
    ours = (root / "solutions" / "start.py").read_text()
    theirs = (root / "my_transformer" / "start.py").read_text()
    assert ast.dump(ast.parse(ours)) == ast.dump(ast.parse(theirs))


def test_modules_import_each_other_within_the_package(course):
    root, chapter, _ = course
    assembling.assemble(root, root / "my_transformer", [chapter])
    for path in (root / "my_transformer").glob("*.py"):
        assert "solutions" not in [
            n.module.split(".")[0]
            for n in ast.walk(ast.parse(path.read_text()))
            if isinstance(n, ast.ImportFrom) and n.module
        ]


def test_a_broken_or_missing_notebook_does_not_stop_the_others(course):
    root, chapter, path = course
    path.write_text(json.dumps({"not": "a notebook"})[:9])
    parts = assembling.assemble(root, root / "my_transformer", [chapter])
    assert all(not p.yours and "not a notebook" in p.reason for p in parts)
    path.unlink()
    parts = assembling.assemble(root, root / "my_transformer", [chapter])
    assert all("is missing" in p.reason for p in parts)


@pytest.mark.parametrize("name", ["solutions", "my-library", "3d"])
def test_a_name_that_cannot_be_a_package_is_refused(course, name):
    root, chapter, _ = course
    with pytest.raises(AssembleError, match="cannot be the name"):
        assembling.assemble(root, root / name, [chapter])


def test_a_folder_with_other_things_in_it_is_left_alone(course):
    root, chapter, _ = course
    (root / "thesis").mkdir()
    (root / "thesis" / "chapter1.txt").write_text("years of work")
    with pytest.raises(AssembleError, match="holds something else"):
        assembling.assemble(root, root / "thesis", [chapter])
    assert (root / "thesis" / "chapter1.txt").read_text() == "years of work"


def test_what_modules_read_beside_themselves_comes_along(course):
    root, chapter, _ = course
    (root / "solutions" / "weights").mkdir(exist_ok=True)
    (root / "solutions" / "weights" / "some.safetensors").write_bytes(b"numbers")
    assembling.assemble(root, root / "my_transformer", [chapter])
    assert (root / "my_transformer" / "weights" / "some.safetensors").read_bytes() == b"numbers"
    assert not (root / "my_transformer" / "notebooks").exists()


def test_the_picture_shows_whose_each_part_is(course):
    root, chapter, path = course
    fill(path, {"batched_outer": MINE}, [HELPERS])
    parts = assembling.assemble(root, root / "my_transformer", [chapter])
    picture = (root / "my_transformer" / "parts.svg").read_text()
    assert f"1 of {len(parts)} parts are yours" in picture
    # A filled square for what is theirs, and the one that explains it.
    assert picture.count(f"fill: {drawing.YOURS}") == 2
    assert picture.count("stroke-dasharray") == len(parts) - 1 + 1
    assembling.assemble(root, root / "my_transformer", [chapter])
    assert (root / "my_transformer" / "parts.svg").read_text() == picture


def test_the_librarys_tests_run_on_the_learners_own(course, root):
    copy, chapter, path = course
    mine = MINE.replace("return rows", "assert a.ndim < 9, 'mine, for few axes'; return rows")
    fill(path, {"batched_outer": mine}, [HELPERS])
    assembling.assemble(copy, copy / "my_transformer", [chapter])
    (copy / "test_it.py").write_text(
        "import pytest, torch\n"
        "import solutions.start\n"
        "from solutions import self_attention\n"
        "def test_whose():\n"
        "    with pytest.raises(AssertionError, match='mine'):\n"
        "        solutions.start.batched_outer(torch.ones([1] * 9), torch.ones(1))\n"
        "    assert self_attention.__name__ == 'my_transformer.self_attention'\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "autograder.mine"]
    tests = [copy / "test_it.py", root / "tests" / "test_solutions_start.py"]
    done = subprocess.run(
        [*command, "--rootdir", root, "-p", "no:cacheprovider", *tests],
        cwd=root,
        env={**os.environ, mine_plugin.VARIABLE: str(copy / "my_transformer")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


def test_a_learners_gpt_has_the_learners_norm(course, root):
    copy, _, _ = course
    chapter = find_chapter("10")
    path = building.notebook_path(copy, chapter)
    shutil.copyfile(Classroom(copy / "class").add(root, chapter), path)
    source = building.source_notebook(chapter, building.source_path(root, chapter).read_text())
    [norm] = [c.source for c in source.cells if c.source.startswith("class LayerNorm")]
    fill(path, {"LayerNorm": norm.replace("class LayerNorm", "# My own.\nclass LayerNorm", 1)})
    parts = assembling.assemble(copy, copy / "my_transformer", [chapter])
    assert [p.exercise.name for p in parts if p.yours] == ["LayerNorm"]
    code = (
        "import torch; from my_transformer import gpt, residuals_and_norms as own;"
        "model = gpt.GPT(gpt.GPTConfig(5, 4, 8, 1, 2));"
        "assert type(model.norm) is own.LayerNorm; print(model(torch.zeros(1, 3).long()).shape)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=copy, capture_output=True, text=True, check=True)
    assert "[1, 3, 5]" in done.stdout


def test_what_has_a_place_in_the_picture_is_an_exercise():
    known = {e.symbol for c in chapters() for e in c.exercises.values()}
    assert set(drawing.placed()) <= known


@pytest.mark.slow
def test_a_whole_gpt_of_ones_own_tells_stories_with_the_courses_weights(root, tmp_path):
    """Every cell of chapter 14, finished, and marked so that it shows whose code runs."""
    shutil.copytree(root / "solutions", tmp_path / "solutions")
    chapter = find_chapter("gpt")
    source = building.source_path(root, chapter).read_text(encoding="utf-8")
    notebook = building.source_notebook(chapter, source)
    for cell in notebook.cells:
        if cell.metadata.get("nbgrader", {}).get("solution"):
            cell.source = cell.source.replace('"""', '"""Mine: ', 1)
    path = building.notebook_path(tmp_path, chapter)
    path.parent.mkdir(parents=True)
    nbformat.write(notebook, path)
    parts = assembling.assemble(tmp_path, tmp_path / "my_transformer", [chapter])
    assert {p.exercise.name for p in parts if p.yours} == {
        "Block", "GPT", "next_logits", "generate", "positions_computed", "sliding_windows",
        "from_hf_gpt2",
    }  # fmt: skip
    code = (
        "import torch\n"
        "from my_transformer import gpt, residuals_and_norms\n"
        "model, language = gpt.trained()\n"
        "assert type(model).__module__ == 'my_transformer.gpt', type(model)\n"
        "assert all(p.__doc__.startswith('Mine') for p in (gpt.GPT, gpt.Block, gpt.generate))\n"
        "norm = type(model.blocks[0].norm_1)\n"
        "assert norm is residuals_and_norms.LayerNorm, norm\n"
        "start = torch.zeros(1, 1, dtype=torch.long)\n"
        "print(language.decode(gpt.generate(model, start, 30)[0, 1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    from solutions.gpt import generate, trained

    model, language = trained()
    expected = generate(model, torch.zeros(1, 1, dtype=torch.long), 30)[0, 1:]
    assert done.stdout.strip() == language.decode(expected).strip()
