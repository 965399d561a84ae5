"""Grading, end to end: what a learner and an instructor get, and what cannot disturb it."""

import csv
import hashlib
import inspect
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbgrader.api import Gradebook
from rich.console import Console

from autograder import building, executing, grading, recording
from autograder.checking import chapters, find_chapter
from autograder.classroom import Classroom
from autograder.grading import GradingError, grade_class, grade_own, nbgrader_config
from autograder.progress import holds_stub, progress, standings
from autograder.recording import COURSE, RecordingError
from tests.toy import TEXT, make_chapter

GOOD = {
    "double": "def double(x):\n    return 2 * x",
    "count": "def count(n):\n    return [k for k in range(n)]",
    "Scale": "class Scale(nn.Module):\n    def __init__(self, start=1.0):\n"
    "        super().__init__()\n        self.factor = nn.Parameter(torch.tensor(start))\n"
    "    def forward(self, x):\n        return self.factor * x",
}
SQUARED = "def double(x):\n    return x * x"
CHAPTER = make_chapter()
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def toy_can_be_imported(root, monkeypatch):
    """Kernels find the toy's checks, as they find the installed course's."""
    monkeypatch.setenv("PYTHONPATH", str(root))


@pytest.fixture
def hand_in(course, tmp_path, new_gradebook, sandbox):
    """A function that hands in a notebook with these cells, and the class's folder."""
    folder = tmp_path / "class" / "submitted"
    folder.mkdir(parents=True)
    shutil.copy(new_gradebook, folder.parent)

    def hand_in(student, name="toy.ipynb", assignment="90_toy", /, **answers):
        path = folder / student / assignment / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(building.notebook_path(course, CHAPTER), path, **answers)
        return path

    hand_in.folder = folder
    return hand_in


def write(source, target, **answers):
    """Fill solution cells of a notebook; None deletes the cell of that grade id."""
    notebook = nbformat.read(source, as_version=4)
    for name, text in answers.items():
        place = next(i for i, c in enumerate(notebook.cells) if grade_id(c) == name)
        if text is None:
            del notebook.cells[place]
        else:
            notebook.cells[place].source = text
    nbformat.write(notebook, target)


def grade_id(cell):
    return cell.metadata.get("nbgrader", {}).get("grade_id")


def work(course, **answers):
    path = building.notebook_path(course, CHAPTER)
    write(path, path, **answers)


class Screen(Console):
    """A console to read from."""

    def __init__(self):
        super().__init__(file=io.StringIO(), width=160)

    @property
    def text(self):
        return self.file.getvalue()


def marks(classroom_folder, student):
    with Gradebook(Classroom(classroom_folder).db, COURSE) as book:
        submission = book.find_submission("90_toy", student)
        return {g.name: g.score for n in submission.notebooks for g in n.grades}


# --------------------------------------------------------------------- a learner's own


def test_an_untouched_notebook_is_not_started_and_not_run(course):
    screen = Screen()
    assert grade_own(course, [CHAPTER], screen) == []
    assert "not started" in screen.text and "0 of 7 points" in screen.text
    assert not (course / "my_grades" / "autograded").exists()


def test_half_done_gets_its_points_a_table_and_feedback_with_the_checks_messages(course, capfd):
    work(course, double=SQUARED, count=GOOD["count"])
    screen = Screen()
    [graded] = grade_own(course, [CHAPTER], screen)
    assert graded.score == 3
    assert marks(course / "my_grades", "me") == {
        "check-double": 1,
        "check-count": 2,
        "check-Scale": 0,
    }
    assert {k: r.earned for k, r in graded.results.items()} == {"double": 1, "count": 2, "Scale": 0}
    assert re.search(r"90\.1 double +1 of 3 +values: You squared it\.", screen.text)
    assert re.search(r"90\.3 Scale +0 of 2 +to do", screen.text)
    assert graded.feedback.as_uri() in screen.text
    page = graded.feedback.read_text()
    assert "You squared it." in page and "Still to do: write Scale.__init__." in page
    assert "<strong>3 of 7 points</strong>" in page
    assert capfd.readouterr() == ("", "")  # nbgrader's own words stay off the terminal
    snapshot = course / "my_grades" / "submitted" / "me" / "90_toy" / "toy.ipynb"
    assert snapshot.read_bytes() == building.notebook_path(course, CHAPTER).read_bytes()


