"""Submissions that no honest learner hands in, and odd ones that some do.

Each is graded against the toy chapter (`tests.toy`: `double` 3 points, one of them for leaving its
input alone; `count` 2; `Scale` 2). A submission is a function from the released notebook, as plain
data, to what is handed in: a notebook, or the bytes of a file.
"""

from __future__ import annotations

import copy
import json
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

RIGHT = {
    "double": "def double(x):\n    return 2 * x",
    "count": "def count(n):\n    return [k for k in range(n)]",
    "Scale": "class Scale(nn.Module):\n    def __init__(self, start=1.0):\n"
    "        super().__init__()\n        self.factor = nn.Parameter(torch.tensor(start))\n"
    "    def forward(self, x):\n        return self.factor * x",
}
#: Three times its input, which earns the point for leaving it alone.
WRONG = "def double(x):\n    return x * 3"


@dataclass
class Submission:
    """What is handed in, and what is to come of it.

    Args:
        make: from the release to a notebook or to bytes.
        points: what it is worth.
        says: a regular expression that a line on what was odd matches; "" for nothing odd.
    """

    make: Callable[[dict], Any]
    points: float
    says: str | None = None


# --------------------------------------------------------------------------- how to make one


def grade_id(cell: dict) -> str:
    return cell.get("metadata", {}).get("nbgrader", {}).get("grade_id", "")


def filled(release: dict, **texts: str) -> dict:
    """The release with the cells of these names filled in."""
    notebook = copy.deepcopy(release)
    for cell in notebook["cells"]:
        if grade_id(cell) in texts:
            cell["source"] = textwrap.dedent(texts[grade_id(cell)])
    return notebook


def added(notebook: dict, text: str, after: str, kind: str = "code") -> dict:
    """With a cell of one's own behind the cell of that name ("" for the top)."""
    cell = {"cell_type": kind, "metadata": {}, "source": textwrap.dedent(text), "id": "mine"}
    if kind == "code":
        cell |= {"outputs": [], "execution_count": None}
    place = 0
    if after:
        place = 1 + next(i for i, c in enumerate(notebook["cells"]) if grade_id(c) == after)
    notebook["cells"].insert(place, cell)
    return notebook


def cells(points: float, says: str | None = None, own: str = "", after: str = "", **texts: str):
    """A submission that fills cells in, and may add one of its own."""

    def make(release: dict) -> dict:
        notebook = filled(release, **texts)
        return added(notebook, own, after) if own else notebook

    return Submission(make, points, says)


def changed(points: float, says: str | None = None, **texts: str):
    """Decorates a function that changes a filled-in notebook in place."""

    def decorate(change: Callable[[dict], Any]) -> Submission:
        def make(release: dict) -> Any:
            notebook = filled(release, **texts)
            return change(notebook) or notebook

        return Submission(make, points, says)

    return decorate


def checks(notebook: dict) -> list[dict]:
    return [c for c in notebook["cells"] if grade_id(c).startswith("check-")]


# ------------------------------------------------------------------- to win points they have not

