"""Hostile submissions, as far as the session has to hold them: no points won, no harm done.

What could harm a machine runs only in a session, whose box is verified before the first line of
it; and no attack here goes on for ever or without measure, should a box fail to hold it.
"""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch

from autograder.sandbox.lockdown import Rules
from autograder.sandbox.remote import RemoteSubject
from autograder.sandbox.session import Limits
from autograder.sandbox.warming import Warm
from autograder.subjects import LearnerError
from tests.toy import make_chapter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sandbox")]

ROOT = Path(__file__).resolve().parents[1]
SCRATCH = 8 << 20
RULES = Rules(memory=256 << 20, cpu=20, scratch=SCRATCH)
LIMITS = Limits(call=1, cell=5, exercise=15, notebook=60, rules=RULES)
CANARY = "canary-4f1c2e"


@pytest.fixture(scope="module")
def warm(sandbox):
    os.environ["GRADER_SECRET"] = CANARY
    with Warm() as warm:
        yield warm
    del os.environ["GRADER_SECRET"]


@pytest.fixture
def session(warm):
    with warm.session(stubs=["tests.toy"], limits=LIMITS) as session:
        yield session


@pytest.fixture
def bystander(warm):
    """Another student's session, and a process of the grader's: both must survive."""
    with warm.session(limits=LIMITS) as other, subprocess.Popen(["sleep", "300"]) as process:
        other.run("def f(): return 'well'", "f")
        yield process
        try:
            assert process.poll() is None, "a process of the grader's died"
            assert RemoteSubject(other, "f").call((), {}) == "well"
            assert other.odd == []
        finally:
            process.kill()


def cell(session, source, name="attack"):
    return session.run(textwrap.dedent(source), name)


def attack(session, source):
    """Run a cell that must not raise; what it prints is the attacker's finding."""
    reply = cell(session, source)
    assert reply.error is None, reply.error
    return reply.printed.strip()


def call(session, name="f", *args):
    return RemoteSubject(session, name).call(args, {})


def points(session, name="double"):
    exercise = make_chapter().exercises[name]
    return exercise.check(RemoteSubject(session, name), seed=11, graded=True).earned


def still_works(session):
    assert cell(session, "def fine(): return 1", "fine").error is None
    assert call(session, "fine") == 1


# --------------------------------------------------------- winning points without the answer

