"""What an instructor sees in a real Chromium: formgrader, and nbgrader's Validate button."""

import json

import pytest
from nbgrader.api import Gradebook
from rich.console import Console

from autograder import building, grading
from autograder.classroom import Classroom
from autograder.recording import COURSE
from tests.desk import Server
from tests.hostile import ATTACKS
from tests.test_grading import CHAPTER, GOOD, SQUARED, write
from tests.toy import TEXT

pytestmark = [pytest.mark.browser, pytest.mark.slow]

LOAD = 60_000  # milliseconds, for a busy machine


@pytest.fixture(scope="module")
def class_folder(tmp_path_factory, root):
    """A graded class of three, one of them hostile, in a course of one chapter; beside it a
    notebook to validate."""
    course = tmp_path_factory.mktemp("course")
    (course / "solutions" / "notebooks").mkdir(parents=True)
    (course / "solutions" / "notebooks" / "90_toy.md").write_text(TEXT)
    folder = course / "class"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(root))
        released = Classroom(folder).add(course, CHAPTER)
        for student, answers in {"ann": GOOD, "ben": {"double": SQUARED}}.items():
            path = folder / "submitted" / student / "90_toy" / "toy.ipynb"
            path.parent.mkdir(parents=True)
            write(released, path, **answers)
        path = folder / "submitted" / "eve" / "90_toy" / "toy.ipynb"
        path.parent.mkdir(parents=True)
        attack = ATTACKS["scripts wherever there is text"]
        path.write_text(json.dumps(attack.make(json.loads(released.read_text()))))
        exercises = building.notebook_path(course, CHAPTER).parent
        exercises.mkdir(parents=True)
        write(released, exercises / "stub.ipynb")
        write(released, exercises / "solved.ipynb", **GOOD)
        grading.grade_class(course, folder / "submitted", [CHAPTER], console=Console(quiet=True))
        yield folder


@pytest.fixture(scope="module")
def server(class_folder):
    with Server(class_folder.parent, submitted=str(class_folder / "submitted")) as server:
        yield server


@pytest.fixture
def page(server, browser):
    """A page that is signed in, and that asks no other host for anything."""
    asked = []
    context = browser.new_context(viewport={"width": 1300, "height": 900})
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    page.set_default_timeout(LOAD)
    page.goto(f"{server.origin}/formgrader?token={server.token}")
    yield page
    context.close()
    local = (server.origin + "/", server.origin.replace("http", "ws") + "/", "data:", "blob:")
    assert [url for url in asked if not url.startswith(local)] == []


def test_formgrader_lists_the_assignment_and_its_submissions(page):
    row = page.locator("tr", has_text="90_toy")
    row.wait_for()
    assert row.locator(".num-submissions").inner_text() == "3"
    row.locator(".num-submissions a").click()
    ann = page.locator("tr", has=page.locator("td.student-id", has_text="ann"))
    ann.locator("td.score", has_text="7 / 7").wait_for()
    assert "graded" in ann.locator("td.status").inner_text()


def test_the_gradebook_shows_points_and_a_comment_can_be_entered(page, server, class_folder):
    page.goto(f"{server.origin}/formgrader/gradebook/90_toy/toy")
    for points in ("7 / 7", "1 / 7"):
        page.locator("tbody tr", has_text="Submission").filter(has_text=points).wait_for()
    with Gradebook(Classroom(class_folder).db, COURSE) as book:
        ben = book.find_submission_notebook("toy", "90_toy", "ben").id
    page.goto(f"{server.origin}/formgrader/submissions/{ben}/")
    page.locator("text=What happened:").wait_for()  # the check's own messages
    assert "You squared it." in page.inner_text("#notebook")
    box = page.locator("#double-comment")
    box.wait_for()
    box.fill("Twice, not squared: see the chapter's first figure.")
    box.blur()
    page.locator(".comment-saved").first.wait_for(state="visible")
    page.reload()
    page.wait_for_function(
        "document.querySelector('#double-comment')?.value.startsWith('Twice, not squared')"
    )
    with Gradebook(Classroom(class_folder).db, COURSE) as book:
        assert book.find_comment("double", "toy", "90_toy", "ben").comment.startswith("Twice")


def test_a_script_that_was_handed_in_runs_nowhere(page, server, class_folder, browser):
    with Gradebook(Classroom(class_folder).db, COURSE) as book:
        eve = book.find_submission_notebook("toy", "90_toy", "eve").id
    ran = []

    def shows(page, address):
        page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
        page.goto(address)
        page.locator("text=alert('cell')").first.wait_for()
        page.wait_for_load_state("networkidle")

    shows(page, f"{server.origin}/formgrader/submissions/{eve}/")
    feedback = Classroom(class_folder).feedback(CHAPTER, "eve")
    with browser.new_context() as context:
        shows(context.new_page(), feedback.as_uri())
    assert ran == []


@pytest.mark.parametrize(
    "name, said",
    [("stub", "The following cell failed"), ("solved", "Success! Your notebook passes")],
)
def test_the_validate_button_of_jupyterlab_says_what_the_checks_say(page, server, name, said):
    # A class inside the course's folder is served from the course's root.
    page.goto(f"{server.origin}/lab/workspaces/{name}/tree/exercises/90_toy/{name}.ipynb")
    # The button takes no clicks before the kernel is ready.
    page.locator(".jp-StatusBar-TextItem", has_text="Idle").wait_for()
    page.locator("button[aria-label='Validate']:visible").click()
    page.locator(".jp-Dialog", has_text=said).wait_for()
