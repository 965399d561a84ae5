"""The box that a session runs in: one bubblewrap, and the proof that it holds."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from autograder.sandbox import lockdown

COURSE = "/course"  # where the modules that a notebook may import are found inside
DEVICES = ("null", "zero", "full", "random", "urandom")
START = 20.0  # seconds that a box may take to stand

# One user a box, for a grader that runs as root, from a range that nothing else uses; within a
# container that has only the usual 65,536 users, from the range that systemd lends and takes back.
USERS, FEW_USERS, FEW = 1_879_048_192, 61_184, 4_000


class SandboxError(Exception):
    """There is no sandbox to be had, or the one that there is does not hold."""


# ---------------------------------------------------------------------------- the inside


def arguments(
    modules: Path | None = None, hidden: Iterable[Path] = (), scratch: int = 64 << 20
) -> list[str]:
    """What bubblewrap is told: a system to read, a scratch folder to write, nothing else.

    Args:
        modules: a folder that is seen as `/course` inside (see `stage`).
        hidden: folders that must not be seen even where they lie in a part that is.
        scratch: bytes of the scratch folder, `/tmp`.
    """
    given = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    given += ["--unshare-cgroup-try", "--hostname", "box", "--new-session"]
    if os.geteuid() != 0:
        # As root it is left out: the users of the box would be root outside. `lockdown.lock`
        # makes an unprivileged user first, and a user namespace for that one.
        given.append("--unshare-user")
    for name in ("bin", "sbin", "lib", "lib32", "lib64", "libx32"):
        path = Path("/", name)
        if path.is_symlink():
            given += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            given += ["--ro-bind", str(path), str(path)]
    parts = _parts()
    # Ahead of the parts, for one of them may lie in it.
    given += ["--perms", "1777", "--size", str(scratch), "--tmpfs", "/tmp"]
    made: set[Path] = set()
    for part in parts:
        for parent in reversed(part.parents[:-1]):
            if parent not in made and not any(parent.is_relative_to(p) for p in parts):
                given += ["--perms", "0755", "--dir", str(parent)]
                made.add(parent)
        given += ["--ro-bind", str(part), str(part)]
    empty = ["/proc"]
    for folder in {*_our_folders(), *(Path(h).resolve() for h in hidden)}:
        if any(folder.is_relative_to(part) for part in parts) and folder.is_dir():
            empty.append(str(folder))
    for folder in empty:
        given += ["--perms", "0555", "--tmpfs", folder, "--remount-ro", folder]
    given += ["--perms", "0755", "--dir", "/etc"]
    given += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    given += ["--perms", "0755", "--dir", "/dev"]
    for device in DEVICES:
        given += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    if modules is not None:
        given += ["--ro-bind", str(modules), COURSE]
    return given + ["--remount-ro", "/", "--chdir", "/tmp"]


@functools.cache
def _parts() -> tuple[Path, ...]:
    """What of this system is seen inside: `/usr`, this Python, its environment, and torch."""
    wanted = [Path("/usr"), Path(sys.base_prefix), Path(sys.prefix)]
    torch = importlib.util.find_spec("torch")
    if torch is not None:
        wanted.append(Path(torch.origin).parent.parent)
    parts: list[Path] = []
    for path in sorted({p.resolve() for p in wanted}, key=lambda p: len(p.parts)):
        if len(path.parts) < 2:
            raise SandboxError(f"a Python that is installed in {path} cannot be boxed")
        if not any(path.is_relative_to(part) for part in parts):
            parts.append(path)
    return tuple(parts)


@functools.cache
def _our_folders() -> tuple[Path, ...]:
    """The course's packages, which are seen inside if the course is installed as a copy."""
    found = []
    for name in ("autograder", "solutions"):
        spec = importlib.util.find_spec(name)
        found += [Path(p).resolve() for p in (spec and spec.submodule_search_locations) or ()]
    return tuple(found)


# ------------------------------------------------------------------------------ the box


