"""`course.py learn`: the book and JupyterLab side by side, from one server on this machine."""

from __future__ import annotations

import json
import logging
import os
import secrets
import signal
import socket
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console

FIRST_PORT = 8888

# Defaults of JupyterLab that differ here; whoever has set them otherwise keeps their own.
SETTINGS = {
    "@jupyterlab/apputils-extension:notification": {"checkForUpdates": False, "fetchNews": "false"},
    "@jupyterlab/apputils-extension:themes": {"adaptive-theme": True},  # dark with the book
    "@jupyterlab/docmanager-extension:plugin": {"autosaveInterval": 15},  # `grade` reads the file
}
# Not needed here, and each makes the start slower or the window fuller.
UNUSED_IN_LAB = [
    "@jupyter-notebook/lab-extension",
    "@jupyterlab/extensionmanager-extension",
    "@jupyterlab/lsp-extension",
    "jupyterlab-jupytext",
]
UNUSED_IN_SERVER = ["jupyter_lsp", "jupyterlab_jupytext", "notebook"]
# nbgrader's exchange of assignments between accounts of one machine, which nobody needs here
EXCHANGE = ["@jupyter/nbgrader:assignment-list", "@jupyter/nbgrader:course-list"]
INSTRUCTORS = ["@jupyter/nbgrader:create-assignment", "@jupyter/nbgrader:formgrader"]

CLOSED = "Closed. Next: `python3 course.py progress` shows what is done."


class LearnError(Exception):
    """The learner's server cannot start; the message is one line that says why."""


def learn(
    root: Path,
    *,
    port: int | None = None,
    browser: bool = True,
    submitted: Path | None = None,
    chapter: str | None = None,
) -> NoReturn:
    """Open the course and serve it until Ctrl-C, which ends the process with status 0.

    Args:
        root: the course's folder.
        port: where to listen; by default the first free one from 8888 on.
        browser: open it; if not, print its address only.
        submitted: a class's folder; formgrader opens on it.
        chapter: open at this one, such as `04_self_attention`.

    Raises:
        LearnError: the port is taken, the class's folder is missing.
        autograder.book.BookError: the book does not build.
    """
    console = Console(highlight=False)
    root = Path(root).resolve()
    port = require_port(port)
    if submitted is not None and not submitted.is_dir():
        raise LearnError(f"there is no folder {submitted}")
    prepare(root, console)
    serve(root, port, browser, submitted, chapter)


def require_port(port: int | None) -> int:
    """The port to listen on: `port` itself, or the next free one. Raises LearnError if taken."""
    if port is not None:
        if not _is_free(port):
            raise LearnError(f"port {port} is taken; name another, or none for the next free one")
        return port
    for candidate in range(FIRST_PORT, FIRST_PORT + 100):
        if _is_free(candidate):
            return candidate
    raise LearnError(f"ports {FIRST_PORT} to {FIRST_PORT + 99} are all taken; name one with --port")


def _is_free(port: int) -> bool:
    for family, kind, protocol, _, address in socket.getaddrinfo(
        "localhost", port, type=socket.SOCK_STREAM
    ):
        try:
            with socket.socket(family, kind, protocol) as probe:
                if os.name != "nt":  # as the server does, lest a port just left count as taken
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except PermissionError:
            raise LearnError(f"port {port} is not yours to use; try one above 1023") from None
        except OSError as error:
            # A machine without IPv6 names an address that it cannot have.
            if "in use" in str(error) or getattr(error, "winerror", None) == 10048:
                return False
    return True


def prepare(root: Path, console: Console) -> None:
    """Make the notebooks that are missing, and the book where it is not up to date."""
    missing = [
        source.stem
        for source in sorted(root.glob("solutions/notebooks/[0-9][0-9]_*.md"))
        if not (root / "exercises" / source.stem / f"{source.stem[3:]}.ipynb").exists()
    ]
    if missing:
        from autograder import building
        from autograder.checking import find_chapter
        from autograder.classroom import Classroom

        classroom = Classroom(root / "_build" / "nbgrader")
        for slug in missing:
            console.print(f"Making the notebook of {slug} …")
            chapter = find_chapter(slug)
            building.install(root, chapter, classroom.add(root, chapter))

    from autograder import book

    book.build(root)


