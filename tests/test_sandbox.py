"""The sandboxed session: honest work runs as it does in a notebook, and failure is data."""

import ast
import contextlib
import inspect
import os
import pwd
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import torch

from autograder.checks import start as start_checks
from autograder.sandbox import box, lockdown, warming, wire
from autograder.sandbox import session as sessions
from autograder.sandbox.lockdown import Rules
from autograder.sandbox.remote import RemoteSubject
from autograder.sandbox.session import Limits, SandboxError
from autograder.sandbox.warming import Warm
from autograder.subjects import LearnerError, Local
from tests.toy import make_chapter

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("sandbox")]

ROOT = Path(__file__).resolve().parents[1]
LIMITS = Limits(call=5, cell=20, exercise=20, notebook=120, rules=Rules(memory=512 << 20, cpu=60))


@pytest.fixture(scope="module")
def warm(sandbox):
    with Warm() as warm:
        yield warm


@pytest.fixture
def session(warm):
    with warm.session(stubs=["tests.toy"], limits=LIMITS) as session:
        yield session


def run(session, source, name="cell"):
    reply = session.run(textwrap.dedent(source), name)
    assert reply.error is None, reply.error
    return reply.printed


def function(session, source, name="f"):
    run(session, source, name)
    return RemoteSubject(session, name)


def call(session, source, *args, **kwargs):
    return function(session, source).call(args, kwargs)


def error_of(run):
    with pytest.raises(LearnerError) as caught:
        run()
    return caught.value


# ------------------------------------------------------------------------------- cells


def test_cells_share_one_namespace_and_what_they_print_is_kept(session):
    run(session, "x = 2\nprint('one')")
    assert run(session, "import sys\nprint(x + 1)\nprint('two', file=sys.stderr)") == "3\ntwo\n"


def test_an_error_names_its_kind_its_line_and_the_text_of_the_line(session):
    error = session.run("x = 1\n\nx.nothing  # here\n", "wrong").error
    assert (error.kind, error.line, error.code) == ("AttributeError", 3, "x.nothing  # here")
    error = session.run("def f(:\n    pass", "worse").error
    assert (error.kind, error.line) == ("SyntaxError", 1)
    assert session.run("raise SystemExit(3)", "x").error.kind == "SystemExit"
    assert session.run("exit()", "x").error.kind == "SystemExit"
    assert session.run("raise KeyboardInterrupt", "x").error.kind == "KeyboardInterrupt"
    assert session.is_alive and session.odd == []


def test_what_ipython_adds_to_python_costs_nothing(session):
    printed = run(
        session,
        """\
        %matplotlib inline
        !pip install nothing
        x = !ls
        torch?
        if True:
            %time y = 1
        display(3)
        print("100%")
        text = '''
        %not magic, which costs this line
        '''
        """,
    )
    assert printed == "100%\n"
    assert run(session, "%%time\nz = 5\nprint(z)") == "5\n"
    assert run(session, "%%bash\nrm -rf everything") == ""
    assert run(session, "s = '''\n%d\n''' % 3\nprint(s)") == "\n3\n\n"


def test_honest_oddities_cost_nothing(session):
    run(
        session,
        """\
        import warnings, logging, os, asyncio
        import numpy as np
        import matplotlib.pyplot as plt
        from IPython.display import display, HTML
        from tests.toy import make_chapter
        check = make_chapter().check
        warnings.warn("careful")
        logging.warning("careful")
        plt.plot([1, 2]); plt.show()
        with open("notes.txt", "w") as file:
            file.write("x")
        asyncio.run(asyncio.sleep(0))
        def helper(x): return x
        """,
    )
    found = call(
        session,
        """\
        def f(x):
            print("working")
            own = x.clone()
            own += x
            warnings.warn("careful")
            check(f)
            return helper(own.double().t().contiguous().t())
        """,
        torch.ones(2, 3),
    )
    assert found.dtype == torch.float64 and found.tolist() == [[2.0] * 3] * 2