WRONG = "def double(x): return x * 3\n"
TRICKS = {
    "patched comparisons": """
        import torch, math
        for module, names in {
            torch: "allclose isclose equal eq ne all any".split(),
            torch.Tensor: "__eq__ __ne__ allclose isclose equal all any item tolist".split(),
            torch.testing: ["assert_close"], math: ["isclose"],
        }.items():
            for name in names:
                setattr(module, name, lambda *a, **k: True)
        """,
    "patched random numbers": """
        import torch
        torch.randn = torch.rand = torch.manual_seed = lambda *a, **k: torch.zeros(2, 3)
        torch.Generator = torch.zeros
        """,
    "a tensor that equals everything": """
        import torch
        class Yes(torch.Tensor):
            @classmethod
            def __torch_function__(cls, f, types, args=(), kwargs=None):
                return torch.ones((), dtype=torch.bool)
            def __eq__(self, other): return True
        def double(x): return x.as_subclass(Yes)
        """,
    "an object that equals everything": """
        class Yes:
            def __getattr__(self, name): return lambda *a, **k: True
            def __eq__(self, other): return True
            __ne__ = __lt__ = lambda self, other: False
            __bool__ = __eq__
            shape = (2, 3)
            dtype = None
        def double(x): return Yes()
        """,
    "NaN": "def double(x): return x * float('nan')",
    "an empty tensor": "def double(x): return x[:0]",
    "one number for all": "def double(x): return x.sum()",
    "numbers in a list": "def double(x): return (2 * x).tolist()",
    "a shape without numbers": """
        import torch
        def double(x): return torch.empty(x.shape, device='meta')
        """,
    "a result object": """
        class Result:
            earned = points = 3
            status = "passed"
            def __repr__(self): return "3"
        def double(x): return Result()
        check = lambda answer: Result()
        """,
    "points on standard output": """
        import sys, os
        def double(x):
            print('{"earned": 3, "status": "passed"}')
            os.write(1, b"3")
            sys.stderr.write("passed")
            return x * 3
        """,
    "a patched course": """
        import sys, types, autograder.subjects as subjects
        for name in ("call", "gradients"):
            setattr(subjects.Local, name, lambda *a, **k: True)
        subjects.detached = subjects.cloned = lambda value: True
        sys.modules["autograder.checking"] = types.ModuleType("autograder.checking")
        """,
    "a patched wire": """
        import autograder.sandbox.wire as wire, autograder.sandbox.inside as inside
        pack = wire.Packer.frame
        def frame(self, message):
            if message[0] == "answer":
                message = ["answer", message[1], True, "passed"]
            return pack(self, message)
        wire.Packer.frame = frame
        """,
    "what the trusted side may send alone": """
        import autograder.sandbox.wire as wire
        def value(self, value, depth=0, old=wire.Packer.value):
            if hasattr(value, "numel"):
                return ["module", self.add(value)]
            return old(self, value, depth)
        wire.Packer.value = value
        """,
    "modules in the scratch folder": """
        import os
        for name in ("torch", "json", "safetensors", "autograder"):
            with open(name + ".py", "w") as file:
                file.write("def allclose(*a, **k): return True")
            os.makedirs("solutions", exist_ok=True)
        """,
    "a tracer": """
        import sys, threading
        def trace(frame, event, argument):
            for name in list(frame.f_locals):
                if name in ("expected", "reference", "answer"):
                    found.append(frame.f_locals[name])
            return trace
        found = []
        sys.settrace(trace); sys.setprofile(trace)
        """,
}


@pytest.mark.parametrize("trick", TRICKS)
def test_a_wrong_answer_earns_what_it_earns_without_the_trick(session, bystander, trick):
    cell(session, WRONG)
    honest = points(session)
    assert honest == 1  # for leaving its input alone
    cell(session, TRICKS[trick], "trick")
    assert points(session) <= honest
    cell(session, "%reset\nimport torch", "more")
    assert session.fault is None


def test_a_right_answer_keeps_its_points_whatever_lies_about(session):
    cell(session, TRICKS["modules in the scratch folder"])
    cell(session, "def double(x): return 2 * x")
    assert points(session) == 3
    cell(session, "def double(x):\n    import os\n    os._exit(0)", "worse")
    assert points(session) == 0
    cell(session, "def double(x): return 2 * x", "better")
    assert points(session) == 3


def test_answers_to_earlier_questions_do_not_answer_later_ones(session):
    cell(
        session,
        """
        seen = []
        def double(x):
            seen.append(2 * x)
            return seen[0]
        """,
    )
    assert points(session) == 1


def test_module_answers_of_the_wrong_kind_are_data(session):
    cell(
        session,
        """
        import autograder.subjects as subjects
        class Scale:
            def __init__(self, start=1.0): pass
        for name, value in {"build": "zero", "state": [1], "gradients": {1: 2}, "mutates": 3,
                            "carries_graph": "yes"}.items():
            setattr(subjects.Local, name, lambda *a, value=value, **k: value)
        """,
    )
    subject, x = RemoteSubject(session, "Scale"), torch.ones(2)
    for ask in (
        lambda: subject.build((), {}),
        lambda: subject.gradients(None, (x,), {}, [x]),
        lambda: subject.mutates((x,), {}),
        lambda: subject.carries_graph((x,), {}),
    ):
        with pytest.raises(LearnerError, match="came back as"):
            ask()
    assert points(session, "Scale") == 0


# ------------------------------------------------------------------------ the wire

