"""A course of one page and one notebook, and a server of it, for the tests of the desk."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="color-scheme" content="light dark">
<title>{title}</title></head><body><h1>{title}</h1>{body}
<script>document.documentElement.dataset.ran = "yes"</script></body></html>
"""
CHAPTER = """<p><a class="notebook-button" target="lab"
 href="../../lab/tree/exercises/04_self_attention/self_attention.ipynb">Open the notebook</a></p>
<p><a href="https://example.org/paper">A paper</a></p>
<h2 id="masks" style="margin: 200vh 0">Masks</h2>"""


def make_course(root: Path) -> Path:
    """Lay out a built book and a notebook that link to each other."""
    pages = root / "_build" / "html" / "book"
    pages.mkdir(parents=True)
    (root / "secret.txt").write_text("the secret")
    (pages.parent / "_static").mkdir()
    (pages.parent / "_static" / "favicon.svg").write_text(
        '<svg xmlns="http://www.w3.org/2000/svg"/>'
    )
    (pages.parent / "index.html").write_text(PAGE.format(title="Index", body=""))
    (pages / "intro.html").write_text(
        PAGE.format(title="Intro", body='<a href="04_self_attention.html">Chapter 04</a>')
    )
    (pages / "04_self_attention.html").write_text(PAGE.format(title="Self-attention", body=CHAPTER))
    notebook = root / "exercises" / "04_self_attention" / "self_attention.ipynb"
    notebook.parent.mkdir(parents=True)
    text = (
        "# Notebook 04\n\n[the chapter](/course/book/04_self_attention.html)"
        " · [its masks](/course/book/04_self_attention.html#masks)"
    )
    nbformat.write(
        new_notebook(
            cells=[
                new_markdown_cell(text, id="text"),
                new_code_cell("import sys; print('in', sys.prefix)", id="code"),
            ],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        ),
        notebook,
    )
    return root


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


class Server:
    """`course.py learn` on a course whose book and notebooks are there, in a process of its own."""

    def __init__(self, root: Path, **options):
        self.root, self.options = root, options

    def __enter__(self):
        self.port = free_port()
        self.origin = f"http://localhost:{self.port}"
        arguments = {"port": self.port, "browser": False, "submitted": None, "chapter": None}
        script = (
            "from pathlib import Path; from autograder import learning;"
            f"learning.serve(Path({str(self.root)!r}), **{arguments | self.options!r})"
        )
        # Settings of the person who runs the tests are none of their business.
        home = self.root / "_build" / "home"
        folders = {
            f"JUPYTER_{name}_DIR": str(home / name.lower())
            for name in ("CONFIG", "DATA", "RUNTIME")
        }
        scripts = str(Path(sys.executable).parent)
        path = {"PATH": scripts + os.pathsep + os.environ["PATH"]}
        self.process = subprocess.Popen(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | folders | path,
        )
        stop = threading.Timer(120, self.process.kill)
        stop.start()
        try:
            said = []
            for line in self.process.stdout:
                said.append(line)
                found = re.search(r"http://localhost:(\d+)/(\S+[?&]token=(\w+))", line)
                if found:
                    self.address, self.token = found.group(0), found.group(3)
                    return self
        finally:
            stop.cancel()
        raise RuntimeError(f"the server did not start: {''.join(said)}")

    def __exit__(self, *error):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.communicate(timeout=30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.communicate()
