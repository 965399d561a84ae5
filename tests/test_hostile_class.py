"""A class full of hostile, broken and odd submissions, graded in one batch beside honest ones.

Nobody wins a point that they have not earned, nobody loses one that they have, and the batch ends.
What could harm a machine runs in the sandbox only (see `tests/test_attacks.py` for the sandbox
alone), whose box is verified before the first line of it runs.
"""

import json
import os
import random
import re
import subprocess
import sys
import time

import nbformat
import pytest
from bs4 import BeautifulSoup

from autograder import building, dispatch, grading
from autograder.classroom import Classroom
from autograder.engine import Engine
from autograder.sandbox import box
from autograder.sandbox.lockdown import Rules
from autograder.sandbox.session import Limits
from tests.hostile import ATTACKS, BROKEN, HONEST, RIGHT, filled
from tests.test_grading import CHAPTER, Screen, find_chapter, marks, start_answers, write

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sandbox")]

RULES = Rules(memory=384 << 20, cpu=30, scratch=8 << 20)
LIMITS = Limits(call=1, cell=3, exercise=4, notebook=20, rules=RULES)
ALL = {
    f"{kind}-{i:02}": (name, submission)
    for kind, found in {"attack": ATTACKS, "broken": BROKEN, "honest": HONEST}.items()
    for i, (name, submission) in enumerate(found.items())
}
CANARY = "canary-9d3b71"


@pytest.fixture(scope="module")
def graded(template, tmp_path_factory, sandbox):
    """All of them, graded: the class's folder, and for each student what came of it."""
    folder = tmp_path_factory.mktemp("hostile") / "class" / "submitted"
    release = json.loads(building.notebook_path(template, CHAPTER).read_text())
    for student, (_, submission) in ALL.items():
        path = folder / student / "90_toy" / "toy.ipynb"
        path.parent.mkdir(parents=True)
        made = submission.make(release)
        path.write_bytes(made if isinstance(made, bytes) else json.dumps(made).encode())
    good = json.dumps(filled(release, **RIGHT))
    odd_names = ["<script>alert(1)</script>", "[bold]Tag[/bold]", "Zoë Ünïcode 学生", "x" * 200]
    for name in odd_names:
        path = folder / name.replace("/", "∕") / "90_toy" / "toy.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(good)
    for student, make in {
        "file-fifo": lambda path: os.mkfifo(path),
        "file-link": lambda path: os.symlink("/etc/passwd", path),
        "file-folder": lambda path: path.mkdir(),
        "file-neighbour": lambda path: os.symlink("../../honest-00/90_toy/toy.ipynb", path),
    }.items():
        path = folder / student / "90_toy" / "toy.ipynb"
        path.parent.mkdir(parents=True)
        make(path)
    shadow = folder / "shadow" / "90_toy"
    shadow.mkdir(parents=True)
    (shadow / "toy.ipynb").write_text(good)
    for name in ("torch.py", "autograder.py", "sitecustomize.py", "nbgrader_config.py"):
        (shadow / name).write_text("raise SystemExit('shadowed')")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADER_SECRET", CANARY)
        patch.setattr(grading, "Engine", lambda *a, **k: Engine(*a, limits=LIMITS, **k))
        screen = Screen()
        found = grading.grade_class(template, folder, [CHAPTER], console=screen)
    return folder.parent, {g.student: g for g in found}, screen.text


@pytest.mark.parametrize("student", ALL, ids=lambda s: f"{s}: {ALL[s][0]}")
def test_each_earns_what_it_is_worth(graded, student):
    folder, found, _ = graded
    _, submission = ALL[student]
    one = found[student]
    assert one.fault == ""
    assert one.score == submission.points, (one.odd, [str(r) for r in one.results.values()])
    assert sum(marks(folder, student).values()) == submission.points
    if submission.says:
        assert any(re.search(submission.says, line) for line in one.odd), one.odd
    elif submission.says == "":
        assert one.odd == []