SOCKET = """
    import os, socket, sys, json, struct, threading, time
    import autograder.sandbox.wire as wire
    pipe = socket.socket(fileno=3)
    def inside():
        frame = sys._getframe()
        while frame is not None:
            if type(frame.f_locals.get("self")).__name__ == "Inside":
                return frame.f_locals["self"]
            frame = frame.f_back
    def say(*message):
        pipe.setblocking(True)
        pipe.sendall(wire.Packer().frame(list(message)))
"""
PROTOCOL = {
    "answering twice": "say('answer', inside().current, 1, ''); return 2",
    "answering something else": "say('answer', 'f' * 24, 1, ''); return 2",
    "an answer without a number": "say('answer'); return 2",
    "an answer of five parts": "say('answer', inside().current, 1, '', 1); return 2",
    "a message of another kind": "say('ready'); return 2",
    "no list at all": "pipe.sendall(wire.Packer().frame('x')); return 2",
    "questions where none are answered": "say('ask', inside().current, 'value', 0, False, (), {})",
    "no frame": "pipe.sendall(b'GET / HTTP/1.0' * 10); return 2",
    "a frame of four gigabytes": "pipe.sendall(struct.pack('>4sII', b'atd1', 2**32 - 1, 0))",
    "a frame that never ends": """
        pipe.sendall(struct.pack('>4sII', b'atd1', 100, 0))
        time.sleep(99)""",
    "a frame that drips": """
        pipe.sendall(struct.pack('>4sII', b'atd1', 10**6, 0))
        while True:
            pipe.sendall(b' '); time.sleep(0.01)""",
    "ten thousand brackets": """
        pipe.sendall(struct.pack('>4sII', b'atd1', 10**6, 0) + b'[' * 10**6)""",
    "a million values": """
        text = b'["list",[' + b'null,' * 10**6 + b'null]]'
        pipe.sendall(struct.pack('>4sII', b'atd1', len(text), 0) + text)""",
    "a tensor that claims terabytes": """
        header = b'{"0":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4398046511104]}}'
        body = struct.pack('<Q', len(header)) + header
        pipe.sendall(struct.pack('>4sII', b'atd1', 14, len(body)) + b'["tensor",0]  ' + body)""",
    "a pickle": """
        import pickle
        class Evil:
            def __reduce__(self): return os.system, ("touch /tmp/owned-by-a-pickle",)
        text = json.dumps(["module", 0]).encode()
        body = pickle.dumps(Evil())
        pipe.sendall(struct.pack('>4sII', b'atd1', len(text), len(body)) + text + body)""",
    "closing the socket": "os.close(3); time.sleep(99)",
    "closing half of it": "pipe.shutdown(socket.SHUT_WR); time.sleep(99)",
    "saying nothing": "time.sleep(99)",
}


@pytest.mark.parametrize("trick", PROTOCOL)
def test_a_process_that_breaks_the_rules_of_the_wire_loses_that_call(session, bystander, trick):
    cell(session, SOCKET, "socket")
    body = textwrap.indent(textwrap.dedent(PROTOCOL[trick]).strip(), "    ")
    cell(session, f"def f(*inputs):\n{body}", "f")
    start = time.monotonic()
    try:
        first = call(session)
    except LearnerError as error:
        assert error.kind in ("Died", "Timeout")
    else:  # the first of two answers: it is the next question that finds out
        assert trick == "answering twice" and first == 1
        time.sleep(0.5)
    still_works(session)
    assert len(session.odd) == 1 and session.generation == 2
    assert time.monotonic() - start < 30
    assert not Path("/tmp/owned-by-a-pickle").exists()


def test_answers_that_come_ahead_of_the_question_are_not_taken(session):
    cell(session, SOCKET, "socket")
    cell(session, "def f(): return 2", "f")
    cell(session, "for _ in range(9): say('answer', '0' * 24, 1, '')", "ahead")
    assert call(session) == 2  # by a process that was built again, without that cell
    cell(
        session,
        """
        def later():
            time.sleep(0.2)
            say("answer", "0" * 24, 1, "")
        threading.Thread(target=later).start()
        """,
        "later",
    )
    time.sleep(1)
    assert call(session) == 2
    assert [c.name for c in session.cells if c.fatal] == ["ahead", "later"]


