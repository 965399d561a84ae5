"""Inside the box: the learner's cells, their functions and modules, and one socket.

From the first cell on this process belongs to the learner, who may rewrite every line of it.
Nothing here protects anything. It only answers, as an honest process would.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import inspect
import io
import itertools
import linecache
import os
import pickle
import random
import socket
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from autograder.sandbox import wire
from autograder.subjects import LearnerError, Local, float_tensors, learner_error
from autograder.syntax import without_magics

OUTPUT = 20_000  # characters that are kept of what a cell prints
METHODS = frozenset(name for name in vars(Local) if not name.startswith("_"))
ENVIRONMENT = {
    "HOME": "/tmp",
    "TMPDIR": "/tmp",
    "PATH": "/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "MPLBACKEND": "Agg",
    "OMP_NUM_THREADS": "1",
}


def serve(file: int, stubs: list[str]) -> None:
    """Answer the grader's requests until it closes the socket.

    Args:
        file: the socket.
        stubs: names of modules that a notebook may import and that do nothing here.
    """
    Inside(socket.socket(fileno=file), stubs).run()


class Inside:
    """One session.

    Args:
        end: the socket to the grader.
        stubs: see `serve`.
    """

    def __init__(self, end: socket.socket, stubs: list[str]):
        self.wire = wire.Wire(end)
        self.subjects: dict[int, Local] = {}
        self.requests = 0
        self.current = ""
        os.environ.clear()
        os.environ.update(ENVIRONMENT)
        os.chdir("/tmp")
        sys.path[:] = ["/course", *(p for p in sys.path if p), ""]
        sys.argv[:] = [""]
        for name in stubs:
            _add_stub(name)
        self.main = types.ModuleType("__main__", "")
        self.main.__dict__["display"] = lambda *values, **options: None
        self.main.__dict__["get_ipython"] = lambda: Inert("ipython")
        sys.modules["__main__"] = self.main
        # Always the same, so that a submission is worth the same whenever it is graded.
        random.seed(0)
        torch.manual_seed(0)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(0)

    def run(self) -> None:
        """Answer requests, one at a time."""
        self.send(["ready"])
        while True:
            try:
                message = self.receive()
            except wire.Closed:
                return
            self.current, kind, content = message
            try:
                answer = self.cell(*content) if kind == "cell" else self.subject(*content)
            except BaseException as error:  # whatever a learner's code may throw
                found = error if isinstance(error, LearnerError) else learner_error(error)
                answer = self.error(found, "")
            try:
                self.send(answer)
            except wire.WireError as error:
                complaint = f"The result cannot be handed in: {error}"
                self.send(self.error(LearnerError("ValueError", complaint), ""))

    def error(self, error: LearnerError, printed: str) -> list:
        """The message that tells of an error."""
        text = _cut(error.message, 4_000)
        return ["error", self.current, error.kind, text, error.line, _cut(error.code, 300), printed]

    # ---- cells

    def cell(self, name: str, source: str) -> list:
        """Run a cell."""
        filename = f"<cell {name}>"
        out = Capped(OUTPUT)
        error = None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                code, source = _compiled(source, filename)
                lines = source.splitlines(keepends=True)
                linecache.cache[filename] = (len(source), None, lines, filename)
                found = eval(code, self.main.__dict__)
                if inspect.iscoroutine(found):  # IPython lets a cell await
                    asyncio.run(found)
            except BaseException as raised:
                error = learner_error(raised)
                if isinstance(raised, SyntaxError) and raised.filename == filename:
                    error.message = raised.msg
                    error.line, error.code = raised.lineno, (raised.text or "").strip()
            if "matplotlib.pyplot" in sys.modules:
                with contextlib.suppress(BaseException):
                    sys.modules["matplotlib.pyplot"].close("all")
        if error is not None:
            return self.error(error, out.text())
        return ["answer", self.current, None, out.text()]

    # ---- functions and modules

    def subject(self, number: int, name: str, method: str, arguments: tuple) -> list:
        """Call a method of `subjects.Local` on what the notebook knows by a name."""
        subject = self.subjects.get(number)
        if subject is None:
            if name not in self.main.__dict__:
                raise LearnerError("NameError", f"name {name!r} is not defined")
            subject = self.subjects[number] = Local(self.main.__dict__[name])
        if method not in METHODS:
            raise LearnerError("AttributeError", f"no method {method}")
        subject.printed = ""
        try:
            value = getattr(subject, method)(*arguments)
        except LearnerError as error:
            return self.error(error, subject.printed)
        except BaseException as error:  # KeyboardInterrupt and the like
            return self.error(learner_error(error), subject.printed)
        return ["answer", self.current, value, subject.printed]

    # ---- the wire

    def send(self, message: list) -> None:
        """Send a message, or say that it cannot be sent."""
        self.wire.send(wire.Packer(foreign=_foreign).frame(message))

    def receive(self) -> Any:
        """The next message."""
        self.requests += 1
        number = self.requests

        def revive(tag: str, rest: list, unpacker: wire.Unpacker) -> Any:
            if tag == "function":
                return Remote(self, number, *rest)
            if tag == "module":
                return pickle.loads(unpacker.tensor(*rest).numpy().tobytes())
            if tag == "generator":
                generator = torch.Generator()
                generator.set_state(unpacker.tensor(*rest))
                return generator
            if tag == "record":
                name, known = rest
                kind = self.main.__dict__.get(name, types.SimpleNamespace)
                return kind(**unpacker.value(known))
            raise wire.WireError(f"an unknown tag {tag}")

        return wire.Unpacker(revive=revive).message(*self.wire.receive())

    def ask(self, *question: Any) -> Any:
        """Ask the grader something about the request that is being answered."""
        self.send(["ask", self.current, *question])
        kind, *content = wire.Unpacker().message(*self.wire.receive())
        if kind == "raised":
            name, text = content
            known = getattr(builtins, name, None)
            error: Exception = RuntimeError(f"{name}: {text}")
            if isinstance(known, type) and issubclass(known, Exception):
                with contextlib.suppress(TypeError):  # a few want more than a text
                    error = known(text)
            raise error
        return content


# -------------------------------------------------------------------- functions out there


class Remote:
    """A function that stays with the grader: a call asks for its value, and for its gradient.

    Args:
        inside: the session.
        request: number of the request that it came with; it can be called until the next.
        index: which of that request's functions.
    """

    def __init__(self, inside: Inside, request: int, index: int):
        self._inside, self._request, self.index = inside, request, index
        self.__name__ = self.__qualname__ = "function"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        call = _Call(self, args, kwargs)
        inputs = float_tensors((args, kwargs))
        if not inputs:
            return call.value()
        outputs = _Value.apply(call, *inputs)
        return call.rebuilt(outputs)

    def ask(self, *question: Any) -> Any:
        """Ask, unless the request that brought this function is over."""
        if self._inside.requests != self._request:
            raise RuntimeError("this function belongs to an earlier call")
        return self._inside.ask(*question)


class _Call:
    """One call of a remote function."""

    def __init__(self, function: Remote, args: tuple, kwargs: dict):
        self.function, self.args, self.kwargs = function, args, kwargs
        self.ticket = 0
        self.result: Any = None

    def value(self, tensors: tuple[Tensor, ...] = (), graph: bool = False) -> Any:
        given = iter(tensors)
        plain = _swap((self.args, self.kwargs), lambda t: next(given))
        self.ticket, self.result = self.function.ask("value", self.function.index, graph, *plain)
        return self.result

    def gradient(self, cotangents: tuple[Tensor, ...]) -> list[Tensor | None]:
        (found,) = self.function.ask("gradient", self.ticket, list(cotangents))
        return found

    def rebuilt(self, outputs: tuple[Tensor, ...]) -> Any:
        new = iter(outputs)
        return _swap(self.result, lambda t: next(new))


class _Value(torch.autograd.Function):
    """The value of a call, in a graph."""

    @staticmethod
    def forward(call: _Call, *tensors: Tensor) -> tuple[Tensor, ...]:
        # What autograd hands in here is free of graphs and of torch.func's wrappers.
        return tuple(float_tensors(call.value(tensors, graph=True))) or (torch.zeros(0),)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        ctx.call, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple:
        # By a function of its own, so that torch.func's wrappers come off here too. The inputs
        # come along so that a second derivative is refused, and not taken for zero.
        found = _Gradient.apply(ctx.call, len(cotangents), *cotangents, *ctx.saved_tensors)
        return (None, *found)


class _Gradient(torch.autograd.Function):
    """The gradient of a call; it has none itself."""

    @staticmethod
    def forward(call: _Call, count: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        found = call.gradient(tensors[:count])
        inputs = tensors[count:]
        return tuple(torch.zeros_like(i) if g is None else g for i, g in zip(inputs, found))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> None:
        raise NotImplementedError("this function can be differentiated once only")


def _swap(value: Any, fn: Callable[[Tensor], Tensor]) -> Any:
    """The same structure with each floating-point tensor replaced, in the order of reading."""
    if isinstance(value, Tensor):
        return fn(value) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {k: _swap(v, fn) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [_swap(v, fn) for v in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def _foreign(value: Any, packer: wire.Packer) -> list:
    if type(value) is Remote:
        return ["function", value.index]
    return wire.described(value, packer)


# ---------------------------------------------------------------------------- cells' text


class Capped(io.TextIOBase):
    """A stream that keeps the beginning of what is written, and counts the rest.

    Args:
        limit: characters that it keeps.
    """

    def __init__(self, limit: int):
        self.limit, self.kept, self.lost = limit, 0, 0
        self.parts: list[str] = []

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        part = text[: self.limit - self.kept]
        self.parts.append(part) if part else None
        self.kept += len(part)
        self.lost += len(text) - len(part)
        return len(text)

    def text(self) -> str:
        """What was kept."""
        end = f"\n… and {self.lost:,} characters more" if self.lost else ""
        return "".join(self.parts) + end


def _compiled(source: str, filename: str) -> tuple[types.CodeType, str]:
    """The cell's code, and its text as compiled: without IPython's magics, if it has any."""
    flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        return compile(source, filename, "exec", flags, dont_inherit=True), source
    except SyntaxError:
        plain = without_magics(source)
        if plain == source:
            raise
        return compile(plain, filename, "exec", flags, dont_inherit=True), plain


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


# ------------------------------------------------------------------------------- stubs


class Inert(types.ModuleType):
    """A module, and whatever is in it: can be called, read and imported from, and does nothing."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Inert(name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self


def _add_stub(name: str) -> None:
    parts = name.split(".")
    for path in itertools.accumulate(parts, lambda a, b: f"{a}.{b}"):
        if path not in sys.modules:
            sys.modules[path] = Inert(path)
            sys.modules[path].__path__ = []
        parent, _, child = path.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[path])
