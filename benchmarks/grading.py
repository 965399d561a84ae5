"""Grading: this engine against stock nbgrader, on the same submissions, in one run.

A class hands in real notebooks: solved, half done, wrong, untouched. Stock nbgrader runs each in a
kernel with its own `Execute`, as a course would that does nothing about it; it is given one of each
kind, since each takes seconds, and this engine as many of every kind. Both write marks into a
gradebook and make the feedback. Seconds are those of the clock, and those of the processors of all
processes that take part. Run it while nothing else computes: ten minutes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbgrader.apps.api import NbGraderAPI
from rich.console import Console

from autograder import building, grading, recording
from autograder.checking import Chapter, find_chapter
from autograder.classroom import Classroom
from autograder.sandbox.session import Session
from experiments._record import record

ROOT = Path(__file__).resolve().parents[1]
CHAPTERS = ("00", "04", "05")
SIZES = (1, 20, 200)
STOCK = 12  # submissions that stock nbgrader gets in each of the rounds: one of each kind
ROUNDS = 3


# ------------------------------------------------------------------------ the submissions


def solved(chapter: Chapter) -> nbformat.NotebookNode:
    """A chapter's notebook with every exercise done."""
    text = building.source_path(ROOT, chapter).read_text(encoding="utf-8")
    notebook = building.source_notebook(chapter, text)
    for cell in notebook.cells:
        cell.source = re.sub(r"^ *### (BEGIN|END) SOLUTION\n?", "", cell.source, flags=re.M)
        cell.metadata.pop("stubs", None)
    return notebook


def variants(chapter: Chapter) -> list[nbformat.NotebookNode]:
    """Solved, half done, wrong (every first `return` of a function gives half of it), untouched."""
    whole = solved(chapter)
    stub = nbformat.read(building.notebook_path(ROOT, chapter), as_version=4)
    half, wrong = json.loads(json.dumps(stub)), json.loads(json.dumps(whole))
    answers = {c["id"]: c["source"] for c in whole.cells if _is_solution(c)}
    for i, cell in enumerate(c for c in half["cells"] if _is_solution(c)):
        if i % 2 == 0:
            cell["source"] = answers[cell["id"]]
    for cell in wrong["cells"]:
        if _is_solution(cell):
            cell["source"] = re.sub(r"return (?=[a-z])", "return 0.5 * ", cell["source"], count=1)
    return [whole, nbformat.from_dict(half), nbformat.from_dict(wrong), stub]


def _is_solution(cell: dict) -> bool:
    return bool(cell["metadata"].get("nbgrader", {}).get("solution"))


def hand_in(folder: Path, count: int) -> None:
    """`count` submissions, of every chapter and kind in turn."""
    kinds = [(c, v) for c in map(find_chapter, CHAPTERS) for v in variants(c)]
    for i in range(count):
        # 5 shares no factor with the number of kinds, so that few submissions are a fair sample
        chapter, notebook = kinds[5 * i % len(kinds)]
        path = folder / f"student{i:03}" / chapter.slug / f"{chapter.name}.ipynb"
        path.parent.mkdir(parents=True)
        nbformat.write(notebook, path)


# ----------------------------------------------------------------------------- the two graders


