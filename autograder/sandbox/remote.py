"""A learner's function or module in a sandboxed session, with the surface of `subjects.Local`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autograder.sandbox import wire
from autograder.sandbox.session import Session
from autograder.subjects import PRINT_LIMIT, LearnerError, detached, float_tensors

GRAPHS = 256  # of callbacks of one call that are kept, to be differentiated


class RemoteSubject:
    """A learner's function or class, by the name that it has in their notebook.

    Args:
        session: where the notebook's cells have run.
        name: of the function or class.
    """

    def __init__(self, session: Session, name: str):
        self.session, self.name = session, name
        self.printed = ""
        self._number, self._generation = session.number(), session.generation
        self._handles: list[tuple[int, int]] = []  # generation and number of a module in there

    def call(self, args: Sequence, kwargs: Mapping, seed: int = 0) -> Any:
        """Call the function."""
        return self._ask("call", tuple(args), dict(kwargs), seed)

    def mutates(self, args: Sequence, kwargs: Mapping, seed: int = 0) -> list[Any]:
        """Call the function and give back its arguments as it leaves them."""
        found = self._ask("mutates", tuple(args), dict(kwargs), seed)
        if not isinstance(found, list) or len(found) != len(args) + len(kwargs):
            raise _strange("the arguments", found)
        return found

    def carries_graph(self, args: Sequence, kwargs: Mapping, seed: int = 0) -> bool:
        """Call the function on inputs that ask for gradients; does its result ask for one, too?"""
        found = self._ask("carries_graph", tuple(args), dict(kwargs), seed)
        if type(found) is not bool:
            raise _strange("whether there is a graph", found)
        return found

    def drive(self, driver: str, args: Sequence, kwargs: Mapping, seed: int = 0) -> Any:
        """Hand the function or class to a driver, which is in there already."""
        return self._ask("drive", driver, tuple(args), dict(kwargs), seed)

    def build(self, args: Sequence, kwargs: Mapping, seed: int = 0) -> int:
        """Construct the module. Returns a handle."""
        number = self._ask("build", tuple(args), dict(kwargs), seed)
        if type(number) is not int:
            raise _strange("a handle", number)
        self._handles.append((self.session.generation, number))
        return len(self._handles) - 1

    def state(self, handle: int) -> dict[str, Tensor]:
        """The module's state dict."""
        found = self._ask("state", self._inside(handle))
        return _named("the state dict", found, (Tensor,))

    def load(self, handle: int, state: Mapping[str, Tensor]) -> None:
        """Load a state dict, strictly."""
        self._ask("load", self._inside(handle), dict(state))

    def run(self, handle: int, args: Sequence, kwargs: Mapping, seed: int = 0) -> Any:
        """Call the module."""
        return self._ask("run", self._inside(handle), tuple(args), dict(kwargs), seed)

    def attribute(self, handle: int, name: str) -> Any:
        """Read an attribute that the docstring promises."""
        return self._ask("attribute", self._inside(handle), name)

    def train(self, handle: int, mode: bool) -> None:
        """Put the module in training or evaluation mode."""
        self._ask("train", self._inside(handle), mode)

    def gradients(
        self,
        handle: int | None,
        args: Sequence,
        kwargs: Mapping,
        cotangents: Sequence[Tensor],
        seed: int = 0,
    ) -> dict[str, Tensor | None]:
        """Gradients of the sum of (output * cotangent), as in `subjects.Local.gradients`."""
        number = None if handle is None else self._inside(handle)
        found = self._ask("gradients", number, tuple(args), dict(kwargs), list(cotangents), seed)
        return _named("the gradients", found, (Tensor, type(None)))

    def _inside(self, handle: int) -> int:
        self.session.ensure()
        generation, number = self._handles[handle]
        if generation != self.session.generation:
            raise LearnerError("Died", "this module went down with the process that it was in")
        return number

    def _ask(self, method: str, *arguments: Any) -> Any:
        self.session.ensure()
        if self._generation != self.session.generation:
            # A new process, which binds the name anew.
            self._number, self._generation = self.session.number(), self.session.generation
        sender = wire.Sender()
        callbacks = _Callbacks(sender.functions, arguments)
        reply = self.session.request(
            "subject",
            (self._number, self.name, method, arguments),
            self.session.limits.call,
            callbacks.answer,
            sender,
            sender.functions,
        )
        self.printed = (self.printed + reply.printed)[:PRINT_LIMIT]
        if reply.error is not None:
            raise reply.error
        return reply.value


