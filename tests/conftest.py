"""What several test files share: the checkout, the built book, and a browser."""

import os
import shutil
from pathlib import Path

import pytest

from autograder import building
from autograder.classroom import Classroom
from tests.toy import TEXT, make_chapter


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def book_html(root: Path) -> Path:
    """The folder of the built book, built at most once a run. Any warning is a failure."""
    from autograder.book import build

    return build(root)


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """A course folder with the toy chapter, released."""
    path = tmp_path_factory.mktemp("template")
    (path / "solutions" / "notebooks").mkdir(parents=True)
    (path / "solutions" / "notebooks" / "90_toy.md").write_text(TEXT)
    (path / "exercises").mkdir()
    chapter = make_chapter()
    classroom = Classroom(path / "_build" / "nbgrader")
    building.install(path, chapter, classroom.add(path, chapter))
    return path


@pytest.fixture(scope="session")
def new_gradebook(template):
    """A gradebook with no marks yet: making one takes a second."""
    return template / "_build" / "nbgrader" / "gradebook.db"


@pytest.fixture
def course(template, tmp_path, new_gradebook):
    """A copy of it to work in."""
    shutil.copytree(template, tmp_path / "course", ignore=shutil.ignore_patterns("_build"))
    (tmp_path / "course" / "my_grades").mkdir()
    shutil.copy(new_gradebook, tmp_path / "course" / "my_grades")
    return tmp_path / "course"


@pytest.fixture(scope="session")
def sandbox():
    """What runs in the sandbox needs one: everywhere in CI, elsewhere where it is to be had."""
    from autograder.sandbox import box

    problem = box.available()
    if problem and not os.environ.get("CI"):
        pytest.skip(problem)
    assert problem is None, problem


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium that can reach this machine alone."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    # course.py knows of one that is not on the PATH, if it had to get it.
    path = os.environ.get("COURSE_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail(
            f"The browser tests need Chromium: none of {', '.join(names)} is on PATH."
            " On Debian or Ubuntu: apt-get install chromium"
        )
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=path,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost",
            ],
        )
        yield chromium
        chromium.close()
