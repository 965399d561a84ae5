"""The warm process: torch imported once, then one fork a session.

It runs trusted code only and holds no secret: its environment is empty, it never imports the
checks or the solutions, and what a session is sent goes past it. Every session starts as a copy
of its memory, so whatever is here is in reach of every submission.

Run as a program, with a socket to the grader as standard input.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator

from autograder.sandbox import lockdown

MESSAGE = 1 << 16  # bytes of a request


# --------------------------------------------------------------------- what is imported


def preloads() -> Iterator[Callable[[], None]]:
    """What to import ahead, in steps: what every session needs first, then what some do."""
    yield _nearly_all_need
    yield _check_helpers
    yield _optimizer


def _nearly_all_need() -> None:
    # A session that has to import these itself has them in memory of its own; and the grader is
    # not ready any earlier.
    _torch()
    _figures()


def _torch() -> None:
    import torch

    import autograder.sandbox.inside
    import autograder.subjects  # noqa: F401

    torch.set_num_threads(1)
    # A fork cannot use a GPU, and sessions get to see none. Said so, `torch.manual_seed` does not
    # take down a stack trace for each kind of device, which costs more than most exercises.
    for devices in (torch.cuda, torch.xpu, torch.mtia):
        devices._is_in_bad_fork = _always
    torch.zeros(2, 2) @ torch.zeros(2, 2)
    # The first conversion from half precision reads /proc, which is empty in a session.
    torch.zeros(1, dtype=torch.float16).float()
    with contextlib.suppress(ImportError):
        import jaxtyping  # noqa: F401
    with contextlib.suppress(ImportError):
        import numpy  # noqa: F401


def _always() -> bool:
    return True


def _check_helpers() -> None:
    import torch

    # The first call imports some five hundred modules.
    torch.testing.assert_close(torch.zeros(1), torch.zeros(1))
    torch.func.grad  # noqa: B018


def _optimizer() -> None:
    import torch

    # The first optimizer imports torch._dynamo. No backward() here: it would start threads.
    torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))]).step()


def _figures() -> None:
    with contextlib.suppress(ImportError):
        import matplotlib.pyplot as plt

        figure, axes = plt.subplots(figsize=(1, 1))
        axes.plot([0, 1])
        figure.canvas.draw()
        plt.close(figure)
        from matplotlib import font_manager

        # Fonts are kept open; files of this process have no business in a session.
        with contextlib.suppress(AttributeError):  # a name of matplotlib's own, which may change
            font_manager._get_font.cache_clear()
    with contextlib.suppress(ImportError):
        import IPython.display  # noqa: F401


# ------------------------------------------------------------------------------ the loop


class Warm:
    """The process's loop.

    Args:
        control: a socket to the grader that keeps messages apart (SEQPACKET).
    """

    def __init__(self, control: socket.socket):
        self.control = control
        self.ended: dict[int, int] = {}
        self.programs: dict[bool, bytes] = {}
        self.wake, wake_end = os.pipe()
        for end in (self.wake, wake_end):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl+C is the grader's to handle
        # A session's parent dies early (see `fork`); then this process is to hear of its end.
        lockdown.libc.prctl(36, 1, 0, 0, 0)

    def run(self) -> None:
        """Serve until the grader closes its end."""
        steps = preloads()
        next(steps)()
        while True:
            gc.collect()
            gc.freeze()  # else a collection in a session would touch, and so copy, every page
            step = next(steps, None)
            # Who waits goes first. Between two imports one request is served.
            if not self.serve(block=step is None):
                return
            if step is not None:
                step()

    def serve(self, block: bool) -> bool:
        """Serve one request, or every request that comes. Returns False at the end."""
        while True:
            ready, _, _ = select.select([self.control, self.wake], [], [], None if block else 0)
            if self.wake in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.wake, 4096)
            self.reap()
            if self.control in ready:
                text, files, _, _ = socket.recv_fds(self.control, MESSAGE, 1)
                if not text:
                    return False
                try:
                    answer = self.answer(json.loads(text), files)
                except OSError as error:
                    answer = {"error": str(error)}
                finally:
                    for file in files:
                        os.close(file)
                self.control.send(json.dumps(answer).encode())
            if not block:
                return True

    def answer(self, request: dict, files: list[int]) -> dict:
        if request["do"] == "fork":
            return self.fork(request, files[0])
        if request["do"] == "status":
            end = time.monotonic() + 1.0
            while request["pid"] not in self.ended and time.monotonic() < end:
                select.select([self.wake], [], [], 0.05)
                self.reap()
            return {"status": self.ended.pop(request["pid"], None)}
        return {"error": "no such request"}

    def reap(self) -> None:
        """Take note of the sessions that have ended."""
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                self.ended[found[0]] = os.waitstatus_to_exitcode(found[1])
                while len(self.ended) > 1000:
                    del self.ended[next(iter(self.ended))]

    def fork(self, request: dict, file: int) -> dict:
        """Start a session in a box. Returns its process number out here."""
        rules = lockdown.Rules(**request["rules"])
        alone = rules.processes == 1
        if alone not in self.programs:
            self.programs[alone] = lockdown.system_call_filter(alone)
        size = int(_read("/proc/self/statm").split()[0]) * os.sysconf("SC_PAGE_SIZE")
        if len(os.listdir("/proc/self/task")) > 1:
            return {"error": "the warm process has threads, which a fork would lose"}
        ours, theirs = os.pipe()
        first = os.fork()
        if first == 0:
            try:
                processes = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
                lockdown.enter(request["target"], user=request["uid"] is None)
                # Only a child is in the new process namespace, hence a second fork.
                second = os.fork()
                if second == 0:
                    self.become_session(request, rules, size, file, processes, self.programs[alone])
                os.write(theirs, json.dumps({"pid": second}).encode())
            except BaseException as error:
                os.write(theirs, json.dumps({"error": f"entering the box: {error}"}).encode())
            finally:
                os._exit(0)
        os.close(theirs)
        text = b""
        while part := os.read(ours, 4096):
            text += part
            if text.endswith(b"}"):
                break
        os.close(ours)
        os.waitpid(first, 0)
        return json.loads(text or '{"error": "the fork died"}')

    def become_session(self, request, rules, size, file, processes, program) -> None:
        """In the child: lock up, then serve the session. Does not return."""
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            file, processes = _only(file, processes)
            lockdown.lock(rules, size, request["uid"], processes, program)
            from autograder.sandbox import inside

            inside.serve(file, request["stubs"])
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.write(file, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)


def _only(*files: int) -> tuple[int, ...]:
    """Close every file but these, which move to 3, 4, ...; 0, 1 and 2 are /dev/null."""
    high = [os.dup2(f, 100 + i, inheritable=False) for i, f in enumerate(files)]
    null = os.open("/dev/null", os.O_RDWR)
    for standard in range(3):
        os.dup2(null, standard, inheritable=True)
    moved = tuple(os.dup2(f, 3 + i, inheritable=False) for i, f in enumerate(high))
    os.closerange(3 + len(files), os.sysconf("SC_OPEN_MAX"))
    return moved


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def main() -> None:
    """Run the warm process; `session.Warm` starts it."""
    Warm(socket.socket(fileno=os.dup(0))).run()