class Box:
    """A running bubblewrap whose only process waits; others walk in (`lockdown.enter`).

    It ends, with all that is in it, when it is closed or when this process ends.

    Args:
        given: from `arguments`.

    Raises:
        SandboxError: bubblewrap is not installed.
    """

    def __init__(self, given: Sequence[str]):
        program, waiter = shutil.which("bwrap"), shutil.which("cat")
        if program is None or waiter is None:
            raise SandboxError("bubblewrap is not installed")
        self._text = b""
        info, info_end = os.pipe()
        # Arguments could be read by everyone from the list of processes; a pipe cannot.
        told, told_end = os.pipe()
        try:
            self._process = subprocess.Popen(
                [program, "--args", str(told), "--info-fd", str(info_end)]
                # As first process of its namespace it cannot be killed from inside.
                + ["--as-pid-1", "--", waiter],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(told, info_end),
                env={},
                cwd="/",
                bufsize=0,
            )
            with os.fdopen(told_end, "wb", closefd=False) as file:
                file.write(b"".join(a.encode() + b"\0" for a in given))
            self._process.stdin.write(b"\n")  # `cat` gives it back as soon as it runs
        except BrokenPipeError:
            pass
        finally:
            for end in (info_end, told, told_end):
                os.close(end)
        self._info = info
        self._handle: int | None = None
        self.pid = 0

    def wait(self) -> Box:
        """Wait until the box stands.

        Raises:
            SandboxError: it does not.
        """
        if self.pid:
            return self
        try:
            said = self._read(self._info, until_closed=True)
            echo = self._read(self._process.stdout.fileno())
            if not echo:
                raise ValueError
            self.pid = json.loads(said)["child-pid"]
            self._handle = os.pidfd_open(self.pid)
        except (ValueError, KeyError, OSError):
            self._process.stdin.close()
            complaint = self._read(self._process.stderr.fileno()).decode(errors="replace").strip()
            self.close()
            raise SandboxError(f"bubblewrap does not run: {complaint or 'no answer'}") from None
        return self

    def _read(self, file: int, until_closed: bool = False) -> bytes:
        end, text = time.monotonic() + START, b""
        poll = select.poll()
        poll.register(file, select.POLLIN)
        while (left := end - time.monotonic()) > 0 and poll.poll(1000 * left):
            part = os.read(file, 4096)
            text += part
            if not part or not until_closed:
                break
        return text

    def close(self) -> None:
        """End everything in the box."""
        if self._info >= 0:
            os.close(self._info)
            self._info = -1
        if self._handle is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._handle, signal.SIGKILL)
            os.close(self._handle)
            self._handle = None
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            stream.close()
        if self._process.poll() is not None:
            return
        # `wait` with a time limit would look, sleep and look again.
        ended = os.pidfd_open(self._process.pid)
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        if not poll.poll(1000 * START):
            self._process.kill()
        os.close(ended)
        self._process.wait()

    def user(self) -> int | None:
        """The user to become inside; None where the grader is an ordinary user already."""
        if os.geteuid() != 0:
            return None
        for line in Path("/proc/self/uid_map").read_text().splitlines():
            inside, _, count = map(int, line.split())
            if inside <= USERS and inside + count >= USERS + 2**22:
                return USERS + self.pid
        return FEW_USERS + self.pid % FEW


# ---------------------------------------------------------------------------- the proof


def verify(pid: int, user: int | None) -> None:
    """Look from outside whether a process is locked in as it should be.

    Args:
        pid: its number out here.
        user: that it should run as; None for this process's own.

    Raises:
        SandboxError: something is not as it should be; the message says what.
    """
    try:
        faults = [text for holds, text in _facts(pid, user) if not holds]
    except OSError as error:
        raise SandboxError(f"the box cannot be verified: {error}") from None
    if faults:
        raise SandboxError(f"the box does not hold: {', '.join(faults)}")


def _facts(pid: int, user: int | None) -> Iterable[tuple[bool, str]]:
    about = Path(f"/proc/{pid}")
    for kind in ("user", "mnt", "pid", "net", "ipc", "uts"):
        inside, outside = (os.readlink(f"/proc/{p}/ns/{kind}") for p in (pid, "self"))
        yield inside != outside, f"the {kind} namespace is the grader's"
    status = dict(line.split(":", 1) for line in (about / "status").read_text().splitlines())
    expected = os.geteuid() if user is None else user
    for field in ("Uid", "Gid"):
        wanted = expected if field == "Uid" or user is not None else os.getegid()
        yield set(status[field].split()) == {str(wanted)}, f"{field} is {status[field].split()}"
    yield expected != 0, "it runs as root"
    yield user is None or not status["Groups"].split(), "it has groups"
    for field in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        yield int(status[field], 16) == 0, f"{field} is not empty"
    yield status["NoNewPrivs"].strip() == "1", "it may gain privileges"
    yield status["Seccomp"].strip() == "2", "system calls are not filtered"
    yield len(status["NSpid"].split()) > len(_own("NSpid")), "it sees the grader's processes"
    yield status["NSsid"].split()[-1] == status["NSpid"].split()[-1], "it has no session of its own"
    yield status["Threads"].strip() == "1", "it has threads"
    open_files = [os.readlink(f) for f in (about / "fd").iterdir()]
    sockets = [f for f in open_files if f.startswith("socket:")]
    others = set(open_files) - set(sockets) - {"/dev/null"}
    yield len(sockets) == 1, f"it has {len(sockets)} sockets"
    yield not others, f"it has open files: {', '.join(sorted(others))}"
    writable = {"/tmp", *(f"/dev/{d}" for d in DEVICES)}
    for line in (about / "mountinfo").read_text().splitlines():
        place, options = line.split()[4:6]
        if place not in writable:
            yield "ro" in options.split(","), f"{place} can be written"
    for name in ("Max address space", "Max cpu time", "Max processes", "Max file size"):
        line = next(x for x in (about / "limits").read_text().splitlines() if x.startswith(name))
        yield line.removeprefix(name).split()[0] != "unlimited", f"{name} is unlimited"


def _own(field: str) -> list[str]:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return line.split()[1:]
    return []


# ------------------------------------------------------------------------ is it to be had


def available() -> str | None:
    """None where submissions can be sandboxed here; else one line that says what to do."""
    if not sys.platform.startswith("linux"):
        return "the sandbox needs Linux (on Windows, WSL 2; on a Mac, a Linux virtual machine)"
    if shutil.which("bwrap") is None:
        return "bubblewrap is not installed: `apt install bubblewrap`, or `dnf install bubblewrap`"
    try:
        lockdown.seccomp_library()
    except lockdown.LockdownError:
        return "libseccomp is not installed: `apt install libseccomp2`, or `dnf install libseccomp`"
    try:
        box = Box(arguments()).wait()
    except SandboxError as error:
        if "namespace" in str(error) or "uid map" in str(error) or "ermission" in str(error):
            return (
                "this system does not let bubblewrap make namespaces: set the kernel's "
                "unprivileged_userns_clone to 1 or apparmor_restrict_unprivileged_userns to 0 "
                "with sysctl, or grade as root"
            )
        return str(error)
    box.close()
    return None
