"""The grader's side: a warm process to fork from, and sessions that run a submission's cells."""

from __future__ import annotations

import ast
import compileall
import contextlib
import json
import os
import py_compile
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autograder.sandbox import wire
from autograder.sandbox.box import Box, SandboxError, arguments, verify
from autograder.sandbox.lockdown import Rules
from autograder.subjects import LearnerError

PRINTED = 24_000  # characters that are taken of what a cell or a call prints
PATIENCE = 4  # how many times its seconds a request may last on a machine that is too busy for it


@dataclass(frozen=True)
class Limits:
    """How much of everything a submission gets.

    Args:
        call: seconds for one call of a learner's function.
        cell: seconds for one cell.
        exercise: seconds for all calls of one exercise.
        notebook: seconds for all cells and calls together.
        asks: how often a call may call back a function that it was given.
        rules: what the process may use.
        bounds: how large a message from it may be.
    """

    call: float = 10
    cell: float = 60
    exercise: float = 30
    notebook: float = 300
    asks: int = 5_000
    rules: Rules = Rules()
    bounds: wire.Bounds = wire.BOUNDS


# --------------------------------------------------------------------- the warm process


class Warm:
    """A process that has torch loaded, from which sessions are forked.

    Use it as a context manager. Threads may share it, each with sessions of its own.

    Args:
        hidden: folders that sessions must not see, wherever they lie (the gradebook's, say).
        cgroup: a cgroup (version 2) that this process may make children in, with the memory and
            pids controllers; each session then gets one, whose limits hold for all its processes
            together.
    """

    def __init__(self, hidden: Sequence[Path] = (), cgroup: Path | None = None):
        self.hidden, self.cgroup = tuple(hidden), cgroup
        self._lock = threading.Lock()
        self._process: subprocess.Popen | None = None
        self._control: socket.socket | None = None
        self._log: Any = None

    def __enter__(self) -> Warm:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start the process. It goes on importing while the grader does other things."""
        with self._lock:
            self._start()

    def _start(self) -> None:
        if self._process is not None and self._process.poll() is None:
            return
        self._stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed in _stop
        root = str(Path(__file__).resolve().parents[2])
        # Its own modules are imported by their place; nothing else is ever taken from there.
        text = (
            f"import sys; sys.path[:1] = [{root!r}]; from autograder.sandbox import warm; "
            "import autograder.sandbox.inside; del sys.path[0]; warm.main()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-c", text],
            stdin=theirs,
            stdout=subprocess.DEVNULL,
            stderr=self._log,
            env=_environment(),
            cwd="/",
            start_new_session=True,
        )
        theirs.close()
        self._control = ours

    def close(self) -> None:
        """End the process. Sessions that run are not touched."""
        with self._lock:
            self._stop()

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
        if self._process is not None:
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._log.close()
        self._process = self._control = self._log = None

    def session(
        self,
        modules: Path | None = None,
        stubs: Sequence[str] = (),
        limits: Limits = Limits(),  # noqa: B008  frozen
    ) -> Session:
        """A session for one submission.

        Args:
            modules: folder of what the notebook may import (see `stage`).
            stubs: names of modules that it may import and that do nothing there: the checks'.
            limits: what it may use.

        Raises:
            SandboxError: there is no sandbox to be had, or it does not hold.
        """
        return Session(self, modules, tuple(stubs), limits)

    def request(self, request: dict, file: int | None = None) -> dict:
        """Ask the warm process for something, starting it again if it has died."""
        with self._lock:
            for _ in range(2):
                self._start()
                try:
                    files = [] if file is None else [file]
                    socket.send_fds(self._control, [json.dumps(request).encode()], files)
                    text = self._control.recv(1 << 16)
                except OSError:
                    text = b""
                if text:
                    return json.loads(text)
                self._process.kill()
                self._process.wait()
                complaint = self._complaint()
            raise SandboxError(f"the warm process died: {complaint}")

    def _complaint(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "without a word"


def _environment() -> dict[str, str]:
    """All that the warm process knows of the grader's environment."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return {
        "PATH": "/usr/bin:/bin",
        "LANG": "C.UTF-8",
        "HOME": "/nonexistent",
        # Where matplotlib keeps its list of fonts, which takes it seconds to make.
        "MPLCONFIGDIR": str(home / "matplotlib"),
        "MPLBACKEND": "Agg",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        # Each thread's own pool would take 64 MiB of a session's address space.
        "MALLOC_ARENA_MAX": "1",
        # Sets in the same order every time: a submission is worth the same every time.
        "PYTHONHASHSEED": "0",
    }