def test_threads_that_race_for_the_wire_win_nothing(session, warm, bystander):
    cell(session, SOCKET, "socket")
    cell(session, WRONG)
    cell(
        session,
        """
        me = inside()
        def race():
            while True:
                try: say("answer", me.current, True, "")
                except Exception: pass
        for _ in range(4): threading.Thread(target=race, daemon=True).start()
        """,
    )
    for _ in range(3):
        assert points(session) <= 1
    # They race in each rebuilt process too, to the attacker's loss alone.
    with warm.session(limits=LIMITS) as other:
        still_works(other)


def test_functions_that_a_check_hands_in_answer_a_bounded_number_of_sane_questions(warm):
    limits = Limits(call=10, cell=5, exercise=30, notebook=60, asks=50, rules=RULES)
    with warm.session(limits=limits) as session:
        cell(session, "import torch", "torch")
        asked = []

        def ours(x):
            asked.append(x)
            return x * 2

        for body, kind in {
            "while True: g(1)": "Died",
            "return g(torch.zeros(10**6))": "ValueError",
            "return g(torch.zeros([1] * 20))": "ValueError",
            "g.index = 7; return g(1)": "Died",
            "g.index = -1; return g(1)": "Died",
            "g.index = 'x'; return g(1)": "Died",
            "return g(__import__('builtins'))": "TypeError",
            "return g._inside.ask('value', 0, True, 1, 2)": "Died",
            "return g._inside.ask('gradient', 99, [])": "RuntimeError",
            "return g._inside.ask('gradient', [], [])": "Died",
            "return g._inside.ask('nonsense')": "Died",
        }.items():
            assert cell(session, f"def f(g, x):\n    {body}", "f").error is None
            with pytest.raises(LearnerError) as caught:
                call(session, "f", ours, torch.ones(3))
            assert caught.value.kind == kind, body
        assert 50 <= len(asked) <= 52  # 50 of the loop; an odd object may reach our function too
        # Kept for later, such a function is dead.
        cell(session, "kept = []\ndef f(g): kept.append(g)\ndef h(): return kept[0](1)", "f")
        call(session, "f", ours)
        with pytest.raises(LearnerError, match="earlier call"):
            call(session, "h")


def test_endless_errors_and_names_arrive_cut(session):
    cell(session, "E = type('<b>' * 10**5, (Exception,), {})\ndef f(): raise E('x' * 10**6)", "f")
    with pytest.raises(LearnerError) as caught:
        call(session)
    assert caught.value.kind == "Exception" and len(caught.value.message) <= 4_000
    cell(session, "class F(Exception):\n    def __str__(self): raise F\ndef f(): raise F", "f")
    with pytest.raises(LearnerError):
        call(session)
    cell(session, "def f(): raise ValueError('\\ud800')", "f")
    with pytest.raises(LearnerError) as caught:
        call(session)
    caught.value.message.encode()
    still_works(session)


# --------------------------------------------------------------------- seeing what is hidden


