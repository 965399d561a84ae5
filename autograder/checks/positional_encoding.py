"""Checks of chapter 07: positions that are added, rotated, and taken off the scores."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from autograder.checking import Chapter, Trial
from solutions import positional_encoding as reference
from solutions.masking import causal_mask, masked_attention
from solutions.positional_encoding import apply_rope, rope_angles

chapter = Chapter("07_positional_encoding", "Positional encoding")
check = chapter.check


def _even(width, name):
    if width % 2:
        raise ValueError(f"{name}={width} is odd")


# -------------------------------------------------------------------- sinusoidal_encoding

sinusoidal_encoding = chapter.exercise(reference.sinusoidal_encoding, difficulty=3, minutes=10)


@sinusoidal_encoding.group(
    "sines and cosines",
    points=2,
    hint="For position 0 every sine is 0 and every cosine 1: [0, 1, 0, 1, ...]. For position 1 the "
    "first pair is sin 1, cos 1.",
)
def _(t: Trial):
    t.same(torch.arange(5), 6)
    t.same(torch.arange(7), 10)
    t.same(torch.tensor([t.integer(3, 30), 0]), 2)
    if t.graded:
        t.same(torch.arange(9), 2 * t.integer(6, 12))


@sinusoidal_encoding.group(
    "positions of any shape",
    points=1,
    hint="`positions.unsqueeze(-1)` puts an axis of length 1 behind whatever axes there are.",
)
def _(t: Trial):
    t.same(t.randint(0, 60, (2, 5)), 8)
    t.same(torch.tensor(t.integer(2, 40)), 6)
    t.same(t.randint(0, 60, (3, 1, 4)), 4)
    t.same(torch.tensor([9, 4, 7], dtype=torch.int32), 8)


@sinusoidal_encoding.group(
    "another base", points=1, hint="Frequency i is base^(-2i / d_model), whatever the base."
)
def _(t: Trial):
    t.same(torch.arange(6), 8, base=100.0)
    t.same(torch.arange(6), 6, 500)


@sinusoidal_encoding.group(
    "far positions, and dtypes",
    points=1,
    hint="In float32 the angle 1,000,000 has no digits left behind the point. Make positions and "
    "frequencies float64, and convert the result at the very end, with `.to(dtype)`.",
)
def _(t: Trial):
    t.same(torch.tensor([100_003, 2_000_001 + t.integer(0, 1000)]), 8)
    for kind in (torch.float64, torch.float16, torch.float32):
        t.same(torch.arange(20), 6, 10_000.0, kind, dtype=True)


@sinusoidal_encoding.group(
    "an odd width is refused by name",
    points=1,
    hint="Raise a ValueError that gives d_model, before anything else.",
)
def _(t: Trial):
    t.raises(ValueError, torch.arange(4), 7, naming="7")
    t.raises(ValueError, torch.arange(4), 13, naming="13")


def _pairs(positions, frequencies, dtype, order=("sin", "cos")):
    angles = positions.double()[..., None] * frequencies
    return torch.stack([getattr(angles, f)() for f in order], -1).flatten(-2).to(dtype)


def _frequencies(width, base):
    return base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)


@sinusoidal_encoding.mistake(
    "You put all sines first and all cosines behind them. Here they alternate: sine, cosine, sine, "
    "cosine."
)
def sines_then_cosines(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    angles = positions.double()[..., None] * _frequencies(d_model, base)
    return torch.cat([angles.sin(), angles.cos()], -1).to(dtype)


@sinusoidal_encoding.mistake("You put the cosine before the sine in each pair.")
def cosine_first(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    return _pairs(positions, _frequencies(d_model, base), dtype, ("cos", "sin"))


@sinusoidal_encoding.mistake(
    "Your exponent is i / d_model, without the 2: your slowest frequency is much too fast."
)
def exponent_without_2(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    i = torch.arange(d_model // 2, dtype=torch.float64)
    return _pairs(positions, base ** (-i / d_model), dtype)


@sinusoidal_encoding.mistake(
    "Your sine and your cosine of a pair have different frequencies. Both elements of pair i use "
    "base^(-2i / d_model)."
)
def a_frequency_for_each_element(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    j = torch.arange(d_model, dtype=torch.float64)
    angles = positions.double()[..., None] * base ** (-j / d_model)
    return torch.where(j % 2 == 0, angles.sin(), angles.cos()).to(dtype)


@sinusoidal_encoding.mistake(
    "Your frequencies grow with i: the sign of the exponent is missing. The first pair turns "
    "fastest, by 1 radian a position."
)
def growing_frequencies(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    return _pairs(positions, 1 / _frequencies(d_model, base), dtype)


@sinusoidal_encoding.mistake(
    "Your slowest frequency is exactly 1 / base: you divided by d_model / 2 - 1 steps where the "
    "formula has d_model / 2."
)
def spread_to_the_end(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    i = torch.arange(d_model // 2, dtype=torch.float64)
    return _pairs(positions, base ** (-i / max(d_model // 2 - 1, 1)), dtype)


@sinusoidal_encoding.mistake("You count positions from 1: position 0 should be [0, 1, 0, 1, ...].")
def counted_from_1(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    return _pairs(positions + 1, _frequencies(d_model, base), dtype)


@sinusoidal_encoding.mistake(
    "You have a factor 2π in the angle. Here the first pair turns by 1 radian a position, not by "
    "one turn."
)
def in_turns(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    return _pairs(positions, 2 * math.pi * _frequencies(d_model, base), dtype)


@sinusoidal_encoding.mistake(
    "You computed the angles in float32. At position 1,000,000 they are off by several hundredths, "
    "and so are your sines."
)
def angles_in_float32(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    angles = positions.float()[..., None] * _frequencies(d_model, base).float()
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2).to(dtype)


@sinusoidal_encoding.mistake(
    "Your frequencies are float32: rounded in their eighth digit, and off by tenths of a radian at "
    "position 1,000,000. Give `torch.arange` dtype=torch.float64."
)
def frequencies_in_float32(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    return _pairs(positions, base ** (-torch.arange(0, d_model, 2) / d_model), dtype)


@sinusoidal_encoding.mistake("You ignore `base`.")
def base_ignored(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    return _pairs(positions, _frequencies(d_model, 10_000.0), dtype)


@sinusoidal_encoding.mistake(
    "You ignore `dtype`: convert the result at the very end, `.to(dtype)`."
)
def dtype_ignored(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    return _pairs(positions, _frequencies(d_model, base), torch.float32)


@sinusoidal_encoding.mistake(
    "You ignore the positions that you are given, and count 0, 1, 2, ... along the last axis. A "
    "model that goes on from a cache starts elsewhere."
)
def counts_for_itself(positions, d_model, base=10_000.0, dtype=torch.float32):
    _even(d_model, "d_model")
    count = torch.arange(positions.shape[-1]) if positions.ndim else torch.tensor(0)
    return _pairs(count.expand(positions.shape), _frequencies(d_model, base), dtype)


@sinusoidal_encoding.mistake(
    "You do not refuse an odd d_model. Raise a `ValueError` that names it."
)
def odd_widths_accepted(positions, d_model, base=10_000.0, dtype=torch.float32):
    return _pairs(positions, _frequencies(d_model, base), dtype)


@sinusoidal_encoding.mistake("Your `ValueError` should give d_model, so that its reader knows.")
def refused_without_a_word(positions, d_model, base=10_000.0, dtype=torch.float32):
    if d_model % 2:
        raise ValueError("the width has to be even")
    return _pairs(positions, _frequencies(d_model, base), dtype)


@sinusoidal_encoding.alternative
def by_assignment(positions, d_model, base=10_000.0, dtype=torch.float32):
    if d_model % 2 == 1:
        raise ValueError(f"odd width {d_model}")
    result = torch.zeros(*positions.shape, d_model, dtype=torch.float64)
    rate = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float64) * (-math.log(base) / d_model))
    result[..., 0::2] = torch.sin(positions[..., None] * rate)
    result[..., 1::2] = torch.cos(positions[..., None] * rate)
    return result.to(dtype)


@sinusoidal_encoding.alternative
def with_python_numbers(positions, d_model, base=10_000.0, dtype=torch.float32):
    if d_model % 2:
        raise ValueError(f"{d_model}")
    rows = []
    for p in positions.flatten().tolist():
        row = []
        for i in range(d_model // 2):
            angle = p / base ** (2 * i / d_model)
            row += [math.sin(angle), math.cos(angle)]
        rows.append(row)
    return torch.tensor(rows, dtype=dtype).reshape(*positions.shape, d_model)


@sinusoidal_encoding.alternative
def with_shifted_sines(positions, d_model, base=10_000.0, dtype=torch.float32):
    if d_model % 2:
        raise ValueError(f"d_model {d_model}")
    j = torch.arange(d_model)
    rate = torch.tensor(
        [base ** (-(n - n % 2) / d_model) for n in range(d_model)], dtype=torch.float64
    )
    return torch.sin(positions.unsqueeze(-1) * rate + (j % 2).double() * (math.pi / 2)).to(dtype)


# ----------------------------------------------------------------------- LearnedPositions

LearnedPositions = chapter.exercise(reference.LearnedPositions, difficulty=2, minutes=7)


@LearnedPositions.group(
    "its table",
    points=2,
    hint="One parameter called `weight`, of shape (max_length, d_model), made with the `device` "
    "and `dtype` given; then `nn.init.normal_(self.weight, std=0.02)`.",
)
def _(t: Trial):
    t.model(9, 5)
    found = t.model(3, 4, dtype=torch.float64, device="cpu").call(torch.tensor([2, 0]))
    t.require(
        found.dtype == torch.float64,
        "With dtype=torch.float64 the vectors should be float64",
        found=str(found.dtype),
    )
    drawn = t.model(200, 60, load=False).state()["weight"]
    std, mean, largest = drawn.std().item(), drawn.mean().item(), drawn.abs().max().item()
    t.require(
        abs(std - 0.02) < 0.001 and abs(mean) < 0.001 and 0.06 < largest < 0.15,
        "At first the table should hold normal numbers of mean 0 and standard deviation 0.02",
        mean=mean,
        std=std,
        largest=largest,
    )


@LearnedPositions.group(
    "the vectors of positions of any shape",
    points=2,
    hint="A table, indexed with a tensor of whole numbers, gives a row for each of them.",
)
def _(t: Trial):
    m = t.model(9, 5)
    m.same(torch.arange(9))
    m.same(t.randint(0, 9, (2, 6)))
    m.same(torch.tensor([8, 3, 3, 0]))
    m.same(t.randint(0, 9, (2, 1, 3)))
    m.same(torch.tensor(t.integer(1, 9)))
    m.same(torch.zeros(2, 0, dtype=torch.long))


@LearnedPositions.group(
    "positions outside the table are refused by name",
    points=2,
    hint="Positions 0 to max_length - 1 are fine. For any other raise a ValueError that gives it, "
    "and max_length. Python reads table[-1] as the last row, so negative ones need care.",
)
def _(t: Trial):
    m = t.model(9, 5)
    m.raises(ValueError, torch.tensor([0, 9]), naming="9")
    m.raises(ValueError, torch.tensor([[3, 14, 2], [0, 1, 2]]), naming="14")
    m.raises(ValueError, torch.tensor([[3, 14, 2], [0, 1, 2]]), naming="9")
    m.raises(ValueError, torch.tensor([4, -1, 2]), naming="-1")
    m.raises(ValueError, torch.tensor(23), naming="23")
    m.same(torch.tensor([8, 0]))


@LearnedPositions.group(
    "gradients reach the rows used",
    points=1,
    hint="Is the table an `nn.Parameter`, and is the result cut off from it by `detach`?",
)
def _(t: Trial):
    m = t.model(7, 4)
    m.same_gradients(torch.tensor([[2, 5, 2], [0, 2, 6]]))


class _Table(nn.Module):
    """The reference's table and refusals, for mistakes that make them another way."""

    std = 0.02

    def __init__(self, max_length, d_model, device=None, dtype=None):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_length, d_model, device=device, dtype=dtype))
        nn.init.normal_(self.weight, std=self.std)

    def forward(self, positions):
        self.checked(positions)
        return self.look_up(positions)

    def checked(self, positions):
        n = len(self.weight)
        for p in positions.flatten().tolist():
            if not 0 <= p < n:
                raise ValueError(f"position {p}, max_length {n}")

    def look_up(self, positions):
        return self.weight[positions]