# ---------------------------------------------------------------------------- a session


@dataclass
class Reply:
    """What came of a request.

    Args:
        value: the answer.
        printed: what was printed meanwhile, cut.
        error: what the learner's code raised, in place of an answer; its kind is "Timeout" or
            "Died" if that cost the process.
    """

    value: Any = None
    printed: str = ""
    error: LearnerError | None = None


@dataclass
class _Cell:
    name: str
    source: str
    fatal: bool = False


@dataclass
class _Budget:
    seconds: float
    used: float = 0.0

    @property
    def left(self) -> float:
        return self.seconds - self.used


class Session:
    """One submission's process in its box, made by `Warm.session`.

    A request that takes too long, ends the process or breaks the rules of the wire costs that
    request. The next one finds the process rebuilt: the cells that had run are run again, without
    those that had killed it.
    """

    def __init__(self, warm: Warm, modules: Path | None, stubs: tuple[str, ...], limits: Limits):
        self.warm, self.modules, self.stubs, self.limits = warm, modules, stubs, limits
        self.cells: list[_Cell] = []
        #: What was odd, in plain words, for the summary of a run.
        self.odd: list[str] = []
        #: What went wrong on the grader's side, if anything did. No learner is to blame for it, so
        #: what was graded since is not to be recorded.
        self.fault: Exception | None = None
        #: Goes up when the process is replaced; modules built before are gone then.
        self.generation = 0
        self.pid = 0
        self._notebook = _Budget(limits.notebook)
        self._exercise: _Budget | None = None
        self._box: Box | None = None
        self._wire: wire.Wire | None = None
        self._group: Path | None = None
        self._numbers = 0
        self._last: _Cell | None = None  # what the last request was, if it was a cell
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- what a grader does with it

    def run(self, source: str, name: str) -> Reply:
        """Run a cell of the learner's.

        Args:
            source: its text.
            name: names it in messages, and as `<cell name>` in tracebacks.
        """
        try:
            self.ensure()  # before the cell is listed, or a replay would run it as well
        except LearnerError as error:
            return Reply(error=error)
        cell = _Cell(name, source)
        self.cells.append(cell)
        return self._run(cell)

    @contextlib.contextmanager
    def exercise(self) -> Iterator[None]:
        """What is called in this context shares the seconds of one exercise."""
        before, self._exercise = self._exercise, _Budget(self.limits.exercise)
        try:
            yield
        finally:
            self._exercise = before

    @property
    def is_alive(self) -> bool:
        """Whether the process is there; if not, the next request rebuilds it."""
        return self._wire is not None

    def ensure(self) -> None:
        """Rebuild the process if it has died, or has said something that nobody asked for.

        Raises:
            LearnerError: the time of the exercise or of the notebook is used up.
        """
        if self._exercise is not None and self._exercise.left <= 0:
            raise LearnerError("Timeout", f"the exercise's {self.limits.exercise:g} s are used up")
        if self.is_alive and not self._wire.is_quiet():
            # Before the next question, so that whoever wrote what comes next does not pay for it.
            self._kill()
            self._noted("Died", "the process spoke without being asked")
            if self._last is not None:
                self._last.fatal = True
                self.odd[-1] += f" (after the cell {self._last.name})"
        if not self.is_alive:
            self.rebuild()

    def rebuild(self) -> None:
        """Start afresh, and run again the cells that had run and had not killed the process.

        Raises:
            LearnerError: the notebook's time is used up.
            SandboxError: there is no box to be had any more.
        """
        # Each round finds a cell that kills, or ends.
        while not self.is_alive:
            if self._notebook.left <= 0:
                raise self._spent()
            self._open()
            for cell in self.cells:
                if not cell.fatal:
                    self._run(cell)
                if not self.is_alive:
                    break

    def close(self) -> None:
        """End the process, and everything that it has started."""
        self._kill()

    def number(self) -> int:
        """A new number for a subject."""
        self._numbers += 1
        return self._numbers

    def request(
        self,
        kind: str,
        content: tuple,
        seconds: float,
        told: Callable[[list], list] | None = None,
        foreign: Callable | None = None,
        functions: Sequence[Callable] = (),
    ) -> Reply:
        """Send a request and wait for what comes of it.

        Args:
            kind: "cell" or "subject".
            content: its operands.
            seconds: what it may take.
            told: answers what the process asks back.
            foreign: sends what is no plain data (see `wire.Sender`).
            functions: what the process may name in its answer by number.

        Raises:
            WireError: the request itself cannot be sent; the learner is not to blame.
        """
        if self._notebook.left <= 0:
            self._kill()
            return Reply(error=self._spent())
        budgets = [self._notebook]
        if self._exercise is not None and kind != "cell":  # cells are replayed on the notebook's
            budgets.append(self._exercise)
        seconds = min(seconds, *(b.left for b in budgets))
        watch = _Watch(self.pid, seconds)
        token = secrets.token_hex(12)
        try:
            frame = wire.Packer(foreign=foreign).frame([token, kind, content])
        except wire.WireError as error:
            if kind != "cell":  # an input of the check's; a cell that is too long is the learner's
                self.fault = error
            raise
        revive = _naming(functions)
        if kind != "cell":
            self._last = None
        try:
            if not self._wire.is_quiet():
                raise wire.WireError("it spoke without being asked")
            self._wire.send(frame, watch.left)
            asked = 0
            while True:
                message = self._receive(token, watch, revive)
                if message[0] != "ask":
                    return _opened(message)
                asked += 1
                if told is None or asked > self.limits.asks:
                    raise wire.WireError("it asked too much")
                self._wire.send(wire.Packer().frame(told(message[2:])), watch.left)
        except TimeoutError:
            self._kill()
            text = f"no result after {seconds:.3g} s; is there an endless loop?"
            return Reply(error=self._noted("Timeout", text))
        except wire.Closed:
            return Reply(error=self._noted("Died", self._obituary()))
        except wire.WireError as error:
            self._kill()
            text = f"the process did not answer as it should: {error}"
            return Reply(error=self._noted("Died", text))
        finally:
            spent = watch.spent()
            for budget in budgets:
                budget.used += spent

    # ---- inner workings

    def _receive(self, token: str, watch: _Watch, revive: Callable) -> list:
        head, body = self._wire.receive(watch.left)
        message = wire.Unpacker(self.limits.bounds, revive).message(head, body)
        lengths = {"answer": (4,), "error": (7,), "ask": range(3, 8)}
        if (
            not isinstance(message, list)
            or len(message) < 2
            or not isinstance(message[0], str)
            or len(message) not in lengths.get(message[0], ())
        ):
            raise wire.WireError("no such message")
        if message[1] != token:
            raise wire.WireError("it answered something else")
        return message

    def _run(self, cell: _Cell) -> Reply:
        self._last = cell
        try:
            reply = self.request("cell", (cell.name, cell.source), self.limits.cell)
        except wire.WireError as error:
            text = f"this cell cannot be run: {error}"
            return Reply(error=LearnerError("ValueError", text))
        if not self.is_alive:
            cell.fatal = True
            self.odd[-1] += f" (in the cell {cell.name})"
        return reply

    def _open(self) -> None:
        try:
            self._start()
        except Exception as error:
            self.fault = error
            raise
        self.generation += 1

    def _start(self) -> None:
        self._box = Box(arguments(self.modules, self.warm.hidden, self.limits.rules.scratch))
        ours, theirs = socket.socketpair()
        try:
            self._box.wait()
            user = self._box.user()
            request = {
                "do": "fork",
                "target": self._box.pid,
                "uid": user,
                "rules": asdict(self.limits.rules),
                "stubs": list(self.stubs),
            }
            answer = self.warm.request(request, theirs.fileno())
        except BaseException:
            ours.close()
            self._kill()
            raise
        finally:
            theirs.close()
        self._wire = wire.Wire(ours, self.limits.bounds)
        try:
            if "pid" not in answer:
                raise SandboxError(answer.get("error", "no session"))
            self.pid = answer["pid"]
            self._greet(user)
        except BaseException:
            self._kill()
            raise

    def _greet(self, user: int | None) -> None:
        """Wait until the process has locked itself in; look whether that is so."""
        try:
            head, body = self._wire.receive(wire.deadline(20))
            ready = wire.Unpacker().message(head, body) == ["ready"]
        except (wire.WireError, wire.Closed, TimeoutError):
            ready = False
        if not ready:
            raise SandboxError("the session could not be locked in")
        verify(self.pid, user)
        if self.warm.cgroup is not None:
            self._group = confine(self.warm.cgroup, self.pid, self.limits.rules)

    def _kill(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        if self._box is not None:
            self._box.close()
            self._box = None
        if self._group is not None:
            with contextlib.suppress(OSError):
                self._group.rmdir()
            self._group = None

    def _obituary(self) -> str:
        """Why the process is gone."""
        self._kill()
        status = self.warm.request({"do": "status", "pid": self.pid}).get("status")
        if status is None or status == 0:
            return "the process ended"
        if status > 0:
            return f"the process ended with exit status {status}"
        names = {-9: "killed; was it out of memory or of time?", -11: "a segmentation fault"}
        names |= {-6: "it aborted; was it out of memory?", -24: "its processor time is used up"}
        return f"the process died: {names.get(status, f'signal {-status}')}"

    def _noted(self, kind: str, text: str) -> LearnerError:
        self.odd.append(f"{kind}: {text}")
        return LearnerError(kind, text)

    def _spent(self) -> LearnerError:
        return self._noted("Timeout", f"the notebook's {self.limits.notebook:g} s are used up")


def _opened(message: list) -> Reply:
    """What an answer or an error tells. Believes nothing."""
    if message[0] == "answer":
        return Reply(message[2], _text(message[3], PRINTED))
    _, _, kind, text, line, code, printed = message
    kind = kind if isinstance(kind, str) and kind.isidentifier() else "Exception"
    line = line if type(line) is int and 0 < line < 1_000_000 else None
    error = LearnerError(kind[:80], _text(text, 4_000), line, _text(code, 300))
    return Reply(None, _text(printed, PRINTED), error)


def _text(text: Any, limit: int) -> str:
    return text[:limit] if isinstance(text, str) else ""


def _naming(functions: Sequence[Callable]) -> Callable:
    def revive(tag: str, rest: list, unpacker: wire.Unpacker) -> Any:
        known = len(rest) == 1 and type(rest[0]) is int and 0 <= rest[0] < len(functions)
        if tag == "function" and known:
            return functions[rest[0]]
        raise wire.WireError("an unknown tag")

    return revive


class _Watch:
    """Counts a request's seconds, without those in which the machine kept it waiting.

    So a submission that is right is not marked down because the grader's machine was busy.
    """

    def __init__(self, pid: int, seconds: float):
        self.pid, self.seconds = pid, seconds
        self.start, self.waited = time.monotonic(), self._waiting()

    def _waiting(self) -> float:
        try:
            with open(f"/proc/{self.pid}/schedstat") as file:
                return int(file.read().split()[1]) / 1e9
        except (OSError, IndexError, ValueError):
            return 0.0

    def spent(self) -> float:
        """Seconds until now."""
        passed = time.monotonic() - self.start
        waited = max(self._waiting() - self.waited, 0.0)
        return max(passed - waited, passed / PATIENCE)

    def left(self) -> float:
        """Seconds that are left; raises `TimeoutError` when there are none."""
        if (rest := self.seconds - self.spent()) <= 0:
            raise TimeoutError
        return rest


# ------------------------------------------------------------------------------- cgroups


def confine(parent: Path, pid: int, rules: Rules) -> Path:
    """Put a process into a new cgroup of its own.

    Args:
        parent: a cgroup of version 2 with the memory and pids controllers for its children.
        pid: the process.
        rules: the limits, here for all its processes together.

    Returns:
        The new cgroup.

    Raises:
        SandboxError: it cannot be had.
    """
    group = parent / f"session-{pid}"
    try:
        group.mkdir()
        (group / "memory.max").write_text(str(rules.memory))
        if (group / "memory.swap.max").exists():
            (group / "memory.swap.max").write_text("0")
        (group / "pids.max").write_text(str(rules.processes + rules.threads))
        (group / "cgroup.procs").write_text(str(pid))
    except OSError as error:
        raise SandboxError(f"no cgroup to be had in {parent}: {error.strerror}") from None
    return group


# ------------------------------------------------------------------------------- modules


def stage(
    library: Path,
    names: Sequence[str],
    folder: Path,
    stubs: Mapping[str, Collection[str]] | None = None,
) -> Path:
    """Lay out the modules that a notebook may import as `solutions`.

    Args:
        library: the folder of `solutions`.
        names: the modules: those of earlier chapters, and what the notebook itself is given.
        folder: where to; it is made, and must not exist.
        stubs: for a module, the functions and classes of it that are exercises of the notebook;
            their bodies are left out.

    Returns:
        The folder, for `Warm.session`.

    Raises:
        ValueError: one of them imports a module that is not named.
    """
    package = folder / "solutions"
    package.mkdir(parents=True)
    for name in names:
        text = (library / f"{name}.py").read_text(encoding="utf-8")
        missing = imported(text, library) - set(names)
        if missing:
            raise ValueError(f"solutions.{name} imports {', '.join(sorted(missing))}")
        bare = (stubs or {}).get(name)
        (package / f"{name}.py").write_text(_stubbed(text, bare) if bare else text, "utf-8")
    shutil.copyfile(library / "__init__.py", package / "__init__.py")
    if (library / "weights").is_dir():
        shutil.copytree(library / "weights", package / "weights")
    # Sessions cannot write what they compile, and would each do it again.
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    compileall.compile_dir(package, quiet=2, invalidation_mode=mode)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return folder


def imported(text: str, library: Path) -> set[str]:
    """The modules of `solutions` that a module's or a cell's text imports."""
    used: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom) and (node.module == "solutions" or node.level):
            used |= {alias.name for alias in node.names} | {(node.module or "").split(".")[0]}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("solutions."):
            used.add(node.module.split(".")[1])
        elif isinstance(node, ast.Import):
            used |= {a.name.split(".")[1] for a in node.names if a.name.startswith("solutions.")}
    return used & {path.stem for path in library.glob("*.py")} - {"__init__"}


def _stubbed(text: str, names: Collection[str]) -> str:
    """A module's text with the bodies of some of its functions and classes left out."""
    tree = ast.parse(text)
    for node in tree.body:
        if getattr(node, "name", None) not in names:
            continue
        for function in ast.walk(node):
            if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
                function.body = ast.parse("raise NotImplementedError('an exercise')").body
    return ast.unparse(tree)