def test_feedback_needs_no_network_and_tells_no_secret(course):
    work(course, double="# $x^2$\n" + SQUARED)
    [graded] = grade_own(course, [CHAPTER], Screen())
    page = graded.feedback.read_text()
    assert not re.search(r"""<script|<link|<iframe|(src|href)=["']?(https?:|//)""", page)
    folder = course / "my_grades"
    key = hashlib.sha256(building.notebook_path(course, CHAPTER).read_bytes()).hexdigest()
    for secret in (
        recording.secret(folder).hex(),
        recording.seed(folder, "90_toy", "me", key),
        "return x + x",
        "list(range(n))\n",
    ):
        assert secret not in page
    assert stat.S_IMODE((folder / ".nbgrader" / "secret").stat().st_mode) == 0o600


def test_a_regrade_keeps_no_stale_mark(course):
    work(course, **GOOD)
    assert grade_own(course, [CHAPTER], Screen())[0].score == 7
    work(course, **{"double": None, "check-double": None, "check-count": None})
    [graded] = grade_own(course, [CHAPTER], Screen())
    assert marks(course / "my_grades", "me") == {
        "check-double": 0,  # the work is gone
        "check-count": 2,  # the work is there, and its check was put back
        "check-Scale": 2,
    }
    assert any("double" in line for line in graded.odd)


def test_a_broken_file_is_said_to_be_broken_and_costs_only_its_own_points(course):
    work(course, **GOOD)
    grade_own(course, [CHAPTER], Screen())
    path = building.notebook_path(course, CHAPTER)
    path.write_text(path.read_text()[:500])
    screen = Screen()
    assert grade_own(course, [CHAPTER], screen)[0].score == 0
    assert "cut off" in screen.text


def test_a_kernel_that_dies_loses_only_what_comes_after(course):
    work(course, **GOOD | {"count": GOOD["count"] + "\nimport os; os._exit(1)"})
    [graded] = grade_own(course, [CHAPTER], Screen())
    assert graded.score == 3
    assert any("died" in line for line in graded.odd)


def test_a_check_that_does_not_report_earns_nothing(course):
    work(course, **GOOD | {"double": GOOD["double"] + "\ncheck = lambda f: None"})
    assert grade_own(course, [CHAPTER], Screen())[0].score == 0


def test_a_notebook_that_runs_too_long_is_stopped(course, monkeypatch):
    monkeypatch.setattr(executing, "DEADLINE", 3)
    work(course, **GOOD | {"count": GOOD["count"] + "\nimport time; time.sleep(5)"})
    [graded] = grade_own(course, [CHAPTER], Screen())
    assert marks(course / "my_grades", "me")["check-Scale"] == 0
    assert any("more than 3 s" in line for line in graded.odd)


def test_warnings_on_stderr_cost_nothing(course):
    noisy = "import sys\ndef double(x):\n    print('!', file=sys.stderr)\n    return x + x"
    work(course, **GOOD | {"double": noisy})
    assert grade_own(course, [CHAPTER], Screen())[0].score == 7


def test_a_changed_course_replaces_the_learners_old_grades(course):
    work(course, **GOOD)
    grade_own(course, [CHAPTER], Screen())
    smaller = make_chapter()
    del smaller.exercises["Scale"]
    cut = TEXT.index("## Exercise: Scale")
    (course / "solutions" / "notebooks" / "90_toy.md").write_text(TEXT[:cut])
    assert grade_own(course, [smaller], Screen())[0].score == 5


def test_no_notebooks_is_one_clear_line(tmp_path):
    with pytest.raises(GradingError, match="no notebook in .*course.py release"):
        grade_own(tmp_path, [CHAPTER], Screen())


def test_a_damaged_gradebook_is_one_clear_line(course):
    work(course, **GOOD)
    (course / "my_grades" / "gradebook.db").write_text("not a database at all" * 100)
    with pytest.raises(RecordingError, match="cannot be used as a gradebook.*Move it away"):
        grade_own(course, [CHAPTER], Screen())


# -------------------------------------------------------------------------------- seeds


def test_seeds_differ_by_class_assignment_student_and_what_is_handed_in(tmp_path):
    seeds = {
        recording.seed(tmp_path / folder, assignment, student, digest)
        for folder in ("one", "two")
        for assignment in ("04_a", "05_b")
        for student in ("ann", "bob")
        for digest in ("a1", "b2")
    }
    assert len(seeds) == 16
    assert recording.seed(tmp_path / "one", "04_a", "ann", "a1") in seeds


