"""A learner's way through an exercise, in a real Chromium, from the chapter to full points."""

import contextlib
import re
import shutil
from dataclasses import dataclass

import pytest
from playwright.sync_api import TimeoutError

from tests.desk import Server

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LOAD = 90_000  # milliseconds; importing torch on a busy machine takes its time
TRIES = 4


@dataclass
class Way:
    """An exercise, a wrong answer to it, what the check must say to that, and a right one."""

    chapter: str
    exercise: str
    wrong: str
    diagnosis: str
    right: str

    def __str__(self):
        return f"{self.chapter}-{self.exercise}"


WAYS = [
    Way(
        "00_start",
        "batched_outer",
        "def batched_outer(a, b):\n    return a[..., None, :] * b[..., :, None]",
        "You swapped the last two axes",
        "def batched_outer(a, b):\n    return a[..., :, None] * b[..., None, :]",
    ),
    Way(
        "04_self_attention",
        "attention_scores",
        "def attention_scores(q, k):\n    return q @ k.transpose(-2, -1)",
        "You did not divide by √K",
        "def attention_scores(q, k):\n    return q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5",
    ),
]


@pytest.fixture(scope="module")
def server(root, book_html, tmp_path_factory):
    """The course as it is, in a copy: learners' notebooks of this checkout are not touched."""
    course = tmp_path_factory.mktemp("course")
    shutil.copytree(book_html, course / "_build" / "html")
    shutil.copytree(root / "exercises", course / "exercises")
    with Server(course) as server:
        yield server


def cell(lab, notebook, text):
    """The code cell of a notebook that starts with a text."""
    return notebook.locator(".jp-CodeCell").filter(
        has=lab.locator(".cm-content", has_text=re.compile(rf"^\s*{re.escape(text)}"))
    )


def run(page, found):
    """Put the cursor into a cell and press Shift+Enter; wait until it has run.

    JupyterLab may lose what is run while it still connects to a kernel. Then one presses again.
    """
    number = found.locator(".jp-InputPrompt", has_text=re.compile(r"\[\d+\]"))
    for _ in range(TRIES):
        found.locator(".cm-content").click()
        page.keyboard.press("Shift+Enter")
        with contextlib.suppress(TimeoutError):
            return number.wait_for(timeout=LOAD / TRIES)
    raise AssertionError(f"not run in {LOAD / 1000:g} s: {found.inner_text()}")


def write(page, found, text):
    """Replace what stands in a cell."""
    found.locator(".cm-content").click()
    page.keyboard.press("Control+a")
    page.keyboard.insert_text(text)


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_a_wrong_answer_is_explained_and_a_right_one_earns_every_point(browser, server, way):
    context = browser.new_context(viewport={"width": 1500, "height": 1000})
    context.set_default_timeout(LOAD)
    try:
        page = context.new_page()
        page.goto(f"{server.origin}/desk?token={server.token}")
        book, lab = page.frame(name="book"), page.frame(name="lab")
        page.wait_for_selector("#lab.loaded")
        book.goto(f"{server.origin}/course/book/{way.chapter}.html")
        book.locator("a.notebook-button").first.click()
        # Others may be open in tabs behind it.
        notebook = lab.locator(".jp-NotebookPanel:not(.lm-mod-hidden)").filter(
            has=lab.locator("h1", has_text=f"{way.chapter[:2]} ·")
        )
        notebook.wait_for()

        run(page, notebook.locator(".jp-CodeCell").first)  # the imports
        stub = cell(lab, notebook, f"def {way.exercise}(")
        check = cell(lab, notebook, f"check({way.exercise})")
        run(page, stub)
        run(page, check)
        check.get_by_text("To do").first.wait_for()  # the stub itself

        write(page, stub, way.wrong)
        run(page, stub)
        # "In [5]" stays while it runs again: wait for what it says now.
        run(page, check)
        check.get_by_text(way.diagnosis).first.wait_for()
        assert "Traceback" not in check.inner_text()

        write(page, stub, way.right)
        run(page, stub)
        run(page, check)
        check.get_by_text("All correct").first.wait_for()
        points = re.search(r"(\d+) of (\d+) points", check.inner_text())
        assert points and points.group(1) == points.group(2)

        # What was written is on disk without a thought of saving: `grade` will find it.
        saved = server.root / "exercises" / way.chapter / f"{way.chapter[3:]}.ipynb"
        line = way.right.splitlines()[-1].strip()
        for _ in range(60):
            if line in saved.read_text(encoding="utf-8"):
                break
            page.wait_for_timeout(500)
        else:
            pytest.fail("nothing was saved in 30 s")
    finally:
        context.close()
