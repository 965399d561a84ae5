"""The thing under test: a learner's function or module, reached through a narrow door.

Only plain data passes the door: tensors, numbers, strings, None, and lists, tuples and dicts of
them. So a check neither knows nor cares whether the learner's code runs in this process.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from autograder import driving

PRINT_LIMIT = 4_000  # characters of a learner's prints that are kept


@dataclass
class LearnerError(Exception):
    """The learner's code raised.

    Args:
        kind: name of the exception's class.
        message: its text.
        line: number of the learner's line in their cell, from 1; None if unknown.
        code: that line.
    """

    kind: str
    message: str
    line: int | None = None
    code: str = ""


class Local:
    """A learner's function or class in this very process (the kernel).

    Args:
        answer: the function or class to test.
    """

    def __init__(self, answer: Callable):
        self.answer = answer
        self.printed = ""
        self._objects: dict[int, Any] = {}
        self._numbers = itertools.count()

    def call(self, args: Sequence, kwargs: Mapping, seed: int = 0) -> Any:
        """Call the function."""
        with self._guard(seed):
            return detached(self.answer(*cloned(args), **cloned(kwargs)))

    def mutates(self, args: Sequence, kwargs: Mapping, seed: int = 0) -> list[Any]:
        """Call the function and give back its arguments as it leaves them."""
        args, kwargs = cloned(args), cloned(kwargs)
        with self._guard(seed):
            self.answer(*args, **kwargs)
        return detached([*args, *kwargs.values()])

    def carries_graph(self, args: Sequence, kwargs: Mapping, seed: int = 0) -> bool:
        """Call the function on inputs that ask for gradients; does its result ask for one, too?"""
        args, kwargs = cloned(args), cloned(kwargs)
        for tensor in float_tensors([args, kwargs]):
            tensor.requires_grad_()
        with self._guard(seed):
            return any(t.requires_grad for t in float_tensors(self.answer(*args, **kwargs)))

    def drive(self, driver: str, args: Sequence, kwargs: Mapping, seed: int = 0) -> Any:
        """Hand the function or class to a driver (see `autograder.driving`)."""
        with self._guard(seed):
            return detached(getattr(driving, driver)(self.answer, *cloned(args), **cloned(kwargs)))

    def build(self, args: Sequence, kwargs: Mapping, seed: int = 0) -> int:
        """Construct the module. Returns a handle."""
        with self._guard(seed):
            built = self.answer(*cloned(args), **cloned(kwargs))
            if not isinstance(built, nn.Module):
                name = getattr(self.answer, "__name__", "it")
                raise TypeError(f"{name} is not an nn.Module; write `class {name}(nn.Module):`")
        handle = next(self._numbers)
        self._objects[handle] = built
        return handle

    def state(self, handle: int) -> dict[str, Tensor]:
        """The module's state dict."""
        with self._guard():
            return detached(dict(self._objects[handle].state_dict()))

    def load(self, handle: int, state: Mapping[str, Tensor]) -> None:
        """Load a state dict, strictly."""
        with self._guard():
            self._objects[handle].load_state_dict(cloned(dict(state)))

    def run(self, handle: int, args: Sequence, kwargs: Mapping, seed: int = 0) -> Any:
        """Call the module."""
        with self._guard(seed):
            return detached(self._objects[handle](*cloned(args), **cloned(kwargs)))

    def attribute(self, handle: int, name: str) -> Any:
        """Read an attribute that the docstring promises."""
        with self._guard():
            return detached(getattr(self._objects[handle], name))

    def train(self, handle: int, mode: bool) -> None:
        """Put the module in training or evaluation mode."""
        with self._guard():
            self._objects[handle].train(mode)

    def gradients(
        self,
        handle: int | None,
        args: Sequence,
        kwargs: Mapping,
        cotangents: Sequence[Tensor],
        seed: int = 0,
    ) -> dict[str, Tensor | None]:
        """Gradients of the sum of (output * cotangent), by input and by parameter.

        Args:
            handle: the module, or None for the function.
            args: positional inputs; the floating-point tensors among them get a gradient.
            kwargs: the same by name.
            cotangents: one tensor for each floating-point tensor of the output, of its shape.

        Returns:
            `input 0`, `input 1`, ... or `input name`, and `parameter name`, each with its
            gradient, or None where none flows.
        """
        args, kwargs = cloned(args), cloned(kwargs)
        with self._guard(seed):
            target = self.answer if handle is None else self._objects[handle]
            inputs = {f"input {k}": v for k, v in [*enumerate(args), *kwargs.items()]}
            wanted = {
                k: v.requires_grad_()
                for k, v in inputs.items()
                if isinstance(v, Tensor) and v.is_floating_point()
            }
            if isinstance(target, nn.Module):
                wanted |= {f"parameter {k}": p for k, p in target.named_parameters()}
            outputs = float_tensors(target(*args, **kwargs))
            if len(outputs) != len(cotangents):
                raise ValueError(f"expected {len(cotangents)} output tensors, got {len(outputs)}")
            pairs = [(o, c) for o, c in zip(outputs, cotangents) if o.requires_grad]
            if not pairs:
                return dict.fromkeys(wanted)
            total = sum((o * c.to(o.dtype)).sum() for o, c in pairs)
            found = torch.autograd.grad(total, list(wanted.values()), allow_unused=True)
            return {k: None if g is None else detached(g) for k, g in zip(wanted, found)}

    @contextlib.contextmanager
    def _guard(self, seed: int = 0):
        """Seed, catch prints, and turn an exception into a `LearnerError`."""
        out = io.StringIO()
        try:
            with (
                torch.random.fork_rng(devices=[]),
                torch.enable_grad(),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(out),
            ):
                torch.default_generator.manual_seed(seed)  # no other device is looked for
                yield
        except (Exception, SystemExit) as error:
            raise learner_error(error) from error
        finally:
            self.printed = (self.printed + out.getvalue())[:PRINT_LIMIT]


def learner_error(error: BaseException) -> LearnerError:
    """Find the learner's own line in a traceback: the last frame that came from a cell."""
    line, code = None, ""
    for frame in traceback.extract_tb(error.__traceback__):
        if is_cell(frame.filename):
            line, code = frame.lineno, (frame.line or "").strip()
    return LearnerError(type(error).__name__, str(error), line, code)


def is_cell(filename: str) -> bool:
    """Whether code of this file name was typed into a notebook cell."""
    return "ipykernel_" in filename or filename.startswith(("<ipython-input", "<cell"))


def _tree(fn: Callable[[Tensor], Any], value: Any) -> Any:
    if isinstance(value, Tensor):
        return fn(value)
    if isinstance(value, Mapping):
        return {k: _tree(fn, v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        items = [_tree(fn, v) for v in value]
        return items if isinstance(value, list) else tuple(items)
    return value


def cloned(value: Any) -> Any:
    """The same structure with each tensor copied, so that no call can spoil another's input."""
    return _tree(lambda t: t.detach().clone(), value)


def detached(value: Any) -> Any:
    """The same structure with each tensor cut from its graph and copied."""
    return cloned(value)


def float_tensors(value: Any) -> list[Tensor]:
    """The floating-point tensors of a structure, in order."""
    found: list[Tensor] = []

    def visit(t: Tensor) -> Tensor:
        if t.is_floating_point():
            found.append(t)
        return t

    _tree(visit, value)
    return found


def in_notebook() -> bool:
    """Whether this runs in a kernel whose front end can show HTML."""
    shell = sys.modules.get("IPython")
    shell = shell.get_ipython() if shell else None
    return type(shell).__name__ == "ZMQInteractiveShell"