def processor() -> float:
    """Seconds that this process has computed, and those that it has started and that have ended."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def ours(folder: Path, workers: int) -> tuple[dict[str, float], list[grading.Graded]]:
    """Seconds in all, of the clock and of processors, and until the first result; the results."""
    start, before = time.perf_counter(), processor()
    first: list[float] = []
    usual = recording.write_record

    def noted(*arguments) -> None:
        usual(*arguments)
        first.append(time.perf_counter() - start)

    recording.write_record = noted
    try:
        chapters = [find_chapter(c) for c in CHAPTERS]
        quiet = Console(quiet=True)
        found = grading.grade_class(ROOT, folder, chapters, console=quiet, workers=workers)
    finally:
        recording.write_record = usual
    seconds, computed = time.perf_counter() - start, processor() - before
    return {"seconds": seconds, "processor": computed, "first": first[0]}, found


def stock(folder: Path) -> dict[str, float]:
    """Seconds for all submissions, to run and mark them, and to make their feedback."""
    room = Classroom(folder.parent / "stock")
    for chapter in map(find_chapter, CHAPTERS):
        room.add(ROOT, chapter)
    config = room.config()
    config.CourseDirectory.submitted_directory = str(folder)
    del config.Autograde["autograde_preprocessors"]
    del config["GradedExecute"]
    api, before = NbGraderAPI(config=config, log_level=logging.CRITICAL), processor()
    spent = {"autograde": 0.0, "generate_feedback": 0.0}
    for path in sorted(folder.glob("*/*")):
        for name in spent:
            start = time.perf_counter()
            outcome = getattr(api, name)(path.name, path.parent.name)
            spent[name] += time.perf_counter() - start
            if not outcome["success"]:
                raise RuntimeError(outcome["log"])
    return {"seconds": sum(spent.values()), "processor": processor() - before, **spent}


def cold_start(folder: Path) -> float:
    """Seconds from the command to the first result on disk."""
    command = [sys.executable, "-m", "autograder", "grade", "--submitted", str(folder)]
    records = folder.parent / ".nbgrader" / "records"
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None and not list(records.glob("*/*.json")):
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    process.wait()
    return seconds


def session_memory(folder: Path) -> list[float]:
    """Private megabytes of each session at its end, beyond what it shares with the warm process."""
    found: list[float] = []
    usual = Session.close

    def measured(session: Session) -> None:
        if session.is_alive:
            text = Path(f"/proc/{session.pid}/smaps_rollup").read_text()
            kilobytes = re.findall(r"^Private_(?:Clean|Dirty): +(\d+)", text, re.M)
            found.append(sum(map(int, kilobytes)) / 1024)
        usual(session)

    Session.close = measured
    try:
        ours(folder, 1)
    finally:
        Session.close = usual
    return found


# ------------------------------------------------------------------------------------ the run


def main() -> None:
    cores = os.cpu_count() or 1
    base = Path(tempfile.mkdtemp(prefix="bench-grading-"))
    results: dict = {"ours": [], "stock": []}
    try:
        for size in SIZES:
            for workers in sorted({1, cores}):
                for turn in range(ROUNDS):
                    folder = base / f"{size}-{workers}-{turn}" / "submitted"
                    hand_in(folder, size)
                    row, graded = ours(folder, workers)
                    phases: dict[str, float] = {}
                    for one in graded:
                        for phase, spent in one.seconds.items():
                            phases[phase] = phases.get(phase, 0.0) + spent / size
                    about = {"size": size, "workers": workers, **row, "phases": phases}
                    results["ours"].append(about)
                    each = row["seconds"] / size
                    print(f"{size:4} submissions, {workers} at a time: {each:.3f} s each")
        for turn in range(ROUNDS):
            folder = base / f"stock-{turn}" / "submitted"
            hand_in(folder, STOCK)
            results["stock"].append(stock(folder))
            print(f"stock nbgrader: {results['stock'][-1]['seconds'] / STOCK:.2f} s each")
        folder = base / "memory" / "submitted"
        hand_in(folder, 20)
        results["memory"] = session_memory(folder)
        results["cold"] = []
        for turn in range(ROUNDS):
            folder = base / f"cold-{turn}" / "submitted"
            hand_in(folder, 2)
            results["cold"].append(cold_start(folder))
    finally:
        shutil.rmtree(base, ignore_errors=True)
    record(
        __file__,
        seeds=[],
        packages=("torch", "nbgrader", "distributed"),
        settings={"chapters": CHAPTERS, "sizes": SIZES, "stock": STOCK, "rounds": ROUNDS},
        results=results,
    )
    large = [r for r in results["ours"] if r["size"] == SIZES[-1] and r["workers"] == 1]
    for kind, of in (("seconds", "by the clock"), ("processor", "by processor time")):
        each = statistics.median(r[kind] / r["size"] for r in large)
        theirs = statistics.median(r[kind] / STOCK for r in results["stock"])
        print(f"{SIZES[-1]} in one process: {theirs / each:.1f} times stock's throughput {of}")
    print(f"first result of a cold start: {statistics.median(results['cold']):.1f} s")
    print(f"private memory of a session: {max(results['memory']):.0f} MB at most")


if __name__ == "__main__":
    main()