def test_the_grader_is_not_in_sight(session, tmp_path):
    """Files, environment and memory of the grader."""
    book = tmp_path / "gradebook.db"
    book.write_text(CANARY)
    os.chmod(tmp_path, 0o755)
    places = [
        ROOT,
        book,
        Path.home(),
        "/etc/passwd",
        "/etc/shadow",
        "/home",
        "/var",
        "/sys",
        "/run",
    ]
    places += [ROOT / "solutions", "/proc/1/environ", "/proc/self/maps", "/proc/1/root", "/mnt"]
    places += [f"/proc/{os.getpid()}/environ", f"/proc/{os.getpid()}/cwd", "/dev/shm", "/boot"]
    # A folder above this Python is there, with nothing but the way to it.
    harmless = {
        str(parent) for parent in (*Path(sys.base_prefix).parents, *Path(sys.prefix).parents)
    }
    found = attack(
        session,
        f"""
        import os
        for place in {[str(p) for p in places if str(p) not in harmless]!r}:
            if os.path.lexists(place): print(place)
        """,
    )
    assert found == ""
    assert attack(session, f"import os\nprint(os.listdir({str(ROOT)!r}))") in ("", "['.venv']")
    assert attack(session, "print(os.listdir('/proc'), sorted(os.environ))").startswith(
        "[] ['HOME'"
    )
    assert CANARY not in attack(session, "print(os.environ)")


def test_nothing_of_the_course_but_what_a_session_needs_is_in_memory(session):
    found = attack(
        session,
        """
        import sys
        ours = ("autograder", "solutions", "tests")
        print(sorted(name for name in sys.modules if name.split(".")[0] in ours))
        """,
    )
    assert found == str(
        sorted(
            ["autograder", "autograder.sandbox", "autograder.subjects", "autograder.syntax"]
            + ["autograder.driving", "tests", "tests.toy"]
            + [f"autograder.sandbox.{name}" for name in ("inside", "lockdown", "warm", "wire")]
        )
    )
    # Nor does a byte of it know the grader's environment, or what a check would say.
    make_chapter()
    for needle in (CANARY, "You squared" + " it."):
        assert not _holds(session.pid, needle.encode()), needle
    attack(session, f"here = {CANARY[:6]!r} + {CANARY[6:]!r}")
    assert _holds(session.pid, CANARY.encode())  # as it would have been found