def test_the_same_submission_meets_the_same_inputs_and_a_new_attempt_others(hand_in, course):
    classroom = Classroom(hand_in.folder.parent)
    classroom.add(course, CHAPTER)
    batch = grading._Batch(classroom, None)

    def seed(student, **answers):
        path = hand_in(student, **answers)
        return batch.task(grading.Found(student, CHAPTER, path)).seed

    first = seed("ann", **GOOD)
    assert seed("ann", **GOOD) == first
    assert len({first, seed("ann", double=SQUARED), seed("bob", **GOOD)}) == 3


# ----------------------------------------------------------------------------- progress


def test_progress_names_what_is_next_and_how_long_it_takes(course):
    screen = Screen()
    progress(course, [CHAPTER], screen)
    assert "About 15 minutes to go" in screen.text
    assert "Next: 90.1 double, about 5 minutes" in screen.text
    assert [s.to_do for s in standings(course, CHAPTER)] == [True, True, True]
    work(course, double=GOOD["double"], count=SQUARED.replace("double", "count"))
    grade_own(course, [CHAPTER], Screen())
    screen = Screen()
    progress(course, [CHAPTER], screen)
    assert re.search(r"1 of 3 +3 of 7 +10 min", screen.text)
    assert "Next: 90.2 count" in screen.text and "begun: 0 of 2 points" in screen.text


def test_progress_does_not_take_an_old_mark_for_new_work(course):
    work(course, **GOOD)
    grade_own(course, [CHAPTER], Screen())
    assert all(s.done for s in standings(course, CHAPTER))
    work(course, double=SQUARED)
    assert [s.earned for s in standings(course, CHAPTER)] == [None, 2, 2]
    screen = Screen()
    progress(course, [CHAPTER], screen)
    assert "90.1 double" in screen.text and "not checked yet" in screen.text


def test_a_stub_is_told_from_work_whatever_the_layout(course):
    double, count, scale = CHAPTER.exercises.values()
    half = GOOD["Scale"].replace("self.factor *", "raise NotImplementedError('Exercise 90.3: write")
    assert holds_stub(scale, half.replace("'", '"'))
    assert not holds_stub(scale, GOOD["Scale"]) and not holds_stub(double, SQUARED)
    bug = "def count(n):\n    numbers = range(1, n+1) # hm\n    return list( numbers )"
    assert holds_stub(count, bug)
    assert not holds_stub(count, GOOD["count"]) and not holds_stub(count, "def count(n:")


def test_progress_survives_missing_and_broken_notebooks(course):
    path = building.notebook_path(course, CHAPTER)
    path.write_text("{")
    progress(course, [CHAPTER], Screen())
    path.unlink()
    assert [s.to_do for s in standings(course, CHAPTER)] == [True] * 3


# ------------------------------------------------------------------------------ a class