def test_everyone_was_graded_whatever_their_name_or_file(graded):
    folder, found, screen = graded
    assert len(found) == len(ALL) + 9
    assert [g.score for s, g in found.items() if s.startswith(("<", "Zo", "x" * 9))] == [7, 7, 7]
    assert [g.score for s, g in found.items() if "bold" in s] == [7]
    assert found["shadow"].score == 7 and "further files were ignored" in found["shadow"].odd[0]
    for student in ("file-fifo", "file-link", "file-folder", "file-neighbour"):
        assert found[student].score == 0
        assert any("no notebook" in line for line in found[student].odd)
    assert "could not be graded" not in screen
    assert "What was odd" in screen and "\x1b" not in screen


def test_feedback_and_what_formgrader_shows_hold_no_live_script(graded):
    folder, _, _ = graded
    pages = list((folder / "feedback").rglob("*.html"))
    assert len(pages) == len(ALL) + 9
    for page in pages:
        text = page.read_text()
        parsed = BeautifulSoup(text, "html.parser")
        assert not parsed.find(["script", "img", "svg", "iframe", "object", "link"]), page
        assert not [t for t in parsed.find_all(True) if any(a[:2] == "on" for a in t.attrs)], page
        assert "default-src 'none'" in text
    for path in (folder / "autograded").rglob("*.ipynb"):
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                assert "alert" not in cell.source and not cell.get("attachments")
            for output in cell.get("outputs", []):
                shown = output.get("data", {})
                assert set(shown) <= {
                    "text/plain",
                    "text/html",
                    "application/vnd.attention-to-detail.check+json",
                }
                assert "<script" not in shown.get("text/html", "")


def test_nothing_hidden_came_out(graded):
    folder, _, _ = graded
    secret = (folder / ".nbgrader" / "secret").read_text()
    hidden = [CANARY, secret, "by addition, which is exact", "You squared it", "FOUND", "OUT"]
    for path in [*(folder / "feedback").rglob("*.html"), *(folder / "autograded").rglob("*.ipynb")]:
        text = path.read_text()
        assert not [h for h in hidden if h in text], path
        assert len(text) < 1_500_000, path


def test_graded_again_they_are_worth_the_same(graded, template):
    folder, found, _ = graded
    some = [s for s in ALL if "loop" not in ALL[s][0] and "without end" not in ALL[s][0]][::6]
    with Engine(limits=LIMITS) as engine:
        for student in some:
            path = folder / "submitted" / student / "90_toy" / "toy.ipynb"
            room = Classroom(folder)
            task = grading._Batch(room, None).task(grading.Found(student, CHAPTER, path))
            outcome = engine.grade(task)
            results = grading._results(outcome.notebook, CHAPTER)
            assert sum(r.earned for r in results.values()) == found[student].score, student


def test_mutated_notebooks_are_graded_without_a_fault(graded, template):
    """Broken in every way that a random hand finds; the neighbour after each keeps its points.

    Set COURSE_FUZZ to try more of them than the usual number.
    """
    folder, _, _ = graded
    release = building.notebook_path(template, CHAPTER).read_text()
    plain = json.dumps(filled(json.loads(release), **RIGHT))
    rng = random.Random(7)
    junk = [
        "null",
        "0",
        "1e999",
        '""',
        "[]",
        "{}",
        '"\\ud800"',
        '"%%bash"',
        "[[]]",
        '"while True:pass"',
    ]

    def mutated():
        text = plain
        for _ in range(rng.randrange(1, 6)):
            kind, at = rng.randrange(4), rng.randrange(len(text))
            if kind == 0:
                text = text[:at] + chr(rng.randrange(1, 0x250)) + text[at + 1 :]
            elif kind == 1:
                text = text[:at] + text[at + rng.randrange(40) :]
            elif kind == 2:
                spots = [m.span() for m in re.finditer(r'"[^"]*"(?=[,}\]])', text)]
                start, end = rng.choice(spots) if spots else (at, at)
                text = text[:start] + rng.choice(junk) + text[end:]
            else:
                other = rng.randrange(len(text))
                text = text[:at] + text[other : other + rng.randrange(300)] + text[at:]
        return text.encode("utf-8", "replace")

    def task(data, student):
        batch = grading._Batch(Classroom(folder), None)
        made = batch.task(grading.Found(student, CHAPTER, None))
        return type(made)(**{**vars(made), "data": data})

    quick = Limits(call=0.5, cell=0.5, exercise=1, notebook=2, rules=RULES)
    with Engine(limits=quick) as engine:
        for turn in range(int(os.environ.get("COURSE_FUZZ", 150))):
            outcome = engine.grade(task(mutated(), "fuzz"))
            assert outcome.fault == ""
            nbformat.validate(outcome.notebook)
            for result in grading._results(outcome.notebook, CHAPTER).values():
                assert result is not None and 0 <= result.earned <= result.points
            if turn % 25 == 0:
                outcome = engine.grade(task(plain.encode(), "neighbour"))
                results = grading._results(outcome.notebook, CHAPTER)
                assert sum(r.earned for r in results.values()) == 7