def test_torch_behaves_as_in_a_notebook(session):
    printed = run(
        session,
        """\
        import torch, inspect
        from torch import nn
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        step = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(3):
            step.zero_grad(); model(torch.ones(2, 3)).sum().backward(); step.step()
        torch.testing.assert_close(torch.ones(1), torch.ones(1))
        torch.save(model.state_dict(), "model.pt")
        model.load_state_dict(torch.load("model.pt"))
        def f(x):
            "A function."
            return x
        print(inspect.getsource(f), torch.get_num_threads(), torch.cuda.is_available(), __name__)
        """,
    )
    assert printed == 'def f(x):\n    "A function."\n    return x\n 1 False __main__\n'


def test_random_numbers_are_the_same_every_time(warm):
    text = "import torch, random, numpy as np\n"
    text += "print(torch.rand(1), random.random(), np.random.rand(), set('abc'))"
    printed = set()
    for _ in range(3):
        with warm.session(limits=LIMITS) as session:
            printed.add(run(session, text))
    assert len(printed) == 1


def test_a_session_has_modules_of_earlier_chapters_and_no_others(warm, tmp_path):
    library = tmp_path / "library"
    library.mkdir()
    for name, text in {
        "__init__": "",
        "early": "def one():\n    return 1\n",
        "later": "from solutions.early import one\n",
        "secret": "ANSWER = 42\n",
        "leaky": "from solutions import secret\n",
    }.items():
        (library / f"{name}.py").write_text(text)
    (library / "weights").mkdir()
    (library / "weights" / "small.safetensors").write_bytes(b"numbers")
    folder = sessions.stage(library, ["early", "later"], tmp_path / "stage")
    with pytest.raises(ValueError, match="leaky imports secret"):
        sessions.stage(library, ["leaky"], tmp_path / "other")
    with pytest.raises(ValueError, match="later imports early"):
        sessions.stage(library, ["later"], tmp_path / "third")
    os.chmod(tmp_path, 0o755)
    stubs = ["autograder.checks.early"]
    with warm.session(folder, stubs, LIMITS) as session:
        text = "from solutions.later import one\nfrom autograder.checks.early import check\n"
        assert run(session, text + "check(one)\nprint(one())") == "1\n"
        text = "from pathlib import Path\nfolder = Path(one.__code__.co_filename).parent\n"
        assert run(session, text + "print(*folder.glob('weights/*'))").endswith("safetensors\n")
        for name in ("solutions.secret", "solutions.start", "autograder.checks.start"):
            assert session.run(f"import {name}", "x").error.kind == "ModuleNotFoundError"
        for name in ("autograder.checking", "autograder.grading", "autograder.sandbox.session"):
            assert session.run(f"import {name}", "x").error.kind == "ModuleNotFoundError"


# ------------------------------------------------------------------ the remote subject


def test_the_surface_is_that_of_a_subject_in_this_process():
    def surface(kind):
        return {n: inspect.signature(f) for n, f in vars(kind).items() if n[0] != "_"}

    assert surface(RemoteSubject) == surface(Local)


def test_whatever_a_function_returns_comes_back(session):
    for text, expected in [
        ("None", None),
        ("(1, [2.5, 'x'], {'k': (True,)})", (1, [2.5, "x"], {"k": (True,)})),
        ("{(1, 2): 3}", {(1, 2): 3}),
        ("2**100", 2**100),
    ]:
        assert call(session, f"def f(): return {text}") == expected
    assert (
        type(call(session, "class Strange: pass\ndef f(): return Strange()")).__name__ == "Strange"
    )
    assert call(session, "def f(**kw): return kw", a=1, b="x") == {"a": 1, "b": "x"}


def test_a_call_does_not_change_the_checks_inputs_and_mutates_shows_what_it_would(session):
    subject = function(session, "def f(x, y):\n    x.add_(1)\n    y.append(3)\n    return x")
    x, y = torch.zeros(2), [1]
    assert subject.call((x, y), {}).tolist() == [1, 1]
    assert x.tolist() == [0, 0] and y == [1]
    after = subject.mutates((x,), {"y": y})
    assert after[0].tolist() == [1, 1] and after[1] == [1, 3]
    assert not subject.carries_graph((x.long(), y), {})
    doubled = function(session, "def h(x): return x.detach() if len(x) > 2 else 2 * x", "h")
    assert doubled.carries_graph((x,), {}) and not doubled.carries_graph((torch.ones(3),), {})
    with_function = function(session, "def g(f, x): return f(x)", "g")
    assert with_function.mutates((torch.sin, x), {})[0] is torch.sin