def test_a_class_is_graded_whatever_is_in_it(hand_in, course, capfd):
    hand_in("ann", **GOOD)
    hand_in("ben", double=SQUARED, count=GOOD["count"])
    hand_in("cut").write_text("{ half a file")
    hand_in("dan", "toy (1).ipynb", **GOOD)
    hand_in("eve", **GOOD | {"check-double": None, "double": None})
    hand_in("Fox, Guy", **GOOD)
    (hand_in.folder / "gil" / "90_toy").mkdir(parents=True)
    (hand_in.folder / "hal").mkdir()
    (hand_in.folder / "ann" / "99_other").mkdir()
    (hand_in.folder / "ann" / "90_toy" / "torch.py").write_text("raise SystemExit")
    (hand_in.folder / "ann" / "90_toy" / "timestamp.txt").write_text("2026-01-02 03:04:05 UTC")
    (hand_in.folder / "ben" / "90_toy" / "timestamp.txt").write_text("yesterday")
    (hand_in.folder / "notes.txt").write_text("remember the milk")
    os.symlink(
        building.source_path(course, CHAPTER), hand_in.folder / "gil" / "90_toy" / "toy.ipynb"
    )
    screen = Screen()
    graded = grade_class(course, hand_in.folder, [CHAPTER], console=screen)
    assert capfd.readouterr() == ("", "")
    scores = {g.student: g.score for g in graded}
    assert scores == {"ann": 7, "ben": 3, "cut": 0, "dan": 7, "eve": 4, "Fox_ Guy": 7, "gil": 0}
    folder = hand_in.folder.parent
    for student in scores:
        assert (folder / "feedback" / student / "90_toy" / "toy.html").exists()
    rows = {r["student_id"]: r for r in csv.DictReader((folder / "grades.csv").open())}
    assert {s: float(r["score"]) for s, r in rows.items()} == scores
    assert rows["ann"]["timestamp"] == "2026-01-02 03:04:05" and rows["ben"]["timestamp"] == ""
    rows = list(csv.DictReader((folder / "grades_by_exercise.csv").open()))
    assert {r["exercise"]: r["score"] for r in rows if r["student_id"] == "ben"} == {
        "double": "1",
        "count": "2",
        "Scale": "0",
    }
    for line in (
        r"ann +90_toy: further files were ignored: torch.py",
        r"ann +99_other is not an assignment",
        r"ben +90_toy: timestamp.txt holds no date",
        r"cut +90_toy: .*cut off",
        r"dan +90_toy: toy \(1\).ipynb was taken, in place of toy.ipynb",
        r"eve +90_toy: .*double",
        r"Fox_ Guy +recorded as Fox_ Guy, handed in as Fox, Guy",
        r"gil +90_toy: there is no notebook",
        r"hal +the folder is empty",
        r"notes.txt +is no folder",
    ):
        assert re.search(line, screen.text), line
    assert "there is no notebook" in (folder / "feedback/gil/90_toy/toy.html").read_text()


def test_a_second_run_grades_what_is_new_and_force_grades_all(hand_in, course):
    hand_in("ann", **GOOD)
    hand_in("ben", double=SQUARED)
    assert len(grade_class(course, hand_in.folder, [CHAPTER], console=Screen())) == 2
    hand_in("ben", **GOOD)
    hand_in("cas", **GOOD)
    screen = Screen()
    graded = grade_class(course, hand_in.folder, [CHAPTER], console=screen)
    assert [(g.student, g.score) for g in graded] == [("ben", 7), ("cas", 7)]
    assert "1 unchanged" in screen.text
    graded = grade_class(course, hand_in.folder, [CHAPTER], force=True, console=Screen())
    assert [g.score for g in graded] == [7, 7, 7]


def test_a_mark_given_by_hand_survives_a_regrade(hand_in, course):
    hand_in("ann", double=SQUARED)
    grade_class(course, hand_in.folder, [CHAPTER], console=Screen())
    with Gradebook(Classroom(hand_in.folder.parent).db, COURSE) as book:
        book.find_grade("check-double", "toy", "90_toy", "ann").manual_score = 2.5
        book.db.commit()
    [graded] = grade_class(course, hand_in.folder, [CHAPTER], force=True, console=Screen())
    assert graded.score == 2.5


def test_bad_folders_get_one_clear_line_each(hand_in, course, tmp_path):
    def refused(folder):
        with pytest.raises((GradingError, RecordingError)) as found:
            grade_class(course, folder, [CHAPTER], console=Screen())
        assert "\n" not in str(found.value)
        return str(found.value)

    example = "/<student>/<assignment>/<notebook>.ipynb, such as alice/90_toy/toy.ipynb"
    assert refused(tmp_path / "none").endswith("none is not there")
    file = tmp_path / "file"
    file.touch()
    assert refused(file).endswith("file is no folder")
    assert "no submissions in" in refused(hand_in.folder) and example in refused(hand_in.folder)
    (hand_in.folder / "90_toy").mkdir()
    assert "without a folder for each student" in refused(hand_in.folder)
    assert refused(hand_in.folder.parent) == refused(hand_in.folder).replace("/submitted", "")
    hand_in("ann", **GOOD)
    (hand_in.folder.parent / "gradebook.db").write_text("no database" * 100)
    assert "cannot be used as a gradebook" in refused(hand_in.folder)


def test_a_gradebook_of_another_version_of_the_course_is_left_alone(hand_in, course):
    hand_in("ann", **GOOD)
    grade_class(course, hand_in.folder, [CHAPTER], console=Screen())
    smaller = make_chapter()
    del smaller.exercises["Scale"]
    cut = TEXT.index("## Exercise: Scale")
    (course / "solutions" / "notebooks" / "90_toy.md").write_text(TEXT[:cut])
    with pytest.raises(GradingError, match="another version of 90_toy"):
        grade_class(course, hand_in.folder, [smaller], force=True, console=Screen())
    assert sum(marks(hand_in.folder.parent, "ann").values()) == 7