# -------------------------------------------------------------------- the grader itself fails


def hand_in_start(root, folder, students, **answers):
    chapter = find_chapter("00")
    for student in students:
        path = folder / student / chapter.slug / f"{chapter.name}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(building.notebook_path(root, chapter), path, **answers)
    return chapter


KILLED = """
import sys
from pathlib import Path
from rich.console import Console
from autograder import grading
from autograder.checking import find_chapter
root, folder, workers = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
graded = grading.grade_class(root, folder, [find_chapter("00")], workers=workers,
                             console=Console(quiet=True))
print(len(graded), sorted(g.score for g in graded))
"""


def test_a_batch_that_is_killed_goes_on_where_it_was(root, tmp_path):
    folder = tmp_path / "class" / "submitted"
    students = [f"s{i:02}" for i in range(30)]
    chapter = hand_in_start(root, folder, students, **start_answers())
    script = tmp_path / "grade.py"
    script.write_text(KILLED)
    command = [sys.executable, script, root, folder, "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = folder.parent / ".nbgrader" / "records" / chapter.slug
    end = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < end:
        if records.is_dir() and len(list(records.glob("s*.json"))) >= 5:
            process.kill()  # SIGKILL: nothing of it can tidy up
            break
        time.sleep(0.02)
    process.wait()
    before = len(list(records.glob("s*.json")))
    assert 5 <= before < 30
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    count, scores = re.match(r"(\d+) (\[.*\])", done.stdout).groups()
    assert int(count) == 30 - before, done.stderr
    assert len(set(json.loads(scores))) == 1 and json.loads(scores)[0] > 0
    rows = (folder.parent / "grades.csv").read_text().splitlines()
    assert len(rows) == 31


def test_a_fault_of_the_graders_costs_nobody_and_is_said(template, tmp_path, monkeypatch):
    folder = tmp_path / "class" / "submitted"
    release = json.loads(building.notebook_path(template, CHAPTER).read_text())
    for student in ("ann", "ben"):
        path = folder / student / "90_toy" / "toy.ipynb"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(filled(release, **RIGHT)))
    [first, _] = grading.grade_class(template, folder, [CHAPTER], console=Screen())
    usual = Engine._run_in_sandbox

    def broken(self, task, notebook, outcome):
        if task.student == "ann":
            outcome.fault = "SandboxError: no box"
        else:
            usual(self, task, notebook, outcome)

    monkeypatch.setattr(Engine, "_run_in_sandbox", broken)
    screen = Screen()
    again = grading.grade_class(template, folder, [CHAPTER], force=True, console=screen)
    assert [g.fault for g in again] == ["SandboxError: no box", ""]
    assert "1 could not be graded" in screen.text and "no box" in screen.text
    assert sum(marks(folder.parent, "ann").values()) == first.score == 7


def test_without_bubblewrap_a_class_is_refused_in_one_line(template, tmp_path, monkeypatch):
    folder = tmp_path / "class" / "submitted" / "ann" / "90_toy"
    folder.mkdir(parents=True)
    (folder / "toy.ipynb").write_text("{}")
    monkeypatch.setattr(box.shutil, "which", lambda name: None)
    with pytest.raises(
        dispatch.EngineError, match="bubblewrap is not installed: `apt install"
    ) as e:
        grading.grade_class(template, folder.parents[1], [CHAPTER], console=Screen())
    assert "\n" not in str(e.value)
