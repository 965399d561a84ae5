"""A pytest plugin that tests a learner's library in place of the course's: `-p autograder.mine`.

What tests import as `solutions` is the package in the folder that the environment variable
COURSE_LIBRARY names, as `assemble` writes it.
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path

VARIABLE = "COURSE_LIBRARY"


def stand_in(folder: Path) -> None:
    """From now on `solutions` and its modules are those of a package.

    Args:
        folder: the package's.
    """
    sys.path.insert(0, str(folder.parent))
    sys.modules["solutions"] = importlib.import_module(folder.name)
    for path in sorted(folder.glob("[!_]*.py")):
        module = importlib.import_module(f"{folder.name}.{path.stem}")
        sys.modules[f"solutions.{path.stem}"] = module


def pytest_report_header() -> str:
    """Say in the first lines whose library is tested."""
    return f"library under test: {os.environ[VARIABLE]}"


if VARIABLE in os.environ:
    stand_in(Path(os.environ[VARIABLE]))