def test_nbgraders_own_commands_work_in_the_classs_folder(root, tmp_path, sandbox):
    """Its autograde, which formgrader's button starts, runs submissions in the sandbox as well."""
    chapter = find_chapter("00")
    path = tmp_path / "class" / "submitted" / "ann" / chapter.slug / f"{chapter.name}.ipynb"
    path.parent.mkdir(parents=True)
    write(building.notebook_path(root, chapter), path, **start_answers())
    [graded] = grade_class(root, path.parents[2], [chapter], console=Screen())
    folder = tmp_path / "class"
    done = nbgrader(folder, "export", "--to=theirs.csv")
    assert done.returncode == 0, done.stderr
    assert (folder / "theirs.csv").read_text() == (folder / "grades.csv").read_text()
    with Gradebook(Classroom(folder).db, COURSE) as book:
        for grade in book.find_submission(chapter.slug, "ann").notebooks[0].grades:
            grade.auto_score = 0.0
        book.db.commit()
    done = nbgrader(folder, "autograde", chapter.slug, "--force")
    assert done.returncode == 0, done.stderr
    with Gradebook(Classroom(folder).db, COURSE) as book:
        assert book.find_submission(chapter.slug, "ann").score == graded.score > 0
    done = nbgrader(folder, "generate_feedback", chapter.slug, "--force")
    assert done.returncode == 0, done.stderr
    page = folder / "feedback" / "ann" / chapter.slug / f"{chapter.name}.html"
    assert "All correct" in page.read_text()


def start_answers():
    """One right answer to an exercise of chapter 00, in a cell that would tell of a kernel."""
    source = inspect.getsource(find_chapter("00").exercises["batched_outer"].reference)
    return {"batched_outer": source + "\nimport os\nassert not os.path.exists('/proc/self')"}


def test_formgraders_configuration_is_plain_data(hand_in):
    config = json.loads(json.dumps(nbgrader_config(hand_in.folder)))
    assert config["CourseDirectory"]["root"] == str(hand_in.folder.parent)


@pytest.mark.parametrize("solved", [False, True])
def test_nbgrader_validate_fails_on_a_stub_and_succeeds_on_a_solution(course, solved):
    if solved:
        work(course, **GOOD)
    path = building.notebook_path(course, CHAPTER)
    done = nbgrader(path.parent, "validate", path.name)
    said = "Success! Your notebook passes all the tests." if solved else "VALIDATION FAILED ON 3"
    assert said in done.stdout


def nbgrader(folder, *arguments):
    return subprocess.run(
        [sys.executable, "-m", "nbgrader", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


# ------------------------------------------------------------------- the real chapters


@pytest.mark.slow
@pytest.mark.parametrize(
    "chapter",
    [c for c in chapters() if building.source_path(ROOT, c).exists()],
    ids=lambda chapter: chapter.slug,
)
def test_the_reference_earns_every_point_of_a_graded_chapter(root, tmp_path, sandbox, chapter):
    """The solved notebook, handed in beside the untouched one, with a class's secret seeds."""
    source = building.source_path(root, chapter)
    solved = building.source_notebook(chapter, source.read_text(encoding="utf-8"))
    for cell in solved.cells:
        cell.source = re.sub(r"^ *### (BEGIN|END) SOLUTION\n?", "", cell.source, flags=re.M)
        cell.metadata.pop("stubs", None)
    folder = tmp_path / "class" / "submitted"
    for student in ("solved", "untouched"):
        path = folder / student / chapter.slug / f"{chapter.name}.ipynb"
        path.parent.mkdir(parents=True)
        if student == "solved":
            nbformat.write(solved, path)
        else:
            shutil.copy(Classroom(tmp_path / "release").add(root, chapter), path)
    graded = grade_class(root, folder, [chapter], console=Screen())
    full, none = graded
    assert full.score == chapter.points
    assert all(not g.odd for g in graded)
    for name, result in none.results.items():  # what is to be mended may be right in part
        assert result.earned < result.points
        assert result.earned == 0 or chapter.exercises[name].mend, name
    page = full.feedback.read_text()
    assert page.count("All correct") == len(chapter.exercises)