@LearnedPositions.mistake(
    "Your table starts with a standard deviation of 1, as in nn.Embedding. It should be 0.02: "
    "small beside the tokens to which it is added."
)
class StandardNormal(_Table):
    std = 1.0


@LearnedPositions.mistake(
    "Your table starts with zeros. Draw it from a normal distribution of standard deviation 0.02."
)
class StartsWithZeros(_Table):
    std = 0.0


@LearnedPositions.mistake(
    "Your numbers come from a uniform distribution. Use `nn.init.normal_` with std=0.02."
)
class Uniform(_Table):
    def __init__(self, max_length, d_model, device=None, dtype=None):
        super().__init__(max_length, d_model, device, dtype)
        nn.init.uniform_(self.weight, -0.02 * 3**0.5, 0.02 * 3**0.5)


@LearnedPositions.mistake(
    "Your table hangs in a module of its own, so that the parameter has a longer name. It should "
    "be called `weight`."
)
class InAModule(nn.Module):
    def __init__(self, max_length, d_model, device=None, dtype=None):
        super().__init__()
        self.embedding = nn.Embedding(max_length, d_model, device=device, dtype=dtype)

    def forward(self, positions):
        return self.embedding(positions)


@LearnedPositions.mistake(
    "Your table is a buffer: it is saved with the model, and never learned. Make it an "
    "`nn.Parameter`."
)
class ABuffer(_Table):
    def __init__(self, max_length, d_model, device=None, dtype=None):
        nn.Module.__init__(self)
        table = torch.empty(max_length, d_model, device=device, dtype=dtype).normal_(std=0.02)
        self.register_buffer("weight", table)


@LearnedPositions.mistake("Your table is the wrong way round: one row for each position.")
class Transposed(_Table):
    def __init__(self, max_length, d_model, device=None, dtype=None):
        super().__init__(d_model, max_length, device, dtype)

    def look_up(self, positions):
        return self.weight[:, positions].movedim(0, -1)


@LearnedPositions.mistake("You ignore `dtype`. Hand it (and `device`) on to `torch.empty`.")
class IgnoresDtype(_Table):
    def __init__(self, max_length, d_model, device=None, dtype=None):
        super().__init__(max_length, d_model)


@LearnedPositions.mistake(
    "You take the first rows of the table, however the positions are. A model that goes on from a "
    "cache starts elsewhere: use the positions."
)
class FirstRows(_Table):
    def look_up(self, positions):
        n = positions.shape[-1] if positions.ndim else 1
        return self.weight[:n].expand(*positions.shape, -1)


@LearnedPositions.mistake(
    "Every position beyond the table gets its last row, without a word: the model would be told "
    "nonsense. Refuse."
)
class Clamped(_Table):
    def checked(self, positions):
        if (positions < 0).any():
            raise ValueError(f"position {positions.min()}, max_length {len(self.weight)}")

    def look_up(self, positions):
        return self.weight[positions.clamp(max=len(self.weight) - 1)]


@LearnedPositions.mistake(
    "You start again from row 0 where the table ends, without a word. Refuse such positions."
)
class WrapsRound(_Table):
    def checked(self, positions):
        pass

    def look_up(self, positions):
        return self.weight[positions % len(self.weight)]


@LearnedPositions.mistake(
    "You leave it to torch to complain: an IndexError, and for position -1 the last row of the "
    "table. Raise a ValueError that names the position and max_length."
)
class LeavesItToTorch(_Table):
    def checked(self, positions):
        pass


@LearnedPositions.mistake(
    "You let negative positions through: Python reads -1 as the last row. Refuse them."
)
class NegativeOnes(_Table):
    def checked(self, positions):
        super().checked(positions.clamp(min=0))


@LearnedPositions.mistake("You refuse the last position, max_length - 1, which is in the table.")
class RefusesTheLast(_Table):
    def checked(self, positions):
        n = len(self.weight)
        for p in positions.flatten().tolist():
            if not 0 <= p < n - 1:
                raise ValueError(f"position {p}, max_length {n}")


@LearnedPositions.mistake("You let position max_length through. The rows are 0 to max_length - 1.")
class OneTooMany(_Table):
    def checked(self, positions):
        n = len(self.weight)
        for p in positions.flatten().tolist():
            if not 0 <= p <= n:
                raise ValueError(f"position {p}, max_length {n}")


@LearnedPositions.mistake("You look at the last position only. Any of them may be outside.")
class LooksAtTheLast(_Table):
    def checked(self, positions):
        super().checked(positions.flatten()[-1:])


@LearnedPositions.mistake("Your message should give the position and max_length, both.")
class NamesOneNumber(_Table):
    def checked(self, positions):
        for p in positions.flatten().tolist():
            if not 0 <= p < len(self.weight):
                raise ValueError(f"position {p} is not in the table")


@LearnedPositions.mistake(
    "You ask an empty tensor for its largest element: with no positions there is none. Compare all "
    "of them, `(positions >= n).any()`."
)
class AsksForTheLargest(_Table):
    def checked(self, positions):
        low, high, n = positions.min().item(), positions.max().item(), len(self.weight)
        if low < 0 or high >= n:
            raise ValueError(f"position {low if low < 0 else high}, max_length {n}")


@LearnedPositions.mistake(
    "You cut the result off from its gradients (`detach`, `.data`, `no_grad`): nothing is learned."
)
class WithoutGradients(_Table):
    def look_up(self, positions):
        return self.weight.detach()[positions]


@LearnedPositions.alternative
class AnEmbedding(nn.Embedding):
    def __init__(self, max_length, d_model, device=None, dtype=None):
        super().__init__(max_length, d_model, device=device, dtype=dtype)
        nn.init.normal_(self.weight, 0.0, 0.02)

    def forward(self, positions):
        for p in positions.flatten():
            if p < 0 or p >= self.num_embeddings:
                raise ValueError(f"{int(p)} is not in 0 to {self.num_embeddings}")
        return super().forward(positions)


@LearnedPositions.alternative
class WithIndexSelect(nn.Module):
    def __init__(self, max_length, d_model, device=None, dtype=None):
        super().__init__()
        self.max_length = max_length
        self.weight = nn.Parameter(
            0.02 * torch.randn(max_length, d_model, device=device, dtype=dtype)
        )

    def forward(self, positions):
        known = positions.clamp(0, self.max_length - 1)
        wrong = positions[known != positions]
        if wrong.numel():
            raise ValueError(f"unknown positions {wrong.tolist()}, max_length={self.max_length}")
        rows = self.weight.index_select(0, positions.reshape(-1))
        return rows.reshape(*positions.shape, self.weight.shape[1])


# ---------------------------------------------------------------------------- rope_angles

rope_angles_exercise = chapter.exercise(reference.rope_angles, difficulty=2, minutes=6)


@rope_angles_exercise.group(
    "an angle for each pair",
    points=2,
    hint="K/2 frequencies, as in `sinusoidal_encoding`: position times frequency, and no sine yet.",
)
def _(t: Trial):
    t.same(torch.arange(6), 8)
    t.same(torch.arange(t.integer(7, 10)), 6)
    t.same(torch.arange(5), 2)
    t.same(t.randint(0, 60, (2, 5)), 10)
    t.same(torch.tensor(t.integer(2, 40)), 4)


@rope_angles_exercise.group(
    "base and scale",
    points=1,
    hint="Position p gets the angles of position p / scale, which need not be a whole number.",
)
def _(t: Trial):
    t.same(torch.arange(6), 8, 500_000.0)
    t.same(torch.arange(6), 8, scale=4.0)
    t.same(torch.arange(7), 6, base=100.0, scale=2.5)
    if t.graded:
        t.same(t.randint(0, 60, (2, 5)), 4, 1000, 8)


@rope_angles_exercise.group(
    "float64, far positions and negative ones",
    points=1,
    hint="`positions.double()`, and frequencies from an arange with dtype=torch.float64.",
)
def _(t: Trial):
    t.same(torch.tensor([1_000_003, 77_777_777]), 8)
    found = t.same(torch.tensor([-3, -40, 5]), 6)
    t.require(
        found.dtype == torch.float64, "Angles should be of dtype float64", found=str(found.dtype)
    )
    t.same(torch.tensor([9, 4], dtype=torch.int32), 6)