def serve(
    root: Path,
    port: int,
    browser: bool,
    submitted: Path | None,
    chapter: str | None,
) -> NoReturn:
    """Run the server until Ctrl-C, and end the process."""
    token = secrets.token_hex(16)
    arguments = settings(root, port, token, submitted, chapter)
    log = root / "_build" / "jupyter" / "server.log"
    logging.basicConfig(filename=log, filemode="w", format="%(asctime)s %(name)s: %(message)s")
    from jupyterlab.labapp import LabApp  # a second's import

    server = LabApp.initialize_server(argv=[*arguments, f"--ServerApp.open_browser={browser}"])
    # It starts. From here on the server's complaints, such as of a tab that was closed, go to
    # its log: a traceback in the terminal would only frighten.
    for logger in map(logging.getLogger, list(logging.root.manager.loggerDict)):
        if logger.handlers:
            logger.handlers.clear()
            logger.propagate = True
    start = server.default_url.lstrip("/")
    address = f"http://localhost:{port}/{start}{'&' if '?' in start else '?'}token={token}"
    # Printed plainly: an address that is wrapped at the terminal's edge cannot be clicked.
    text = f"\nThe course is open at\n\n    {address}\n\nCtrl-C ends it."
    server.io_loop.add_callback(print, text, flush=True)  # once it answers

    def end(*_: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait
        server.stop(from_signal=True)

    # The server's own way asks for confirmation, and without a terminal leaves kernels behind.
    signal.signal(signal.SIGINT, end)
    server.start()
    # Everything is closed and cleaned up; but now and then a thread of the server's still waits
    # for work that never comes, and Python would wait for it.
    print(f"\n{CLOSED}", flush=True)
    os._exit(0)


def settings(
    root: Path, port: int, token: str, submitted: Path | None = None, chapter: str | None = None
) -> list[str]:
    """The arguments that make a JupyterLab the course's server; its files go to `_build/jupyter`.

    Args:
        root: the course's folder.
        port: where it listens.
        token: what a browser must know to get in.
        submitted: a class's folder, to open formgrader on.
        chapter: where the desk opens.
    """
    folder = root / "_build" / "jupyter"
    (folder / "settings").mkdir(parents=True, exist_ok=True)
    disabled = UNUSED_IN_LAB + EXCHANGE + ([] if submitted else INSTRUCTORS)
    start = f"/desk?chapter={chapter}" if chapter else "/desk"
    top = root
    if submitted:
        from autograder import grading

        # Formgrader reads its configuration from a file in the working directory,
        # and wants the class below the server's root.
        config = grading.nbgrader_config(submitted, os.environ.get("COURSE_DB", ""))
        exchange = folder / "exchange"  # not used, but formgrader complains without one
        exchange.mkdir(exist_ok=True)
        config["Exchange"] = {"root": str(exchange)}
        (folder / "nbgrader_config.py").write_text(
            f"from traitlets.config import Config\n\nget_config().merge(Config({config!r}))\n"
        )
        os.chdir(folder)
        start = "/formgrader"
        classroom = Path(config["CourseDirectory"]["root"])
        if not classroom.is_relative_to(root):
            top = classroom
    (folder / "settings" / "page_config.json").write_text(
        json.dumps({"disabledExtensions": disabled})
    )
    (folder / "settings" / "overrides.json").write_text(json.dumps(SETTINGS))
    extensions = {
        "autograder.serving": True,
        "nbgrader.server_extensions.validate_assignment": True,
        "nbgrader.server_extensions.formgrader": bool(submitted),
        "nbgrader.server_extensions.assignment_list": False,
        "nbgrader.server_extensions.course_list": False,
    } | dict.fromkeys(UNUSED_IN_SERVER, False)
    options: dict[str, Any] = {
        "Course.root": root,
        "ServerApp.root_dir": top,
        "ServerApp.jpserver_extensions": extensions,
        "ServerApp.ip": "localhost",
        "ServerApp.port": port,
        "ServerApp.port_retries": 0,
        "ServerApp.allow_root": True,  # a container's only account; the server is local
        "Application.log_level": "ERROR",
        "Application.log_format": "%(message)s",  # until `serve` sends it to a file
        "IdentityProvider.token": token,
        "KernelManager.transport_encryption": "auto",
        "ContentsManager.hide_globs": ["__pycache__", "*.pyc", "*~", "_build", "*.egg-info"],
        "LabApp.default_url": start,
        "LabApp.app_settings_dir": folder / "settings",
        "LabApp.workspaces_dir": folder / "workspaces",
        "LabApp.expose_app_in_browser": True,  # the desk opens notebooks in it
        "LabApp.extension_manager": "readonly",
        "LabApp.news_url": None,
        "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
    }
    return [f"--{name}={value}" for name, value in options.items()]