def _holds(pid, needle):
    """Whether a process has some bytes in its memory, as its owner can see from outside."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
        for line in maps:
            place, rights, *_ = line.split()
            if rights.startswith("rw"):
                start, end = (int(text, 16) for text in place.split("-"))
                memory.seek(start)
                if needle in (memory.read(end - start) or b""):
                    return True
    return False


def test_one_socket_is_all_that_is_open(session):
    found = attack(
        session,
        """
        import os, stat
        for number in range(4096):
            try: mode = os.fstat(number).st_mode
            except OSError: continue
            kinds = {stat.S_IFSOCK: "socket", stat.S_IFCHR: "device"}
            print(number, kinds.get(stat.S_IFMT(mode), "something else"))
        """,
    )
    assert found == "0 device\n1 device\n2 device\n3 socket"


def test_other_sessions_are_not_in_sight(session, warm):
    attack(session, "with open('mine.txt', 'w') as file: file.write('mine')")
    with warm.session(limits=LIMITS) as other:
        # A copy of the course, or a Python, that lies in /tmp itself is seen there.
        shown = {p.parts[2] for p in map(Path, (ROOT, sys.prefix)) if p.parts[:2] == ("/", "tmp")}
        text = f"import os\nprint({{*os.listdir('/tmp')}} - {shown}, os.getpid() < 10)"
        assert attack(other, text) == "set() True"


def test_there_is_no_network(session):
    name = f"\0{CANARY}"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(name)
        listening.listen()
        found = attack(
            session,
            f"""
            import socket, urllib.request
            for name in ("INET", "INET6", "NETLINK", "PACKET", "ALG", "VSOCK"):
                family = getattr(socket, "AF_" + name)
                try: print(socket.socket(family, socket.SOCK_RAW if family > 10 else 1))
                except PermissionError: pass
            try: urllib.request.urlopen("http://127.0.0.1:8888", timeout=1); print("open")
            except OSError: pass
            unix = socket.socket(socket.AF_UNIX)
            try: unix.connect({name!r}); print("connected")
            except ConnectionRefusedError: pass
            """,
        )
    assert found == ""


# ------------------------------------------------------------------------------ doing harm


def test_nothing_outside_the_scratch_folder_can_be_written(session):
    prefix = Path(torch.__file__).parent
    found = attack(
        session,
        f"""
        import os
        for folder in ["/", "/usr", "/usr/bin", "/dev", "/proc", "/etc", "/var/tmp", "/run",
                       {str(prefix)!r}, {sys.prefix!r}, {sys.base_prefix!r}, {str(ROOT)!r}]:
            for act in (lambda: open(folder + "/x", "w"), lambda: os.mkdir(folder + "/y"),
                        lambda: os.chmod(folder, 0o777), lambda: os.utime(folder)):
                try: act(); print(folder)
                except OSError: pass
        for file in ["/etc/ld.so.cache", {str(prefix / "__init__.py")!r}]:
            try: open(file, "a"); print(file)
            except OSError: pass
        for act in (lambda: os.chmod("/dev/null", 0o777), lambda: os.remove("/dev/null")):
            try: act(); print("device")
            except OSError: pass
        """,
    )
    assert found == ""


@pytest.mark.parametrize(
    "target", ["-1", "0", "os.getppid()", "1", "-os.getpgid(0)"], ids=lambda t: t
)
def test_signals_reach_nothing_outside(session, bystander, target):
    source = f"""
        import os, signal
        def f():
            for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
                try: os.kill({target}, number)
                except OSError: pass
            return "alive"
        """
    cell(session, source, "f")
    try:
        assert call(session) == "alive"
    except LearnerError as error:
        assert error.kind in ("Died", "Timeout")
    still_works(session)


def test_processes_outside_cannot_be_named(session, bystander):
    found = attack(
        session,
        f"""
        import os
        for number in ({bystander.pid}, {os.getpid()}):
            for act in (lambda: os.kill(number, 0), lambda: os.pidfd_open(number),
                        lambda: os.getpriority(os.PRIO_PROCESS, number)):
                try: act(); print(number)
                except ProcessLookupError: pass
        """,
    )
    assert found == ""


def test_no_process_can_be_started_where_one_is_allowed(session, bystander):
    found = attack(
        session,
        """
        import os, subprocess, multiprocessing, threading
        true = ["/bin/true"]
        for act in (os.fork, os.forkpty, lambda: subprocess.run(true), lambda: os.system("true"),
                    lambda: os.execv(true[0], true), lambda: os.posix_spawn(true[0], true, {})):
            try:
                if act() not in (None, 127, -1, 32512): print(act)
            except OSError: pass
        done = []
        threads = [threading.Thread(target=done.append, args=(1,)) for _ in range(3)]
        [t.start() for t in threads]; [t.join() for t in threads]
        print(len(done))
        """,
    )
    assert found == "3"


def test_a_thread_bomb_ends_at_the_limit(session, bystander):
    found = attack(
        session,
        """
        import threading
        stop = threading.Event()
        threads = []
        for _ in range(200):
            try:
                thread = threading.Thread(target=stop.wait, daemon=True)
                thread.start()
                threads.append(thread)
            except RuntimeError:
                break
        stop.set()
        print(len(threads))
        """,
    )
    assert 1 <= int(found) <= RULES.threads
    still_works(session)


SEVERAL = Limits(
    call=2,
    cell=5,
    exercise=10,
    notebook=40,
    rules=Rules(memory=64 << 20, processes=8, threads=8, cpu=5),
)


def test_a_fork_bomb_ends_at_the_limit_where_processes_are_allowed(warm, bystander):
    with warm.session(limits=SEVERAL) as session:
        source = """
            import os
            def f():
                children = 0
                for _ in range(200):  # not for ever, should nothing stop it
                    try:
                        if os.fork() == 0:
                            for _ in range(20):
                                try: os.fork()
                                except OSError: break
                            import time; time.sleep(20); os._exit(0)
                        children += 1
                    except OSError: break
                return children
            """
        cell(session, source, "f")
        assert call(session) <= 16
        inside = _members(session)
        assert len(inside) <= 18
    assert not _alive(inside)


def _members(session):
    space = os.readlink(f"/proc/{session.pid}/ns/pid")
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.readlink(entry / "ns/pid") == space:
                found.append(int(entry.name))
        except OSError:
            pass
    return found


def _alive(pids):
    end = time.monotonic() + 5
    while (left := [p for p in pids if Path(f"/proc/{p}/exe").exists()]) and time.monotonic() < end:
        time.sleep(0.02)
    return left


def test_a_grandchild_that_makes_itself_a_daemon_ends_with_the_session(warm):
    with warm.session(limits=SEVERAL) as session:
        source = """
            import os, signal, time
            def f():
                if os.fork() == 0:
                    os.setsid()
                    if os.fork() == 0:
                        for number in range(1, 32):
                            try: signal.signal(number, signal.SIG_IGN)
                            except OSError: pass
                        time.sleep(60)
                    os._exit(0)
                time.sleep(0.3)
                return "gone"
            """
        cell(session, source, "f")
        assert call(session) == "gone"
        inside = _members(session)
        assert len(inside) >= 3
    assert not _alive(inside)


MEMORY = {
    "tensors": "x = []\nfor _ in range(64): x.append(torch.ones(2**24))",
    "lists": "x = [0]\nfor _ in range(34): x = x + x",
    "strings": "x = 'x'\nfor _ in range(34): x += x",
    "shared maps": """