def _strange(what: str, found: Any) -> LearnerError:
    return LearnerError("TypeError", f"{what} came back as a value of type {type(found).__name__}")


def _named(what: str, found: Any, kinds: tuple[type, ...]) -> dict:
    if not isinstance(found, dict):
        raise _strange(what, found)
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, kinds):
            raise _strange(f"an entry of {what}", value)
    return found


class _Callbacks:
    """Evaluates, out here, the functions that a learner's call was given.

    Args:
        functions: them.
        arguments: all that the call was given.
    """

    def __init__(self, functions: list[Callable], arguments: tuple):
        self.functions = functions
        self.graphs: dict[int, tuple[list[Tensor], list[Tensor]]] = {}
        self.tickets = 0
        # What a learner hands to such a function may be as large as what they were handed,
        # within reason: out here there is no limit on memory.
        largest = max((t.numel() for t in _tensors(arguments)), default=0)
        self.largest = max(4 * largest, 4_096)

    def answer(self, question: list) -> list:
        """What to tell the process that asked.

        Raises:
            WireError: the question makes no sense.
        """
        try:
            if question[:1] == ["value"] and len(question) == 5:
                return ["told", *self._value(*question[1:])]
            if question[:1] == ["gradient"] and len(question) == 3:
                return ["told", self._gradient(*question[1:])]
        except wire.WireError:
            raise
        except Exception as error:  # of the function, at what the learner gave it
            return ["raised", type(error).__name__, str(error)[:2_000]]
        raise wire.WireError("no such question")

    def _value(self, index: Any, graph: Any, args: Any, kwargs: Any) -> tuple[int, Any]:
        if type(index) is not int or not 0 <= index < len(self.functions):
            raise wire.WireError("no such function")
        if type(args) is not tuple or type(kwargs) is not dict or type(graph) is not bool:
            raise wire.WireError("not a call")
        if any(type(key) is not str for key in kwargs):
            raise wire.WireError("not a call")
        for tensor in _tensors((args, kwargs)):
            if tensor.numel() > self.largest or tensor.ndim > 8:
                raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is too large here")
        inputs = float_tensors((args, kwargs))
        with torch.random.fork_rng(devices=[]), torch.set_grad_enabled(graph):
            if graph:
                for tensor in inputs:
                    tensor.requires_grad_()
            result = self.functions[index](*args, **kwargs)
        self.tickets += 1
        if graph:
            self.graphs[self.tickets] = (inputs, float_tensors(result))
            self.graphs.pop(self.tickets - GRAPHS, None)
        return self.tickets, detached(result)

    def _gradient(self, ticket: Any, cotangents: Any) -> list[Tensor | None]:
        if type(ticket) is not int or type(cotangents) is not list:
            raise wire.WireError("not a gradient")
        if ticket not in self.graphs:
            raise RuntimeError("this value is too old to be differentiated")
        inputs, outputs = self.graphs[ticket]
        if len(cotangents) != len(outputs):
            raise ValueError("a cotangent for each output, please")
        pairs = [(o, c) for o, c in zip(outputs, cotangents) if o.requires_grad]
        if not pairs:
            return [None] * len(inputs)
        # One sum: with `grad_outputs` torch imports half a second of things first.
        total = sum((o * _fitting(c, o)).sum() for o, c in pairs)
        return list(torch.autograd.grad(total, inputs, allow_unused=True, retain_graph=True))


def _fitting(cotangent: Any, output: Tensor) -> Tensor:
    if not isinstance(cotangent, Tensor) or cotangent.shape != output.shape:
        raise ValueError("a cotangent has the shape of its output")
    return cotangent.to(output.dtype)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        return [t for v in value.values() for t in _tensors(v)]
    if isinstance(value, (list, tuple)):
        return [t for v in value for t in _tensors(v)]
    return []
