"""Many at once: processes beside this one, a dask cluster, and a gradebook on a server."""

import contextlib
import glob
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import pytest
from nbgrader.api import Gradebook

from autograder import building, dispatch, grading, recording
from autograder.classroom import Classroom
from autograder.engine import Engine, EngineError, importable
from autograder.recording import COURSE, RecordingError
from tests.hostile import RIGHT, filled
from tests.test_grading import (
    CHAPTER,
    GOOD,
    ROOT,
    Screen,
    find_chapter,
    nbgrader,
    start_answers,
    write,
)

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sandbox")]
START = find_chapter("00")


@pytest.fixture
def class_folder(tmp_path):
    """A function that makes students hand chapter 00 in; two kinds of answers in turn."""
    folder = tmp_path / "class" / "submitted"

    def hand_in(count):
        for i in range(count):
            path = folder / f"s{i:02}" / START.slug / f"{START.name}.ipynb"
            path.parent.mkdir(parents=True, exist_ok=True)
            write(building.notebook_path(ROOT, START), path, **(start_answers() if i % 2 else {}))
        return folder

    return hand_in


def scores(graded):
    return {one.student: one.score for one in graded}


def test_two_processes_give_the_points_that_one_gives(class_folder):
    folder = class_folder(6)
    one = grading.grade_class(ROOT, folder, [START], console=Screen())
    two = grading.grade_class(ROOT, folder, [START], console=Screen(), workers=2, force=True)
    assert scores(one) == scores(two) and len(one) == 6
    assert all(g.fault == "" and g.feedback.exists() for g in two)
    assert len(set(scores(one).values())) == 2


@pytest.fixture
def cluster():
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=None, memory_limit=0
    ) as cluster:
        yield cluster


def test_a_running_cluster_grades_and_a_worker_that_is_killed_costs_nobody(class_folder, cluster):
    folder = class_folder(10)
    records = folder.parent / ".nbgrader" / "records"
    killed = []

    def kill():
        end = time.monotonic() + 240
        while time.monotonic() < end:
            if len(list(records.glob("*/*.json"))) >= 2:
                worker = next(iter(cluster.workers.values()))
                killed.append(worker.pid)
                os.kill(worker.pid, 9)
                return
            time.sleep(0.02)

    killer = threading.Thread(target=kill)
    killer.start()
    found = grading.grade_class(
        ROOT, folder, [START], console=Screen(), scheduler=cluster.scheduler_address
    )
    killer.join()
    assert killed and len(found) == 10
    assert [g.fault for g in found] == [""] * 10
    assert len(set(scores(found).values())) == 2


def test_a_cluster_that_is_not_there_is_one_clear_line(class_folder):
    for address in ("tcp://127.0.0.1:1", "nonsense", "tcp://127.0.0.1:x"):
        with pytest.raises(EngineError, match=f"no dask scheduler at {address}") as caught:
            grading.grade_class(ROOT, class_folder(1), console=Screen(), scheduler=address)
        assert "\n" not in str(caught.value)


def test_what_fails_on_one_try_is_tried_once_more(template, monkeypatch):
    engine = Engine()
    outcomes = iter(["broken", "", "broken", "broken"])
    usual = engine._run_in_sandbox

    def moody(task, notebook, outcome):
        outcome.fault = next(outcomes)
        if not outcome.fault:
            usual(task, notebook, outcome)

    monkeypatch.setattr(engine, "_run_in_sandbox", moody)
    room = Classroom(template / "_build" / "nbgrader")
    release = json.loads(room.released(CHAPTER).read_text())
    batch = grading._Batch(room, None)
    found = grading.Found("ann", CHAPTER, None)
    data = json.dumps(filled(release, **RIGHT)).encode()
    tasks = [type(t)(**{**vars(t), "data": data}) for t in [batch.task(found)] * 2]

    def marks(task, outcome):
        names = [c.name for c in CHAPTER.exercises.values()]
        grades = {f"check-{name}": [1, 1] for name in names}
        return {"grades": grades, "comments": {}, "score": 7, "max_score": 7, "late_penalty": 0}

    with engine:
        first, second = dispatch.here(engine, tasks, marks)
    assert first.outcome.fault == "" and "All correct" in first.page
    assert second.outcome.fault == "broken" and second.page == ""


def test_a_notebook_may_import_earlier_chapters_and_its_own_without_the_exercises():
    names, own = importable(find_chapter("05"))
    assert "self_attention" in names and "masking" in names
    assert "causal_mask" in own["masking"] and "self_attention" not in own
    assert "masking" not in importable(find_chapter("04"))[0]


# ------------------------------------------------------------------------------ PostgreSQL


