"""Checks of chapter 08: what attention costs, and attention in less memory."""

import math
import statistics
import weakref
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from autograder.checking import Chapter, Trial
from solutions import attention_bottleneck as reference
from solutions.masking import causal_mask, masked_attention, masked_softmax, padding_mask
from solutions.self_attention import attention_entropy, attention_scores

chapter = Chapter("08_attention_bottleneck", "The attention bottleneck")
check = chapter.check


# ------------------------------------------------------------------------ attention_flops

attention_flops = chapter.exercise(reference.attention_flops, difficulty=2, minutes=10)


def _parts(t: Trial, parts: list[str], *args, **kwargs) -> None:
    found, expected = t.call(*args, **kwargs), reference.attention_flops(*args, **kwargs)
    for part in parts:
        t.equal(found[part], expected[part], f'Wrong count for "{part}"')


@attention_flops.group(
    "the projections",
    points=1,
    hint="Four products of a (T, D) by a (D, D) matrix. A product of (n, m) and (m, p) takes "
    "2 n m p operations.",
)
def _(t: Trial):
    _parts(t, ["projections"], 5, 3)
    _parts(t, ["projections"], t.integer(7, 12), t.integer(13, 20))
    _parts(t, ["projections"], 100_000, 4096, causal=True)


@attention_flops.group(
    "scores and values",
    points=2,
    hint="One head: (T, K) by (K, T), then (T, T) by (T, K). Their widths K add up to D.",
)
def _(t: Trial):
    _parts(t, ["scores", "values"], 5, 3)
    _parts(t, ["scores", "values"], t.integer(7, 12), t.integer(13, 20), causal=False)
    _parts(t, ["scores", "values"], 1, 4)


@attention_flops.group(
    "causal",
    points=1,
    hint="Query 0 sees 1 key, query 1 sees 2, and the last one all T. What is the sum?",
)
def _(t: Trial):
    _parts(t, ["scores", "values"], 4, 3, causal=True)
    _parts(t, ["scores", "values"], t.integer(7, 12), t.integer(13, 20), causal=True)
    _parts(t, ["scores", "values"], 1, 6, causal=True)


def _flops(t, d_model, pairs, each=2, projections=4):
    return {
        "projections": projections * each * t * d_model**2,
        "scores": each * pairs * d_model,
        "values": each * pairs * d_model,
    }


def _pairs(t, causal):
    return t * (t + 1) // 2 if causal else t * t


@attention_flops.mistake(
    "You count a multiplication with its addition as one operation. It is two: a product takes "
    "2 n m p."
)
def one_for_two(t, d_model, *, causal=False):
    return _flops(t, d_model, _pairs(t, causal), each=1)


@attention_flops.mistake(
    "You count three projections. There are four: after the heads comes the output's."
)
def three_projections(t, d_model, *, causal=False):
    return _flops(t, d_model, _pairs(t, causal), projections=3)


@attention_flops.mistake(
    "You count one projection. Queries, keys, values and the output have one each."
)
def one_projection(t, d_model, *, causal=False):
    return _flops(t, d_model, _pairs(t, causal), projections=1)