ATTACKS: dict[str, Submission] = {
    "a check cell that says full points": changed(1, "checks were changed", double=WRONG)(
        lambda nb: checks(nb)[0].update(source="3")
    ),
    "outputs of a run that never was": changed(1, double=WRONG)(
        lambda nb: (
            [
                c.update(
                    outputs=[
                        {
                            "output_type": "execute_result",
                            "data": {
                                "text/plain": "2",
                                "application/vnd.attention-to-detail.check+json": {
                                    "exercise": "double",
                                    "number": "90.1",
                                    "points": 3,
                                    "earned": 3,
                                    "status": "passed",
                                    "groups": [],
                                    "message": "",
                                    "printed": "",
                                },
                            },
                            "metadata": {},
                            "execution_count": 1,
                        }
                    ]
                )
                for c in checks(nb)
            ]
            and None
        )
    ),
    "tags that skip the checks": changed(1, double=WRONG)(
        lambda nb: [c["metadata"].update(tags=["skip-execution"]) for c in nb["cells"]] and None
    ),
    "ninety points a check": changed(1, double=WRONG)(
        lambda nb: [c["metadata"]["nbgrader"].update(points=90) for c in checks(nb)] and None
    ),
    "checks that are solutions": changed(1, double=WRONG)(
        lambda nb: (
            [c["metadata"]["nbgrader"].update(solution=True, grade=False) for c in checks(nb)]
            and None
        )
    ),
    "no checks": changed(1, double=WRONG)(
        lambda nb: nb.update(cells=[c for c in nb["cells"] if c not in checks(nb)])
    ),
    "checks as prose": changed(1, double=WRONG)(
        lambda nb: [c.update(cell_type="markdown") for c in checks(nb)] and None
    ),
    "every check twice": changed(1, double=WRONG)(
        lambda nb: nb["cells"].extend(dict(c, source="3") for c in checks(nb))
    ),
    "another schema version": changed(1, double=WRONG)(
        lambda nb: (
            [c["metadata"].get("nbgrader", {}).update(schema_version=99) for c in nb["cells"]]
            and None
        )
    ),
    "grade ids exchanged": changed(1, double=WRONG)(
        lambda nb: (
            [
                c["metadata"]["nbgrader"].update(grade_id=f"check-{n}")
                for c, n in zip(checks(nb), ("count", "Scale", "double"))
            ]
            and None
        )
    ),
    "another kernel": changed(1, double=WRONG)(
        lambda nb: nb["metadata"].update(
            kernelspec={"name": "bash", "display_name": "sh", "language": "bash"}
        )
    ),
    "a check of one's own": cells(1, own="check = lambda answer: 3", after="double", double=WRONG),
    "a check that is patched": cells(
        1, own="type(check).__call__ = lambda *a, **k: 3", after="double", double=WRONG
    ),
    "the reference, imported": cells(
        1, double="from tests.toy import double as theirs\ndef double(x):\n    return theirs(x)"
    ),
    "the checks, imported": cells(
        0,
        double="""\
        import autograder.checking
        chapter = next(autograder.checking.chapters())
        double = chapter.exercises["double"].reference
        """,
    ),
    "the reference, dug out of memory": cells(
        1,
        own="""\
        import gc
        for thing in gc.get_objects():
            if getattr(thing, "__name__", "") == "double" and thing is not double:
                double = thing
        """,
        after="double",
        double=WRONG,
    ),
    "the reference, read from files": cells(
        1,
        own="""\
        import os
        for folder, _, files in os.walk("/", onerror=lambda e: None):
            for name in files:
                # nbgrader's package has an empty gradebook of its own
                if name in ("toy.py", "gradebook.db", "secret") and "-packages" not in folder:
                    print("FO" + "UND", folder, name)
        """,
        after="double",
        double=WRONG,
    ),
    "frames of the caller": cells(
        1,
        double="""\
        import sys
        def double(x):
            frame = sys._getframe()
            while frame:
                for name in ("expected", "reference", "want"):
                    if name in frame.f_locals:
                        return frame.f_locals[name]
                frame = frame.f_back
            return x * 3
        """,
    ),
    "comparisons that are always true": cells(
        1,
        own="""\
        for name in ("allclose", "equal", "isclose"):
            setattr(torch, name, lambda *a, **k: True)
        torch.Tensor.__eq__ = lambda self, other: True
        torch.Tensor.__ne__ = lambda self, other: False
        import builtins
        builtins.all = builtins.any = builtins.isinstance = lambda *a, **k: True
        """,
        after="double",
        double=WRONG,
    ),
    "random numbers that are known": cells(
        1,
        own="""\
        torch.manual_seed = lambda *a: None
        torch.default_generator.manual_seed = lambda *a: None
        torch.randn = lambda *a, **k: torch.zeros(2, 3)
        """,
        after="double",
        double=WRONG,
    ),
    "a tensor that equals everything": cells(
        1,
        double="""\
        class Yes(torch.Tensor):
            @classmethod
            def __torch_function__(cls, f, types, args=(), kwargs=None):
                return torch.ones((), dtype=torch.bool)
        def double(x):
            return x.as_subclass(Yes)
        """,
    ),
    "not a number": cells(1, double="def double(x):\n    return x * float('nan')"),
    "rounded until nobody can tell": cells(
        1, double="def double(x):\n    return (2.004 * x).to(torch.bfloat16)"
    ),
    "the right answer to the first question, ever after": cells(
        1,
        double="""\
        seen = []
        def double(x):
            seen.append(2 * x)
            return seen[0]
        """,
    ),
    "what is ruled out, in a helper": cells(
        4,
        "",
        own="def helper(x):\n    return torch.add(x, x)",
        after="",
        **RIGHT | {"double": "def double(x):\n    return helper(x)"},
    ),
    "what is ruled out, bound later on": cells(
        4, "", own="double = lambda x: torch.add(x, x)", after="double", **RIGHT
    ),
    "what is ruled out, under another name": cells(
        4,
        "",
        **RIGHT | {"double": "from torch import add as f\ndef double(x):\n    return f(x, x)"},
    ),
    # which also puts torch's own `range` in the place of Python's
    "what is ruled out, with everything else": cells(
        2, "", **RIGHT | {"double": "from torch import *\ndef double(x):\n    return add(x, x)"}
    ),
    "what is ruled out, by its name in a text": cells(
        4,
        "cell of double.*uses eval; have a look",
        **RIGHT | {"double": "def double(x):\n    return eval('torch.add(x, x)')"},
    ),
    "what is ruled out, in pieces": cells(
        7,
        "cell of double.*uses getattr; have a look",
        **RIGHT | {"double": "def double(x):\n    return getattr(torch, 'a' + 'dd')(x, x)"},
    ),
    # ---------------------------------------------------------------- to see what is hidden
    "the environment, printed": cells(
        7, "", own="import os\nprint(dict(os.environ))", after="double", **RIGHT
    ),
    "what is outside, listed": cells(
        7,
        "",
        own="""\
        import os
        print(os.listdir("/"), os.listdir("/tmp"), os.path.exists("/course/solutions/toy.py"))
        print(os.listdir("/proc"), os.path.exists("/root"), os.path.exists("/home"))
        """,
        after="double",
        **RIGHT,
    ),
    "the network": cells(
        7,
        "",
        own="""\
        import socket
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK, socket.AF_PACKET):
            try:
                socket.socket(family)
                print("OU" + "T", family)
            except OSError:
                pass
        """,
        after="double",
        **RIGHT,
    ),
    # ------------------------------------------------------------------------------ to harm
    "signals to everyone": cells(
        7,
        own="""\
        import os, signal
        for target in (-1, 0, os.getppid(), 1, 2):
            try:
                os.kill(target, signal.SIGTERM)
            except OSError:
                pass
        """,
        after="double",
        **RIGHT,
    ),
    "a fork bomb": cells(
        7,
        "",
        own="""\
        import os
        try:
            for _ in range(100):
                os.fork()
        except OSError as error:
            print("no", error)
        """,
        after="double",
        **RIGHT,
    ),
    "a program": cells(
        4,
        own="import subprocess\nsubprocess.run(['sleep', '600'])",
        after="",
        **RIGHT | {"double": "import os\nos.execv('/bin/sh', ['sh'])\n" + RIGHT["double"]},
    ),
    "all the memory": cells(
        7,
        own="""\
        held = []
        try:
            while len(held) < 10_000:
                held.append(bytearray(1 << 26))
        except MemoryError:
            del held
        """,
        after="double",
        **RIGHT,
    ),
    "all the disk": cells(
        7,
        own="""\
        try:
            with open("/tmp/big", "wb") as file:
                for _ in range(10_000):
                    file.write(bytes(1 << 20))
        except OSError:
            pass
        """,
        after="double",
        **RIGHT,
    ),
    "a loop that does not end, in a cell": cells(
        7, "no result after", own="while True:\n    pass", after="double", **RIGHT
    ),
    "a loop that catches everything": cells(
        4,
        "no result after",
        **RIGHT
        | {
            "double": """\
            import signal
            for number in range(1, 64):
                try:
                    signal.signal(number, signal.SIG_IGN)
                except (OSError, ValueError):
                    pass
            def double(x):
                while True:
                    try:
                        while True:
                            pass
                    except BaseException:
                        continue
            """
        },
    ),
    "a loop in a destructor": cells(
        7,
        own="""\
        class Late:
            def __del__(self):
                while True:
                    pass
        late = Late()
        """,
        after="Scale",
        **RIGHT,
    ),
    "printing without end": cells(
        7, "no result after", own="while True:\n    print('x' * 1000)", after="double", **RIGHT
    ),
    "an exit": cells(7, own="import os\nos._exit(0)", after="double", **RIGHT),
    "an exit in the answer": cells(
        4, "process ended", **RIGHT | {"double": "def double(x):\n    import os\n    os._exit(0)"}
    ),
    "a crash": cells(
        7, "segmentation fault", own="import ctypes\nctypes.string_at(0)", after="double", **RIGHT
    ),
    "the stack, used up": cells(
        7,
        own="""\
        import sys
        sys.setrecursionlimit(10**9)
        def f():
            return f()
        f()
        """,
        after="double",
        **RIGHT,
    ),
    "threads that go on": cells(
        7,
        own="""\
        import threading, time
        def busy():
            end = time.time() + 30
            while time.time() < end:
                pass
        for _ in range(3):
            threading.Thread(target=busy, daemon=True).start()
        """,
        after="Scale",
        **RIGHT,
    ),
    "the wire, closed": cells(
        7, "Died: the process", own="import os\nos.closerange(3, 100)", after="double", **RIGHT
    ),
    "noise on the wire": cells(
        7, own="import os\nos.write(3, b'x' * 1000)", after="double", **RIGHT
    ),
    "a result too deep": cells(
        5,
        **RIGHT
        | {
            "double": """\
            def double(x):
                deep = []
                for _ in range(100_000):
                    deep = [deep]
                return deep
            """
        },
    ),
    "a result too large": cells(
        5, **RIGHT | {"double": "def double(x):\n    return torch.zeros(1).expand(10**12)"}
    ),
    "a result too long": cells(
        5, **RIGHT | {"double": "def double(x):\n    return ['x' * 10**6] * 10**6"}
    ),
    "an error without end": cells(
        4,
        **RIGHT
        | {
            "double": """\
            class Strange(Exception):
                def __str__(self):
                    return "<script>alert(1)</script>" * 100_000
            def double(x):
                raise Strange
            """
        },
    ),
    "an error that cannot be shown": cells(
        4,
        **RIGHT
        | {
            "double": """\
            class Strange(BaseException):
                def __str__(self):
                    raise self
                __repr__ = __str__
            def double(x):
                raise Strange
            """
        },
    ),
    "scripts wherever there is text": changed(
        4,
        **RIGHT
        | {
            "double": """\
            '''<script>alert("in the code")</script>'''
            def double(x):
                print("<script>alert('printed')</script><img src=x onerror=alert(1)>")
                raise ValueError("<script>alert('raised')</script>")
            print("<script>alert('cell')</script>")
            """
        },
    )(
        lambda nb: nb["cells"].insert(
            0,
            {
                "cell_type": "markdown",
                "metadata": {"name": "<script>alert('metadata')</script>"},
                "source": "<script>alert('prose')</script>",
                "id": "mine",
                "attachments": {"a.svg": {"image/svg+xml": "<svg onload=alert(1)>"}},
            },
        )
    ),
    "a type with a script for a name": cells(
        5,
        **RIGHT
        | {
            "double": "def double(x):\n    return type('<script>alert(1)</script>', (), {})()",
        },
    ),
    "markup of the terminal": cells(
        7, own="raise SystemExit('[bold red]\\x1b[31m[/bold]')", after="double", **RIGHT
    ),
}


