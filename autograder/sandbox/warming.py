"""The grader's side of the warm process, from which sessions are forked.

Nothing here imports torch: the warm process can be started first, and do so at the same time.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autograder.sandbox.box import SandboxError

if TYPE_CHECKING:
    from autograder.sandbox.session import Limits, Session


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
        limits: Limits | None = None,
    ) -> Session:
        """A session for one submission.

        Args:
            modules: folder of what the notebook may import (see `stage`).
            stubs: names of modules that it may import and that do nothing there: the checks'.
            limits: what it may use.

        Raises:
            SandboxError: there is no sandbox to be had, or it does not hold.
        """
        from autograder.sandbox.session import Limits, Session  # which import torch

        return Session(self, modules, tuple(stubs), limits or Limits())

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