@attention_flops.mistake(
    "Your causal count leaves out the pairs of a token with itself: T (T + 1) / 2 are allowed."
)
def pairs_without_itself(t, d_model, *, causal=False):
    return _flops(t, d_model, t * (t - 1) // 2 if causal else t * t)


@attention_flops.mistake(
    "You halve the square for causal attention. The diagonal is allowed whole: T (T + 1) / 2 pairs."
)
def half_the_square(t, d_model, *, causal=False):
    return _flops(t, d_model, t * t / 2 if causal else t * t)


@attention_flops.mistake("You do not use `causal`: half of the pairs are forbidden then.")
def causal_unused(t, d_model, *, causal=False):
    return _flops(t, d_model, t * t)


@attention_flops.mistake(
    "You count the projections for the pairs, too. They take each token by itself, causal or not."
)
def causal_projections(t, d_model, *, causal=False):
    counts = _flops(t, d_model, _pairs(t, causal))
    return {**counts, "projections": 8 * _pairs(t, causal) * d_model**2 / t}


@attention_flops.mistake(
    "You swapped T and D in scores and values: they grow with the square of the length, T² D."
)
def swapped_sizes(t, d_model, *, causal=False):
    counts = _flops(t, d_model, 0)
    square = d_model * d_model * (t + 1) // 2 if causal else t * d_model * d_model
    return {**counts, "scores": 2 * square, "values": 2 * square}


@attention_flops.mistake(
    "You swapped T and D in the projections: each token meets a (D, D) matrix, which makes T D²."
)
def swapped_in_the_projections(t, d_model, *, causal=False):
    return {**_flops(t, d_model, _pairs(t, causal)), "projections": 8 * t * t * d_model}


@attention_flops.mistake(
    "Your scores take one operation a pair. Each is a dot product, over all heads of D numbers."
)
def one_per_pair(t, d_model, *, causal=False):
    return {**_flops(t, d_model, _pairs(t, causal)), "scores": _pairs(t, causal)}


@attention_flops.mistake(
    "Your values take one operation for each output number. Each is a sum over all the keys."
)
def one_per_output(t, d_model, *, causal=False):
    return {**_flops(t, d_model, _pairs(t, causal)), "values": 2 * t * d_model}


@attention_flops.mistake(
    "You counted the softmax as well. Only matrix products are counted here; beside them it is "
    "small."
)
def with_the_softmax(t, d_model, *, causal=False):
    counts = _flops(t, d_model, _pairs(t, causal))
    return {**counts, "scores": counts["scores"] + 5 * _pairs(t, causal)}


@attention_flops.mistake(
    "You counted three times as much: the backward pass is not part of it, only the forward one."
)
def with_the_backward_pass(t, d_model, *, causal=False):
    return _flops(t, d_model, _pairs(t, causal), each=6)


@attention_flops.alternative
def by_product(t, d_model, *, causal=False):
    def product(n, m, p):
        return 2 * n * m * p

    maps = sum(product(t, d_model, d_model) for _ in "qkvo")
    scores = sum(product(1, d_model, i + 1 if causal else t) for i in range(min(t, 999)))
    if t > 999:
        scores = product(t, d_model, t) if not causal else d_model * t * (t + 1)
    return {"values": scores, "scores": scores, "projections": maps}


@attention_flops.alternative
def in_floats(t, d_model, *, causal=False):
    seen = (t + 1) / 2 if causal else float(t)  # keys that a query sees, on average
    mixing = 2.0 * t * seen * d_model
    return dict(projections=8.0 * t * d_model**2, scores=mixing, values=mixing)


# ----------------------------------------------------------------------- crossover_length

crossover_length = chapter.exercise(reference.crossover_length, difficulty=3, minutes=8)


@crossover_length.group(
    "the length at which the two are equal",
    points=2,
    hint="Scores and values: 4 T² D. The rest: 2 T for each parameter. Set them equal, and solve "
    "for T.",
)
def _(t: Trial):
    t.same(8, 12 * 8 * 8)
    t.same(6, 100)
    t.same(t.integer(3, 9), t.integer(100, 200), causal=False)


@crossover_length.group(
    "causal",
    points=1,
    hint="T (T + 1) / 2 pairs, 4 D operations each. Divide both sides by 2 T D before you solve.",
)
def _(t: Trial):
    t.same(8, 12 * 8 * 8, causal=True)
    t.same(5, 73, causal=True)
    t.same(t.integer(3, 9), t.integer(100, 200), causal=True)


@crossover_length.group(
    "real models",
    points=1,
    hint="Put your answer back into `attention_flops`: do scores and values cost 2 T P?",
)
def _(t: Trial):
    t.same(768, 12 * 768**2)
    t.same(4096, 218_103_808)
    t.same(16384, 3_187_671_040, causal=True)


@crossover_length.mistake(
    "Your answer is the same for all layers of this width: 6 D is the case of 12 D² parameters. "
    "Use `parameters`."
)
def six_d(d_model, parameters, *, causal=False):
    return 12 * d_model - 1 if causal else 6 * d_model


@crossover_length.mistake(
    "You counted the scores alone. The weighted sum of the values costs as much again."
)
def without_the_values(d_model, parameters, *, causal=False):
    return 2 * parameters / d_model - 1 if causal else parameters / d_model


@crossover_length.mistake(
    "You count one operation for each parameter and token. It is two, a multiplication and an "
    "addition."
)
def one_per_parameter(d_model, parameters, *, causal=False):
    full = parameters / (4 * d_model)
    return 2 * full - 1 if causal else full


@crossover_length.mistake(
    "You doubled the length for causal attention. Nearly: T (T + 1) / 2 pairs, with the diagonal, "
    "make it one token less."
)
def exactly_twice(d_model, parameters, *, causal=False):
    return parameters / d_model if causal else parameters / (2 * d_model)


@crossover_length.mistake(
    "You left the diagonal out of the causal pairs: there are T (T + 1) / 2 of them."
)
def twice_and_one_more(d_model, parameters, *, causal=False):
    return parameters / d_model + 1 if causal else parameters / (2 * d_model)


@crossover_length.mistake(
    "You do not use `causal`. With half of the pairs, the crossover comes later."
)
def causal_ignored(d_model, parameters, *, causal=False):
    return parameters / (2 * d_model)


@crossover_length.mistake(
    "You halved the length for causal attention. Half the cost means that it overtakes later."
)
def earlier_for_causal(d_model, parameters, *, causal=False):
    return parameters / (4 * d_model) if causal else parameters / (2 * d_model)


@crossover_length.mistake(
    "You rounded down (`//` or `int`). The length at which the two are equal need not be whole."
)
def rounded_down(d_model, parameters, *, causal=False):
    return parameters // d_model - 1 if causal else parameters // (2 * d_model)


@crossover_length.mistake(
    "You found the T at which T² alone equals the rest, with its root. The rest grows with T, too: "
    "one T cancels."
)
def with_a_root(d_model, parameters, *, causal=False):
    return math.sqrt(parameters / d_model if causal else parameters / (2 * d_model))


@crossover_length.alternative
def by_bisection(d_model, parameters, *, causal=False):
    low, high = 0.0, 1e9
    for _ in range(100):
        t = (low + high) / 2
        pairs = t * (t + 1) / 2 if causal else t * t
        low, high = (t, high) if 4 * pairs * d_model < 2 * t * parameters else (low, t)
    return low


@crossover_length.alternative
def with_fractions(d_model, parameters, *, causal=False):
    keys = parameters / 2 / d_model  # that a query may see on average
    return keys if not causal else keys + keys - 1


# ----------------------------------------------------------------------- attention_memory

attention_memory = chapter.exercise(reference.attention_memory, difficulty=2, minutes=8)


@attention_memory.group(
    "one table", points=1, hint="T rows and S columns, `itemsize` bytes each. S defaults to T."
)
def _(t: Trial):
    t.same(7)
    t.same(7, 4)
    t.same(3, s=t.integer(5, 12))
    t.same(100_000)


@attention_memory.group(
    "heads, batch, and the size of a number",
    points=2,
    hint="Each head of each sequence has a table of its own.",
)
def _(t: Trial):
    t.same(5, 6, n_heads=3)
    t.same(5, 6, batch=7)
    t.same(5, itemsize=2)
    t.same(t.integer(5, 9), 13, n_heads=3, batch=2, itemsize=8)


@attention_memory.group(
    "by chunks of queries",
    points=2,
    hint="With a chunk, that many rows exist at the same time, each as long as before; never more "
    "rows than there are queries.",
)
def _(t: Trial):
    t.same(12, chunk=4)
    t.same(12, 20, chunk=5)
    t.same(7, 9, chunk=50)
    t.same(t.integer(20, 30), chunk=t.integer(3, 9), n_heads=2, batch=3, itemsize=2)


def _bytes(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    return batch * n_heads * min(t, chunk or t) * (t if s is None else s) * itemsize


@attention_memory.mistake("You count numbers, not bytes: each takes `itemsize` bytes.")
def numbers_not_bytes(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    return _bytes(t, s, n_heads=n_heads, batch=batch, chunk=chunk, itemsize=1)


@attention_memory.mistake("You count bits. `itemsize` is in bytes already.")
def bits(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    return 8 * _bytes(t, s, n_heads=n_heads, batch=batch, chunk=chunk, itemsize=itemsize)


@attention_memory.mistake("You count 4 bytes for every number. In bfloat16 it is 2: `itemsize`.")
def always_float32(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    return _bytes(t, s, n_heads=n_heads, batch=batch, chunk=chunk)


@attention_memory.mistake("You forgot the heads: each has scores of its own.")
def without_heads(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    return _bytes(t, s, batch=batch, chunk=chunk, itemsize=itemsize)


@attention_memory.mistake("You forgot the batch: each sequence has scores of its own.")
def without_batch(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    return _bytes(t, s, n_heads=n_heads, chunk=chunk, itemsize=itemsize)


@attention_memory.mistake("You use T for both sides: there are S keys, which may differ from T.")
def always_square(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    return _bytes(t, n_heads=n_heads, batch=batch, chunk=chunk, itemsize=itemsize)


@attention_memory.mistake(
    "You cut the keys as well as the queries. Each query of the chunk still needs all S keys, or "
    "its softmax has the wrong denominator."
)
def both_sides_cut(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    s = t if s is None else s
    return _bytes(
        t, min(s, chunk or s), n_heads=n_heads, batch=batch, chunk=chunk, itemsize=itemsize
    )


@attention_memory.mistake(
    "You took `chunk` for the number of chunks. It is how many queries are in one of them."
)
def chunk_as_a_number(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    rows = math.ceil(t / chunk) if chunk else t
    return _bytes(rows, t if s is None else s, n_heads=n_heads, batch=batch, itemsize=itemsize)


@attention_memory.mistake(
    "A chunk larger than the number of queries costs you more than all of them: take the smaller "
    "of the two."
)
def chunk_beyond_the_end(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    return _bytes(
        chunk or t, t if s is None else s, n_heads=n_heads, batch=batch, itemsize=itemsize
    )


@attention_memory.mistake(
    "You do not use `chunk`: with it, only so many queries have their scores at the same time."
)
def chunk_unused(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    return _bytes(t, s, n_heads=n_heads, batch=batch, itemsize=itemsize)


@attention_memory.mistake(
    "You cut the keys into chunks instead of the queries: rows are queries, and a chunk has fewer "
    "of them."
)
def keys_cut(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    s = t if s is None else s
    return batch * n_heads * t * min(s, chunk or s) * itemsize


@attention_memory.mistake("You added the scores of all chunks up. They exist one after the other.")
def all_chunks_added(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    chunks = math.ceil(t / chunk) if chunk else 1
    one = _bytes(t, s, n_heads=n_heads, batch=batch, chunk=chunk, itemsize=itemsize)
    return chunks * one


@attention_memory.alternative
def from_a_tensor(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    rows = t if chunk is None or chunk > t else chunk
    scores = torch.empty(batch, n_heads, rows, s or t, dtype=torch.int8, device="meta")
    return scores.numel() * itemsize


@attention_memory.alternative
def with_a_product(t, s=None, *, n_heads=1, batch=1, chunk=None, itemsize=4):
    if s is None:
        s = t
    if chunk is None:
        chunk = t
    return math.prod([itemsize, n_heads, batch, s, sorted([chunk, t])[0]])


# ------------------------------------------------------------------------ largest_context

largest_context = chapter.exercise(reference.largest_context, difficulty=3, minutes=10)


@largest_context.group(
    "the whole table",
    points=2,
    hint="How many numbers fit into the budget? A square table of t by t of them: what is t?",
)
def _(t: Trial):
    t.same(400)
    t.same(399)
    t.same(80_000_000_000, n_heads=32, itemsize=2)
    t.same(t.integer(1000, 5000), n_heads=3)
    t.same(3)


@largest_context.group(
    "by chunks",
    points=2,
    hint="With more queries than a chunk holds, `chunk` rows of t numbers have to fit. With fewer, "
    "it is the whole table again.",
)
def _(t: Trial):
    t.same(4 * 1000, chunk=10)
    t.same(4 * 1009, chunk=10)
    t.same(80_000_000_000, n_heads=32, itemsize=2, chunk=128)
    t.same(4 * 90, chunk=25)
    t.same(4 * 50, chunk=8)
    t.same(4 * t.integer(2000, 3000), n_heads=2, chunk=t.integer(4, 9))


@largest_context.group(
    "exact, however large",
    points=1,
    hint="`math.isqrt` is exact; `math.sqrt` rounds to 16 digits, and may round up.",
)
def _(t: Trial):
    n = 3_037_000_499 + t.integer(0, 1000)
    t.same(4 * (n * n - 1))
    t.same(4 * n * n)
    t.same(2 * (n * n + 5), itemsize=2)


def _fits(t, budget, n_heads, chunk, itemsize):
    return n_heads * itemsize * t * (t if chunk is None else min(t, chunk)) <= budget


@largest_context.mistake("You forgot the root: t queries for t keys make t² scores.")
def without_the_root(budget, *, n_heads=1, chunk=None, itemsize=4):
    return budget // (n_heads * itemsize * (chunk or 1))


@largest_context.mistake(
    "You rounded up (or to the nearest): one token more does not fit any more."
)
def rounded_up(budget, *, n_heads=1, chunk=None, itemsize=4):
    numbers = budget // (n_heads * itemsize)
    up = math.isqrt(numbers - 1) + 1 if numbers else 0
    return up if chunk is None else max(up, -(-numbers // chunk))


@largest_context.mistake(
    "You took the root in floating point, which has 16 digits and may round up: use `math.isqrt`."
)
def root_in_floats(budget, *, n_heads=1, chunk=None, itemsize=4):
    numbers = budget // (n_heads * itemsize)
    whole = int(math.sqrt(numbers))
    return whole if chunk is None else max(whole, numbers // chunk)


@largest_context.mistake("You forgot the heads: each has scores of its own.")
def heads_forgotten(budget, *, n_heads=1, chunk=None, itemsize=4):
    return reference.largest_context(budget, chunk=chunk, itemsize=itemsize)


@largest_context.mistake(
    "You forgot `itemsize`: the budget is in bytes, and a number takes several."
)
def itemsize_forgotten(budget, *, n_heads=1, chunk=None, itemsize=4):
    return reference.largest_context(budget, chunk=chunk, n_heads=n_heads, itemsize=1)


@largest_context.mistake("You count 4 bytes for every number. In bfloat16 it is 2: `itemsize`.")
def four_bytes(budget, *, n_heads=1, chunk=None, itemsize=4):
    return reference.largest_context(budget, chunk=chunk, n_heads=n_heads)


@largest_context.mistake(
    "You took the root with heads and bytes still in it: divide them off first, then take the root."
)
def root_before_the_heads(budget, *, n_heads=1, chunk=None, itemsize=4):
    whole = math.isqrt(budget) // (n_heads * itemsize)
    return whole if chunk is None else max(whole, budget // (n_heads * itemsize * chunk))


@largest_context.mistake(
    "You do not use `chunk`: with it only so many rows exist at the same time, and far more tokens "
    "fit."
)
def chunk_not_used(budget, *, n_heads=1, chunk=None, itemsize=4):
    return reference.largest_context(budget, n_heads=n_heads, itemsize=itemsize)


@largest_context.mistake(
    "You always divide by the chunk. A text shorter than one chunk has fewer rows than that, and "
    "more of it fits."
)
def always_a_whole_chunk(budget, *, n_heads=1, chunk=None, itemsize=4):
    numbers = budget // (n_heads * itemsize)
    return math.isqrt(numbers) if chunk is None else numbers // chunk


@largest_context.mistake(
    "You took the root with a chunk, too. Its rows are `chunk`, whatever t: the memory is linear."
)
def root_with_a_chunk(budget, *, n_heads=1, chunk=None, itemsize=4):
    return math.isqrt(budget // (n_heads * itemsize * (chunk or 1)))


@largest_context.mistake(
    "Your answer is a fraction. Tokens come whole, and the last must still fit."
)
def a_fraction(budget, *, n_heads=1, chunk=None, itemsize=4):
    numbers = budget / (n_heads * itemsize)
    return math.sqrt(numbers) if chunk is None else max(math.sqrt(numbers), numbers / chunk)


@largest_context.alternative
def by_halving(budget, *, n_heads=1, chunk=None, itemsize=4):
    low, high = 0, budget + 1  # low fits, high does not
    while high - low > 1:
        middle = (low + high) // 2
        if _fits(middle, budget, n_heads, chunk, itemsize):
            low = middle
        else:
            high = middle
    return low


@largest_context.alternative
def by_cases(budget, *, n_heads=1, chunk=None, itemsize=4):
    t = math.isqrt(budget // itemsize // n_heads)
    if chunk is not None and t > chunk:
        t = budget // (itemsize * n_heads * chunk)
    return t


# ---------------------------------------------------------------------- chunked_attention

chunked_attention = chapter.exercise(
    reference.chunked_attention,
    difficulty=5,
    minutes=22,
    forbidden=["scaled_dot_product_attention"],
)


def qkv(t: Trial, *batch: int, queries=5, keys=7, dtype=torch.float32):
    return (
        t.randn(*batch, queries, 3, dtype=dtype),
        t.randn(*batch, keys, 3, dtype=dtype),
        t.randn(*batch, keys, 4, dtype=dtype),
    )


def mask_of(t: Trial, *shape: int) -> Tensor:
    """A random mask, one of whose rows allows nothing."""
    mask = t.rand(*shape) < 0.5
    mask[..., -1, :] = False
    return mask


@chunked_attention.group(
    "the output of masked_attention, whatever the chunk",
    points=2,
    hint="Chunks of queries, all keys and values for each of them, the outputs one after the other "
    "along the axis of the queries.",
)
def _(t: Trial):
    t.same(*qkv(t), chunk=2)
    t.same(*qkv(t, 2), chunk=3, dtype=True)
    t.same(*qkv(t, 2, 6, queries=4), chunk=2)
    t.same(*qkv(t, 2, dtype=torch.float64), chunk=50, dtype=True)
    if t.graded:
        t.same(*qkv(t, 3, queries=t.integer(10, 14)), chunk=t.integer(3, 6))
        t.same(*qkv(t, 2, queries=1), chunk=1)


@chunked_attention.group(
    "causal",
    points=1,
    hint="The queries start to stop - 1 are the last of the first S - T + stop positions: for "
    "`causal_mask` of chapter 05 that is a rectangle.",
)
def _(t: Trial):
    t.same(*qkv(t, 2, keys=5), chunk=2, causal=True)
    t.same(*qkv(t, keys=5), chunk=1, causal=True)
    t.same(*qkv(t, 2), chunk=3, causal=True)
    t.same(*qkv(t, 2, 6), chunk=20, causal=True)
    t.same(*qkv(t, 2, queries=1), chunk=2, causal=True)
    t.raises(ValueError, *qkv(t, keys=4), chunk=3, causal=True, naming="4")


@chunked_attention.group(
    "masks of any shape",
    points=1,
    hint="`mask.expand(*q.shape[:-1], k.shape[-2])` gives every mask the shape (*batch, T, S), and "
    "takes no memory. Then its rows can be cut like those of q.",
)
def _(t: Trial):
    t.same(*qkv(t, 2), mask_of(t, 2, 5, 7), chunk=2)
    t.same(*qkv(t, 2), mask_of(t, 5, 7), chunk=3)
    t.same(*qkv(t, 2), padding_mask(torch.tensor([4, 6]), 7), chunk=3)
    t.same(*qkv(t, 2, 6), mask_of(t, 2, 1, 5, 7), chunk=3)
    t.same(*qkv(t, 2), t.rand(7) < 0.5, chunk=4)
    t.same(*qkv(t, 2), t.rand(5, 1) < 0.5, chunk=3)
    t.same(*qkv(t, 2, keys=5), padding_mask(torch.tensor([0, 4]), 5), chunk=3, causal=True)
    t.same(*qkv(t, 2), mask_of(t, 5, 7), chunk=2, causal=True)


@chunked_attention.group(
    "gradients",
    points=1,
    hint="Slices and `torch.cat` pass gradients on; `.data`, `.detach()` and `torch.no_grad()` do "
    "not.",
)
def _(t: Trial):
    t.same_gradients(*qkv(t, 2, dtype=torch.float64), chunk=2)
    t.same_gradients(
        *qkv(t, 2, dtype=torch.float64), mask_of(t, 5, 7), chunk=3, causal=True, recompute=True
    )


# What stands in for masked_attention, to see what a chunk is given. What it gives back tells.


def queries_at_once(q, k, v, mask=None):
    """Attention whose every output is the number of queries that it was called with."""
    output, weights = masked_attention(q, k, v, mask)
    return output * 0 + q.shape[-2], weights


def keys_at_once(q, k, v, mask=None):
    """Attention whose every output is the number of keys that it was called with."""
    output, weights = masked_attention(q, k, v, mask)
    return output * 0 + k.shape[-2], weights


_held: list[weakref.ref] = []


def weights_still_held(q, k, v, mask=None):
    """Attention whose outputs are 1 where the weights of the call before last still exist.

    Where the caller lives in another process that cannot be seen, and they are 0. (A call from
    there comes with a graph, which holds the weights here.)
    """
    if q.flatten()[0] == 0:  # the first chunk
        _held.clear()
    output, weights = masked_attention(q, k, v, mask)
    alive = sum(held() is not None for held in _held)
    _held.append(weakref.ref(weights))
    return output.detach() * 0 + float(alive > 1 and not q.requires_grad), weights


@chunked_attention.group(
    "one chunk's weights at a time",
    points=2,
    hint="Call `attend` once for each chunk, with all that the chunk needs and no more, and keep "
    "its first result only.",
)
def _(t: Trial):
    t.same(*qkv(t, 2), chunk=2, attend=queries_at_once)
    t.same(*qkv(t, queries=9, keys=11), chunk=4, causal=True, attend=queries_at_once)
    t.same(*qkv(t, 2), chunk=2, causal=True, attend=keys_at_once)
    t.same(*qkv(t), mask_of(t, 5, 7), chunk=2, causal=True, attend=keys_at_once)
    q, k, v = qkv(t)
    q[0, 0] = 0
    t.same(q, k, v, chunk=1, attend=weights_still_held)


_log: list[str] = []


def logged(q, k, v, mask=None):
    """masked_attention that notes its calls, and when a gradient comes back to it."""
    _log.append("call")
    output, weights = masked_attention(q, k, v, mask)
    if output.requires_grad:
        output.register_hook(lambda gradient: _log.append("gradient"))
    return output, weights


def what_was_logged(q, k, v, mask=None):
    """Attention whose every output tells what `logged` has noted."""
    output, weights = masked_attention(q, k, v, mask)
    together = "".join(entry[0] for entry in _log[-6:])
    return output * 0 + len(_log) + 100 * together.count("cc"), weights


@chunked_attention.group(
    "one chunk's weights at a time, in training",
    points=2,
    hint="`torch.utils.checkpoint.checkpoint(function, *arguments, use_reentrant=False)` calls the "
    "function, forgets what happened inside, and calls it again on the way back. One call of it "
    "for each chunk.",
)
def _(t: Trial):
    q, k, v = qkv(t, queries=6, dtype=torch.float64)
    for recompute in (True, False):
        _log.clear()
        asked = {"recompute": True} if recompute else {}
        t.same_gradients(q, k, v, chunk=2, attend=logged, **asked)
        # Three chunks: the reference forward, theirs forward, the reference and back, theirs and
        # back. (Each gradient is logged as well.)
        backward = 3 if recompute else 0
        t.require(
            _log.count("call") == 12 + 2 * backward,
            f"With{'' if recompute else 'out'} `recompute=True`, attend should be called "
            + ("once more for each chunk, on the way back" if recompute else "once for each chunk"),
        )
        theirs = "".join(entry[0] for entry in _log[-3 - backward :])
        t.require(
            not recompute or "cc" not in theirs,
            "On the way back, all chunks are computed again before the first is used",
        )
        t.call(q, k, v, chunk=2, attend=what_was_logged)  # so that mistakes are told apart


@chunked_attention.group(
    "a chunk of 0 is refused",
    points=1,
    hint="Raise a ValueError that gives the chunk, before the loop.",
)
def _(t: Trial):
    t.raises(ValueError, *qkv(t), chunk=0, naming="0")
    t.raises(ValueError, *qkv(t), chunk=-3, naming="-3")


def _chunked(
    q,
    k,
    v,
    mask=None,
    *,
    chunk,
    causal=False,
    recompute=False,
    attend=masked_attention,
    triangle=lambda start, stop, t, s: causal_mask(stop - start, s - t + stop),
    end_of=lambda stop, t, s, causal: s - t + stop if causal else s,
    rows_of=lambda mask, start, stop: mask[..., start:stop, :],
    join=lambda outputs: torch.cat(outputs, -2),
    keep=lambda result: result[0],
    combine=torch.logical_and,
    last=lambda t, chunk: t,
    refuse=True,
    again=lambda part, i: checkpoint(part, i, use_reentrant=False),
):
    """chunked_attention, with places for slips."""
    t, s = q.shape[-2], k.shape[-2]
    if refuse and chunk < 1 or causal and t > s:
        raise ValueError(f"chunk={chunk}, t={t}, s={s}")
    if chunk < 1:
        return torch.zeros(*q.shape[:-1], v.shape[-1])
    mask = None if mask is None else mask.expand(*q.shape[:-1], s)

    def part(start):
        stop = min(start + chunk, t)
        end = end_of(stop, t, s, causal)
        allowed = None if mask is None else rows_of(mask, start, stop)[..., :end]
        if causal:
            below = triangle(start, stop, t, s)[..., :end]
            allowed = below if allowed is None else combine(allowed, below)
        result = attend(q[..., start:stop, :], k[..., :end, :], v[..., :end, :], allowed)
        return keep(result)

    parts = []
    for start in range(0, last(t, chunk), chunk):
        parts.append(again(part, start) if recompute else part(start))
    return join(parts)


def _with(**slips):
    return lambda *args, **kwargs: _chunked(*args, **kwargs, **slips)


@chunked_attention.mistake(
    "Your chunks after the first take their queries for the first positions: in causal attention, "
    "query i of a chunk stands at S - T + start + i."
)
def offset_forgotten(*args, **kwargs):
    def triangle(start, stop, t, s):
        return torch.arange(s) <= torch.arange(stop - start)[:, None]

    return _chunked(*args, **kwargs, triangle=triangle)


@chunked_attention.mistake(
    "You made the mask of every chunk for the last queries of all S keys: a chunk in the middle "
    "then sees the future. Its last key is S - T + stop - 1."
)
def always_the_last(*args, **kwargs):
    return _chunked(
        *args, **kwargs, triangle=lambda start, stop, t, s: causal_mask(stop - start, s)
    )


@chunked_attention.mistake(
    "You took the queries for the first T positions. They are the last T of the S keys' positions: "
    "add S - T."
)
def first_corner(*args, **kwargs):
    def triangle(start, stop, t, s):
        return torch.arange(s) <= torch.arange(start, stop)[:, None]

    return _chunked(*args, **kwargs, triangle=triangle)


@chunked_attention.mistake("You do not use `causal`: your queries see the future.")
def not_causal(
    q, k, v, mask=None, *, chunk, causal=False, recompute=False, attend=masked_attention
):
    if causal and q.shape[-2] > k.shape[-2]:
        raise ValueError("more queries than keys")
    return _chunked(q, k, v, mask, chunk=chunk, recompute=recompute, attend=attend)


@chunked_attention.mistake(
    "You cut the keys and values like the queries: each chunk sees its own tokens only. Every "
    "query needs all the keys that it may see."
)
def block_diagonal(q, k, v, mask=None, *, chunk, causal=False, recompute=False, attend=masked_attention):  # fmt: skip  # noqa: E501
    if chunk < 1 or causal and q.shape[-2] > k.shape[-2]:
        raise ValueError(f"chunk={chunk}")
    t, s = q.shape[-2], k.shape[-2]
    everything = torch.ones(t, s, dtype=torch.bool) if mask is None else mask
    everything = everything.expand(*q.shape[:-1], s)
    if causal:
        everything = everything & causal_mask(t, s)
    parts = []
    for i in range(0, t, chunk):
        rows = everything[..., i : i + chunk, i : i + chunk]
        parts.append(attend(q[..., i : i + chunk, :], k[..., i : i + chunk, :], v[..., i : i + chunk, :], rows)[0])  # fmt: skip  # noqa: E501
    return torch.cat(parts, dim=-2)


@chunked_attention.mistake(
    "You drop the last, smaller chunk: `range(0, t, chunk)` starts it, and a slice may end beyond "
    "the last query."
)
def rest_dropped(*args, **kwargs):
    return _chunked(*args, **kwargs, last=lambda t, chunk: max(t - t % chunk, min(t, chunk)))


@chunked_attention.mistake(
    "You do not cut the rows of the mask: each chunk is masked by the first rows. Cut them as you "
    "cut the queries."
)
def first_rows_of_the_mask(*args, **kwargs):
    return _chunked(*args, **kwargs, rows_of=lambda mask, start, stop: mask[..., : stop - start, :])


@chunked_attention.mistake(
    "You cut the mask without giving it the queries' axis first: a mask such as (B, 1, S) has one "
    "row for all of them. `mask.expand(*q.shape[:-1], S)` before the loop."
)
def mask_not_expanded(q, k, v, mask=None, *, chunk, causal=False, recompute=False, attend=masked_attention):  # fmt: skip  # noqa: E501
    t, s = q.shape[-2], k.shape[-2]
    if chunk < 1 or causal and t > s:
        raise ValueError(f"chunk={chunk}")

    def part(i):
        stop = min(i + chunk, t)
        end = s - t + stop if causal else s
        allowed = None if mask is None else mask[..., i:stop, :end]
        if causal:
            below = causal_mask(stop - i, end)
            allowed = below if mask is None else allowed & below
        return attend(q[..., i:stop, :], k[..., :end, :], v[..., :end, :], allowed)[0]

    starts = range(0, t, chunk)
    if recompute:
        return torch.cat([checkpoint(part, i, use_reentrant=False) for i in starts], -2)
    return torch.cat([part(i) for i in starts], dim=-2)


@chunked_attention.mistake("You do not use the mask.")
def without_the_mask(q, k, v, mask=None, **kwargs):
    return _chunked(q, k, v, None, **kwargs)


@chunked_attention.mistake(
    "With a mask, you forget `causal`; both have to allow a pair: combine them by `&`."
)
def mask_instead_of_causal(*args, **kwargs):
    return _chunked(*args, **kwargs, combine=lambda allowed, below: allowed)


@chunked_attention.mistake(
    "With `causal`, you forget the mask; both have to allow a pair: combine them by `&`."
)
def causal_instead_of_mask(*args, **kwargs):
    return _chunked(*args, **kwargs, combine=lambda allowed, below: below)


@chunked_attention.mistake(
    "You computed everything at once, and cut the result. The whole table of weights was there: "
    "hand `attend` one chunk at a time."
)
def all_at_once(
    q, k, v, mask=None, *, chunk, causal=False, recompute=False, attend=masked_attention
):
    t, s = q.shape[-2], k.shape[-2]
    if chunk < 1:
        raise ValueError(f"chunk={chunk}")
    if causal:
        mask = causal_mask(t, s) if mask is None else mask & causal_mask(t, s)
    output, _ = attend(q, k, v, mask)
    return torch.cat(output.split(chunk, dim=-2), dim=-2)


@chunked_attention.mistake(
    "You keep the weights of all chunks until the end (a list of what `attend` returns holds both "
    "results). Together they are the whole table: keep the outputs alone."
)
def keeps_the_weights(*args, **kwargs):
    return _chunked(
        *args,
        **kwargs,
        keep=lambda result: result,
        join=lambda results: torch.cat([output for output, _ in results], -2),
    )


@chunked_attention.mistake(
    "In causal attention you hand each chunk all the keys. Those after its last query are "
    "forbidden to all of it: leave them out, and save half of the work."
)
def all_keys_always(*args, **kwargs):
    def triangle(start, stop, t, s):
        return torch.arange(s) <= torch.arange(s - t + start, s - t + stop)[:, None]

    return _chunked(*args, **kwargs, triangle=triangle, end_of=lambda stop, t, s, causal: s)


@chunked_attention.mistake(
    "You do not use `recompute`: in training, each chunk's weights are kept for the way back, and "
    "together they are the whole table."
)
def nothing_recomputed(*args, recompute=False, **kwargs):
    return _chunked(*args, **kwargs)


@chunked_attention.mistake(
    "You wrapped the whole loop in one checkpoint: on the way back all chunks are computed again "
    "at once, and their weights are all there. Wrap each chunk by itself."
)
def one_checkpoint_for_all(*args, recompute=False, **kwargs):
    if not recompute:
        return _chunked(*args, **kwargs)
    return checkpoint(lambda: _chunked(*args, **kwargs), use_reentrant=False)


@chunked_attention.mistake(
    "No gradient gets through: `.data`, `.detach()` and `torch.no_grad()` cut your outputs off."
)
def no_gradients(*args, **kwargs):
    output = _chunked(*args, **kwargs)
    return output.detach() + 0 * sum(x.sum() for x in args[:3])


@chunked_attention.mistake(
    "You accept a chunk of 0 or less. Raise a `ValueError` that gives the chunk."
)
def refuses_nothing(*args, **kwargs):
    return _chunked(*args, **kwargs, refuse=False)


@chunked_attention.mistake(
    "You join the chunks along the first axis. With a batch, the queries are on the last but one."
)
def joined_along_the_first(*args, **kwargs):
    return _chunked(*args, **kwargs, join=lambda outputs: torch.cat(outputs, 0))


@chunked_attention.alternative
def into_an_empty_tensor(q, k, v, mask=None, *, chunk, causal=False, recompute=False, attend=masked_attention):  # fmt: skip  # noqa: E501
    t, s = q.size(-2), k.size(-2)
    if chunk <= 0:
        raise ValueError(f"a chunk of {chunk}")
    if causal and s < t:
        raise ValueError(f"{t} > {s}")
    result = v.new_zeros(*q.shape[:-1], v.size(-1))
    for start in range(0, t, chunk):
        stop = start + chunk if start + chunk < t else t
        rows = slice(start, stop)

        def one(queries, start=start, stop=stop, rows=rows):
            keys, values, allowed = k, v, None
            if mask is not None:
                allowed = torch.broadcast_to(mask, (*q.shape[:-1], s))[..., rows, :]
            if causal:
                end = s - t + stop
                keys, values = k[..., :end, :], v[..., :end, :]
                below = torch.arange(end) <= torch.arange(s - t + start, end)[:, None]
                allowed = below if allowed is None else below & allowed[..., :end]
            return attend(queries, keys, values, mask=allowed)[0]

        run = (lambda x, f=one: checkpoint(f, x, use_reentrant=False)) if recompute else one
        result[..., rows, :] = run(q[..., rows, :])
    return result


@chunked_attention.alternative
def with_split(
    q, k, v, mask=None, *, chunk, causal=False, recompute=False, attend=masked_attention
):
    if chunk < 1:
        raise ValueError(f"chunk must be positive: {chunk}")
    t, s = q.shape[-2], k.shape[-2]
    if causal:
        causal_mask(t, s)  # refuses more queries than keys
    if mask is None:
        mask = torch.ones((), dtype=torch.bool)
    masks = mask.expand(q.shape[:-1] + (s,)).split(chunk, dim=-2)
    seen, outputs = s - t, []
    for queries, rows in zip(q.split(chunk, dim=-2), masks):
        seen = seen + queries.shape[-2] if causal else s

        def one(queries, rows, seen):
            if causal:
                rows = rows[..., :seen].logical_and(causal_mask(queries.shape[-2], seen))
            output, weights = attend(queries, k[..., :seen, :], v[..., :seen, :], rows)
            return output

        if recompute:
            output = checkpoint(one, queries, rows, seen, use_reentrant=False)
        else:
            output = one(queries, rows, seen)
        outputs += [output]
    return torch.cat(outputs, dim=q.ndim - 2)


@chunked_attention.alternative
def weights_named(q, k, v, mask=None, *, chunk, causal=False, recompute=False, attend=masked_attention):  # fmt: skip  # noqa: E501
    t, s = q.shape[-2], k.shape[-2]
    if chunk < 1 or (causal and t > s):
        raise ValueError(f"chunk={chunk}, T={t}, S={s}")
    everything = torch.ones(t, s, dtype=torch.bool) if mask is None else mask
    everything = everything.expand(*q.shape[:-1], s)
    if causal:
        everything = everything & causal_mask(t, s)
    outputs = []
    for start in range(0, t, chunk):
        stop = min(start + chunk, t)
        end = s - t + stop if causal else s
        inputs = (
            q[..., start:stop, :],
            k[..., :end, :],
            v[..., :end, :],
            everything[..., start:stop, :end],
        )
        if recompute:
            output, weights = checkpoint(attend, *inputs, use_reentrant=False)
        else:
            output, weights = attend(*inputs)
        outputs.append(output)
    return torch.cat(outputs, -2)


# ----------------------------------------------------------------------- depends_on_chunk


def depends_on_chunk(
    attend: Callable[[Tensor, Tensor, Tensor, int], Tensor],
    q: Float[Tensor, "B T K"],
    k: Float[Tensor, "B T K"],
    v: Float[Tensor, "B T Kv"],
) -> bool:
    """Find out whether the size of the chunks makes a difference to what an attention returns.

    Put it to the test with every chunk from 1 to T + 1: the outputs should all be the same.
    Differences up to 1e-6 are rounding; a slip may change a single query of one sequence by a
    hundredth, and show for one single chunk only.

    Args:
        attend: takes queries, keys, values and the size of a chunk; gives an output (B, T, Kv).
            What it computes need not be the attention you know; the question is only whether
            the chunk makes a difference.
        q: queries to try it on. Left unchanged.
        k: keys.
        v: values.

    Returns:
        True if two chunks from 1 to T + 1 give different outputs.
    """
    whole = attend(q, k, v, q.shape[1])
    return any(
        not torch.allclose(attend(q, k, v, chunk), whole, atol=1e-6)
        for chunk in range(1, q.shape[1] + 2)
    )


# What it is tried on. The names say what they do.


def right_by_chunks(q, k, v, chunk):
    return reference.chunked_attention(q, k, v, chunk=chunk, causal=True)


def without_causality(q, k, v, chunk):
    return reference.chunked_attention(q, k, v, chunk=chunk)


def chunk_plays_no_part(q, k, v, chunk):
    return masked_attention(q, k, v, causal_mask(q.shape[1]))[0]


def right_but_for_rounding(q, k, v, chunk):
    return chunk_plays_no_part(q, k, v, chunk) + 1e-9 * chunk


def wrong_but_the_same_for_all(q, k, v, chunk):
    return masked_attention(3 * q, k, 2 * v)[0]


def offset_missing(q, k, v, chunk):
    return offset_forgotten(q, k, v, chunk=chunk, causal=True)


def keys_cut_too(q, k, v, chunk):
    return block_diagonal(q, k, v, chunk=chunk)


def rest_is_zero(q, k, v, chunk):
    output = chunk_plays_no_part(q, k, v, chunk)
    t = q.shape[1]
    whole = t - t % chunk or t
    return torch.cat([output[:, :whole], torch.zeros_like(output[:, whole:])], 1)


def wrong_if_larger_than_the_text(q, k, v, chunk):
    return chunk_plays_no_part(q, k, v, chunk) * (1 if chunk <= q.shape[1] else 1.5)


def wrong_one_by_one(q, k, v, chunk):
    return chunk_plays_no_part(q, k, v, chunk) + (0.1 if chunk == 1 else 0)


def wrong_for_one_chunk(q, k, v, chunk):
    return chunk_plays_no_part(q, k, v, chunk) + (0.1 if chunk == 4 else 0)


def wrong_just_below_the_whole(q, k, v, chunk):
    return chunk_plays_no_part(q, k, v, chunk) + (0.1 if chunk == q.shape[1] - 1 else 0)


def wrong_in_two_chunks_of_equal_size(q, k, v, chunk):
    return chunk_plays_no_part(q, k, v, chunk) + (0.1 if 2 * chunk == q.shape[1] else 0)


def wrong_only_when_whole(q, k, v, chunk):
    return chunk_plays_no_part(q, k, v, chunk) + (0.1 if chunk == q.shape[1] else 0)


def _one_query(q, b, t):
    here = torch.zeros(*q.shape[:2], 1, dtype=q.dtype)
    here[b, t] = 0.01
    return here


def faint_in_the_first_query(q, k, v, chunk):
    return chunk_plays_no_part(q, k, v, chunk) + (_one_query(q, 0, 0) if chunk == 3 else 0)


def second_sequence_only(q, k, v, chunk):
    return chunk_plays_no_part(q, k, v, chunk) + (_one_query(q, 1, -1) if chunk < 3 else 0)


def sum_stays_the_same(q, k, v, chunk):
    output = chunk_plays_no_part(q, k, v, chunk)
    return output.roll(1, dims=1) if chunk == 2 else output


depends_on_chunk_exercise = chapter.exercise(depends_on_chunk, difficulty=2, minutes=10)


def _try(t: Trial, *functions: Callable) -> None:
    for function in functions:
        t.same(function, *qkv(t, 2, queries=6, keys=6, dtype=torch.float64))


@depends_on_chunk_exercise.group(
    "right ones, and two famous slips",
    points=2,
    hint="Compare what `attend` gives for one chunk with what it gives for another.",
)
def _(t: Trial):
    _try(t, right_by_chunks, offset_missing, without_causality, keys_cut_too)
    _try(t, right_but_for_rounding, rest_is_zero)


@depends_on_chunk_exercise.group(
    "slips of one single chunk",
    points=2,
    hint="Which chunks are there? 1, the divisors of T, those that leave a rest, T itself, and one "
    "more than T.",
)
def _(t: Trial):
    _try(t, wrong_if_larger_than_the_text, wrong_one_by_one, right_by_chunks, wrong_for_one_chunk)
    _try(t, wrong_just_below_the_whole, wrong_in_two_chunks_of_equal_size, wrong_only_when_whole)


@depends_on_chunk_exercise.group(
    "slips of one query, one sequence, a hundredth",
    points=1,
    hint="Compare all outputs, element by element: `torch.allclose(one, other, atol=1e-6)`.",
)
def _(t: Trial):
    _try(t, without_causality, faint_in_the_first_query, second_sequence_only, sum_stays_the_same)


@depends_on_chunk_exercise.group(
    "the chunk is the only question",
    points=1,
    hint="An attention may be unlike the one you know, and still not depend on the chunk. Compare "
    "`attend` with itself.",
)
def _(t: Trial):
    _try(t, wrong_but_the_same_for_all, keys_cut_too)
    t.unchanged(right_by_chunks, *qkv(t, 2, queries=4, keys=4, dtype=torch.float64))


def _differs(attend, q, k, v, chunks, atol=1e-6):
    outputs = [attend(q, k, v, chunk) for chunk in chunks]
    return any(not torch.allclose(o, outputs[0], atol=atol) for o in outputs[1:])


@depends_on_chunk_exercise.mistake(
    "You answer the wrong way round: True means that the chunk makes a difference."
)
def says_whether_equal(attend, q, k, v):
    return not depends_on_chunk(attend, q, k, v)


@depends_on_chunk_exercise.mistake(
    "You compare with `masked_attention`. The question is whether `attend` agrees with itself, "
    "whatever it computes."
)
def against_the_truth(attend, q, k, v):
    return any(
        not any(
            torch.allclose(attend(q, k, v, chunk), masked_attention(q, k, v, mask)[0], atol=1e-6)
            for mask in (None, causal_mask(q.shape[1]))
        )
        for chunk in range(1, q.shape[1] + 2)
    )


@depends_on_chunk_exercise.mistake(
    "You tried no chunk larger than T: T + 1 is to be tried as well."
)
def none_beyond(attend, q, k, v):
    return _differs(attend, q, k, v, range(1, q.shape[1] + 1))


@depends_on_chunk_exercise.mistake("You did not try chunks of 1.")
def none_of_one(attend, q, k, v):
    return _differs(attend, q, k, v, range(2, q.shape[1] + 2))


@depends_on_chunk_exercise.mistake(
    "You tried divisors of T only. Chunks that leave a rest are where slips hide."
)
def divisors_only(attend, q, k, v):
    t = q.shape[1]
    return _differs(attend, q, k, v, [c for c in range(1, t + 1) if t % c == 0])


@depends_on_chunk_exercise.mistake(
    "You tried two chunks. A slip may show for one single size: try them all, from 1 to T + 1."
)
def two_chunks(attend, q, k, v):
    return _differs(attend, q, k, v, [q.shape[1], 2])


@depends_on_chunk_exercise.mistake(
    "You tried powers of two only. Sizes between them have slips, too."
)
def powers_of_two(attend, q, k, v):
    return _differs(attend, q, k, v, [1, 2, 4, q.shape[1], q.shape[1] + 1])


@depends_on_chunk_exercise.mistake(
    "You did not try the chunk T itself: `range(1, T)` ends before it."
)
def not_the_whole(attend, q, k, v):
    t = q.shape[1]
    return _differs(attend, q, k, v, [*range(1, t), t + 1])


@depends_on_chunk_exercise.mistake(
    "You compare sums (or means) of the outputs. Two that differ can have the same."
)
def sums_only(attend, q, k, v):
    return depends_on_chunk(lambda *args: attend(*args).sum((0, 1)), q, k, v)


@depends_on_chunk_exercise.mistake("You compare the first sequence alone. Another one may differ.")
def first_sequence(attend, q, k, v):
    return depends_on_chunk(lambda *args: attend(*args)[:1], q, k, v)


@depends_on_chunk_exercise.mistake("You compare the last query alone. Another one may differ.")
def last_query(attend, q, k, v):
    return depends_on_chunk(lambda *args: attend(*args)[:, -1], q, k, v)


@depends_on_chunk_exercise.mistake(
    "Your tolerance is so wide that a slip of a hundredth passes for rounding, which stays below "
    "1e-6."
)
def wide_tolerance(attend, q, k, v):
    return _differs(attend, q, k, v, range(1, q.shape[1] + 2), atol=0.05)


@depends_on_chunk_exercise.mistake(
    "You require equality to the last bit. Another chunk may add up in another order: allow 1e-6 "
    "for rounding."
)
def to_the_last_bit(attend, q, k, v):
    whole = attend(q, k, v, q.shape[1])
    return any(not torch.equal(attend(q, k, v, c), whole) for c in range(1, q.shape[1] + 2))


@depends_on_chunk_exercise.alternative
def with_a_loop(attend, q, k, v):
    first = None
    for chunk in range(1, q.shape[-2] + 2):
        output = attend(q, k, v, chunk)
        if first is None:
            first = output
        elif float((output - first).abs().max()) > 1e-6:
            return True
    return False


@depends_on_chunk_exercise.alternative
def all_stacked(attend, q, k, v):
    outputs = torch.stack([attend(q, k, v, c + 1) for c in range(q.shape[1] + 1)])
    spread = outputs.amax(0) - outputs.amin(0)
    return bool((spread > 1e-5).any())


@depends_on_chunk_exercise.alternative
def by_the_length_of_the_difference(attend, q, k, v):
    beyond = attend(q, k, v, q.shape[1] + 1)
    return max((attend(q, k, v, c) - beyond).norm() for c in range(1, q.shape[1] + 1)) > 1e-6


# ------------------------------------------------------------------------ chunked_entropy

chunked_entropy = chapter.exercise(
    reference.chunked_entropy, difficulty=3, minutes=12, mend="handed_out"
)


def qk(t: Trial, *batch: int, queries=6, keys=6, dtype=torch.float64):
    return t.randn(*batch, queries, 3, dtype=dtype), t.randn(*batch, keys, 3, dtype=dtype)


@chunked_entropy.group(
    "one chunk for all",
    points=1,
    hint="With a chunk of T there is one round of the loop, and nothing to go wrong.",
)
def _(t: Trial):
    t.same(*qk(t), chunk=6)
    t.same(*qk(t, 2, keys=9), chunk=6)


@chunked_entropy.group(
    "several chunks",
    points=3,
    hint="Where in the text does the first query of the second chunk stand, and how many keys may "
    "it see? Print `mask` for start = 3.",
)
def _(t: Trial):
    t.same(*qk(t), chunk=3)
    t.same(*qk(t, 2, keys=9), chunk=2)
    t.same(*qk(t, 2, 3), chunk=1)
    if t.graded:
        t.same(*qk(t, 3, queries=12, keys=13), chunk=t.choice([3, 4]))


@chunked_entropy.group(
    "chunks that leave a rest",
    points=2,
    hint="7 queries by chunks of 3: how often does the loop go round, and how often should it?",
)
def _(t: Trial):
    t.same(*qk(t, queries=7, keys=7), chunk=3)
    t.same(*qk(t, 2, queries=5, keys=8), chunk=4)
    t.same(*qk(t, 2), chunk=20)


def _entropies(q, k, chunk, starts, stop_of, mask_of, end_of=None):
    t, s = q.shape[-2], k.shape[-2]
    found = []
    for start in starts(t):
        stop = stop_of(start, t)
        scores = attention_scores(q[..., start:stop, :], k)
        weights = masked_softmax(scores, mask_of(start, stop, t, s))
        found.append(attention_entropy(weights))
    return torch.cat(found, dim=-1)


@chunked_entropy.mistake("This is the code that you were given; it still has both its bugs.")
def handed_out(q, k, *, chunk):
    s = k.shape[-2]
    entropies = []
    for i in range(q.shape[-2] // chunk):
        queries = q[..., i * chunk : (i + 1) * chunk, :]
        scores = attention_scores(queries, k)  # (*batch, chunk, S)
        mask = causal_mask(queries.shape[-2], s, device=q.device)
        entropies.append(attention_entropy(masked_softmax(scores, mask)))  # (*batch, chunk)
    return torch.cat(entropies, dim=-1)


@chunked_entropy.mistake(
    "The rest is there now, and every chunk still sees the keys to the end: its queries are the "
    "last of the first S - T + stop positions, not of all S."
)
def still_the_last_queries(q, k, *, chunk):
    return _entropies(
        q, k, chunk,
        lambda t: range(0, t, chunk),
        lambda start, t: min(start + chunk, t),
        lambda start, stop, t, s: causal_mask(stop - start, s),
    )  # fmt: skip


@chunked_entropy.mistake(
    "The positions are right now, and the rest still falls off the end: T // chunk counts whole "
    "chunks only."
)
def rest_still_missing(q, k, *, chunk):
    return _entropies(
        q, k, chunk,
        lambda t: range(0, t // chunk * chunk, chunk),
        lambda start, t: min(start + chunk, t),
        lambda start, stop, t, s: causal_mask(t, s)[start:stop],
    )  # fmt: skip


@chunked_entropy.mistake(
    "Your chunks start anew at position 0: query i of a chunk stands at S - T + start + i."
)
def positions_from_zero(q, k, *, chunk):
    return _entropies(
        q, k, chunk,
        lambda t: range(0, t, chunk),
        lambda start, t: min(start + chunk, t),
        lambda start, stop, t, s: torch.arange(s) <= torch.arange(s - t, s - t + stop - start)[:, None],  # noqa: E501
    )  # fmt: skip


@chunked_entropy.mistake(
    "You took the queries for the first T positions. They are the last T of S: add S - T."
)
def not_the_last_of_s(q, k, *, chunk):
    return _entropies(
        q, k, chunk,
        lambda t: range(0, t, chunk),
        lambda start, t: min(start + chunk, t),
        lambda start, stop, t, s: torch.arange(s) <= torch.arange(start, stop)[:, None],
    )  # fmt: skip


@chunked_entropy.mistake(
    "You added a round for the rest always: where the chunk divides T, it has no queries. Or it "
    "goes back and takes some queries twice."
)
def rest_taken_twice(q, k, *, chunk):
    return _entropies(
        q, k, chunk,
        lambda t: [*range(0, max(t - chunk, 0) + 1, chunk), max(t - chunk, 0)],
        lambda start, t: min(start + chunk, t),
        lambda start, stop, t, s: causal_mask(t, s)[start:stop],
    )  # fmt: skip


@chunked_entropy.mistake("You dropped the causal mask: your queries see the future.")
def mask_dropped(q, k, *, chunk):
    return _entropies(
        q, k, chunk,
        lambda t: range(0, t, chunk),
        lambda start, t: min(start + chunk, t),
        lambda start, stop, t, s: torch.ones(stop - start, s, dtype=torch.bool),
    )  # fmt: skip


@chunked_entropy.mistake(
    "Your chunks see their own tokens only. Every query sees all the keys up to its position."
)
def own_chunk_only(q, k, *, chunk):
    def mask_of(start, stop, t, s):
        return causal_mask(t, s)[start:stop] & (torch.arange(s) >= s - t + start)

    return _entropies(
        q, k, chunk,
        lambda t: range(0, t, chunk),
        lambda start, t: min(start + chunk, t),
        mask_of,
    )  # fmt: skip


@chunked_entropy.mistake(
    "Your mask is one column too wide: each query sees one key after its own position."
)
def one_too_wide(q, k, *, chunk):
    return _entropies(
        q, k, chunk,
        lambda t: range(0, t, chunk),
        lambda start, t: min(start + chunk, t),
        lambda start, stop, t, s: torch.arange(s) <= torch.arange(s - t + start, s - t + stop)[:, None] + 1,  # noqa: E501
    )  # fmt: skip


@chunked_entropy.alternative
def without_chunks(q, k, *, chunk):
    mask = causal_mask(q.shape[-2], k.shape[-2])
    return attention_entropy(masked_softmax(attention_scores(q, k), mask))


@chunked_entropy.alternative
def mended_in_place(q, k, *, chunk):
    t, s = q.shape[-2], k.shape[-2]
    entropies = []
    for i in range(math.ceil(t / chunk)):
        queries = q[..., i * chunk : (i + 1) * chunk, :]
        scores = attention_scores(queries, k)
        positions = s - t + i * chunk + torch.arange(queries.shape[-2])
        mask = torch.arange(s) <= positions[:, None]
        entropies.append(attention_entropy(masked_softmax(scores, mask)))
    return torch.cat(entropies, dim=-1)


@chunked_entropy.alternative
def by_hand(q, k, *, chunk):
    parts = []
    allowed = causal_mask(q.shape[-2], k.shape[-2]).split(chunk)
    for queries, mask in zip(q.split(chunk, dim=-2), allowed):
        scores = torch.einsum("...tk,...sk->...ts", queries, k) / q.shape[-1] ** 0.5
        logs = torch.log_softmax(scores.masked_fill(~mask, -torch.inf), -1)
        parts.append(-(logs.exp() * logs.masked_fill(~mask, 0)).sum(-1))
    return torch.cat(parts, -1)


# --------------------------------------------------------------------------- fit_exponent

fit_exponent = chapter.exercise(
    reference.fit_exponent, difficulty=3, minutes=10, forbidden=["polyfit", "linregress"]
)


def measured(t: Trial, lengths: list[int], exponent: float, factor: float, runs: list[int]):
    """Costs with noise, a different number of runs at each length, the odd run much slower."""
    costs = []
    for n, count in zip(lengths, runs):
        noise = (0.2 * t.randn(count, dtype=torch.float64)).exp()
        noise[0] *= 8
        costs.append((factor * n**exponent * noise).tolist())
    return lengths, costs


@fit_exponent.group(
    "exact power laws",
    points=2,
    hint="log cost = log factor + exponent · log length: a straight line. The slope of the line "
    "through points (x, y) by least squares is Σ (x - x̄)(y - ȳ) / Σ (x - x̄)².",
)
def _(t: Trial):
    t.same([1, 2, 4, 8], [[3.0], [12.0], [48.0], [192.0]])
    t.same([3, 5, 11], [[2.0 * n**1.5] for n in (3, 5, 11)])
    t.same([10, 7, 2], [[5e-4 * n] for n in (10, 7, 2)])
    t.same([256, 512], [[1024], [2048]])
    t.same([2, 6], [[7.0], [7.0]])


@fit_exponent.group(
    "measurements with noise",
    points=2,
    hint="All lengths count, in logarithms of both, with a line that need not go through (0, 0).",
)
def _(t: Trial):
    lengths = [3, 7, 20, 33, 100]
    noise = (0.3 * t.randn(5, dtype=torch.float64)).exp().tolist()
    t.same(lengths, [[0.2 * n**1.7 * e] for n, e in zip(lengths, noise)])
    t.same(lengths[:4], [[40.0 * n**0.8 * e] for n, e in zip(lengths[:4], noise[1:])])


@fit_exponent.group(
    "medians of several runs",
    points=2,
    hint="`statistics.median`: of an even number of runs it is the mean of the two in the middle. "
    "`torch.median` takes the lower of them.",
)
def _(t: Trial):
    t.same(*measured(t, [4, 9, 30, 80], 2.0, 0.01, [5, 5, 5, 5]))
    t.same(*measured(t, [4, 9, 30, 80], 1.2, 3.0, [4, 4, 4, 4]))
    t.same(*measured(t, [90, 5, 20], 1.6, 0.5, [2, 6, 3]))


def _line(x, y):
    x, y = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return slope.item(), (y.mean() - slope * x.mean()).item()


def _logs(values):
    return [math.log(value) for value in values]


def _medians(runs):
    return [statistics.median(run) for run in runs]


@fit_exponent.mistake(
    "You fitted a line to lengths and costs themselves. Take the logarithm of both: a power law is "
    "a straight line there."
)
def without_logarithms(lengths, runs):
    return _line(lengths, _medians(runs))


@fit_exponent.mistake(
    "You took the logarithm of the costs only. That fits an exponential; a power law needs both."
)
def costs_only(lengths, runs):
    exponent, shift = _line(lengths, _logs(_medians(runs)))
    return exponent, math.exp(shift)


@fit_exponent.mistake(
    "You took the mean of the runs. One slow run pulls it up; the median does not mind."
)
def means(lengths, runs):
    exponent, shift = _line(_logs(lengths), _logs([statistics.mean(run) for run in runs]))
    return exponent, math.exp(shift)


@fit_exponent.mistake(
    "You took the fastest run. The docstring asks for the median, which is what usually happens."
)
def fastest(lengths, runs):
    exponent, shift = _line(_logs(lengths), _logs([min(run) for run in runs]))
    return exponent, math.exp(shift)


@fit_exponent.mistake("You took the first run of each length. Use them all, by their median.")
def first_run(lengths, runs):
    exponent, shift = _line(_logs(lengths), _logs([run[0] for run in runs]))
    return exponent, math.exp(shift)


@fit_exponent.mistake(
    "Of an even number of runs you take the lower (or upper) of the two in the middle, as "
    "`torch.median` does. Take their mean, as `statistics.median` does."
)
def lower_median(lengths, runs):
    exponent, shift = _line(_logs(lengths), _logs([statistics.median_low(run) for run in runs]))
    return exponent, math.exp(shift)


@fit_exponent.mistake(
    "You took the middle run without sorting: the median is the middle one by size."
)
def unsorted_median(lengths, runs):
    middle = [(run[len(run) // 2] + run[(len(run) - 1) // 2]) / 2 for run in runs]
    exponent, shift = _line(_logs(lengths), _logs(middle))
    return exponent, math.exp(shift)


@fit_exponent.mistake(
    "You used two points only, the first and the last. Each measurement has an error; least "
    "squares lets all of them count."
)
def two_points(lengths, runs):
    x, y = _logs(lengths), _logs(_medians(runs))
    exponent = (y[-1] - y[0]) / (x[-1] - x[0])
    return exponent, math.exp(y[0] - exponent * x[0])


@fit_exponent.mistake(
    "You averaged the slopes between neighbours. The line by least squares weighs them otherwise."
)
def neighbours(lengths, runs):
    x, y = _logs(lengths), _logs(_medians(runs))
    slopes = [(y[i + 1] - y[i]) / (x[i + 1] - x[i]) for i in range(len(x) - 1)]
    exponent = sum(slopes) / len(slopes)
    return exponent, math.exp(sum(y) / len(y) - exponent * sum(x) / len(x))


@fit_exponent.mistake(
    "Your line goes through (0, 0), as if length 1 cost 1. It needs an intercept, the factor."
)
def through_the_origin(lengths, runs):
    x, y = _logs(lengths), _logs(_medians(runs))
    return sum(a * b for a, b in zip(x, y)) / sum(a * a for a in x), 1.0


@fit_exponent.mistake(
    "You swapped the axes: the slope of the cost over the length is asked for, not the other."
)
def swapped_axes(lengths, runs):
    x, y = _logs(lengths), _logs(_medians(runs))
    if len(set(y)) == 1:
        return math.inf, 1.0
    slope, shift = _line(y, x)
    return slope, math.exp(shift)


@fit_exponent.mistake(
    "Your factor is a logarithm: the line gives log factor. Take its exponential."
)
def logarithm_of_the_factor(lengths, runs):
    return _line(_logs(lengths), _logs(_medians(runs)))


@fit_exponent.mistake(
    "You mixed logarithms: what `log2` or `log10` took, `exp` does not give back."
)
def mixed_bases(lengths, runs):
    x, y = [math.log2(n) for n in lengths], [math.log2(c) for c in _medians(runs)]
    exponent, shift = _line(x, y)
    return exponent, math.exp(shift)


@fit_exponent.mistake("You return the factor first. The exponent comes first.")
def factor_first(lengths, runs):
    return reference.fit_exponent(lengths, runs)[::-1]


@fit_exponent.mistake("You return the exponent alone. Return the exponent and the factor.")
def exponent_alone(lengths, runs):
    return reference.fit_exponent(lengths, runs)[0]


@fit_exponent.alternative
def with_numpy(lengths, runs):
    x = np.log10(np.array(lengths, dtype=float))
    y = np.log10([np.median(run) for run in runs])
    slope = np.cov(x, y, bias=True)[0, 1] / np.var(x)
    return slope, 10 ** (y.mean() - slope * x.mean())


@fit_exponent.alternative
def with_lstsq(lengths, runs):
    x = torch.tensor(lengths).double().log()
    y = torch.stack([torch.tensor(run).double().quantile(0.5) for run in runs]).log()
    design = torch.stack([x, torch.ones_like(x)], dim=1)
    slope, shift = torch.linalg.lstsq(design, y[:, None]).solution.flatten()
    return [slope, shift.exp()]


@fit_exponent.alternative
def with_plain_python(lengths, runs):
    costs = []
    for run in runs:
        run = sorted(run)
        half = len(run) // 2
        costs.append(run[half] if len(run) % 2 else (run[half - 1] + run[half]) / 2)
    x, y, n = _logs(lengths), _logs(costs), len(lengths)
    sxy = sum(a * b for a, b in zip(x, y)) - sum(x) * sum(y) / n
    sxx = sum(a * a for a in x) - sum(x) ** 2 / n
    return sxy / sxx, math.exp((sum(y) - sxy / sxx * sum(x)) / n)