def _file(data: bytes, says: str) -> Submission:
    return Submission(lambda release: data, 0, says)


#: Files that are no notebooks, or hardly.
BROKEN: dict[str, Submission] = {
    "nothing": _file(b"", "not a notebook"),
    "half a notebook": Submission(
        lambda release: json.dumps(release).encode()[:1000], 0, "was it cut off"
    ),
    "bytes": _file(bytes(range(256)) * 20, "not a notebook"),
    "a hundred thousand brackets": _file(b"[" * 100_000, "not a notebook"),
    "deep cells": _file(
        b'{"cells":' + b"[" * 50_000 + b"]" * 50_000 + b"}", "not a notebook|broken"
    ),
    "a number of a million digits": _file(b'{"cells": ' + b"9" * 10**6 + b"}", "not a notebook"),
    "twenty-five megabytes": _file(b" " * 25_000_000, "larger than 20 MB"),
    "cells of the wrong kind": _file(
        b'{"cells": [1, null, {"source": 5}, {"cell_type": [], "metadata": 7}]}', "broken"
    ),
    "ten thousand cells": Submission(
        lambda release: release | {"cells": release["cells"] + [{"cell_type": "raw"}] * 10_000},
        0,
        "only the first 1000",
    ),
    "an older format": Submission(
        lambda release: {
            "nbformat": 3,
            "nbformat_minor": 0,
            "metadata": {},
            "worksheets": [
                {"cells": [{**c, "input": c["source"]} for c in filled(release, **RIGHT)["cells"]]}
            ],
        },
        7,
    ),
    "half characters and zero bytes": cells(
        4,
        **RIGHT | {"double": "def double(x):\n    return '\ud800 \x00'"},
    ),
    "a mark at the beginning of the file": Submission(
        lambda release: b"\xef\xbb\xbf" + json.dumps(filled(release, **RIGHT)).encode(), 7, ""
    ),
}