def test_a_driver_works_in_there_as_it_does_here(session):
    source = """
        import torch
        class Descent(torch.optim.Optimizer):
            def __init__(self, params, lr):
                super().__init__(params, {"lr": lr})
            @torch.no_grad()
            def step(self):
                for p in self.param_groups[0]["params"]:
                    p.sub_(self.param_groups[0]["lr"] * p.grad)
    """
    subject = function(session, source, "Descent")
    arguments = ([torch.ones(2)], [[torch.ones(2)]] * 2, {"lr": 0.5})
    found = subject.drive("optimizer_run", arguments, {})
    expected = Local(torch.optim.SGD).drive("optimizer_run", arguments, {})
    assert [p[0].tolist() for p in found["parameters"]] == [[0.5, 0.5], [0.0, 0.0]]
    assert [p[0].tolist() for p in expected["parameters"]] == [[0.5, 0.5], [0.0, 0.0]]
    broken = function(session, "def broken(params, lr): return 3", "broken")
    error = error_of(lambda: broken.drive("optimizer_run", arguments, {}))
    assert error.kind == "AttributeError"


def test_errors_and_prints_of_a_call_come_back_as_data(session):
    source = "def f(x):\n    print('before')\n    raise ValueError(f'not {x}')"
    subject = function(session, source)
    error = error_of(lambda: subject.call((3,), {}))
    assert (error.kind, error.message, error.line) == ("ValueError", "not 3", 3)
    assert error.code == "raise ValueError(f'not {x}')" and subject.printed == "before\n"
    assert error_of(lambda: RemoteSubject(session, "missing").call((), {})).kind == "NameError"
    assert session.is_alive and session.odd == []


MODULE = """\
import torch
from torch import nn

class Scale(nn.Module):
    def __init__(self, start=1.0, dtype=None):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(start, dtype=dtype))
        self.width = 3

    def forward(self, x):
        return x * self.factor if self.training else x
"""


def test_modules_are_built_loaded_run_and_differentiated(session):
    subject = function(session, MODULE, "Scale")
    one, two = subject.build((2.0,), {}), subject.build((), {"dtype": torch.float64})
    assert subject.state(one)["factor"].item() == 2
    assert subject.state(two)["factor"].dtype == torch.float64
    subject.load(one, {"factor": torch.tensor(5.0)})
    x = torch.ones(2)
    assert subject.run(one, (x,), {}).tolist() == [5, 5]
    assert subject.attribute(one, "width") == 3
    assert error_of(lambda: subject.attribute(one, "height")).kind == "AttributeError"
    assert error_of(lambda: subject.load(one, {"wrong": x})).kind == "RuntimeError"
    found = subject.gradients(one, (x,), {}, [torch.tensor([1.0, 2.0])])
    assert found["input 0"].tolist() == [5, 10] and found["parameter factor"].item() == 3
    subject.train(one, False)
    assert subject.run(one, (x,), {}).tolist() == [1, 1]