@rope_angles_exercise.group(
    "an odd width is refused by name",
    points=1,
    hint="Raise a ValueError that gives d_head, before anything else.",
)
def _(t: Trial):
    t.raises(ValueError, torch.arange(4), 7, naming="7")
    t.raises(ValueError, torch.arange(4), 15, naming="15")


def _angles(positions, frequencies):
    return positions.double()[..., None] * frequencies


@rope_angles_exercise.mistake(
    "Your exponent is i / d_head, without the 2: the slow pairs turn much too fast."
)
def angle_exponent_without_2(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    i = torch.arange(d_head // 2, dtype=torch.float64)
    return _angles(positions / scale, base ** (-i / d_head))


@rope_angles_exercise.mistake(
    "Your angles are K wide, each there twice. Give each pair one angle: K/2."
)
def each_angle_twice(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    angles = _angles(positions.double() / scale, _frequencies(d_head, base))
    return torch.cat([angles, angles], -1)


@rope_angles_exercise.mistake(
    "You give every feature an angle of its own. Pairs turn, so there are K/2 angles."
)
def an_angle_for_each_feature(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    j = torch.arange(d_head, dtype=torch.float64)
    return _angles(positions.double() / scale, base ** (-j / d_head))


@rope_angles_exercise.mistake(
    "You multiply by scale. Interpolation squeezes: position p gets the angles of p / scale."
)
def stretched(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    return _angles(positions.double() * scale, _frequencies(d_head, base))


@rope_angles_exercise.mistake(
    "You divide without a remainder (`//`), so that neighbours get the same angles. p / scale need "
    "not be a whole number."
)
def divided_without_remainder(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    return _angles(positions.double() // scale, _frequencies(d_head, base))


@rope_angles_exercise.mistake("You ignore `scale`.")
def scale_ignored(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    return _angles(positions, _frequencies(d_head, base))


@rope_angles_exercise.mistake("You ignore `base`.")
def angle_base_ignored(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    return _angles(positions.double() / scale, _frequencies(d_head, 10_000.0))


@rope_angles_exercise.mistake(
    "You scale the base. `scale` divides the positions, for all pairs alike."
)
def scaled_base(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    return _angles(positions, _frequencies(d_head, base * scale))


@rope_angles_exercise.mistake(
    "Something in your computation is float32, as `torch.arange(...) / d_head` is unless you say "
    "dtype=torch.float64. The angle 1,000,000 is off by up to 0.03, and all are to be float64."
)
def in_float32(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    return positions.float()[..., None] / scale * _frequencies(d_head, base).float()


@rope_angles_exercise.mistake(
    "Your angles grow with i: the sign of the exponent is missing. Pair 0 turns fastest."
)
def faster_and_faster(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    return _angles(positions.double() / scale, 1 / _frequencies(d_head, base))


@rope_angles_exercise.mistake("You count positions from 1. At position 0 nothing is turned.")
def angles_from_1(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    return _angles((positions.double() + 1) / scale, _frequencies(d_head, base))


@rope_angles_exercise.mistake("You return sines. Angles are asked for; `apply_rope` does the rest.")
def sines(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    return _angles(positions.double() / scale, _frequencies(d_head, base)).sin()


@rope_angles_exercise.mistake(
    "You ignore the positions that you are given, and count 0, 1, 2, ... along the last axis. A "
    "model that goes on from a cache starts elsewhere."
)
def angles_counted(positions, d_head, base=10_000.0, scale=1.0):
    _even(d_head, "d_head")
    count = torch.arange(positions.shape[-1]) if positions.ndim else torch.tensor(0)
    return _angles(count.expand(positions.shape) / scale, _frequencies(d_head, base))


@rope_angles_exercise.mistake(
    "You do not refuse an odd d_head. Raise a `ValueError` that names it."
)
def odd_heads_accepted(positions, d_head, base=10_000.0, scale=1.0):
    return _angles(positions.double() / scale, _frequencies(d_head, base))


@rope_angles_exercise.alternative
def with_outer_product(positions, d_head, base=10_000.0, scale=1.0):
    if d_head % 2:
        raise ValueError(f"{d_head}")
    rate = torch.tensor(
        [base ** (-2 * i / d_head) for i in range(d_head // 2)], dtype=torch.float64
    )
    flat = positions.reshape(-1).to(torch.float64) / scale
    return torch.outer(flat, rate).reshape(*positions.shape, d_head // 2)


@rope_angles_exercise.alternative
def with_exponentials(positions, d_head, base=10_000.0, scale=1.0):
    if d_head % 2 != 0:
        raise ValueError(f"need an even width, got {d_head}")
    steps = torch.linspace(0, 1, d_head // 2 + 1, dtype=torch.float64)[:-1]
    return torch.einsum("...,i->...i", positions.double() / scale, (-steps * math.log(base)).exp())


# ----------------------------------------------------------------------------- apply_rope

apply_rope_exercise = chapter.exercise(reference.apply_rope, difficulty=4, minutes=16)


def _turned(t: Trial, *shape: int, angles=None, dtype=torch.float32, **options):
    """x of a shape, and angles for its positions."""
    if angles is None:
        angles = (*shape[-2:-1], shape[-1] // 2)
    return t.randn(*shape, dtype=dtype), 3 * t.randn(*angles, dtype=torch.float64)


@apply_rope_exercise.group(
    "interleaved: features 2i and 2i + 1",
    points=2,
    hint="Try x = [1, 0, 1, 0], angles [π/2, 0]: the first pair becomes [0, 1], the other stays.",
)
def _(t: Trial):
    t.same(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), torch.tensor([[math.pi / 2, 0.0]]).double())
    t.same(*_turned(t, 5, 8))
    t.same(*_turned(t, 2, 3, 4, 6))
    t.same(*_turned(t, 7, 2))


@apply_rope_exercise.group(
    "halves: features i and i + K/2",
    points=2,
    hint="The same rotation; only the places change from which a and b are taken, and to which "
    "they go back.",
)
def _(t: Trial):
    x = torch.tensor([[1.0, 1.0, 0.0, 0.0]])
    t.same(x, torch.tensor([[math.pi / 2, 0.0]]).double(), interleaved=False)
    t.same(*_turned(t, 5, 8), interleaved=False)
    t.same(*_turned(t, 2, 3, 4, 6), False)


@apply_rope_exercise.group(
    "angles that broadcast, and leading axes",
    points=1,
    hint="Count axes from the end only (`...`, dim=-1), and broadcasting does the rest.",
)
def _(t: Trial):
    for interleaved in (True, False):
        t.same(*_turned(t, 2, 3, 5, 8, angles=(2, 1, 5, 4)), interleaved)
        t.same(*_turned(t, 2, 5, 6, angles=(2, 5, 3)), interleaved)
        t.same(*_turned(t, 2, 4, 4, 6), interleaved)  # as many heads as tokens
        t.same(*_turned(t, 3, 5, 6, angles=(1, 3)), interleaved)
        t.same(*_turned(t, 1, 1, 4), interleaved)
        t.same(*_turned(t, 6, angles=(3,)), interleaved)


@apply_rope_exercise.group(
    "dtypes, and angles of far positions",
    points=1,
    hint="Take sine and cosine of the angles as they come, in float64; then `.to(x.dtype)`.",
)
def _(t: Trial):
    far = rope_angles(torch.tensor([1_000_003, 3_000_000, 12]), 6)
    for interleaved in (True, False):
        t.same(t.randn(3, 6), far, interleaved, dtype=True)
        t.same(t.randn(3, 6, dtype=torch.float64), far, interleaved, dtype=True)
        t.same(t.randn(3, 6, dtype=torch.bfloat16), far, interleaved, dtype=True)
        t.same(t.randn(3, 6, dtype=torch.float16), far.float(), interleaved, dtype=True)


@apply_rope_exercise.group(
    "a rotation: lengths stay, and scores see the distance alone",
    points=1,
    hint="Both lines of the rotation have a sine: minus in the first, plus in the second.",
)
def _(t: Trial):
    x = t.randn(3, 8, dtype=torch.float64)
    q, k = t.randn(2, 1, 8, dtype=torch.float64)
    for interleaved in (True, False):
        turned = t.call(x, rope_angles(torch.tensor([3, 8, 40]), 8), interleaved)
        t.equal(turned.norm(dim=-1), x.norm(dim=-1), "A rotation should leave lengths as they are")
        scores = []
        for m, n in ((9, 4), (25, 20), (105, 100)):
            one = t.call(q, rope_angles(torch.tensor([m]), 8), interleaved)
            other = t.call(k, rope_angles(torch.tensor([n]), 8), interleaved)
            scores.append((one * other).sum())
        t.equal(
            torch.stack(scores[1:]),
            scores[0].expand(2),
            "Query and key 5 apart should have the same score wherever they stand",
        )


@apply_rope_exercise.group(
    "gradients, and x left alone",
    points=1,
    hint="Assigning into x, `x[..., 0::2] = ...`, changes the caller's tensor. Build a new one.",
)
def _(t: Trial):
    for interleaved in (True, False):
        t.same_gradients(*_turned(t, 2, 5, 6, dtype=torch.float64), interleaved)
        t.unchanged(*_turned(t, 5, 6), interleaved)


def _rope(x, angles, interleaved, rule, dtype=None):
    """RoPE with another rule for a pair: rule(a, b, cos, sin)."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    if interleaved:
        return torch.stack(rule(x[..., 0::2], x[..., 1::2], cos, sin), -1).flatten(-2)
    return torch.cat(rule(*x.chunk(2, -1), cos, sin), -1)


def _proper(a, b, cos, sin):
    return a * cos - b * sin, a * sin + b * cos


@apply_rope_exercise.mistake(
    "You turn the other way: the signs of the two sines are swapped. It is minus in the first line "
    "and plus in the second."
)
def the_other_way(x, angles, interleaved=True):
    return _rope(x, angles, interleaved, lambda a, b, c, s: (a * c + b * s, b * c - a * s))


@apply_rope_exercise.mistake(
    "Both of your lines have a plus. That is no rotation: lengths change. The first line is "
    "a cos - b sin."
)
def two_pluses(x, angles, interleaved=True):
    return _rope(x, angles, interleaved, lambda a, b, c, s: (a * c + b * s, a * s + b * c))


@apply_rope_exercise.mistake(
    "Both of your lines have a minus. That is no rotation: lengths change. The second line is "
    "a sin + b cos."
)
def two_minuses(x, angles, interleaved=True):
    return _rope(x, angles, interleaved, lambda a, b, c, s: (a * c - b * s, a * s - b * c))


@apply_rope_exercise.mistake(
    "You swapped sine and cosine: at angle 0 a pair should stay what it is."
)
def sine_for_cosine(x, angles, interleaved=True):
    return _rope(x, angles, interleaved, lambda a, b, c, s: _proper(a, b, s, c))


@apply_rope_exercise.mistake(
    "The second line of your rotation uses the new a. Both lines need the old one."
)
def overwritten_too_early(x, angles, interleaved=True):
    def rule(a, b, cos, sin):
        a = a * cos - b * sin
        return a, a * sin + b * cos

    return _rope(x, angles, interleaved, rule)


@apply_rope_exercise.mistake("You swapped the two pairings: True means 2i and 2i + 1.")
def pairings_swapped(x, angles, interleaved=True):
    return _rope(x, angles, not interleaved, _proper)


@apply_rope_exercise.mistake("You ignore `interleaved`, and always pair features 2i and 2i + 1.")
def always_interleaved(x, angles, interleaved=True):
    return _rope(x, angles, True, _proper)


@apply_rope_exercise.mistake("You ignore `interleaved`, and always pair the halves.")
def always_halves(x, angles, interleaved=True):
    return _rope(x, angles, False, _proper)


@apply_rope_exercise.mistake(
    "You take interleaved pairs apart and put them back as halves. Each feature has to return to "
    "its own place: stack along a new last axis, `dim=-1`, then flatten."
)
def put_back_as_halves(x, angles, interleaved=True):
    if not interleaved:
        return _rope(x, angles, False, _proper)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.cat(_proper(x[..., 0::2], x[..., 1::2], cos, sin), -1)


@apply_rope_exercise.mistake(
    "You put the halves back interleaved. Each feature has to return to its own place: `torch.cat`."
)
def put_back_interleaved(x, angles, interleaved=True):
    if interleaved:
        return _rope(x, angles, True, _proper)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    return torch.stack(_proper(*x.chunk(2, -1), cos, sin), -1).flatten(-2)


@apply_rope_exercise.mistake(
    "You mixed the pairings: in the interleaved one, features 2i and 2i + 1 share an angle, but "
    "your angles are repeated as for halves (`cat` where `repeat_interleave` is meant)."
)
def angles_of_the_other_pairing(x, angles, interleaved=True):
    if not interleaved:
        return _rope(x, angles, False, _proper)
    cos = torch.cat([angles, angles], -1).cos().to(x.dtype)
    sin = torch.cat([angles, angles], -1).sin().to(x.dtype)
    swapped = torch.stack([-x[..., 1::2], x[..., 0::2]], -1).flatten(-2)
    return x * cos + swapped * sin


@apply_rope_exercise.mistake(
    "Your result has the dtype of the angles, float64. Convert sine and cosine to x.dtype."
)
def promoted(x, angles, interleaved=True):
    return _rope(x.to(torch.promote_types(x.dtype, angles.dtype)), angles, interleaved, _proper)


@apply_rope_exercise.mistake(
    "You rounded the angles to the dtype of x before taking sines. At far positions nothing is "
    "left of them. Sines first, `.to(x.dtype)` then."
)
def angles_rounded(x, angles, interleaved=True):
    return _rope(x, angles.to(x.dtype), interleaved, _proper)


@apply_rope_exercise.mistake("You changed x itself. The caller still needs it: build a new tensor.")
def in_place(x, angles, interleaved=True):
    turned = _rope(x, angles, interleaved, _proper)
    x.data.copy_(turned.data)
    return turned


@apply_rope_exercise.mistake(
    "You cut the result off from its gradients (`detach`, `.data`, `no_grad`): queries and keys "
    "would not be learned."
)
def rope_without_gradients(x, angles, interleaved=True):
    return _rope(x, angles, interleaved, _proper).detach()


@apply_rope_exercise.mistake(
    "No gradient flows through your angles (`detach`, `no_grad`, numpy). Some models learn them."
)
def angles_without_gradients(x, angles, interleaved=True):
    return _rope(x, angles.detach(), interleaved, _proper)


@apply_rope_exercise.mistake(
    "You put axes in front of the angles for a batch and heads. They broadcast without, and with a "
    "batch of their own they go wrong."
)
def axes_for_batch_and_heads(x, angles, interleaved=True):
    return _rope(x, angles[None, None], interleaved, _proper)


@apply_rope_exercise.alternative
def with_complex_numbers(x, angles, interleaved=True):
    pairs = x.double()
    if interleaved:
        pairs = pairs.unflatten(-1, (-1, 2))
    else:
        pairs = torch.stack(pairs.chunk(2, dim=-1), dim=-1)
    turn = torch.polar(torch.ones_like(angles), angles)
    turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * turn)
    if not interleaved:
        turned = turned.mT
    return turned.flatten(-2).to(x.dtype)


@apply_rope_exercise.alternative
def as_in_hugging_face(x, angles, interleaved=True):
    if interleaved:
        cos, sin = (f(angles).repeat_interleave(2, -1).to(x.dtype) for f in (torch.cos, torch.sin))
        other = torch.stack([-x[..., 1::2], x[..., ::2]], dim=-1).reshape(x.shape)
    else:
        cos, sin = (f(torch.cat([angles] * 2, -1)).to(x.dtype) for f in (torch.cos, torch.sin))
        half = x.shape[-1] // 2
        other = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + other * sin


@apply_rope_exercise.alternative
def with_matrices(x, angles, interleaved=True):
    cos, sin = angles.cos(), angles.sin()
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2)
    half = x.shape[-1] // 2
    pairs = x.unflatten(-1, (half, 2) if interleaved else (2, half))
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    turned = (turn.to(x.dtype) @ pairs.unsqueeze(-1)).squeeze(-1)
    return (turned if interleaved else turned.transpose(-1, -2)).flatten(-2)


@apply_rope_exercise.alternative
def by_slices(x, angles, interleaved=True):
    out, half = torch.empty_like(x), x.shape[-1] // 2
    first = slice(0, None, 2) if interleaved else slice(0, half)
    second = slice(1, None, 2) if interleaved else slice(half, None)
    cos, sin = torch.cos(angles), torch.sin(angles)
    out[..., first] = (x[..., first] * cos - x[..., second] * sin).to(x.dtype)
    out[..., second] = (x[..., first] * sin + x[..., second] * cos).to(x.dtype)
    return out


# --------------------------------------------------------------------- sees_only_distance


def sees_only_distance(
    place: Callable[[Tensor, Tensor], Tensor],
    q: Float[Tensor, "K"],
    k: Float[Tensor, "K"],
    length: int,
) -> bool:
    """Test a scheme of positions: does the score of q for k depend on their distance alone?

    The query stands at position t, the key at position s. The score is the dot product of the two
    placed vectors, without a division. It may depend on t - s, and so on which of the two comes
    first, but not on where they stand.

    Args:
        place: the scheme. `place(x, positions)` gives, for vectors x of shape (N, K) and N
            positions, the vectors as they are at those positions, of shape (N, K).
        q: a query, float64.
        k: a key, float64.
        length: the positions are 0 to length - 1, for the query as well as for the key.

    Returns:
        True if any two pairs of positions with the same t - s have the same score, up to 1e-6;
        False if some have not.
    """
    positions = torch.arange(length)
    queries = place(q.expand(length, -1), positions)  # (L, K)
    keys = place(k.expand(length, -1), positions)  # (L, K)
    scores = queries @ keys.T  # (L, L)
    return torch.allclose(scores[1:, 1:], scores[:-1, :-1], rtol=0, atol=1e-6)


def rope_interleaved(x, positions):
    """RoPE."""
    return apply_rope(x, rope_angles(positions, x.shape[-1]))


def rope_in_halves(x, positions):
    """RoPE, in the other pairing and with another base."""
    return apply_rope(x, rope_angles(positions, x.shape[-1], base=50.0), interleaved=False)


def no_positions(x, positions):
    """The vectors as they are."""
    return x


def mirrored(x, positions):
    """A reflection for each position. Two of them make a rotation."""
    angles = rope_angles(positions, x.shape[-1])
    return _rope(x, angles, True, lambda a, b, c, s: (a * c + b * s, a * s - b * c))


def sinusoids_added(x, positions):
    """The sinusoidal encoding, added to query and key."""
    return x + reference.sinusoidal_encoding(positions, x.shape[-1], dtype=x.dtype)


def growing(x, positions):
    """Longer vectors at later positions."""
    return x * 1.01 ** positions.double()[:, None]


def turned_by_squares(x, positions):
    """Rotated, by an angle that grows with the square of the position."""
    return apply_rope(x, rope_angles(positions**2, x.shape[-1], base=50.0))


def rope_that_stops(x, positions):
    """RoPE up to position 9. All later ones are treated like it."""
    return rope_interleaved(x, positions.clamp(max=9))


def rope_that_starts_again(x, positions):
    """RoPE that goes back to 0 at position 8, as if a window slid on."""
    return rope_interleaved(x, positions % 8)


def one_position_misplaced(x, positions):
    """RoPE, but position 3 is taken for position 4."""
    return rope_interleaved(x, torch.where(positions == 3, 4, positions))


def the_last_misplaced(x, positions):
    """RoPE, but position 11 is taken for position 10."""
    return rope_interleaved(x, torch.where(positions == 11, 10, positions))


def the_first_misplaced(x, positions):
    """RoPE, but position 0 is taken for position 1."""
    return rope_interleaved(x, positions.clamp(min=1))


def a_faint_sinusoid(x, positions):
    """RoPE, and a thousandth of a sinusoidal encoding."""
    return rope_interleaved(sinusoids_added(1000 * x, positions) / 1000, positions)


def sign_of_parity(x, positions):
    """Vectors at odd positions are turned round. Products see the distance's parity."""
    return x * (1 - 2 * (positions % 2)).double()[:, None]


def quarter_turns(x, positions):
    """RoPE by right angles, without any rounding: (a, b), (-b, a), (-a, -b), (b, -a)."""
    a, b, turns = x[:, 0::2], x[:, 1::2], (positions % 4)[:, None]
    cos, sin = (turns == 0) * 1.0 - (turns == 2) * 1.0, (turns == 1) * 1.0 - (turns == 3) * 1.0
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


def louder_at_odd_positions(x, positions):
    """At odd distances one of the two is louder, at even ones both or none."""
    return x * (1 + 0.5 * (positions % 2)).double()[:, None]


def a_feature_that_wakes_up(x, positions):
    """The last feature is silent at positions 0 and 1."""
    awake = torch.ones(len(x), x.shape[-1], dtype=x.dtype)
    awake[:, -1] = (positions >= 2).double()
    return x * awake


def a_note_in_the_last_feature(x, positions):
    """The position's sine, added to the last feature."""
    note = torch.zeros(len(x), x.shape[-1], dtype=x.dtype)
    note[:, -1] = positions.double().sin()
    return x + note


def sheared(x, positions):
    """The farther on, the more of feature 1 is added to feature 0."""
    more = torch.zeros(len(x), x.shape[-1], dtype=x.dtype)
    more[:, 0] = positions * x[:, 1]
    return x + more


def _any_table(x, positions, t, s):
    """Scores cos(0.7 (t - s)), but for one pair of positions, where a hundredth is added.

    The scheme knows a query by its positive first feature. It turns query t into row t of the table
    of scores, and key s into the unit vector s.
    """
    at = torch.arange(x.shape[-1])
    table = (0.7 * (at[:, None] - at)).double().cos()
    table[t, s] += 0.01
    unit = torch.eye(x.shape[-1], dtype=x.dtype)
    return torch.where(x[:, :1] > 0, table[positions], unit[positions])


def off_where_the_key_comes_later(x, positions):
    """One score is off: of query 2 for key 9."""
    return _any_table(x, positions, 2, 9)


def off_where_the_key_came_long_before(x, positions):
    """One score is off: of query 10 for key 0."""
    return _any_table(x, positions, 10, 0)


def off_in_the_middle(x, positions):
    """One score is off: of query 6 for key 4."""
    return _any_table(x, positions, 6, 4)


sees_only_distance_exercise = chapter.exercise(sees_only_distance, difficulty=3, minutes=10)


def _ask(t: Trial, *schemes: Callable) -> None:
    for place in schemes:
        q, k = t.randn(2, 6, dtype=torch.float64)
        t.same(place, q, k, 12)


@sees_only_distance_exercise.group(
    "schemes that see the distance alone",
    points=1,
    hint="Compare only pairs with the same t - s, and allow for rounding: 1e-6.",
)
def _(t: Trial):
    _ask(t, rope_interleaved, no_positions, mirrored)
    t.same(rope_in_halves, 30 * t.randn(4, dtype=torch.float64), t.randn(4).double(), 40)
    _ask(t, sign_of_parity)
    t.same(quarter_turns, *(t.randint(1, 9, (2, 4)) * t.choice([1, -1])).double(), 9)
    same = t.randn(6, dtype=torch.float64)
    t.same(rope_interleaved, same, same, 10)
    same[1] = 0  # these two vectors it leaves alone
    t.same(sheared, same, same, 10)


@sees_only_distance_exercise.group(
    "schemes that see more",
    points=2,
    hint="Make the whole table of scores, (length, length). Where the distance alone counts, every "
    "diagonal is constant.",
)
def _(t: Trial):
    _ask(t, sinusoids_added, growing, turned_by_squares, rope_that_stops, rope_that_starts_again)
    _ask(t, louder_at_odd_positions, a_feature_that_wakes_up, rope_interleaved)
    q, k = t.randn(2, 6, dtype=torch.float64)
    q[1] = 0  # what the key alone has in it, the query does not show
    t.same(sheared, q, k, 12)
    q[-1] = k[-1] = 0
    t.same(a_note_in_the_last_feature, q, k, 12)


@sees_only_distance_exercise.group(
    "one position out of line, and faint differences",
    points=2,
    hint="Every pair of positions counts, those near the ends too.",
)
def _(t: Trial):
    _ask(t, one_position_misplaced, the_last_misplaced, the_first_misplaced, a_faint_sinusoid)
    q, k = t.rand(2, 12, dtype=torch.float64) + 0.1
    for place in (
        off_where_the_key_comes_later, off_where_the_key_came_long_before, off_in_the_middle
    ):  # fmt: skip
        t.same(place, q, -k, 12)


def _table(place, q, k, length):
    p = torch.arange(length)
    return place(q.expand(length, -1), p) @ place(k.expand(length, -1), p).T


def _constant(diagonals, tolerance=1e-6):
    return all(bool((d - d[:1]).abs().max() <= tolerance) for d in diagonals)


def _diagonals(table, offsets=None):
    n = len(table)
    return [table.diagonal(o) for o in (range(1 - n, n) if offsets is None else offsets)]


@sees_only_distance_exercise.mistake(
    "You answer the wrong way round: True means that the distance alone counts."
)
def answered_the_wrong_way_round(place, q, k, length):
    return not _constant(_diagonals(_table(place, q, k, length)))


@sees_only_distance_exercise.mistake(
    "You looked at distance 0 alone, query and key at the same place. Other distances count too."
)
def distance_0_alone(place, q, k, length):
    return _constant(_diagonals(_table(place, q, k, length), [0]))


@sees_only_distance_exercise.mistake("You looked at a single distance. Try them all.")
def distance_1_alone(place, q, k, length):
    return _constant(_diagonals(_table(place, q, k, length), [-1]))


@sees_only_distance_exercise.mistake(
    "You looked at keys before the query only. A key may stand after it: both triangles count."
)
def keys_before_alone(place, q, k, length):
    return _constant(_diagonals(_table(place, q, k, length), range(1 - length, 1)))


@sees_only_distance_exercise.mistake(
    "You compared sums over the table. Differences cancel in a sum: compare entry by entry."
)
def compared_sums(place, q, k, length):
    table = _table(place, q, k, length)
    return abs((table[1:, 1:].sum() - table[:-1, :-1].sum()).item()) <= 1e-6


@sees_only_distance_exercise.mistake(
    "You left out the longer distances. All from 1 - length to length - 1 count."
)
def short_distances(place, q, k, length):
    half = length // 2
    return _constant(_diagonals(_table(place, q, k, length), range(-half, half + 1)))


@sees_only_distance_exercise.mistake(
    "You require the same score at distance d and at distance -d. Which of the two comes first may "
    "matter: that is what order is."
)
def symmetric(place, q, k, length):
    table = _table(place, q, k, length)
    toeplitz = torch.allclose(table[1:, 1:], table[:-1, :-1], rtol=0, atol=1e-6)
    return toeplitz and torch.allclose(table, table.T, rtol=0, atol=1e-6)


@sees_only_distance_exercise.mistake(
    "You require that all scores are equal, whatever the distance. They may depend on it."
)
def all_alike(place, q, k, length):
    return _constant([_table(place, q, k, length).flatten()])


@sees_only_distance_exercise.mistake(
    "You shifted once only, from position 0 to 1. A scheme that goes wrong further on goes unseen."
)
def one_shift(place, q, k, length):
    table = _table(place, q, k, length)
    first = torch.allclose(table[0, :-1], table[1, 1:], rtol=0, atol=1e-6)
    return first and torch.allclose(table[:-1, 0], table[1:, 1], rtol=0, atol=1e-6)


@sees_only_distance_exercise.mistake(
    "You left out position 0, and with it a scheme that goes wrong there."
)
def without_the_first(place, q, k, length):
    return _constant(_diagonals(_table(place, q, k, length)[1:, 1:]))


@sees_only_distance_exercise.mistake(
    "You left out the last position, length - 1, and with it a scheme that goes wrong there."
)
def without_the_last(place, q, k, length):
    return _constant(_diagonals(_table(place, q, k, length)[:-1, :-1]))


@sees_only_distance_exercise.mistake(
    "Your tolerance is so wide that a real difference passes for rounding. Rounding stays below "
    "1e-6."
)
def too_tolerant(place, q, k, length):
    return _constant(_diagonals(_table(place, q, k, length)), 0.02)


@sees_only_distance_exercise.mistake(
    "You require exact equality. Rounding differs from place to place, in the last digits: allow "
    "1e-6."
)
def exact(place, q, k, length):
    table = _table(place, q, k, length)
    return bool((table[1:, 1:] == table[:-1, :-1]).all())


@sees_only_distance_exercise.mistake(
    "You compared anti-diagonals: there t + s is constant. The distance is t - s."
)
def anti_diagonals(place, q, k, length):
    return _constant(_diagonals(_table(place, q, k, length).flip(1)))


@sees_only_distance_exercise.mistake(
    "You placed the query and left the key where it was. Both have positions."
)
def query_alone(place, q, k, length):
    p = torch.arange(length)
    table = place(q.expand(length, -1), p) @ k.expand(length, -1).T
    return torch.allclose(table[1:, 1:], table[:-1, :-1], rtol=0, atol=1e-6)


@sees_only_distance_exercise.mistake(
    "You compared the query with itself. Query and key are two vectors."
)
def query_with_query(place, q, k, length):
    return _constant(_diagonals(_table(place, q, q, length)))


@sees_only_distance_exercise.alternative
def with_four_loops(place, q, k, length):
    first = {}
    for m in range(length):
        for n in range(length):
            one = place(q[None], torch.tensor([m]))[0]
            other = place(k[None], torch.tensor([n]))[0]
            score = float(one @ other)
            if abs(first.setdefault(m - n, score) - score) > 1e-6:
                return False
    return True


@sees_only_distance_exercise.alternative
def by_diagonals(place, q, k, length):
    at = torch.arange(length)
    scores = torch.einsum(
        "mi,ni->mn", place(q.repeat(length, 1), at), place(k.repeat(length, 1), at)
    )
    lines = [scores.diagonal(d) for d in range(-length + 1, length)]
    return max((line.max() - line.min()).item() for line in lines) < 1e-6


@sees_only_distance_exercise.alternative
def by_shifting(place, q, k, length):
    for shift in range(1, length):
        here = torch.arange(length - shift)
        moved = [place(x.repeat(len(here), 1), here + shift) for x in (q, k)]
        still = [place(x.repeat(len(here), 1), here) for x in (q, k)]
        if (moved[0] @ moved[1].T - still[0] @ still[1].T).abs().max() > 1e-6:
            return False
    return True


# ------------------------------------------------------------------------------ to_halves

to_halves = chapter.exercise(reference.to_halves, difficulty=3, minutes=9)


@to_halves.group(
    "the rows of each head, in another order",
    points=2,
    hint="For one head of width 6 the new order of the rows is 0, 2, 4, 1, 3, 5.",
)
def _(t: Trial):
    t.same(torch.arange(12.0).reshape(6, 2), 1)
    t.same(t.randn(12, 5), 2)
    t.same(t.randn(24, 7), 3)
    t.same(t.randn(8, 3), 4)
    t.same(t.randn(40, 3), 5)
    if t.graded:
        t.same(t.randn(40, 3), t.choice([2, 4, 5]))


@to_halves.group(
    "a bias, further axes, any dtype",
    points=1,
    hint="Only the first axis changes; keep the others, `*weight.shape[1:]`, whatever they are.",
)
def _(t: Trial):
    t.same(t.randn(16), 2)
    t.same(t.randn(12, 3, 5), 2)
    t.same(t.randn(12, 5, dtype=torch.float64), 3, dtype=True)
    t.unchanged(t.randn(12, 5), 2)


@to_halves.group(
    "the scores stay what they were",
    points=2,
    hint="Queries and keys of the new weights, rotated in halves, have the dot products of the old "
    "ones, rotated in pairs.",
)
def _(t: Trial):
    heads, width = 2, 6
    x = t.randn(5, 7, dtype=torch.float64)
    weights = [t.randn(heads * width, 7, dtype=torch.float64) for _ in range(2)]
    angles = rope_angles(torch.arange(5), width)

    def scores(w_q, w_k, interleaved):
        q, k = ((x @ w.T).unflatten(-1, (heads, width)).transpose(0, 1) for w in (w_q, w_k))
        return apply_rope(q, angles, interleaved) @ apply_rope(k, angles, interleaved).mT

    found = scores(*(t.call(w, heads).double() for w in weights), False)
    t.equal(found, scores(*weights, True), "The scores should be those of the old weights")


@to_halves.group(
    "rows that make no heads are refused by name",
    points=1,
    hint="Each head needs an even number of rows: compare len(weight) with 2 * n_heads.",
)
def _(t: Trial):
    t.raises(ValueError, t.randn(15, 3), 2, naming="15")
    t.raises(ValueError, t.randn(15, 3), 2, naming="2")
    t.raises(ValueError, t.randn(21, 2), 3, naming="21")


def _reordered(weight, n_heads, rule, refuse=True):
    """Each head's rows (K, *rest) changed by a rule."""
    rows = len(weight)
    if refuse and rows % (2 * n_heads):
        raise ValueError(f"{rows} rows, n_heads={n_heads}")
    return torch.cat([rule(head) for head in weight.chunk(n_heads)])


@to_halves.mistake(
    "You went the other way: from halves to interleaved pairs. Feature 2i moves to place i."
)
def the_inverse(weight, n_heads):
    return _reordered(weight, n_heads, lambda w: torch.stack(w.chunk(2), 1).reshape(w.shape))


@to_halves.mistake(
    "You reordered all rows at once, across the heads. Each head keeps its own rows."
)
def across_the_heads(weight, n_heads):
    _reordered(weight, n_heads, lambda w: w)
    return torch.cat([weight[0::2], weight[1::2]])


@to_halves.mistake("You put the odd features first. Feature 0 stays at place 0.")
def odd_first(weight, n_heads):
    return _reordered(weight, n_heads, lambda w: torch.cat([w[1::2], w[0::2]]))


@to_halves.mistake(
    "Your rows are in their old order: the two axes were never swapped between the reshapes."
)
def nothing_moved(weight, n_heads):
    return _reordered(weight, n_heads, lambda w: w)


@to_halves.mistake(
    "You reordered the columns. A row of nn.Linear's weight makes one feature of the result."
)
def the_columns(weight, n_heads):
    _reordered(weight, n_heads, lambda w: w)
    return torch.cat([weight[..., 0::2], weight[..., 1::2]], -1)


@to_halves.mistake("You took n_heads for the width of a head.")
def heads_for_width(weight, n_heads):
    _reordered(weight, n_heads, lambda w: w)
    width = n_heads if n_heads % 2 == 0 else 2 * n_heads
    return _reordered(
        weight,
        max(len(weight) // width, 1),
        lambda w: torch.cat([w[0::2], w[1::2]]),
        refuse=False,
    )


@to_halves.mistake("You ordered the heads in pairs as well. They stay one after the other.")
def heads_reordered(weight, n_heads):
    heads = _reordered(weight, n_heads, lambda w: torch.cat([w[0::2], w[1::2]])).chunk(n_heads)
    return torch.cat([*heads[0::2], *heads[1::2]][::-1])


@to_halves.mistake("You expect two axes. A bias has one: use `weight.shape[1:]` for the others.")
def two_axes_only(weight, n_heads):
    rows, columns = weight.shape
    return _reordered(weight, n_heads, lambda w: torch.cat([w[0::2], w[1::2]]))


@to_halves.mistake(
    "You change the weight itself. The caller may still need it: give a new tensor back."
)
def weight_in_place(weight, n_heads):
    new = _reordered(weight, n_heads, lambda w: torch.cat([w[0::2], w[1::2]]))
    return weight.copy_(new)


@to_halves.mistake(
    "You do not refuse rows that make no heads of even width. Raise a `ValueError` with "
    "both numbers."
)
def refuses_no_rows(weight, n_heads):
    return _reordered(weight, n_heads, lambda w: torch.cat([w[0::2], w[1::2]]), refuse=False)


@to_halves.mistake("You refuse rows that n_heads does not divide, and accept heads of odd width.")
def odd_width_accepted(weight, n_heads):
    if len(weight) % n_heads:
        raise ValueError(f"{len(weight)} rows, n_heads={n_heads}")
    return _reordered(weight, n_heads, lambda w: torch.cat([w[0::2], w[1::2]]), refuse=False)


@to_halves.mistake("Your message should give both numbers, of rows and of heads.")
def names_the_rows_alone(weight, n_heads):
    if len(weight) % (2 * n_heads):
        raise ValueError(f"{len(weight)} rows cannot be divided")
    return _reordered(weight, n_heads, lambda w: torch.cat([w[0::2], w[1::2]]))


@to_halves.alternative
def with_an_index(weight, n_heads):
    width, left = divmod(weight.shape[0], n_heads)
    if left or width % 2:
        raise ValueError(f"cannot divide {weight.shape[0]} rows among {n_heads} heads")
    order = [h * width + 2 * i + odd for h in range(n_heads) for odd in (0, 1)
             for i in range(width // 2)]  # fmt: skip
    return weight[order]


@to_halves.alternative
def with_slices(weight, n_heads):
    if weight.size(0) % (n_heads * 2) != 0:
        raise ValueError(f"rows {weight.size(0)}, heads {n_heads}")
    heads = weight.unflatten(0, (n_heads, weight.size(0) // n_heads))
    return torch.cat([heads[:, ::2], heads[:, 1::2]], dim=1).flatten(0, 1)


# --------------------------------------------------------------------------- alibi_slopes

alibi_slopes = chapter.exercise(reference.alibi_slopes, difficulty=3, minutes=9)


@alibi_slopes.group(
    "a power of two",
    points=2,
    hint="For 8 heads: 1/2, 1/4, 1/8, ..., 1/256. For 4 heads: 1/4, 1/16, 1/64, 1/256.",
)
def _(t: Trial):
    t.same(8, dtype=True)
    t.same(4)
    t.same(16)
    t.same(2)
    t.same(1)
    t.same(64)


@alibi_slopes.group(
    "other numbers of heads",
    points=2,
    hint="For 6 heads: the four slopes of 4 heads, then the first and the third slope of 8 heads.",
)
def _(t: Trial):
    t.same(12, dtype=True)
    t.same(6)
    t.same(3)
    t.same(7)
    t.same(20)
    if t.graded:
        t.same(t.integer(33, 63))


@alibi_slopes.group(
    "fewer than one head is refused by name",
    points=1,
    hint="Raise a ValueError that gives n_heads, before anything else.",
)
def _(t: Trial):
    t.raises(ValueError, 0, naming="0")
    t.raises(ValueError, -4, naming="-4")


def _some(n_heads):
    if n_heads < 1:
        raise ValueError(f"n_heads={n_heads}")


def _series(n, first=1):
    return [2.0 ** (-8 * (h + first) / n) for h in range(n)]


def _lower(n_heads):
    return 2 ** (n_heads.bit_length() - 1)


def _filled_up(n_heads, series, others):
    _some(n_heads)
    p = _lower(n_heads)
    return torch.tensor(series(p) + others(series(2 * p))[: n_heads - p])


@alibi_slopes.mistake(
    "Your first slope is 1: you count the exponents from 0. For 8 heads they are 1 to 8."
)
def exponents_from_0(n_heads):
    return _filled_up(n_heads, lambda n: _series(n, 0), lambda s: s[0::2])


@alibi_slopes.mistake(
    "You use 1/2, 1/4, 1/8, ... for any number of heads. That is right for 8. The last slope is to "
    "be 1/256, whatever the number."
)
def halved_each_time(n_heads):
    _some(n_heads)
    return 2.0 ** -torch.arange(1.0, n_heads + 1)


@alibi_slopes.mistake(
    "You use the formula for powers of two for every number of heads. For 12, say, the published "
    "rule takes the 8 slopes of 8 heads, and 4 of those of 16."
)
def one_formula(n_heads):
    _some(n_heads)
    return torch.tensor(_series(n_heads))


@alibi_slopes.mistake(
    "For other numbers you cut off the slopes of the next power of two. Take all of the lower "
    "power's, and fill up with every other one of the next."
)
def cut_off(n_heads):
    _some(n_heads)
    p = _lower(n_heads)
    return torch.tensor(_series(p if p == n_heads else 2 * p)[:n_heads])


@alibi_slopes.mistake(
    "You fill up with the second, fourth, ... slope of the next power of two: those are there "
    "already. Begin with the first."
)
def beginning_with_the_second(n_heads):
    return _filled_up(n_heads, _series, lambda s: s[1::2])


@alibi_slopes.mistake(
    "You fill up with neighbours in the next power's slopes. Take every other one, `[0::2]`."
)
def neighbours(n_heads):
    return _filled_up(n_heads, _series, lambda s: s)


@alibi_slopes.mistake(
    "You sorted the slopes. The published order keeps the extra ones at the end: weights of a "
    "trained model depend on it."
)
def sorted_slopes(n_heads):
    return _filled_up(n_heads, _series, lambda s: s[0::2]).sort(descending=True).values


@alibi_slopes.mistake("You put the extra slopes first. They come after the others.")
def extra_first(n_heads):
    slopes, p = _filled_up(n_heads, _series, lambda s: s[0::2]), _lower(max(n_heads, 1))
    return torch.cat([slopes[p:], slopes[:p]])


@alibi_slopes.mistake("Your slopes are in the opposite order: head 0 has the steepest.")
def flattest_first(n_heads):
    return _filled_up(n_heads, lambda n: _series(n)[::-1], lambda s: s[::-1][0::2][::1])


@alibi_slopes.mistake("Your slopes are negative. The minus sign is in `alibi_bias`.")
def negative_slopes(n_heads):
    return -_filled_up(n_heads, _series, lambda s: s[0::2])


@alibi_slopes.mistake("You raised e instead of 2 to the power. For 8 heads the first slope is 1/2.")
def powers_of_e(n_heads):
    def series(n):
        return [math.exp(-8 * (h + 1) / n) for h in range(n)]

    return _filled_up(n_heads, series, lambda s: s[0::2])


@alibi_slopes.mistake("You return the exponents. The slopes are 2 to the power of minus those.")
def exponents_alone(n_heads):
    return _filled_up(n_heads, lambda n: [8 * (h + 1) / n for h in range(n)], lambda s: s[0::2])


@alibi_slopes.mistake("You return a list. Slopes are multiplied with tensors: `torch.tensor(...)`.")
def a_list(n_heads):
    return _filled_up(n_heads, _series, lambda s: s[0::2]).tolist()


@alibi_slopes.mistake("Your slopes are float64. float32 is asked for.")
def slopes_in_float64(n_heads):
    return _filled_up(n_heads, _series, lambda s: s[0::2]).double()


@alibi_slopes.mistake("You do not refuse 0 heads. Raise a `ValueError` that names n_heads.")
def no_heads_accepted(n_heads):
    if n_heads < 1:
        return torch.zeros(0)
    return _filled_up(n_heads, _series, lambda s: s[0::2])


@alibi_slopes.alternative
def as_published(n_heads):
    if n_heads <= 0:
        raise ValueError(f"{n_heads} heads")

    def power_of_two(n):
        start = 2 ** (-(2 ** -(math.log2(n) - 3)))
        return [start * start**i for i in range(n)]

    if math.log2(n_heads).is_integer():
        return torch.tensor(power_of_two(n_heads))
    p = 2 ** math.floor(math.log2(n_heads))
    return torch.tensor(power_of_two(p) + power_of_two(2 * p)[0::2][: n_heads - p])


@alibi_slopes.alternative
def with_ranges(n_heads):
    if n_heads < 1:
        raise ValueError(f"need at least one head, not {n_heads}")
    p = 1
    while 2 * p <= n_heads:
        p *= 2
    few = torch.arange(1, p + 1) * 8 / p
    many = torch.arange(1, 2 * (n_heads - p) + 1, 2) * 4 / p
    return torch.exp2(-torch.cat([few, many]))


# ----------------------------------------------------------------------------- alibi_bias

alibi_bias = chapter.exercise(reference.alibi_bias, difficulty=2, minutes=7)


@alibi_bias.group(
    "minus slope times distance",
    points=2,
    hint="One head of slope 1, queries and keys at 0, 1, 2: rows [0, -1, -2], [-1, 0, -1], "
    "[-2, -1, 0].",
)
def _(t: Trial):
    t.same(torch.arange(3), torch.arange(3), torch.ones(1))
    t.same(torch.arange(5), torch.arange(5), t.rand(3))
    t.same(torch.arange(4), torch.arange(7), t.rand(2))


@alibi_bias.group(
    "positions anywhere",
    points=1,
    hint="Use the positions as they are: a column of the queries' minus a row of the keys'.",
)
def _(t: Trial):
    t.same(torch.arange(7, 9), torch.arange(9), t.rand(4))
    t.same(torch.tensor([3, 40, 12]), torch.tensor([100_000, 5]), t.rand(2))
    t.same(torch.tensor([6]), torch.arange(2, 7), t.rand(1))


@alibi_bias.group(
    "a batch of positions",
    points=1,
    hint="Count axes from the end: `unsqueeze(-1)`, `unsqueeze(-2)`, and the heads at -3.",
)
def _(t: Trial):
    t.same(t.randint(0, 30, (2, 4)), t.randint(0, 30, (2, 5)), t.rand(3))
    t.same(t.randint(0, 30, (2, 3, 4)), t.randint(0, 30, (2, 3, 6)), t.rand(5))


@alibi_bias.group(
    "the dtype of the slopes",
    points=1,
    hint="Positions are whole numbers; times the slopes they take on the slopes' dtype.",
)
def _(t: Trial):
    for kind in (torch.float64, torch.float32, torch.bfloat16):
        t.same(torch.arange(3), torch.arange(4), t.rand(2, dtype=kind), dtype=True)
    t.same_gradients(torch.arange(3), torch.arange(4), t.rand(2, dtype=torch.float64))


def _distances(query_positions, key_positions):
    return query_positions[..., :, None] - key_positions[..., None, :]


def _by_slope(slopes, distances):
    return slopes[:, None, None] * distances[..., None, :, :]


@alibi_bias.mistake(
    "Your bias is positive: the farther a key, the more it is favoured. Take the minus sign."
)
def rewards_distance(query_positions, key_positions, slopes):
    return _by_slope(slopes, _distances(query_positions, key_positions).abs())


@alibi_bias.mistake(
    "You left out the absolute value: keys after the query get a bonus. Without a mask, they would "
    "win."
)
def without_abs(query_positions, key_positions, slopes):
    return -_by_slope(slopes, _distances(query_positions, key_positions))


@alibi_bias.mistake(
    "Keys after the query get no penalty. The distance counts on both sides; hiding the future is "
    "the mask's task."
)
def free_future(query_positions, key_positions, slopes):
    return -_by_slope(slopes, _distances(query_positions, key_positions).clamp(min=0))


@alibi_bias.mistake(
    "You put -inf at keys after the query. Hiding the future is the mask's task; encoders use "
    "ALiBi too."
)
def hides_the_future(query_positions, key_positions, slopes):
    distances = _distances(query_positions, key_positions)
    future = (distances < 0)[..., None, :, :]
    return -_by_slope(slopes, distances.abs()).masked_fill(future, torch.inf)


@alibi_bias.mistake("You squared the distance. It counts as it is.")
def squared(query_positions, key_positions, slopes):
    return -_by_slope(slopes, _distances(query_positions, key_positions) ** 2)


@alibi_bias.mistake("You swapped queries and keys: rows are queries, columns are keys.")
def bias_transposed(query_positions, key_positions, slopes):
    return -_by_slope(slopes, _distances(query_positions, key_positions).abs()).mT


@alibi_bias.mistake("You put the heads last. The bias is added to scores of shape (..., H, T, S).")
def heads_last(query_positions, key_positions, slopes):
    return -slopes * _distances(query_positions, key_positions).abs()[..., None]


@alibi_bias.mistake(
    "You put the heads in front of the batch. The bias is added to scores of shape (B, H, T, S)."
)
def heads_first(query_positions, key_positions, slopes):
    distances = _distances(query_positions, key_positions).abs()
    return -slopes.view(-1, *[1] * distances.ndim) * distances


@alibi_bias.mistake(
    "You ignore the positions that you are given, and count from 0. A model that goes on from a "
    "cache has queries at the end of the keys."
)
def bias_counted(query_positions, key_positions, slopes):
    t = torch.arange(query_positions.shape[-1]).expand(query_positions.shape)
    s = torch.arange(key_positions.shape[-1]).expand(key_positions.shape)
    return -_by_slope(slopes, _distances(t, s).abs())


@alibi_bias.mistake(
    "You wrote the bias from the end of the keys: it depends on the key alone. Without a causal "
    "mask that is another bias."
)
def key_position_alone(query_positions, key_positions, slopes):
    last = query_positions.amax(-1, keepdim=True).unsqueeze(-1).expand(*query_positions.shape, 1)
    return -_by_slope(slopes, (last - key_positions.unsqueeze(-2)).abs())


@alibi_bias.mistake(
    "You divide by the slopes. A steep head has a large slope, and a large penalty."
)
def divided_by_slopes(query_positions, key_positions, slopes):
    return -_by_slope(1 / slopes, _distances(query_positions, key_positions).abs())


@alibi_bias.mistake("You added the slope instead of multiplying by it.")
def slopes_added(query_positions, key_positions, slopes):
    distances = _distances(query_positions, key_positions).abs()
    return -(slopes[:, None, None] + distances[..., None, :, :])


@alibi_bias.mistake("Your result is always float32. It should have the dtype of the slopes.")
def always_float32(query_positions, key_positions, slopes):
    return -_by_slope(slopes, _distances(query_positions, key_positions).abs()).float()


@alibi_bias.mistake(
    "You cut the slopes off from their gradients. Some models learn them: keep the graph."
)
def slopes_detached(query_positions, key_positions, slopes):
    return -_by_slope(slopes.detach(), _distances(query_positions, key_positions).abs())


@alibi_bias.alternative
def bias_with_loops(query_positions, key_positions, slopes):
    t, s = query_positions.shape[-1], key_positions.shape[-1]
    flat_t, flat_s = query_positions.reshape(-1, t), key_positions.reshape(-1, s)
    batches = []
    for one, other in zip(flat_t.tolist(), flat_s.tolist()):
        table = torch.tensor([[-abs(m - n) for n in other] for m in one], dtype=slopes.dtype)
        batches.append(torch.stack([slope * table for slope in slopes]))
    return torch.stack(batches).reshape(*query_positions.shape[:-1], len(slopes), t, s)


@alibi_bias.alternative
def bias_with_einsum(query_positions, key_positions, slopes):
    low = torch.minimum(query_positions[..., None], key_positions[..., None, :])
    high = torch.maximum(query_positions[..., None], key_positions[..., None, :])
    return torch.einsum("h,...ts->...hts", slopes, (low - high).to(slopes.dtype))


# ------------------------------------------------------------------------------ rope_step


def rope_step(
    q: Float[Tensor, "*batch T K"],
    k: Float[Tensor, "*batch T K"],
    v: Float[Tensor, "*batch T Kv"],
    past_k: Float[Tensor, "*batch P K"],
    past_v: Float[Tensor, "*batch P Kv"],
) -> tuple[Float[Tensor, "*batch T Kv"], Float[Tensor, "*batch S K"], Float[Tensor, "*batch S Kv"]]:
    """Go on with a text: T new tokens attend to the P before them and, causally, to themselves.

    The keys of the P earlier tokens were rotated when they came, and kept. The new tokens stand at
    positions P to P + T - 1. RoPE is the interleaved one, with its usual base. S = P + T.

    Args:
        q: queries of the new tokens, not rotated yet, after any number of leading axes.
        k: their keys, not rotated yet.
        v: their values.
        past_k: keys of positions 0 to P - 1, rotated already; P may be 0.
        past_v: their values.

    Returns:
        output: for each new token its weighted average of the values that it may see.
        keys: all S keys, rotated, to be kept for the next step.
        values: all S values, to be kept.
    """
    t, past = q.shape[-2], past_k.shape[-2]
    angles = rope_angles(torch.arange(past, past + t), q.shape[-1])  # (T, K/2)
    keys = torch.cat([past_k, apply_rope(k, angles)], dim=-2)  # (*batch, S, K)
    values = torch.cat([past_v, v], dim=-2)  # (*batch, S, Kv)
    output, _ = masked_attention(apply_rope(q, angles), keys, values, causal_mask(t, past + t))
    return output, keys, values


rope_step_exercise = chapter.exercise(rope_step, difficulty=4, minutes=13, mend="handed_out")


def _text(t: Trial, *batch: int, length: int):
    """Queries, keys and values of a text, 6 and 5 wide."""
    widths = (6, 6, 5)
    return [t.randn(*batch, length, width, dtype=torch.float64) for width in widths]


def _kept(k, v, past):
    """What a cache holds after the first tokens of a text."""
    return apply_rope(k[..., :past, :], rope_angles(torch.arange(past), 6)), v[..., :past, :]


def _go_on(t: Trial, call: Callable, *batch: int, past: int, new: int):
    q, k, v = _text(t, *batch, length=past + new)
    return call(*(x[..., past:, :] for x in (q, k, v)), *_kept(k, v, past))


@rope_step_exercise.group(
    "one new token after several",
    points=2,
    hint="With 5 tokens in the cache, at which position does the new one stand? And how often has "
    "each key been rotated by the end?",
)
def _(t: Trial):
    _go_on(t, t.same, 2, past=5, new=1)
    _go_on(t, t.same, 2, 3, past=t.integer(6, 9), new=1)


@rope_step_exercise.group(
    "several new tokens",
    points=1,
    hint="T new tokens stand at P, P + 1, ..., P + T - 1.",
)
def _(t: Trial):
    _go_on(t, t.same, past=4, new=3)
    _go_on(t, t.same, 2, past=1, new=5)


@rope_step_exercise.group(
    "the first step, with nothing kept", points=1, hint="With P = 0 the new tokens start at 0."
)
def _(t: Trial):
    _go_on(t, t.same, 2, past=0, new=4)


@rope_step_exercise.group(
    "step by step is all at once",
    points=1,
    hint="Hand each step what the step before gave back. The outputs should be those of one pass.",
)
def _(t: Trial):
    q, k, v = _text(t, 2, length=6)
    empty = torch.zeros(2, 0, 6, dtype=torch.float64), torch.zeros(2, 0, 5, dtype=torch.float64)
    whole = rope_step(q, k, v, *empty)[0]
    outputs, kept = [], empty
    for start, end in ((0, 3), (3, 4), (4, 6)):
        output, *kept = t.call(*(x[:, start:end] for x in (q, k, v)), *kept)
        outputs.append(output)
    t.equal(
        torch.cat(outputs, 1), whole, "Three steps should give the outputs of one pass over all"
    )


@rope_step_exercise.mistake("This is the code that you were given; it still has both its bugs.")
def handed_out(q, k, v, past_k, past_v):
    t, s = q.shape[-2], past_k.shape[-2] + k.shape[-2]
    keys = torch.cat([past_k, k], dim=-2)  # (*batch, S, K)
    values = torch.cat([past_v, v], dim=-2)  # (*batch, S, Kv)
    q = apply_rope(q, rope_angles(torch.arange(t), q.shape[-1]))
    keys = apply_rope(keys, rope_angles(torch.arange(s), q.shape[-1]))
    output, _ = masked_attention(q, keys, values, causal_mask(t, s))
    return output, keys, values


def _step(q, k, v, past_k, past_v, q_start, k_start, mask=causal_mask, returned=None):
    t, past = q.shape[-2], past_k.shape[-2]
    positions = torch.arange(t)
    q = apply_rope(q, rope_angles(positions + q_start, q.shape[-1]))
    new = apply_rope(k, rope_angles(positions + k_start, q.shape[-1]))
    keys, values = torch.cat([past_k, new], -2), torch.cat([past_v, v], -2)
    output, _ = masked_attention(q, keys, values, mask(t, past + t))
    return output, keys if returned is None else returned(past_k, k), values


@rope_step_exercise.mistake(
    "The kept keys are still rotated again at every step. They were rotated when they came: rotate "
    "the new ones alone, before you join them."
)
def kept_keys_rotated_again(q, k, v, past_k, past_v):
    t, past = q.shape[-2], past_k.shape[-2]
    angles = rope_angles(torch.arange(past + t), q.shape[-1])
    keys = apply_rope(torch.cat([past_k, k], -2), angles)
    values = torch.cat([past_v, v], -2)
    output, _ = masked_attention(
        apply_rope(q, angles[past:]), keys, values, causal_mask(t, past + t)
    )
    return output, keys, values


@rope_step_exercise.mistake(
    "Your new queries still stand at position 0 and up. They come after the P kept tokens."
)
def queries_start_at_0(q, k, v, past_k, past_v):
    return _step(q, k, v, past_k, past_v, 0, past_k.shape[-2])


@rope_step_exercise.mistake(
    "Your new keys stand at position 0 and up. They come after the P kept tokens, like the queries."
)
def keys_start_at_0(q, k, v, past_k, past_v):
    return _step(q, k, v, past_k, past_v, past_k.shape[-2], 0)


@rope_step_exercise.mistake(
    "Your new tokens, queries and keys, stand at position 0 and up. They come after the P kept "
    "ones."
)
def new_tokens_start_at_0(q, k, v, past_k, past_v):
    return _step(q, k, v, past_k, past_v, 0, 0)


@rope_step_exercise.mistake(
    "Your new tokens stand one place too far. The kept ones are 0 to P - 1, so the first is at P."
)
def one_too_far(q, k, v, past_k, past_v):
    past = past_k.shape[-2]
    return _step(q, k, v, past_k, past_v, past + 1, past + 1)


@rope_step_exercise.mistake(
    "All your new tokens stand at one position, P. The second of them is at P + 1."
)
def all_at_one_position(q, k, v, past_k, past_v):
    angles = rope_angles(torch.tensor([past_k.shape[-2]]), q.shape[-1])
    t, past = q.shape[-2], past_k.shape[-2]
    keys, values = torch.cat([past_k, apply_rope(k, angles)], -2), torch.cat([past_v, v], -2)
    output, _ = masked_attention(apply_rope(q, angles), keys, values, causal_mask(t, past + t))
    return output, keys, values


@rope_step_exercise.mistake(
    "You give back keys that are not rotated. The next step takes them for rotated ones."
)
def keeps_raw_keys(q, k, v, past_k, past_v):
    past = past_k.shape[-2]
    return _step(
        q, k, v, past_k, past_v, past, past, returned=lambda old, new: torch.cat([old, new], -2)
    )


@rope_step_exercise.mistake(
    "The values are rotated too. Positions are for matching, so only queries and keys are turned."
)
def values_rotated(q, k, v, past_k, past_v):
    past, t = past_k.shape[-2], q.shape[-2]
    even = v.shape[-1] // 2 * 2
    angles = rope_angles(torch.arange(past, past + t), even)
    v = torch.cat([apply_rope(v[..., :even], angles), v[..., even:]], -1)
    return _step(q, k, v, past_k, past_v, past, past)


@rope_step_exercise.mistake(
    "You left out the mask: with several new tokens, the first ones see those after them."
)
def step_without_a_mask(q, k, v, past_k, past_v):
    past = past_k.shape[-2]

    def everything(t, s):
        return torch.ones(t, s, dtype=torch.bool)

    return _step(q, k, v, past_k, past_v, past, past, everything)


@rope_step_exercise.mistake("You put the new tokens before the kept ones. They come after them.")
def new_before_kept(q, k, v, past_k, past_v):
    past, t = past_k.shape[-2], q.shape[-2]
    angles = rope_angles(torch.arange(past, past + t), q.shape[-1])
    keys, values = torch.cat([apply_rope(k, angles), past_k], -2), torch.cat([v, past_v], -2)
    output, _ = masked_attention(apply_rope(q, angles), keys, values, causal_mask(t, past + t))
    return output, keys, values


@rope_step_exercise.alternative
def all_keys_but_the_kept(q, k, v, past_k, past_v):
    past, new = past_k.size(-2), k.size(-2)
    positions = past + torch.arange(new)
    q, k = (apply_rope(x, rope_angles(positions, x.size(-1))) for x in (q, k))
    k, v = torch.cat((past_k, k), -2), torch.cat((past_v, v), -2)
    scores = q @ k.transpose(-1, -2) * q.size(-1) ** -0.5
    hidden = torch.arange(past + new) > positions[:, None]
    return scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v, k, v


@rope_step_exercise.alternative
def token_by_token(q, k, v, past_k, past_v):
    outputs, keys, values = [], past_k, past_v
    for i in range(q.shape[-2]):
        angles = rope_angles(torch.tensor([keys.shape[-2]]), q.shape[-1])
        keys = torch.cat([keys, apply_rope(k[..., i : i + 1, :], angles)], -2)
        values = torch.cat([values, v[..., i : i + 1, :]], -2)
        one = apply_rope(q[..., i : i + 1, :], angles)
        outputs.append(masked_attention(one, keys, values)[0])
    return torch.cat(outputs, -2), keys, values