@pytest.fixture(scope="module")
def postgres():
    """The address of a PostgreSQL server that runs for these tests alone."""
    programs = sorted(glob.glob("/usr/lib/postgresql/*/bin"))  # Debian keeps them off the PATH
    where = programs[-1] if programs else os.path.dirname(shutil.which("pg_isready") or "")
    if not where and not os.environ.get("CI"):
        pytest.skip("needs PostgreSQL: apt-get install postgresql")
    assert where, "PostgreSQL is not installed"
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user = {}
    if os.geteuid() == 0:  # it does not run as root
        shutil.chown(folder, "postgres", "postgres")
        user = {"user": "postgres", "group": "postgres", "extra_groups": []}
    data = folder / "data"
    init = [f"{where}/initdb", "-D", data, "-U", "grader", "-A", "trust", "--no-sync"]
    server = None
    try:
        subprocess.run(init, check=True, capture_output=True, cwd=folder, **user)
        command = [f"{where}/postgres", "-D", data, "-k", folder, "-h", "", "-F"]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        server = subprocess.Popen(command, cwd=folder, **quiet, **user)
        ready = [f"{where}/pg_isready", "-h", folder]
        end = time.monotonic() + 60
        while subprocess.run(ready, capture_output=True).returncode and time.monotonic() < end:
            time.sleep(0.1)
        yield f"postgresql://grader@/postgres?host={folder}"
    finally:
        if server is not None:
            server.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.wait(20)
            server.kill()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_gradebook_on_a_postgresql_server(class_folder, postgres, monkeypatch):
    folder = class_folder(4)
    found = grading.grade_class(ROOT, folder, [START], console=Screen(), db=postgres, workers=2)
    assert not (folder.parent / "gradebook.db").exists()
    with Gradebook(postgres, COURSE) as book:
        kept = {s.student.id: s.score for s in book.find_assignment(START.slug).submissions}
    assert kept == scores(found)
    again = Screen()
    assert grading.grade_class(ROOT, folder, [START], console=again, db=postgres) == []
    assert "4 unchanged" in again.text
    # nbgrader's own commands find it by what the environment says.
    monkeypatch.setenv("COURSE_DB", postgres)
    done = nbgrader(folder.parent, "export", "--to=theirs.csv")
    assert done.returncode == 0, done.stderr
    assert (folder.parent / "theirs.csv").read_text() == (folder.parent / "grades.csv").read_text()


def test_addresses_of_no_gradebook_are_one_clear_line_without_the_password(class_folder):
    for db, said in {
        "nonsense": "--db takes an address",
        "nosuch://user@host/x": "--db takes an address",
        "postgresql://me:hunter2@127.0.0.1:1/x": "cannot be used as a gradebook",
    }.items():
        with pytest.raises(RecordingError, match=said) as caught:
            grading.grade_class(ROOT, class_folder(1), console=Screen(), db=db)
        assert "hunter2" not in str(caught.value) and "\n" not in str(caught.value)


# --------------------------------------------------------------------- the class's own rules


LATE = """
from nbgrader.plugins import BasePlugin

class APointADay(BasePlugin):
    def late_submission_penalty(self, student_id, score, total_seconds_late):
        return total_seconds_late // 86_400 + 1

c.AssignLatePenalties.plugin_class = APointADay
"""


def test_late_days_cost_what_the_class_says_they_cost(template, tmp_path):
    folder = tmp_path / "class" / "submitted"
    for student, day in {"ann": "09", "ben": "12", "cas": "30"}.items():
        path = folder / student / "90_toy" / "toy.ipynb"
        path.parent.mkdir(parents=True)
        write(building.notebook_path(template, CHAPTER), path, **GOOD)
        (path.parent / "timestamp.txt").write_text(f"2026-01-{day} 12:00:00 UTC")
    grading.grade_class(template, folder, [CHAPTER], console=Screen())
    config = folder.parent / "nbgrader_config.py"
    config.write_text(config.read_text() + LATE)
    with recording.opened(Classroom(folder.parent)) as book:
        book.update_or_create_assignment(CHAPTER.slug, duedate="2026-01-10 12:00:00 UTC")
    found = grading.grade_class(template, folder, [CHAPTER], force=True, console=Screen())
    assert scores(found) == {"ann": 7, "ben": 7, "cas": 7}
    rows = (folder.parent / "grades.csv").read_text()
    assert re.findall(r"(ann|ben|cas).*,(\d+\.0),\S*,(\d+\.0),", rows) or rows
    with Gradebook(Classroom(folder.parent).db, COURSE) as book:
        penalties = {
            s.student.id: s.late_submission_penalty or 0
            for s in book.find_assignment(CHAPTER.slug).submissions
        }
    assert penalties == {"ann": 0, "ben": 3, "cas": 7}  # never more than there is
    page = (folder.parent / "feedback" / "ben" / "90_toy" / "toy.html").read_text()
    assert "4 of 7 points" in page and "Handed in late" in page


def test_a_broken_configuration_of_the_class_is_one_clear_line(template, tmp_path):
    folder = tmp_path / "class" / "submitted" / "ann" / "90_toy"
    folder.mkdir(parents=True)
    write(building.notebook_path(template, CHAPTER), folder / "toy.ipynb", **GOOD)
    (tmp_path / "class" / "nbgrader_config.py").write_text("c = get_config(\n")
    with pytest.raises(grading.NbgraderError, match="nbgrader_config.py: SyntaxError"):
        grading.grade_class(template, folder.parents[1], [CHAPTER], console=Screen())