def cell_of(answer, name):
    """A mistake's or an alternative's text as a learner would have typed it."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(answer)))
    tree.body[0].decorator_list, old, tree.body[0].name = [], tree.body[0].name, name
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == old:
            node.id = name
        elif isinstance(node, ast.arg):
            node.annotation = None
    tree.body[0].returns = None
    prelude = "import math\nimport torch\nfrom torch import nn\nimport torch.nn.functional as F\n"
    return prelude + ast.unparse(tree)


@pytest.mark.parametrize("exercise", [start_checks.gradient_step, start_checks.bilinear_scores])
def test_a_check_says_the_same_of_a_session_as_of_this_process(warm, exercise):
    answers = [exercise.reference, *exercise.alternatives[1:], exercise.mistakes[0].answer]
    answers += [mistake.answer for mistake in exercise.mistakes[1::4]]
    seen = set()
    for answer in answers:
        text = cell_of(answer, exercise.name)
        space = {}
        exec(compile(text, "<cell x>", "exec"), space)
        expected = exercise.check(Local(space[exercise.name]), seed=5, graded=True).as_dict()
        with warm.session(limits=LIMITS) as session:
            run(session, text, "x")
            subject = RemoteSubject(session, exercise.name)
            with session.exercise():
                found = exercise.check(subject, seed=5, graded=True).as_dict()
        for result in (expected, found):  # the source of a cell is known to the session alone
            for group in result["groups"]:
                group["failure"] and group["failure"].pop("code")
        assert found == expected, answer.__name__
        seen.add(found["status"])
    assert "passed" in seen and seen & {"failed", "partial"}


def test_the_toy_chapter_is_graded_through_a_session(session):
    chapter = make_chapter()
    run(session, "def double(x):\n    return x + x")
    run(session, "def count(n):\n    return range(1, n + 1)")
    run(session, MODULE)
    earned = {
        name: exercise.check(RemoteSubject(session, name), seed=3, graded=True).earned
        for name, exercise in chapter.exercises.items()
    }
    assert earned == {"double": 3, "count": 0, "Scale": 2}


# ---------------------------------------------------------------- functions as inputs


def test_a_function_that_the_check_hands_in_is_evaluated_outside(session):
    here = []

    def ours(x, scale=1.0):
        here.append(x)
        return x * scale

    subject = function(session, "def f(g, x): return g(x) + g(x, scale=2.0), g(3)")
    found = subject.call((ours, torch.ones(2)), {})
    assert found[0].tolist() == [3, 3] and found[1] == 3.0 and len(here) == 3


def test_such_a_function_can_be_differentiated_once_in_every_usual_way(session):
    run(session, "import torch\nfrom torch.autograd import functional")
    cubes = []

    def cube(x):
        cubes.append(1)
        return (x**3).sum()

    x = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for body in (
        "leaf = x.clone().requires_grad_(); g(leaf).backward(); return leaf.grad",
        "leaf = x.clone().requires_grad_(); return torch.autograd.grad(g(leaf), leaf)[0]",
        "return torch.func.grad(g)(x)",
        "return torch.func.grad(lambda y: 2 * g(y))(x) / 2",
        "return torch.func.vjp(g, x)[1](torch.ones((), dtype=x.dtype))[0]",
        "return functional.jacobian(g, x)",
    ):
        cubes.clear()
        assert call(session, f"def f(g, x): {body}", cube, x).tolist() == [3, 12], body
        assert len(cubes) == 1, "the function is evaluated as often as it is called"
    for twice in (
        "functional.hessian(g, x)",
        "torch.func.grad(lambda y: torch.func.grad(g)(y).sum())(x)",
    ):
        error = error_of(lambda text=f"def f(g, x): return {twice}": call(session, text, cube, x))
        assert "differentiated once only" in error.message


def test_such_a_function_may_return_several_tensors_and_other_things(session):
    def several(x, rows):
        return {"a": [x * 2, rows[0] * x], "b": 3, "c": x > 0}

    text = """\
    def f(g, x):
        x.requires_grad_()
        found = g(x, rows=[x])
        (found["a"][0] + found["a"][1]).sum().backward()
        return x.grad, found["b"], found["c"]
    """
    run(session, textwrap.dedent(text))
    grad, three, mask = RemoteSubject(session, "f").call((several, torch.tensor([5.0])), {})
    assert grad.item() == 12 and three == 3 and mask.tolist() == [True]


def test_such_a_function_raises_inside_what_it_raises_outside(session):
    def picky(x):
        raise ValueError("not this one")

    assert error_of(lambda: call(session, "def f(g): return g(1)", picky)).message == "not this one"
    text = "def f(g):\n    try:\n        g(1)\n    except ValueError:\n        return 'caught'"
    assert call(session, text, picky) == "caught"


def test_modules_generators_and_records_can_be_handed_in(session):
    layer = torch.nn.Linear(2, 3)
    count = "def f(m): return sum(p.numel() for p in m.parameters())"
    assert call(session, count, layer) == 9
    generator = torch.Generator().manual_seed(1)
    expected = torch.rand(2, generator=torch.Generator().manual_seed(1))
    found = call(session, "import torch\ndef f(g): return torch.rand(2, generator=g)", generator)
    assert torch.equal(found, expected)


# ------------------------------------------------------------------ failure is data


def quick(**more):
    return Limits(
        **{"call": 1, "cell": 2, "exercise": 8, "notebook": 60, "rules": LIMITS.rules, **more}
    )


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        ("while True: pass", "Timeout", "endless loop"),
        ("import time; time.sleep(100)", "Timeout", "endless loop"),
        ("import os; os._exit(0)", "Died", "the process ended"),
        ("import os; os._exit(7)", "Died", "exit status 7"),
        ("import os; os.abort()", "Died", "it aborted"),
        ("import ctypes; ctypes.string_at(0)", "Died", "segmentation fault"),
        ("import os; os.kill(os.getpid(), 9)", "Died", "killed"),
        ("raise SystemExit(1)", "SystemExit", "1"),
        ("import torch; torch.zeros(10**9)", "RuntimeError", "alloc"),
        ("return 'x' * 10**7", "ValueError", "cannot be handed in"),
        ("return [0] * 10**6", "ValueError", "cannot be handed in"),
        ("x = []; x.append(x); return x", "RecursionError", ""),
        ("return f()", "RecursionError", ""),
    ],
)
def test_what_goes_wrong_in_a_call_costs_that_call(warm, body, kind, message):
    with warm.session(limits=quick()) as session:
        run(session, "state = []\ndef good(): return len(state)", "good")
        run(session, "state.append(1)", "more")
        run(session, f"def f():\n    {body}", "f")
        error = error_of(lambda: RemoteSubject(session, "f").call((), {}))
        assert error.kind == kind and message in error.message
        # The cells were run again where that was needed, so that the rest still counts.
        assert RemoteSubject(session, "good").call((), {}) == 1
        assert len(session.odd) == (kind in ("Timeout", "Died"))


def test_a_cell_that_kills_the_session_is_left_out_when_the_others_are_replayed(warm):
    with warm.session(limits=quick()) as session:
        run(session, "x = 1", "first")
        assert session.run("import os\nos._exit(1)", "second").error.kind == "Died"
        assert session.run("while True: pass", "third").error.kind == "Timeout"
        run(session, "x += 1", "fourth")
        assert run(session, "print(x)", "fifth") == "2\n"
        assert [cell.name for cell in session.cells if cell.fatal] == ["second", "third"]
        assert len(session.odd) == 2 and "in the cell second" in session.odd[0]


def test_a_module_goes_down_with_its_process_and_a_new_one_can_be_built(warm):
    with warm.session(limits=quick()) as session:
        run(session, MODULE)
        run(session, "def die():\n    import os\n    os._exit(1)")
        subject = RemoteSubject(session, "Scale")
        handle = subject.build((), {})
        error_of(lambda: RemoteSubject(session, "die").call((), {}))
        assert error_of(lambda: subject.state(handle)).kind == "Died"
        assert subject.state(subject.build((4.0,), {}))["factor"].item() == 4


def test_an_exercise_and_a_notebook_have_their_seconds_in_all(warm):
    with warm.session(limits=quick(call=0.5, exercise=1, notebook=4)) as session:
        run(session, "def slow():\n    while True: pass\ndef fast(): return 1")
        slow, fast = RemoteSubject(session, "slow"), RemoteSubject(session, "fast")
        with session.exercise():
            for _ in range(4):
                last = error_of(lambda: slow.call((), {}))
            assert last.message == "the exercise's 1 s are used up"
        with session.exercise():
            assert fast.call((), {}) == 1
        for _ in range(10):
            last = error_of(lambda: slow.call((), {}))
        assert last.message == "the notebook's 4 s are used up"
        assert session.run("x = 1", "late").error.kind == "Timeout"


def test_the_seconds_of_a_process_that_has_to_wait_for_the_processor_do_not_count(monkeypatch):
    watch = sessions._Watch(os.getpid(), 10)
    watch.start -= 20
    with pytest.raises(TimeoutError):
        watch.left()
    watch.waited -= 15
    assert 4 < watch.left() < 6
    watch.start -= 100  # but not without end
    with pytest.raises(TimeoutError):
        watch.left()


def test_what_is_the_graders_fault_is_told_from_what_is_the_learners(warm, monkeypatch):
    with warm.session(limits=quick()) as session:
        subject = function(session, "def f(x):\n    import os\n    os._exit(0)")
        with pytest.raises(wire.WireError):
            subject.call((object(),), {})
        assert isinstance(session.fault, wire.WireError) and session.is_alive
    with warm.session(limits=quick()) as session:
        subject = function(session, "def f(x):\n    import os\n    os._exit(0)")
        error_of(lambda: subject.call((1,), {}))
        assert session.fault is None
        monkeypatch.setenv("PATH", "/nonexistent")
        with pytest.raises(SandboxError):
            subject.call((1,), {})
        assert isinstance(session.fault, SandboxError)


def test_a_warm_process_that_dies_is_started_again(warm):
    with warm.session(limits=LIMITS) as before:
        run(before, "x = 1")
        warm._process.kill()
        warm._process.wait()
        with warm.session(limits=LIMITS) as after:
            assert run(after, "print(2)") == "2\n"
        assert run(before, "print(x)") == "1\n"  # a session does not need it any more


def test_several_threads_have_their_own_sessions_of_one_warm_process(warm):
    found = {}

    def work(number):
        with warm.session(limits=LIMITS) as session:
            subject = function(session, f"def f(x): return x + {number}")
            found[number] = [subject.call((i,), {}) for i in range(5)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: [n + i for i in range(5)] for n in range(4)}


# ------------------------------------------------------------------ the box and its proof


def members(session):
    """The processes in a session's box, as this process sees them."""
    space = os.readlink(f"/proc/{session.pid}/ns/pid")
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.readlink(entry / "ns/pid") == space:
                found.append(int(entry.name))
    return found


