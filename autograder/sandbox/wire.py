"""What crosses the border of the sandbox: plain data, in frames of a bounded size.

A frame is one message: twelve bytes (a mark and two lengths), a head of JSON, and a body of
safetensors. Both ends rebuild every value from bytes, with its exact type; what is no plain data
does not cross. Nothing here unpickles what a sandboxed process wrote.

In JSON a value is null, true, false, a string, a number, or a list whose first item is a tag:
`["tuple", [...]]`, `["tensor", 3]`. Lists and dicts are tagged as well, so no value can be taken
for another.
"""

from __future__ import annotations

import base64
import itertools
import json
import math
import pickle
import select
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

MARK = b"atd1"
HEADER = struct.Struct(">4sII")
READ = 1 << 16  # bytes that are read at a time

DTYPES = frozenset(
    [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
    + [torch.float16, torch.bfloat16, torch.float32, torch.float64]
)


class WireError(Exception):
    """A frame that breaks the rules, or a value that may not cross."""


class Closed(Exception):
    """The other end has gone."""


@dataclass(frozen=True)
class Bounds:
    """How large a message may be.

    Args:
        head: bytes of JSON.
        body: bytes of tensors.
        tensors: their number.
        depth: how deep lists, tuples and dicts may nest.
        items: values in all.
        string: characters of one string, or bytes of one bytes object.
        bits: of one whole number.
    """

    head: int = 8 << 20
    body: int = 64 << 20
    tensors: int = 2_000
    depth: int = 24
    items: int = 250_000
    string: int = 1 << 20
    bits: int = 1 << 16


BOUNDS = Bounds()


class Odd:
    """Stands for a value that did not cross; a class of its own bears the value's type name."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"


def odd(name: str) -> Odd:
    """A stand-in for a value of the type `name`, so that messages can tell what was found."""
    name = "".join(c for c in name[:60] if c.isalnum() or c in "_.") or "object"
    return type(name, (Odd,), {"__module__": __name__})()


# ---------------------------------------------------------------------------- writing


class Packer:
    """Turns one message into a frame.

    Args:
        bounds: what is too large to send.
        foreign: makes a tagged list of a value that is no plain data, given it and this object,
            or raises `WireError`.
    """

    def __init__(self, bounds: Bounds = BOUNDS, foreign: Foreign | None = None):
        self.bounds, self.foreign = bounds, foreign or _refuse
        self.tensors: dict[str, Tensor] = {}
        self.items = self.bytes = 0

    def frame(self, message: Any) -> bytes:
        """The frame of a message.

        Raises:
            WireError: it is too large, or holds what may not cross.
        """
        head = json.dumps(self.value(message), allow_nan=False, separators=(",", ":")).encode()
        body = safetensors.torch.save(self.tensors) if self.tensors else b""
        _within(len(head), self.bounds.head, "bytes of text")
        _within(len(body), self.bounds.body, "bytes of tensors")
        return HEADER.pack(MARK, len(head), len(body)) + head + body

    def value(self, value: Any, depth: int = 0) -> Any:
        self.items += 1
        _within(self.items, self.bounds.items, "values")
        _within(depth, self.bounds.depth, "levels of nesting")
        if value is None or value is True or value is False:
            return value
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, str):
            _within(len(value), self.bounds.string, "characters")
            return str.__str__(value)
        if isinstance(value, int):
            value = int.__int__(value)
            _within(value.bit_length(), self.bounds.bits, "bits")
            return value if abs(value) < 2**53 else ["int", hex(value)]
        if isinstance(value, float):
            value = float.__float__(value)
            return value if math.isfinite(value) else ["float", repr(value)]
        if isinstance(value, (bytes, bytearray)):
            _within(len(value), self.bounds.string, "bytes")
            return ["bytes", base64.b64encode(value).decode()]
        if isinstance(value, torch.dtype):
            return ["dtype", str(value).removeprefix("torch.")]
        if isinstance(value, torch.device):
            return ["device", str(value)]
        if isinstance(value, Mapping):
            _within(self.items + 2 * len(value), self.bounds.items, "values")
            pairs = [(self._key(k, depth + 1), self.value(v, depth + 1)) for k, v in value.items()]
            return ["dict", list(itertools.chain.from_iterable(pairs))]
        if isinstance(value, Sequence) and not isinstance(value, memoryview):
            _within(self.items + len(value), self.bounds.items, "values")
            kind = "tuple" if isinstance(value, tuple) else "list"
            return [kind, self._several(value, depth)]
        if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
            return self.value(value.item(), depth + 1)
        return self.foreign(value, self)

    def _key(self, key: Any, depth: int) -> Any:
        """A key is plain data that can be hashed; anything else is left to `foreign`."""
        if key is None or isinstance(key, (str, int, float, bytes)):
            return self.value(key, depth)
        if isinstance(key, tuple):
            return ["tuple", [self._key(k, depth + 1) for k in key]]
        return self.foreign(key, self)

    def _several(self, values: Iterable, depth: int) -> list:
        return [self.value(v, depth + 1) for v in values]

    def _tensor(self, tensor: Tensor) -> list:
        with torch.no_grad(), torch._C.DisableTorchFunctionSubclass():
            if tensor.layout != torch.strided or tensor.device.type == "meta":
                return self.foreign(tensor, self)
            tensor = tensor.detach().as_subclass(Tensor)
            if tensor.is_complex():
                return ["complex", self.add(torch.view_as_real(tensor.resolve_conj()))]
            if tensor.dtype not in DTYPES:
                return self.foreign(tensor, self)
            return ["tensor", self.add(tensor.resolve_neg())]

    def add(self, tensor: Tensor) -> int:
        """Put a plain tensor into the body. Returns its number."""
        number = len(self.tensors)
        _within(number + 1, self.bounds.tensors, "tensors")
        # Before it is copied: an expanded tensor may be small in memory and huge on the wire.
        self.bytes += tensor.numel() * tensor.element_size()
        _within(self.bytes, self.bounds.body, "bytes of tensors")
        # A copy: safetensors takes no two tensors that share memory.
        self.tensors[str(number)] = tensor.cpu().clone(memory_format=torch.contiguous_format)
        return number


Foreign = Callable[[Any, Packer], list]


def _refuse(value: Any, packer: Packer) -> list:
    raise WireError(f"a value of type {type(value).__name__} may not cross")


def _within(number: int, limit: int, what: str) -> None:
    if number > limit:
        raise WireError(f"more than {limit:,} {what}")


def described(value: Any, packer: Packer) -> list:
    """`foreign` for the sandboxed side: only the name of the type crosses."""
    return ["odd", type(value).__name__]


class Sender:
    """`foreign` for the trusted side: what a check may hand to a learner's function besides data.

    Functions stay here and are called back (`functions` says which); a module of `torch.nn` and
    a generator cross as a copy; a dataclass instance crosses as the name of its class with its
    fields, and becomes one of the class that the learner knows by that name.
    """

    def __init__(self) -> None:
        self.functions: list[Callable] = []

    def __call__(self, value: Any, packer: Packer) -> list:
        if isinstance(value, nn.Module):
            for part in value.modules():
                if not type(part).__module__.startswith("torch.nn."):
                    raise WireError(f"a module of class {type(part).__name__} may not cross")
            # Pickled here, by the trusted side, and unpickled by the other: never the reverse.
            text = torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8)
            return ["module", packer.add(text)]
        if isinstance(value, torch.Generator):
            return ["generator", packer.add(value.get_state())]
        if is_dataclass(value) and not isinstance(value, type):
            known = {f.name: getattr(value, f.name) for f in fields(value)}
            return ["record", type(value).__name__, packer.value(known, 1)]
        if callable(value):
            self.functions.append(value)
            return ["function", len(self.functions) - 1]
        return _refuse(value, packer)


# ---------------------------------------------------------------------------- reading


class Unpacker:
    """Rebuilds a message from a frame's head and body, trusting neither.

    Args:
        bounds: what is too large to accept.
        revive: makes a value of a tag that is no plain data, given the tag, its operands and this
            object, or raises `WireError`.
    """

    def __init__(
        self,
        bounds: Bounds = BOUNDS,
        revive: Callable[[str, list, Unpacker], Any] | None = None,
    ):
        self.bounds, self.revive = bounds, revive
        self.tensors: list[Tensor | None] = []
        self.items = 0

    def message(self, head: bytes, body: bytes) -> Any:
        """The message.

        Raises:
            WireError: anything at all is wrong with it.
        """
        _within(len(head), self.bounds.head, "bytes of text")
        _within(len(body), self.bounds.body, "bytes of tensors")
        # Each mark below may become an object of a hundred bytes, so they are counted first.
        marks = head.count(b",") + head.count(b"[") + head.count(b"{") + head.count(b":")
        _within(marks, 4 * self.bounds.items, "values")
        try:
            tree = json.loads(head, parse_constant=_no_constant)
            self.tensors = self._body(body)
            return self.value(tree)
        except WireError:
            raise
        except Exception as error:  # of parsers that were never meant for a stranger's bytes
            raise WireError(f"not a message ({type(error).__name__})") from None

    def _body(self, body: bytes) -> list[Tensor]:
        if not body:
            return []
        # The safetensors header is text that grows with the number of tensors: bound it unread.
        length = int.from_bytes(body[:8], "little")
        _within(length, 64 + 256 * self.bounds.tensors, "bytes of tensor descriptions")
        try:
            found = safetensors.torch.load(body)
        except Exception as error:  # its own, and those of what it is made of
            raise WireError(f"not safetensors ({type(error).__name__})") from None
        _within(len(found), self.bounds.tensors, "tensors")
        if set(found) != {str(i) for i in range(len(found))}:
            raise WireError("tensors are not numbered")
        return [self._checked(found[str(i)]) for i in range(len(found))]

    def _checked(self, tensor: Tensor) -> Tensor:
        if tensor.dtype not in DTYPES:
            raise WireError(f"no tensors of {tensor.dtype} here")
        _within(tensor.ndim, 32, "axes")
        # A tensor without elements may have an axis of any size, for somebody to multiply.
        _within(math.prod(max(size, 1) for size in tensor.shape), self.bounds.body, "places")
        if tensor.dtype == torch.bool:  # a byte of 2 would be true, and not equal to true
            return tensor.view(torch.uint8) != 0
        return tensor

    def value(self, tree: Any, depth: int = 0) -> Any:
        self.items += 1
        _within(self.items, self.bounds.items, "values")
        _within(depth, self.bounds.depth, "levels of nesting")
        if tree is None or isinstance(tree, bool):
            return tree
        if isinstance(tree, str):
            return self._string(tree)
        if isinstance(tree, int):
            _within(tree.bit_length(), self.bounds.bits, "bits")
            return tree
        if isinstance(tree, float):
            if not math.isfinite(tree):
                raise WireError("a number out of range")
            return tree
        if not isinstance(tree, list) or not tree or not isinstance(tree[0], str):
            raise WireError("a value without a tag")
        return self._tagged(tree[0], tree[1:], depth)

    def _tagged(self, tag: str, rest: list, depth: int) -> Any:
        if tag in ("list", "tuple", "dict"):
            (items,) = rest
            if not isinstance(items, list):
                raise WireError(f"a {tag} without items")
            if tag == "list":
                return [self.value(item, depth + 1) for item in items]
            if tag == "tuple":
                return tuple(self.value(item, depth + 1) for item in items)
            values = [self.value(item, depth + 1) for item in items]
            if len(values) % 2:
                raise WireError("a dict with half a pair")
            return {_key(key): value for key, value in zip(values[::2], values[1::2])}
        if tag == "tensor":
            return self.tensor(*rest)
        if tag == "complex":
            return torch.view_as_complex(self.tensor(*rest))
        if tag in ("int", "float", "bytes", "dtype", "device", "odd"):
            (text,) = rest
            if not isinstance(text, str):
                raise WireError(f"not the text of a {tag}")
            return self._spelled(tag, text)
        if self.revive is None:
            raise WireError("an unknown tag")
        return self.revive(tag, rest, self)

    def _spelled(self, tag: str, text: str) -> Any:
        if tag == "int":
            _within(len(text), self.bounds.bits // 4 + 3, "digits")
            number = int(text, 16)
            _within(number.bit_length(), self.bounds.bits, "bits")
            return number
        if tag == "float":
            if text not in ("nan", "inf", "-inf"):
                raise WireError("no such number")
            return float(text)
        if tag == "bytes":
            _within(len(text), self.bounds.string * 4 // 3 + 4, "bytes")
            data = base64.b64decode(text.encode("ascii"), validate=True)
            _within(len(data), self.bounds.string, "bytes")
            return data
        if tag == "dtype":
            if not isinstance(dtype := getattr(torch, text, None), torch.dtype):
                raise WireError("no such dtype")
            return dtype
        if tag == "device":
            return torch.device(text[:20])
        return odd(self._string(text))

    def tensor(self, number: Any) -> Tensor:
        """The tensor of that number. Each is named once, so a message is no larger than it looks.

        Raises:
            WireError: there is none, or it has been named before.
        """
        if type(number) is not int or not 0 <= number < len(self.tensors):
            raise WireError("no such tensor")
        found, self.tensors[number] = self.tensors[number], None
        if found is None:
            raise WireError("a tensor is named twice")
        return found

    def _string(self, text: str) -> str:
        _within(len(text), self.bounds.string, "characters")
        # Half a character could not be written to any file later on.
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _no_constant(name: str) -> None:
    raise WireError(f"{name} is no number")


def _key(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_key(k) for k in key)
    if key is None or isinstance(key, (str, int, float, bytes, Odd)):
        return key
    raise WireError(f"a key of type {type(key).__name__}")


# ----------------------------------------------------------------------- by the socket


def parse_header(header: bytes, bounds: Bounds = BOUNDS) -> tuple[int, int]:
    """Lengths of head and body.

    Raises:
        WireError: no frame starts like this, or it is too large.
    """
    mark, head, body = HEADER.unpack(header)
    if mark != MARK:
        raise WireError("not a frame")
    _within(head, bounds.head, "bytes of text")
    _within(body, bounds.body, "bytes of tensors")
    return head, body


def split(frame: bytes, bounds: Bounds = BOUNDS) -> tuple[bytes, bytes]:
    """Head and body of a whole frame.

    Raises:
        WireError: it is none.
    """
    if len(frame) < HEADER.size:
        raise WireError("not a frame")
    head, body = parse_header(frame[: HEADER.size], bounds)
    if len(frame) != HEADER.size + head + body:
        raise WireError("a frame of another length than it says")
    cut = HEADER.size + head
    return frame[HEADER.size : cut], frame[cut:]


class Wire:
    """One end of a socket that carries frames.

    Args:
        end: a connected stream socket; closed with the wire.
        bounds: what is too large to accept.
    """

    def __init__(self, end: socket.socket, bounds: Bounds = BOUNDS):
        self.end, self.bounds = end, bounds
        self._come = bytearray()  # and has not been asked for
        end.setblocking(False)

    def send(self, frame: bytes, late: Callable[[], float] = lambda: 3600.0) -> None:
        """Send a frame.

        Args:
            late: says how many seconds are left, or raises.

        Raises:
            Closed: the other end has gone.
        """
        rest = memoryview(frame)
        while rest:
            try:
                rest = rest[self.end.send(rest) :]
            except BlockingIOError:
                self._wait(select.POLLOUT, late())
            except OSError:
                raise Closed from None

    def receive(self, late: Callable[[], float] = lambda: 3600.0) -> tuple[bytes, bytes]:
        """Head and body of the next frame.

        Args:
            late: says how many seconds are left, or raises.

        Raises:
            Closed: the other end has gone.
            WireError: what came is no frame, or too large.
        """
        head, body = parse_header(self._exactly(HEADER.size, late), self.bounds)
        return self._exactly(head, late), self._exactly(body, late)

    def _exactly(self, count: int, late: Callable[[], float]) -> bytes:
        # Grown as it comes, so that a length alone claims no memory. A small frame comes at once.
        while len(self._come) < count:
            try:
                part = self.end.recv(READ)
            except BlockingIOError:
                self._wait(select.POLLIN, late())
                continue
            except OSError:
                raise Closed from None
            if not part:
                raise Closed
            self._come += part
        with memoryview(self._come) as come:
            got = bytes(come[:count])
        del self._come[:count]
        return got

    def is_quiet(self) -> bool:
        """Whether nothing has come that nobody has asked for."""
        return not self._come and not self._wait(select.POLLIN, 0)

    def _wait(self, event: int, seconds: float) -> bool:
        poll = select.poll()  # unlike select(), it knows no largest file number
        poll.register(self.end, event)
        return bool(poll.poll(math.ceil(1000 * seconds)))

    def close(self) -> None:
        """Close this end."""
        self.end.close()


def deadline(seconds: float) -> Callable[[], float]:
    """A `late` for `Wire`: seconds left; raises `TimeoutError` when there are none."""
    end = time.monotonic() + seconds

    def left() -> float:
        if (rest := end - time.monotonic()) <= 0:
            raise TimeoutError
        return rest

    return left