x = []
for _ in range(64):
    x.append(mmap.mmap(-1, 2**26))
    x[-1].write(b'x' * 2**26)""",
    "a file mapped": """
with open('big', 'wb') as file:
    for _ in range(1024): file.write(b'x' * 2**22)""",
    "printed": "for _ in range(64): print('x' * 2**24)\nprint(torch.ones(2**30))",
}


@pytest.mark.parametrize("kind", MEMORY)
def test_memory_ends_at_the_limit_and_nobody_else_notices(session, bystander, kind):
    source = f"import torch, mmap\nx = None\ntry:\n{textwrap.indent(MEMORY[kind], '    ')}"
    source += "\nexcept (MemoryError, RuntimeError, OSError):\n    x = None\n    print('stopped')"
    reply = cell(session, source)
    assert (
        "stopped" in reply.printed or reply.error is not None or "characters more" in reply.printed
    )
    assert len(reply.printed) < 25_000
    if session.is_alive:
        status = Path(f"/proc/{session.pid}/status").read_text()
        peak = int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1])
        assert peak < 1 << 20  # KiB: what it starts with, and 256 MiB
    still_works(session)


def test_memory_that_no_limit_of_a_process_counts_is_not_to_be_had(session):
    found = attack(
        session,
        """
        import ctypes, os
        libc = ctypes.CDLL(None, use_errno=True)
        try: os.memfd_create("x"); print("memfd")
        except PermissionError: pass
        if libc.shmget(0, 2**30, 0o1600) != -1: print("shared memory")
        if libc.msgget(0, 0o1600) != -1: print("a message queue")
        """,
    )
    assert found == ""


def test_the_disk_that_can_be_filled_is_the_sessions_own_and_small(session, bystander):
    before = os.statvfs("/tmp").f_bavail
    found = attack(
        session,
        """
        import os
        size = files = 0
        try:
            for number in range(50):
                with open(f"big{number}", "wb", buffering=0) as file:
                    for _ in range(64): size += file.write(b"x" * 2**20)
        except OSError: pass
        for number in range(50):
            if os.path.exists(f"big{number}"): os.remove(f"big{number}")
        try:
            for number in range(20_000):
                open(f"small{number}", "w").close(); files += 1
        except OSError: pass
        print(size, files)
        """,
    )
    size, files = map(int, found.split())
    assert size <= SCRATCH and files <= 4096
    assert before - os.statvfs("/tmp").f_bavail < 1 << 20


DOORS = {
    "unshare": "272, 0x10000000",
    "setns": "308, 3, 0",
    "mount": "165, 0, 0, 0, 0, 0",
    "chroot": "161, b'/tmp'",
    "ptrace": "101, 16, 1, 0, 0",
    "process_vm_readv": "310, 1, 0, 0, 0, 0, 0",
    "bpf": "321, 0, 0, 0",
    "io_uring_setup": "425, 8, 0",
    "keyctl": "250, 0, -3, 0",
    "perf_event_open": "298, 0, 0, -1, -1, 0",
    "userfaultfd": "323, 0",
    "clone with a new user": "56, 0x10000011, 0, 0, 0, 0",
    "open_by_handle_at": "304, 0, 0, 0",
}


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86-64's system calls")
@pytest.mark.parametrize("door", DOORS)
def test_doors_into_the_kernel_are_shut(session, door):
    source = f"""
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        print(libc.syscall({DOORS[door]}), ctypes.get_errno())
        """
    assert attack(session, source) == "-1 1"


def test_limits_and_identity_cannot_be_taken_off(session):
    found = attack(
        session,
        """
        import os, resource
        for name in ("RLIMIT_AS", "RLIMIT_NPROC", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_CORE"):
            try: resource.setrlimit(getattr(resource, name), (2**62, 2**62)); print(name)
            except (ValueError, OSError): pass
        for act in (lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])):
            try: act(); print("identity")
            except OSError: pass
        print(os.getuid() != 0 and os.geteuid() != 0)
        """,
    )
    assert found == "True"


LOOPS = {
    "a loop": "while True: pass",
    "a loop that ignores signals": """
        import signal
        for name in ("INT", "TERM", "ALRM", "XCPU", "HUP", "PIPE"):
            signal.signal(getattr(signal, "SIG" + name), signal.SIG_IGN)
        while True: pass""",
    "a loop that catches everything": """
        while True:
            try:
                while True: pass
            except BaseException: pass""",
    "sleep": "import time\nwhile True: time.sleep(1000)",
    "a regular expression": "import re; re.match('(a+)+b', 'a' * 60)",
    "one long multiplication": "x = 3 ** (10 ** 10)",
    "a deadlock": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
    "a generator without end": "sum(1 for _ in iter(int, 1))",
    "busy threads that make it wait": """
        import threading
        def spin():
            while True: pass
        for _ in range(20): threading.Thread(target=spin, daemon=True).start()
        spin()""",
}


@pytest.mark.parametrize("loop", LOOPS)
def test_what_does_not_end_is_ended(warm, loop):
    with warm.session(
        limits=Limits(call=0.5, cell=1, exercise=5, notebook=30, rules=RULES)
    ) as session:
        start = time.monotonic()
        reply = cell(session, textwrap.dedent(LOOPS[loop]).strip())
        assert reply.error.kind in ("Timeout", "MemoryError", "Died")
        assert time.monotonic() - start < 10
        assert not session.is_alive or reply.error.kind == "MemoryError"
        still_works(session)


def test_giant_outputs_are_cut_by_the_reader_too(session):
    source = """
        import sys, autograder.sandbox.inside as inside
        inside.Capped.text = lambda self: "x" * 900_000
        print("hello")
        """
    assert len(cell(session, source).printed) <= 24_000
    inside = "import autograder.subjects as s; s.PRINT_LIMIT = 10**6\ndef f(): print('x' * 10**6)"
    cell(session, inside, "f")
    subject = RemoteSubject(session, "f")
    subject.call((), {})
    assert len(subject.printed) <= 4_000


def test_at_the_end_of_it_all_the_warm_process_is_as_it_was(warm):
    """It is single-threaded and no larger, and a new session is locked in as the first one was."""
    about = dict(
        line.split(":", 1)
        for line in Path(f"/proc/{warm._process.pid}/status").read_text().splitlines()
    )
    assert about["Threads"].strip() == "1" and int(about["VmRSS"].split()[0]) < 800_000
    with warm.session(limits=LIMITS) as session:
        still_works(session)
