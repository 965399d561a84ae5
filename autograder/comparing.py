"""Compare what was found with what was expected, and say in words where they part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

# Relative and absolute tolerance by floating dtype: loose enough for another order of
# summation, tight enough that no wrong formula fits in between.
TOLERANCES = {
    torch.float64: (1e-8, 1e-10),
    torch.float32: (1e-4, 1e-5),
    torch.bfloat16: (2e-2, 1e-2),
    torch.float16: (5e-3, 1e-3),
}
HALF = (torch.float16, torch.bfloat16)


class Mismatch(Exception):
    """Found and expected differ.

    Args:
        headline: one sentence that says how.
        details: label and text of each further line ("expected", "found", ...).
        structural: True if type, shape or kind differ, so that values cannot be compared.
    """

    def __init__(
        self, headline: str, details: Sequence[tuple[str, str]] = (), structural: bool = False
    ):
        super().__init__(headline)
        self.headline, self.details, self.structural = headline, list(details), structural


def compare(
    found: Any,
    expected: Any,
    *,
    tol: float = 1.0,
    dtype: bool = False,
    axes: Sequence[str] = (),
    where: str = "",
) -> None:
    """Raise `Mismatch` unless `found` equals `expected`.

    Args:
        found: tensors, numbers, strings, None, and lists, tuples and dicts of them.
        expected: the same structure; lists and tuples are alike.
        tol: factor on the tolerances of the coarser of the two dtypes (of the expected one, where
            only the found one is of half precision).
        dtype: also require the same dtype. Otherwise only the kind has to agree
            (floating, integer or boolean).
        axes: names of the axes of `expected`, used in messages about shapes; for a tuple of
            tensors a list of such lists.
        where: path inside the structure, used in messages.
    """
    if isinstance(expected, Tensor):
        _compare_tensors(found, expected, tol, dtype, axes, where)
    elif isinstance(expected, bool) or expected is None or isinstance(expected, (str, bytes)):
        found = _as_number(found)
        if type(found) is not type(expected):
            raise Mismatch(
                f"{_the(where)} should be {_kind(expected)}, and is {_kind(found)}",
                [("expected", show(expected)), ("found", show(found))],
                structural=True,
            )
        if found != expected:
            raise Mismatch(
                f"{_the(where)} differs", [("expected", show(expected)), ("found", show(found))]
            )
    elif isinstance(expected, (int, float)):
        _compare_numbers(_as_number(found), expected, tol, where)
    elif isinstance(expected, Mapping):
        _compare_mappings(found, expected, tol, dtype, where)
    elif isinstance(expected, Sequence):
        _compare_sequences(found, expected, tol, dtype, axes, where)
    elif callable(expected):  # a function that was an input
        if found is not expected:
            raise Mismatch(f"{_the(where)} is another function", structural=True)
    else:
        raise TypeError(f"cannot compare values of type {type(expected).__name__}")


def same(found: Any, expected: Any, *, tol: float = 1.0) -> bool:
    """Whether `compare` finds no difference."""
    try:
        compare(found, expected, tol=tol)
    except Mismatch:
        return False
    return True


def _compare_tensors(found, expected, tol, dtype, axes, where):
    if not isinstance(found, Tensor):
        hint = " (did you forget to return it?)" if found is None else ""
        raise Mismatch(
            f"{_the(where)} should be a tensor, and is {_kind(found)}{hint}",
            [("expected", describe(expected)), ("found", show(found))],
            structural=True,
        )
    if found.shape != expected.shape:
        raise Mismatch(
            f"{_the(where)} has the wrong shape: {_shape_words(found, expected, axes)}",
            [
                ("expected shape", shape_text(expected.shape, axes)),
                ("found shape", shape_text(found.shape)),
            ],
            structural=True,
        )
    if _dtype_kind(found) != _dtype_kind(expected):
        raise Mismatch(
            f"{_the(where)} should hold {_dtype_kind(expected)} values, and holds "
            f"{_dtype_kind(found)} ones",
            [("expected", _dtype(expected)), ("found", _dtype(found))],
            structural=True,
        )
    if dtype and found.dtype != expected.dtype:
        raise Mismatch(
            f"{_the(where)} has the wrong dtype",
            [("expected", _dtype(expected)), ("found", _dtype(found))],
        )
    found, expected = found.detach().cpu(), expected.detach().cpu()
    if found.dtype == expected.dtype and torch.equal(found, expected):
        return  # the quick way, for what is mostly so
    if expected.is_complex() or found.is_complex():
        found, expected = torch.view_as_real(found + 0j), torch.view_as_real(expected + 0j)
    if not expected.is_floating_point():
        wrong = found != expected
    else:
        # Who rounds to half precision where it was not asked for gets no leeway for it, or a
        # formula that is a little wrong could hide there.
        judged = [expected] if found.dtype in HALF else [found, expected]
        rtol, atol = max(TOLERANCES.get(t.dtype, (0.0, 0.0)) for t in judged)
        wrong = ~torch.isclose(
            found.double(), expected.double(), rtol=rtol * tol, atol=atol * tol, equal_nan=True
        )
    if wrong.any():
        raise Mismatch(*_value_words(found, expected, wrong, where))


def _value_words(found, expected, wrong, where):
    first = tuple(wrong.nonzero()[0].tolist())
    place = "" if not first else f" at [{', '.join(map(str, first))}]"
    headline = f"{_the(where)} has the right shape and wrong values"
    details = [
        (f"expected{place}", _number(expected[first])),
        (f"found{place}", _number(found[first])),
    ]
    count, total = int(wrong.sum()), wrong.numel()
    floating = expected.is_floating_point()
    if floating and (found.isnan() & ~expected.isnan()).any():
        headline = f"{_the(where)} holds NaN (not a number)"
        details.append(("NaN in", f"{int(found.isnan().sum())} of {total} elements"))
    elif floating and (found.isinf() != expected.isinf()).any():
        headline = f"{_the(where)} holds an infinite value"
        if expected.isinf().any():
            headline = f"{_the(where)} is infinite elsewhere than it should be"
    if total > 1:
        text = f"{count} of {total} elements"
        gap = (found.double() - expected.double()).abs()
        gap = gap[wrong & gap.isfinite()]
        if floating and gap.numel():
            text += f", by up to {gap.max().item():.3g}"
        details.append(("differing", text))
    if 1 < total <= 16:
        details += [("expected", show(expected)), ("found", show(found))]
    return headline, details


def _shape_words(found, expected, axes):
    have, want = list(found.shape), list(expected.shape)
    names = [f"axis {i}" + (f" ({a})" if a else "") for i, a in _axis_names(want, axes)]
    if len(have) != len(want):
        return f"{len(want)} {'axis' if len(want) == 1 else 'axes'} expected, {len(have)} found"
    off = [i for i, (h, w) in enumerate(zip(have, want)) if h != w]
    if len(off) == 2 and have[off[0]] == want[off[1]] and have[off[1]] == want[off[0]]:
        return f"{names[off[0]]} and {names[off[1]]} are swapped"
    return "; ".join(f"{names[i]} should be {want[i]}, and is {have[i]}" for i in off)


def _axis_names(shape, axes):
    """Index and name of each axis; one name may stand for any number of axes (`*batch`)."""
    names = list(axes)
    rest = len(shape) - len(names) + 1
    spread = [i for i, name in enumerate(names) if str(name).startswith(("*", "..."))]
    if len(spread) == 1 and rest >= 0:
        names[spread[0] : spread[0] + 1] = [""] * rest
    return list(enumerate(names if len(names) == len(shape) else [""] * len(shape)))


def _compare_numbers(found, expected, tol, where):
    if isinstance(found, bool) or not isinstance(found, (int, float)):
        hint = " (did you forget to return it?)" if found is None else ""
        raise Mismatch(
            f"{_the(where)} should be a number, and is {_kind(found)}{hint}",
            [("expected", show(expected)), ("found", show(found))],
            structural=True,
        )
    rtol, atol = TOLERANCES[torch.float32]
    if isinstance(expected, int) and isinstance(found, int):
        close = found == expected
    else:
        close = math.isclose(found, expected, rel_tol=rtol * tol, abs_tol=atol * tol) or (
            math.isnan(found) and math.isnan(expected)
        )
    if not close:
        raise Mismatch(
            f"{_the(where)} is the wrong number",
            [("expected", show(expected)), ("found", show(found))],
        )


def _compare_mappings(found, expected, tol, dtype, where):
    if not isinstance(found, Mapping):
        raise Mismatch(
            f"{_the(where)} should be a dict, and is {_kind(found)}",
            [("expected", show(expected)), ("found", show(found))],
            structural=True,
        )
    missing = [k for k in expected if k not in found]
    extra = [k for k in found if k not in expected]
    if missing or extra:
        details = [("missing", ", ".join(map(repr, missing)))] if missing else []
        details += [("not expected", ", ".join(map(repr, extra)))] if extra else []
        raise Mismatch(f"{_the(where)} has the wrong keys", details, structural=True)
    for key, value in expected.items():
        compare(found[key], value, tol=tol, dtype=dtype, where=f"{where}[{key!r}]")


def _compare_sequences(found, expected, tol, dtype, axes, where):
    if isinstance(found, (str, bytes)) or not isinstance(found, Sequence):
        raise Mismatch(
            f"{_the(where)} should be {_kind(expected)}, and is {_kind(found)}",
            [("expected", show(expected)), ("found", show(found))],
            structural=True,
        )
    if len(found) != len(expected):
        raise Mismatch(
            f"{_the(where)} should have {len(expected)} items, and has {len(found)}",
            [("expected", show(expected)), ("found", show(found))],
            structural=True,
        )
    named = len(axes) == len(expected) and all(isinstance(names, list) for names in axes)
    for i, (f, e) in enumerate(zip(found, expected)):
        names = axes[i] if named else ()
        compare(f, e, tol=tol, dtype=dtype, axes=names, where=f"{where}[{i}]")


def _as_number(value):
    """A tensor with one element and no axes counts as the number that it holds."""
    if isinstance(value, Tensor) and value.ndim == 0 and not value.is_complex():
        return value.item()
    if type(value).__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return value.item()
    return value


# ---------------------------------------------------------------------------- words


def _the(where: str) -> str:
    return f"item {where.replace('][', ', ').strip('[]')} of the result" if where else "the result"


def _kind(value: Any) -> str:
    if value is None:
        return "None"
    if isinstance(value, Tensor):
        return f"a tensor of shape {shape_text(value.shape)}"
    name = type(value).__name__
    names = {"bool": "True or False", "str": "a string", "int": "a whole number"}
    names |= {"float": "a number", "list": "a list", "tuple": "a tuple", "dict": "a dict"}
    return names.get(name, f"of type {name}")


def _dtype_kind(tensor: Tensor) -> str:
    if tensor.dtype == torch.bool:
        return "boolean"
    if tensor.is_complex():
        return "complex"
    return "floating-point" if tensor.is_floating_point() else "integer"


def _dtype(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _number(value: Tensor) -> str:
    return f"{value.item():.6g}" if value.is_floating_point() else str(value.item())


def shape_text(shape: Sequence[int], axes: Sequence[str] = ()) -> str:
    """`(2, 5)`, or `(B=2, T=5)` where the axes have names."""
    parts = [
        f"{a}={n}" if a and a != str(n) else str(n)
        for (_, a), n in zip(_axis_names(shape, axes), shape)
    ]
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def describe(value: Any) -> str:
    """A value in a few words: dtype and shape of a tensor, `repr` of what is small."""
    if isinstance(value, Tensor):
        return f"{_dtype(value)} {shape_text(value.shape)}"
    if callable(value):
        return f"the function {getattr(value, '__name__', type(value).__name__)}"
    return show(value)


def show(value: Any, limit: int = 400) -> str:
    """A value in full where it is small, shortened where it is not."""
    if isinstance(value, Tensor):
        if value.numel() > 64:
            return describe(value)
        text = str(_rounded(value.detach().tolist()))
    elif isinstance(value, float):
        text = f"{value:.6g}"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{k!r}: {show(v)}" for k, v in value.items()) + "}"
    elif isinstance(value, (list, tuple)) and any(isinstance(v, (Tensor, tuple)) for v in value):
        big = [isinstance(v, Tensor) and v.numel() > 8 for v in value]
        text = ", ".join(describe(v) if b else show(v) for v, b in zip(value, big))
        text = f"[{text}]" if isinstance(value, list) else f"({text})"
    else:
        text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def _rounded(value):
    if isinstance(value, list):
        return [_rounded(v) for v in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value