def test_nothing_of_a_session_is_left_when_it_is_closed(warm):
    with warm.session(limits=LIMITS) as session:
        inside = members(session)
        assert session.pid in inside and len(inside) == 2
    assert not any(Path(f"/proc/{pid}").exists() for pid in inside)


def test_nothing_of_a_session_is_left_when_the_grader_is_killed(tmp_path):
    text = """\
    import sys
    sys.path.insert(0, sys.argv[1])
    from autograder.sandbox.warming import Warm
    from tests.test_sandbox import members
    warm = Warm()
    session = warm.session()
    print(warm._process.pid, session._box._process.pid, *members(session), flush=True)
    session.run("while True: pass", "endless")
    """
    command = [sys.executable, "-c", textwrap.dedent(text), str(ROOT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as grader:
        pids = [int(word) for word in grader.stdout.readline().split()]
        assert len(pids) == 4
        grader.send_signal(signal.SIGKILL)
    end = time.monotonic() + 20
    while any(Path(f"/proc/{pid}/exe").exists() for pid in pids) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [pid for pid in pids if Path(f"/proc/{pid}/exe").exists()]


def test_a_process_that_is_not_locked_in_is_refused():
    with subprocess.Popen(["sleep", "100"]) as process:
        try:
            with pytest.raises(SandboxError) as caught:
                box.verify(process.pid, 4711)
        finally:
            process.kill()
    for fault in ("user namespace", "net namespace", "Uid", "not filtered", "cpu time"):
        assert fault in str(caught.value)
    with pytest.raises(SandboxError, match="cannot be verified"):
        box.verify(process.pid, None)


def test_a_lock_that_lacks_a_part_is_noticed_from_outside():
    text = """\
    import sys
    sys.path.insert(0, sys.argv[1])
    from autograder.sandbox import lockdown, warm
    for part in ("_filter_system_calls", "_drop_capabilities", "_limit"):
        setattr(lockdown, part, lambda *_: None)
    warm.main()
    """

    class Broken(Warm):
        def _start(self):
            with pytest.MonkeyPatch.context() as patch:
                start = subprocess.Popen

                def popen(command, **options):
                    return start([*command[:3], textwrap.dedent(text), str(ROOT)], **options)

                patch.setattr(warming.subprocess, "Popen", popen)
                super()._start()

    with Broken() as broken:
        broken.start()
        with pytest.raises(SandboxError) as caught:
            broken.session(limits=LIMITS)
    for fault in ("system calls are not filtered", "CapEff", "Max address space is unlimited"):
        assert fault in str(caught.value)


def test_folders_are_hidden_wherever_they_lie(tmp_path, warm):
    with Warm(hidden=[Path(torch.__file__).parent / "testing"]) as other:
        folder = str(Path(torch.__file__).parent / "testing")
        with other.session(limits=LIMITS) as session:
            assert run(session, f"import os\nprint(os.listdir({folder!r}))") == "[]\n"
        assert "--tmpfs" in box.arguments(hidden=[folder])
    with warm.session(limits=LIMITS) as session:
        assert "_comparison.py" in run(session, f"import os\nprint(os.listdir({folder!r}))")


def test_the_courses_packages_are_hidden_where_they_are_installed_as_copies(monkeypatch):
    inside = Path(torch.__file__).parent  # stands for autograder's folder in site-packages
    monkeypatch.setattr(box, "_our_folders", lambda: (inside,))
    given = box.arguments()
    assert given[given.index(str(inside)) - 1] == "--tmpfs"


def test_what_is_missing_is_said_in_one_line(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert box.available().startswith("bubblewrap is not installed: `apt install bubblewrap`")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert box.available().startswith("the sandbox needs Linux")
    with pytest.raises(SandboxError, match="bubblewrap is not installed"):
        box.Box([])


def test_other_reasons_are_said_in_one_line(monkeypatch, tmp_path):
    def without():
        raise lockdown.LockdownError("libseccomp is not installed")

    with monkeypatch.context() as patch:
        patch.setattr(lockdown, "seccomp_library", without)
        assert box.available().startswith("libseccomp is not installed: `apt install")
    for complaint, start in [
        ("No permissions to create new namespace", "this system does not let bubblewrap"),
        ("something else", "bubblewrap does not run: bwrap: something else"),
    ]:
        fake = tmp_path / "bwrap"
        fake.write_text(f"#!/bin/sh\necho 'bwrap: {complaint}' >&2\nexit 1\n")
        fake.chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert box.available().startswith(start)


def test_a_session_whose_box_does_not_stand_says_why(monkeypatch, warm):
    monkeypatch.setattr(sessions, "arguments", lambda *given: ["--no-such-option"])
    with pytest.raises(SandboxError, match="bubblewrap does not run: .*no-such-option"):
        warm.session()


def test_a_cgroup_gets_the_limits_and_the_process(tmp_path):
    """With a plain folder in a cgroup's place: this shows what is written, not that it holds."""
    group = sessions.confine(tmp_path, 4711, Rules(memory=1000, processes=2, threads=8))
    written = {path.name: path.read_text() for path in group.iterdir()}
    assert written == {"memory.max": "1000", "pids.max": "10", "cgroup.procs": "4711"}
    with pytest.raises(SandboxError, match="no cgroup"):
        sessions.confine(tmp_path / "nowhere", 4711, Rules())


def test_the_same_holds_when_an_ordinary_user_grades():
    if os.geteuid() != 0:
        pytest.skip("this whole run is an ordinary user's")
    ordinary = pwd.getpwnam("nobody").pw_uid
    chosen = ["tests/test_sandbox.py::" + name for name in AS_USER]
    chosen += ["tests/test_attacks.py"] if "ATTACKS_AS_USER" in os.environ else []
    # Python may lie in root's home, which only root can read: there it is shown to all.
    base, home, seen = Path(sys.base_prefix), Path("/root"), []
    if base.is_relative_to(home):
        seen = ["--perms", "0755", "--tmpfs", str(home)]
        for parent in [p for p in reversed(base.parents) if home in p.parents]:
            seen += ["--perms", "0755", "--dir", str(parent)]
        seen += ["--ro-bind", str(base), str(base)]
    command = [
        *("bwrap", "--dev-bind", "/", "/", *seen),
        *("--perms", "1777", "--tmpfs", "/var/tmp", "--chdir", str(ROOT), "--"),
        *(shutil.which("setpriv"), f"--reuid={ordinary}", f"--regid={ordinary}", "--clear-groups"),
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen),
        *("--basetemp", "/var/tmp/pytest"),
    ]
    environment = {"PATH": os.environ["PATH"], "HOME": "/var/tmp", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert f"{len(AS_USER)} passed" in done.stdout or "ATTACKS_AS_USER" in os.environ


AS_USER = [
    "test_cells_share_one_namespace_and_what_they_print_is_kept",
    "test_modules_are_built_loaded_run_and_differentiated",
    "test_a_cell_that_kills_the_session_is_left_out_when_the_others_are_replayed",
    "test_nothing_of_a_session_is_left_when_it_is_closed",
    "test_nothing_of_a_session_is_left_when_the_grader_is_killed",
    "test_a_process_that_is_not_locked_in_is_refused",
]