#: What some people do, and what must not cost a point.
HONEST: dict[str, Submission] = {
    "as it should be": cells(7, "", **RIGHT),
    "warnings and prints": cells(
        7,
        "",
        **RIGHT
        | {
            "double": """\
            import warnings, logging, sys
            warnings.warn("careful")
            def double(x):
                warnings.warn("careful")
                logging.warning("careful")
                print("working", file=sys.stderr)
                print(x)
                return x * 2
            """
        },
    ),
    "plots, magics and displays": cells(
        7,
        "",
        own="""\
        %matplotlib inline
        %load_ext autoreload
        import matplotlib.pyplot as plt
        from IPython.display import display, Markdown
        !pip install nothing
        plt.plot([1, 2, 3])
        plt.show()
        display(Markdown("*hello*"))
        get_ipython().run_line_magic("matplotlib", "inline")
        double?
        """,
        after="double",
        **RIGHT,
    ),
    "helpers in a cell of one's own": cells(
        7,
        "",
        own="def twice(x):\n    return x * 2",
        after="",
        **RIGHT | {"double": "def double(x):\n    return twice(x)"},
    ),
    "tests of one's own, with what is ruled out": cells(
        7,
        "",
        own="x = torch.ones(3)\nassert torch.equal(double(x), torch.add(x, x))",
        after="double",
        **RIGHT,
    ),
    "a test of one's own that fails": cells(
        7, "", own="assert double(1) == 3, 'hm'", after="double", **RIGHT
    ),
    "an error below the answer": cells(
        7, "", **RIGHT | {"double": RIGHT["double"] + "\ndouble('x', 'y')"}
    ),
    "in place, on a copy of one's own": cells(
        7,
        "",
        **RIGHT | {"double": "def double(x):\n    y = x.clone()\n    y += x\n    return y"},
    ),
    "in double precision": cells(
        7, "", **RIGHT | {"double": "def double(x):\n    return x.double() * 2"}
    ),
    "not contiguous": cells(
        7,
        "",
        **RIGHT
        | {
            "double": "def double(x):\n    y = 2 * x\n"
            "    return y.mT.contiguous().mT if y.ndim > 1 else y"
        },
    ),
    "still in a graph": cells(
        7,
        "",
        **RIGHT
        | {"double": "w = torch.tensor(2.0, requires_grad=True)\ndef double(x):\n    return x * w"},
    ),
    "a lambda": cells(7, "", **RIGHT | {"double": "double = lambda x: 2 * x"}),
    "a decorated function": cells(
        7,
        "",
        **RIGHT
        | {
            "double": """\
            import functools
            def twice(f):
                @functools.wraps(f)
                def g(*a, **k):
                    return 2 * f(*a, **k)
                return g
            @twice
            def double(x):
                return x
            """
        },
    ),
    "an object that can be called": cells(
        7,
        "",
        **RIGHT
        | {
            "double": """\
            class Double:
                def __call__(self, x):
                    return 2 * x
            double = Double()
            """
        },
    ),
    "from the future": cells(
        7, "", **RIGHT | {"double": "from __future__ import annotations\n" + RIGHT["double"]}
    ),
    "awaiting at the top": cells(
        7, "", own="import asyncio\nawait asyncio.sleep(0)", after="double", **RIGHT
    ),
    "asking for input": cells(7, "", own="name = input('your name? ')", after="double", **RIGHT),
    "a breakpoint": cells(7, "", own="breakpoint()\nx = 1", after="double", **RIGHT),
    "an exit at the end": cells(7, "", own="exit()", after="double", **RIGHT),
    "other defaults": cells(
        7,
        "",
        own="torch.set_grad_enabled(False)\ntorch.set_printoptions(precision=2)",
        after="double",
        **RIGHT,
    ),
    "another folder": cells(7, "", own="import os\nos.chdir('/')", after="double", **RIGHT),
    "output that is swallowed": cells(
        7, "", own="import sys\nsys.stdout = sys.stderr = None", after="double", **RIGHT
    ),
    "the check, called by hand": cells(
        7,
        "",
        own="result = check(double)\nprint(result, result.earned)",
        after="double",
        **RIGHT,
    ),
    "a long pause": cells(7, "", own="import time\ntime.sleep(1)", after="double", **RIGHT),
    "imports at the top": changed(7, "", **RIGHT)(
        lambda nb: next(c for c in nb["cells"] if c["cell_type"] == "code").update(
            source="import math\nimport torch\nfrom torch import nn\n"
            "from tests.toy import make_chapter\ncheck = make_chapter().check"
        )
    ),
    "run from bottom to top, and saved with outputs": changed(7, "", **RIGHT)(
        lambda nb: (
            [
                c.update(
                    execution_count=9 - i,
                    outputs=[{"output_type": "stream", "name": "stderr", "text": "x" * 10_000}],
                )
                for i, c in enumerate(nb["cells"])
                if c["cell_type"] == "code"
            ]
            and None
        )
    ),
}
