"""Checks of chapter 10: the residual stream, and what keeps it in order."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from autograder.checking import Chapter, Model, Trial
from solutions import residuals_and_norms as reference

chapter = Chapter("10_residuals_and_norms", "Residuals and norms")
check = chapter.check

TORCH_NORMS = [
    "torch.nn.LayerNorm",
    "torch.nn.RMSNorm",
    "torch.nn.functional.layer_norm",
    "torch.nn.functional.rms_norm",
    "torch.native_layer_norm",
]
HALF = (torch.float16, torch.bfloat16)


def with_weights(t: Trial, m: Model, d: int, dtype=torch.float32) -> Model:
    """The module with a scale, and where it has one a shift, that are not those of the start."""
    drawn = {name: t.randn(d, dtype=dtype) + 1 for name in ("weight", "bias")}
    m.load({name: drawn[name] for name in m.reference.state_dict()})
    return m


def tokens(t: Trial, *shape: int, dtype=torch.float32) -> Tensor:
    """Tokens each of which has a size and a mean of its own."""
    size = 0.5 + 3 * t.rand(*shape[:-1], 1, dtype=dtype)
    return size * (t.randn(*shape, dtype=dtype) + t.randn(*shape[:-1], 1, dtype=dtype))


def _starts(t: Trial, *, ones: str, zeros: str = ""):
    """Names and shapes of the parameters, how they start, and that they are trained."""
    fresh = t.model(7, dtype=torch.float64, device="cpu", load=False).state()
    for name, value in ((ones, 1.0), (zeros, 0.0)):
        if name:
            t.require(name in fresh, f"There should be a parameter called `{name}`")
            expected = torch.full((7,), value, dtype=torch.float64)
            t.equal(fresh.get(name), expected, f"`{name}` should start as all {value:.0f}")
    t.require(
        all(p.dtype == torch.float64 for p in fresh.values()),
        "With dtype=torch.float64 the parameters should be float64",
    )
    t.model(6).same_gradients(t.randn(2, 3, 6))  # a buffer would get none


def _each_token_alone(t: Trial):
    """Any leading axes; a token does not depend on its neighbours."""
    m = with_weights(t, t.model(6), 6)
    m.same(tokens(t, 6))
    m.same(tokens(t, 1, 6))
    m.same(tokens(t, 2, 3, 4, 6))
    x = tokens(t, 2, 5, 6)
    together = m.call(x)
    t.equal(
        m.call(x[1:, 2:4]),
        together[1:, 2:4],
        "A token's output should be the same whichever other tokens are there",
    )


def _eps(t: Trial):
    """eps belongs inside the root; these tokens are small enough to show where it is."""
    small = 3e-3 * t.randn(2, 3, 5, dtype=torch.float64)
    t.model(5, dtype=torch.float64).same(small)
    t.model(5, eps=0.3, dtype=torch.float64).same(t.randn(2, 3, 5, dtype=torch.float64))
    t.model(5, 1e-8, dtype=torch.float64).same(1e-2 * small)
    m = with_weights(t, t.model(4), 4)
    m.same(torch.zeros(2, 3, 4))
    if t.graded:
        t.model(9, 0.05, dtype=torch.float64).same(0.1 * t.randn(4, 9, dtype=torch.float64))


def _precision(t: Trial, far: bool):
    """float16 ends at 65,504; the squares of these numbers do not."""
    sizes = torch.tensor([1.0, 300.0, 1e-3]).view(3, 1, 1)
    for dtype in HALF:
        m = with_weights(t, t.model(6, dtype=dtype), 6, dtype)
        m.same((sizes * tokens(t, 3, 2, 6)).to(dtype), dtype=True)
    t.model(6).same(400 * t.randn(4, 6, dtype=torch.float16), dtype=True)
    m = with_weights(t, t.model(6, dtype=torch.float64), 6, torch.float64)
    m.same(tokens(t, 2, 5, 6, dtype=torch.float64), dtype=True)
    if far:  # in bfloat16 a mean near 20 is off by up to a sixteenth
        t.model(6).same((t.randn(3, 7, 6) + 20).to(torch.bfloat16), dtype=True)
        # Another order of adding up may differ by 1e-4 here, cancelling by far more.
        t.model(12).same(t.randn(3, 5, 12) + 1000, tol=30)


def _gradients(t: Trial):
    m = with_weights(t, t.model(6, dtype=torch.float64), 6, torch.float64)
    m.same_gradients(tokens(t, 2, 5, 6, dtype=torch.float64))
    m.same_gradients(0.01 * t.randn(4, 6, dtype=torch.float64))


def _wrong_width(t: Trial):
    m = t.model(12)
    m.raises(ValueError, t.randn(2, 7, 17), naming="17")
    m.raises(ValueError, t.randn(2, 7, 17), naming="12")
    m.raises(ValueError, t.randn(2, 12, 1), naming="1")


class _Norm(nn.Module):
    """What the wrong and the other right norms share: the width is refused, the rest varies."""

    shifts = False  # whether there is a bias
    default_eps = 1e-6

    def __init__(self, d_model, eps=None, device=None, dtype=None):
        super().__init__()
        self.eps = self.default_eps if eps is None else eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))
        if self.shifts:
            self.bias = nn.Parameter(torch.zeros(d_model, device=device, dtype=dtype))

    def forward(self, x):
        self.checked(x)
        wide = x.float() if x.dtype in HALF else x
        return self.scaled(self.normal(wide)).to(x.dtype)

    def checked(self, x):
        d = self.weight.shape[-1]
        if x.shape[-1] != d:
            raise ValueError(f"x has width {x.shape[-1]}, expected d_model={d}")

    def scaled(self, normal):
        return normal * self.weight + self.bias if self.shifts else normal * self.weight

    def normal(self, x):
        raise NotImplementedError


# ------------------------------------------------------------------------------ LayerNorm

LayerNorm = chapter.exercise(
    reference.LayerNorm, difficulty=3, minutes=16, forbidden=[*TORCH_NORMS, "torch.batch_norm"]
)


@LayerNorm.group(
    "its parameters",
    points=1,
    hint="`self.weight = nn.Parameter(torch.ones(...))` and `self.bias = nn.Parameter("
    "torch.zeros(...))`, each of shape (D,).",
)
def _(t: Trial):
    _starts(t, ones="weight", zeros="bias")


@LayerNorm.group(
    "what it computes",
    points=2,
    hint="By hand: the token (1, 3) has mean 2 and variance 1, so it becomes (-1, 1).",
)
def _(t: Trial):
    t.model(6).same(tokens(t, 2, 5, 6))
    with_weights(t, t.model(4), 4).same(tokens(t, 3, 5, 4))
    t.model(3).same(t.randn(2, 7, 3) + 5)
    if t.graded:
        with_weights(t, t.model(11), 11).same(tokens(t, 2, 6, 11))


@LayerNorm.group(
    "each token by itself, any leading axes",
    points=1,
    hint="Mean and variance over the last axis alone; keep that axis with `keepdim=True`.",
)
def _(t: Trial):
    _each_token_alone(t)


@LayerNorm.group(
    "eps, inside the root", points=1, hint="√(variance + eps), with the eps of the constructor."
)
def _(t: Trial):
    _eps(t)


@LayerNorm.group(
    "half precision, and numbers far from 0",
    points=1,
    hint="float16 ends at 65,504: compute in float32 and go back to x's dtype at the end. "
    "Centre before you square.",
)
def _(t: Trial):
    _precision(t, far=True)


@LayerNorm.group(
    "gradients",
    points=1,
    hint="Mean and variance depend on x too: nothing may be detached.",
)
def _(t: Trial):
    _gradients(t)


@LayerNorm.group(
    "a wrong width is refused by name",
    points=1,
    hint="Compare x.shape[-1] with d_model at the start of `forward`. Name both numbers.",
)
def _(t: Trial):
    _wrong_width(t)


class _LayerNorm(_Norm):
    shifts = True
    default_eps = 1e-5

    def normal(self, x):
        return (x - self.mean(x)) / self.root(x)

    def mean(self, x):
        return x.mean(-1, keepdim=True)

    def variance(self, x):
        return x.var(-1, unbiased=False, keepdim=True)

    def root(self, x):
        return (self.variance(x) + self.eps).sqrt()


@LayerNorm.mistake(
    "You divide by D - 1 in the variance, as `x.var()` and `x.std()` do unless told not to. Here "
    "it is the mean of the squares, divided by D: `correction=0`."
)
class Unbiased(_LayerNorm):
    def variance(self, x):
        return x.var(-1, keepdim=True)


@LayerNorm.mistake(
    "Your eps stands outside the root. Small tokens show it: the root of (variance + eps) is meant."
)
class EpsOutside(_LayerNorm):
    def root(self, x):
        return self.variance(x).sqrt() + self.eps


@LayerNorm.mistake("You leave out eps: a token of equal numbers becomes 0 / 0.")
class NoEps(_LayerNorm):
    def root(self, x):
        return self.variance(x).sqrt()


@LayerNorm.mistake("Your eps is fixed. Use the one that the constructor was given.")
class FixedEps(_LayerNorm):
    def root(self, x):
        return (self.variance(x) + 1e-5).sqrt()


@LayerNorm.mistake(
    "You divide by the variance. Divide by its square root, or the numbers do not get variance 1."
)
class DividedByTheVariance(_LayerNorm):
    def root(self, x):
        return self.variance(x) + self.eps


@LayerNorm.mistake(
    "You do not subtract the mean from x. That is RMSNorm's way; LayerNorm centres first."
)
class NotCentred(_LayerNorm):
    def mean(self, x):
        return 0

    def variance(self, x):
        return x.square().mean(-1, keepdim=True)


@LayerNorm.mistake(
    "You subtract the mean of the squares and the square of the mean. On paper that is the "
    "variance; for numbers far from 0 it loses all its digits. Centre first, then square."
)
class Cancelling(_LayerNorm):
    def variance(self, x):
        return x.square().mean(-1, keepdim=True) - x.mean(-1, keepdim=True).square()


@LayerNorm.mistake(
    "You normalise along the second-last axis: each feature over the tokens of its sequence. Then "
    "a token's output depends on its neighbours. Mean and variance belong to the last axis."
)
class OverTheTokens(_LayerNorm):
    def normal(self, x):
        axis = -2 if x.ndim > 1 else -1
        centred = x - x.mean(axis, keepdim=True)
        return centred / (centred.square().mean(axis, keepdim=True) + self.eps).sqrt()


@LayerNorm.mistake(
    "You normalise over tokens and features together, so that one loud token makes the others "
    "quiet. Each token is normalised by itself: `dim=-1`."
)
class OverTheSequence(_LayerNorm):
    def normal(self, x):
        axes = (-2, -1) if x.ndim > 1 else -1
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True) + self.eps).sqrt()


@LayerNorm.mistake(
    "You normalise over all tokens of the batch, feature by feature. That is batch norm; here each "
    "token is normalised by itself."
)
class OverTheBatch(_LayerNorm):
    def normal(self, x):
        axes = tuple(range(x.ndim - 1)) or (-1,)
        centred = x - x.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True) + self.eps).sqrt()


@LayerNorm.mistake(
    "You compute half precision as it comes: in float16 the squares overflow, in bfloat16 the "
    "mean is coarse. Go to float32 for the sums."
)
class InHalf(_LayerNorm):
    def forward(self, x):
        self.checked(x)
        return self.scaled(self.normal(x)).to(x.dtype)

    def variance(self, x):
        return (x - x.mean(-1, keepdim=True)).square().mean(-1, keepdim=True)


@LayerNorm.mistake(
    "You compute everything in float32, float64 as well: it loses half its digits. Only half "
    "precision needs another dtype."
)
class AlwaysFloat(_LayerNorm):
    def forward(self, x):
        self.checked(x)
        return self.scaled(self.normal(x.float())).to(x.dtype)


@LayerNorm.mistake(
    "You forgot the way back, `.to(x.dtype)`: half precision in, half precision out."
)
class StaysWide(_LayerNorm):
    def forward(self, x):
        self.checked(x)
        return self.scaled(self.normal(x.float() if x.dtype in HALF else x)).to(
            torch.float32 if x.dtype in HALF else x.dtype
        )


@LayerNorm.mistake(
    "You treat mean and variance as constants (`detach`, `no_grad`). They depend on x, and their "
    "gradients are what keeps the gradient of x in order."
)
class StatisticsDetached(_LayerNorm):
    def mean(self, x):
        return super().mean(x).detach()

    def variance(self, x):
        return super().variance(x).detach()


@LayerNorm.mistake("You do not use `weight` and `bias`: normalise first, then scale and shift.")
class NotScaled(_LayerNorm):
    def scaled(self, normal):
        return normal + 0 * (self.weight + self.bias)


@LayerNorm.mistake(
    "Your weight starts as zeros, so that the fresh layer says nothing but 0. It starts as ones."
)
class StartsAtZero(_LayerNorm):
    def __init__(self, d_model, eps=1e-5, device=None, dtype=None):
        super().__init__(d_model, eps, device, dtype)
        nn.init.zeros_(self.weight)


@LayerNorm.mistake("You ignore `dtype`. Hand it (and `device`) on to both parameters.")
class IgnoresDtype(_LayerNorm):
    def __init__(self, d_model, eps=1e-5, device=None, dtype=None):
        super().__init__(d_model, eps)


@LayerNorm.mistake(
    "Your weight and bias are no parameters, so nothing would train them. `nn.Parameter(...)`."
)
class Buffers(_LayerNorm):
    def __init__(self, d_model, eps=1e-5, device=None, dtype=None):
        super().__init__(d_model, eps, device, dtype)
        for name in ("weight", "bias"):
            value = getattr(self, name).data
            delattr(self, name)
            self.register_buffer(name, value)


@LayerNorm.mistake(
    "You do not refuse a wrong width. A token of one number is even broadcast, without a word. "
    "Raise a ValueError that names both widths."
)
class NoCheckOfTheWidth(_LayerNorm):
    def checked(self, x):
        pass


@LayerNorm.mistake(
    "Your message leaves out one of the two widths. Give what was found and d_model."
)
class NamesOneWidth(_LayerNorm):
    def checked(self, x):
        if x.shape[-1] != len(self.weight):
            raise ValueError(f"x has the wrong width {x.shape[-1]}")


@LayerNorm.alternative
class WithVarMean(_LayerNorm):
    def normal(self, x):
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return (x - mean).div(torch.sqrt(variance + self.eps))


@LayerNorm.alternative
class WithEinsum(_LayerNorm):
    def normal(self, x):
        d = x.size(-1)
        centred = x - torch.einsum("...d->...", x)[..., None] / d
        variance = torch.einsum("...d,...d->...", centred, centred)[..., None] / d
        return centred * (variance + self.eps) ** -0.5


@LayerNorm.alternative
class InDouble(_LayerNorm):
    def forward(self, x):
        if x.size(-1) != self.weight.numel():
            raise ValueError(f"{self.weight.numel()} numbers a token expected, {x.size(-1)} found")
        y = self.normal(x.double()) * self.weight.double() + self.bias.double()
        return y.to(x.dtype)


@LayerNorm.alternative
class RoundedBeforeTheScale(_LayerNorm):
    def forward(self, x):
        self.checked(x)
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        normal = self.normal(wide).to(x.dtype)
        return torch.addcmul(self.bias.to(x.dtype), normal, self.weight.to(x.dtype))


@LayerNorm.alternative
class TokenByToken(_LayerNorm):
    def normal(self, x):
        rows = []
        for row in x.reshape(-1, x.shape[-1]):
            row = row - row.sum() / len(row)
            rows.append(row / torch.sqrt((row @ row) / len(row) + self.eps))
        return torch.stack(rows).reshape(x.shape)


# -------------------------------------------------------------------------------- RMSNorm

RMSNorm = chapter.exercise(reference.RMSNorm, difficulty=2, minutes=8, forbidden=TORCH_NORMS)


@RMSNorm.group(
    "its parameter", points=1, hint="One parameter, `weight`, of shape (D,), and no bias."
)
def _(t: Trial):
    _starts(t, ones="weight")


@RMSNorm.group(
    "what it computes",
    points=2,
    hint="By hand: the squares of the token (1, 7) have the mean 25, so it becomes (0.2, 1.4).",
)
def _(t: Trial):
    t.model(6).same(tokens(t, 2, 5, 6))
    with_weights(t, t.model(4), 4).same(tokens(t, 3, 5, 4))
    t.model(3).same(t.randn(2, 7, 3) + 5)
    if t.graded:
        with_weights(t, t.model(11), 11).same(tokens(t, 2, 6, 11))


@RMSNorm.group(
    "each token by itself, any leading axes", points=1, hint="`dim=-1`, with `keepdim=True`."
)
def _(t: Trial):
    _each_token_alone(t)


@RMSNorm.group(
    "eps, inside the root", points=1, hint="√(mean of squares + eps), the constructor's eps."
)
def _(t: Trial):
    _eps(t)


@RMSNorm.group(
    "half precision",
    points=1,
    hint="float16 ends at 65,504: compute in float32 and go back to x's dtype at the end.",
)
def _(t: Trial):
    _precision(t, far=False)


@RMSNorm.group("gradients", points=1, hint="The root depends on x too: nothing may be detached.")
def _(t: Trial):
    _gradients(t)


@RMSNorm.group(
    "a wrong width is refused by name",
    points=1,
    hint="Compare x.shape[-1] with d_model at the start of `forward`. Name both numbers.",
)
def _(t: Trial):
    _wrong_width(t)


class _RMSNorm(_Norm):
    def normal(self, x):
        return x / self.root(x)

    def mean_square(self, x):
        return x.pow(2).mean(-1, keepdim=True)

    def root(self, x):
        return (self.mean_square(x) + self.eps).sqrt()


@RMSNorm.mistake(
    "You subtract the mean. That is LayerNorm; RMSNorm only divides, and keeps the mean."
)
class StillCentred(_RMSNorm):
    def normal(self, x):
        return super().normal(x - x.mean(-1, keepdim=True))


@RMSNorm.mistake(
    "You divide by the standard deviation, which leaves the mean out. Divide by the root of the "
    "mean of the squares of x itself."
)
class ByTheDeviation(_RMSNorm):
    def mean_square(self, x):
        return x.var(-1, unbiased=False, keepdim=True)


@RMSNorm.mistake(
    "You divide by the length of the token, the root of the *sum* of its squares. RMS is the root "
    "of their mean, smaller by √D."
)
class ByTheLength(_RMSNorm):
    def mean_square(self, x):
        return x.pow(2).sum(-1, keepdim=True)


@RMSNorm.mistake("You take no root: divide by the root of the mean of the squares.")
class Rootless(_RMSNorm):
    def root(self, x):
        return self.mean_square(x) + self.eps


@RMSNorm.mistake("You divide by D - 1. RMS takes the plain mean of the squares, over all D.")
class ByOneLess(_RMSNorm):
    def mean_square(self, x):
        return x.pow(2).sum(-1, keepdim=True) / max(x.shape[-1] - 1, 1)


@RMSNorm.mistake("Your eps stands outside the root. Small tokens show it.")
class RmsEpsOutside(_RMSNorm):
    def root(self, x):
        return self.mean_square(x).sqrt() + self.eps


@RMSNorm.mistake("You leave out eps: a token of zeros becomes 0 / 0.")
class RmsNoEps(_RMSNorm):
    def root(self, x):
        return self.mean_square(x).sqrt()


@RMSNorm.mistake("Your eps is fixed. Use the one that the constructor was given.")
class RmsFixedEps(_RMSNorm):
    def root(self, x):
        return (self.mean_square(x) + 1e-6).sqrt()


@RMSNorm.mistake("Your default for eps is LayerNorm's, 1e-5. This one's is 1e-6.")
class LayerNormsEps(_RMSNorm):
    default_eps = 1e-5


@RMSNorm.mistake(
    "You take the mean over tokens and features together, so that one loud token makes the others "
    "quiet. Each token by itself: `dim=-1`."
)
class RmsOverTheSequence(_RMSNorm):
    def mean_square(self, x):
        return x.pow(2).mean((-2, -1) if x.ndim > 1 else -1, keepdim=True)


@RMSNorm.mistake(
    "You square half precision as it comes: above 255 the squares overflow float16, and the token "
    "becomes 0. Go to float32 first."
)
class RmsInHalf(_RMSNorm):
    def forward(self, x):
        self.checked(x)
        return self.scaled(self.normal(x)).to(x.dtype)


@RMSNorm.mistake("You forgot the way back, `.to(x.dtype)`: half precision in, half precision out.")
class RmsStaysWide(_RMSNorm):
    def forward(self, x):
        self.checked(x)
        return self.scaled(self.normal(x.float() if x.dtype in HALF else x))


@RMSNorm.mistake("You treat the root as a constant (`detach`, `no_grad`). It depends on x.")
class RootDetached(_RMSNorm):
    def root(self, x):
        return super().root(x).detach()


@RMSNorm.mistake("You do not use `weight`: normalise first, then scale.")
class RmsNotScaled(_RMSNorm):
    def scaled(self, normal):
        return normal + 0 * self.weight


@RMSNorm.mistake("Your layer has a bias. RMSNorm has a weight alone.")
class WithBias(_RMSNorm):
    shifts = True


@RMSNorm.mistake("You ignore `dtype`. Hand it (and `device`) on to the parameter.")
class RmsIgnoresDtype(_RMSNorm):
    def __init__(self, d_model, eps=1e-6, device=None, dtype=None):
        super().__init__(d_model, eps)


@RMSNorm.mistake("You do not refuse a wrong width. Raise a ValueError that names both widths.")
class RmsNoCheckOfTheWidth(_RMSNorm):
    def checked(self, x):
        pass


@RMSNorm.alternative
class WithVectorNorm(_RMSNorm):
    def normal(self, x):
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        # The root's derivative at 0 is no number: stay clear of a token of zeros.
        mean_square = torch.where(length > 0, length, 0).square() / x.shape[-1]
        return x * (mean_square + self.eps).rsqrt()


@RMSNorm.alternative
class WithAProduct(_RMSNorm):
    def mean_square(self, x):
        return (x.unsqueeze(-2) @ x.unsqueeze(-1)).squeeze(-1) / x.shape[-1]


@RMSNorm.alternative
class AsLlamaDoes(_RMSNorm):
    def forward(self, x):
        if x.shape[-1] != self.weight.shape[0]:
            raise ValueError(f"{x.shape[-1]} != {self.weight.shape[0]}")
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return (self.weight * self.normal(wide).to(x.dtype)).to(x.dtype)


# ---------------------------------------------------------------------------- invariances


def invariances(norm: Callable[[Tensor], Tensor], x: Float[Tensor, "B T D"]) -> tuple[bool, bool]:
    """Find out which changes of a token a normalisation does not notice.

    It is invariant to shifts if its output stays the same when the same amount is added to all D
    numbers of a token, another amount for each token. It is invariant to scale if its output stays
    the same when all D numbers of a token are multiplied by the same positive factor, another
    factor for each token. Let the amounts and factors differ clearly from 0 and 1 (by a half, say,
    and up to a few units). Differences up to 1e-6 are rounding; a dependence may be as small as a
    hundredth of the change that you make, and may be that of a single token or feature.

    Args:
        norm: takes a batch of sequences, (B, T, D), and gives an output of the same shape. Called
            as often as you like.
        x: sequences to try it on, in float64. Left unchanged.

    Returns:
        Whether it is invariant to shifts, and whether it is invariant to scale.
    """
    before = norm(x)
    amounts = torch.arange(1, x.shape[0] * x.shape[1] + 1).view(*x.shape[:2], 1)  # (B, T, 1)
    shifted, scaled = norm(x + 0.5 * amounts), norm(x * (1 + 0.5 * amounts))
    return (
        torch.allclose(shifted, before, atol=1e-6),
        torch.allclose(scaled, before, atol=1e-6),
    )


# What it is tried on: functions of tokens (B, T, D). The names say what they do.


def layer_norm(x):
    return F.layer_norm(x, x.shape[-1:], eps=1e-16)


def rms_norm(x):
    return x * x.square().mean(-1, keepdim=True).rsqrt()


def only_centred(x):
    return x - x.mean(-1, keepdim=True)


def soft_maximum(x):
    return x.softmax(-1)


def divided_by_largest(x):
    return x / x.abs().amax(-1, keepdim=True)


def squashed(x):
    return x.tanh()


def distance_from_the_mean(x):
    return layer_norm(x).abs()


def normalised_over_the_batch(x):
    return F.layer_norm(x.movedim(-1, 0), x.shape[:2], eps=1e-16).movedim(0, -1)


def normalised_over_the_sequence(x):
    return F.layer_norm(x, x.shape[1:], eps=1e-16)


def centred_over_the_batch(x):
    return x - x.mean(0, keepdim=True)


def layer_norm_but_for_the_last_feature(x):
    return torch.cat([layer_norm(x)[..., :-1], x[..., -1:]], dim=-1)


def layer_norm_with_a_trace_of_x(x):
    return layer_norm(x) + 0.01 * x


def layer_norm_in_the_first_sequence(x):
    return torch.cat([layer_norm(x[:1]), x[1:]])


def layer_norm_but_for_the_last_token(x):
    return torch.cat([layer_norm(x[:, :-1]), x[:, -1:]], dim=1)


def centred_in_the_last_token_only(x):
    return torch.cat([rms_norm(x[:, :-1]), layer_norm(x[:, -1:])], dim=1)


invariances_exercise = chapter.exercise(invariances, difficulty=3, minutes=12)


def _try(t: Trial, *functions: Callable) -> None:
    for function in functions:
        t.same(function, t.randn(2, 4, 5, dtype=torch.float64))


@invariances_exercise.group(
    "layer norm, RMS norm, centring, and others",
    points=2,
    hint="One amount for all the numbers of a token: (B, T, 1) broadcasts against (B, T, D).",
)
def _(t: Trial):
    _try(t, layer_norm, rms_norm, only_centred, squashed, divided_by_largest)
    if t.graded:
        _try(t, soft_maximum, distance_from_the_mean)


@invariances_exercise.group(
    "norms over the wrong axes",
    points=1,
    hint="A norm over the whole batch does not notice if *all* tokens are shifted alike. Give each "
    "token an amount of its own.",
)
def _(t: Trial):
    _try(t, normalised_over_the_batch, normalised_over_the_sequence, centred_over_the_batch)


@invariances_exercise.group(
    "faint dependence, or that of one token or feature",
    points=1,
    hint="Compare all numbers of all outputs, with a tolerance for rounding alone.",
)
def _(t: Trial):
    _try(t, layer_norm_with_a_trace_of_x, layer_norm_in_the_first_sequence)
    _try(t, layer_norm_but_for_the_last_token, centred_in_the_last_token_only)
    _try(t, layer_norm_but_for_the_last_feature)


@invariances_exercise.group(
    "leaves x alone",
    points=1,
    hint="`x + ...` makes a new tensor; `x += ...` changes the caller's.",
)
def _(t: Trial):
    x = t.randn(2, 4, 5, dtype=torch.float64)
    t.unchanged(layer_norm, x)
    t.same(rms_norm, x)


def _amounts(x, low=0.5):
    return low + torch.arange(x.shape[0] * x.shape[1], dtype=x.dtype).view(*x.shape[:2], 1)


def _unmoved(found, expected, atol=1e-6):
    return torch.allclose(found, expected, atol=atol)


def _both_changes(norm, x, compare=_unmoved):
    before, a = norm(x), _amounts(x)
    return compare(norm(x + a), before), compare(norm(x * (1 + a)), before)


@invariances_exercise.mistake(
    "You add the same amount to all tokens. A norm over the whole batch is blind to that, and "
    "passes for a layer norm. Give each token an amount, and a factor, of its own."
)
def alike_for_all(norm, x):
    before = norm(x)
    return _unmoved(norm(x + 2), before), _unmoved(norm(x * 3), before)


@invariances_exercise.mistake(
    "You give each sequence one amount, the same for all its tokens. Give each token its own."
)
def alike_in_a_sequence(norm, x):
    before, a = norm(x), _amounts(x[:, :1])
    return _unmoved(norm(x + a), before), _unmoved(norm(x * (1 + a)), before)


@invariances_exercise.mistake(
    "You change each number of a token by an amount of its own. That is another token, and no norm "
    "ignores it: one amount for all D numbers."
)
def each_number_apart(norm, x):
    before, a = norm(x), torch.arange(1, x.numel() + 1).view(x.shape)
    return _unmoved(norm(x + a), before), _unmoved(norm(x * (1 + a)), before)


@invariances_exercise.mistake(
    "Your factors are negative: they turn a token round, and the output with it. Invariance to "
    "scale is about positive factors."
)
def negative_factors(norm, x):
    before, a = norm(x), _amounts(x)
    return _unmoved(norm(x + a), before), _unmoved(norm(x * -(1 + a)), before)


@invariances_exercise.mistake("You return the two answers in the wrong order: shifts come first.")
def scale_first(norm, x):
    return _both_changes(norm, x)[::-1]


@invariances_exercise.mistake("You answer the wrong way round: True means that nothing changed.")
def the_wrong_way_round(norm, x):
    shift, scale = _both_changes(norm, x)
    return not shift, not scale


@invariances_exercise.mistake(
    "You expect the output to be shifted and scaled along with x. Invariant means: it stays."
)
def moves_along(norm, x):
    before, a = norm(x), _amounts(x)
    return _unmoved(norm(x + a), before + a), _unmoved(norm(x * (1 + a)), before * (1 + a))


@invariances_exercise.mistake("You compare the first sequence alone.")
def first_sequence(norm, x):
    return _both_changes(norm, x, lambda one, other: _unmoved(one[:1], other[:1]))


@invariances_exercise.mistake("You compare the first token alone. Another one may notice.")
def first_token(norm, x):
    return _both_changes(norm, x, lambda one, other: _unmoved(one[:, :1], other[:, :1]))


@invariances_exercise.mistake(
    "Your tolerance is so wide that a faint dependence passes for rounding."
)
def tolerant(norm, x):
    return _both_changes(norm, x, lambda one, other: _unmoved(one, other, 0.5))


@invariances_exercise.mistake(
    "You compare sums or means of the outputs. Outputs can change and keep their sum."
)
def sums(norm, x):
    return _both_changes(norm, x, lambda one, other: _unmoved(one.sum(-1), other.sum(-1)))


@invariances_exercise.mistake("You change x itself (`x +=`). The caller still needs it.")
def changes_x(norm, x):
    before, a = norm(x).clone(), _amounts(x)
    x += a
    shift = _unmoved(norm(x), before)
    x -= a
    scale = _unmoved(norm(x * (1 + a)), before)
    x += a
    return shift, scale


@invariances_exercise.alternative
def with_random_numbers(norm, x):
    before = norm(x)
    a = torch.randn(*x.shape[:-1], 1).double() * 2
    a = a + 0.5 * a.sign()
    shift = bool((norm(x + a) - before).abs().max() < 1e-7)
    scale = bool((norm(x * a.abs().add(1)) - before).abs().max() < 1e-7)
    return [shift, scale]


@invariances_exercise.alternative
def one_token_at_a_time(norm, x):
    before = norm(x)
    shift = scale = True
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            moved, stretched = x.clone(), x.clone()
            moved[b, i] += 1.5
            stretched[b, i] *= 2.5
            shift = shift and torch.allclose(norm(moved), before, atol=1e-6)
            scale = scale and torch.allclose(norm(stretched), before, atol=1e-6)
    return shift, scale


@invariances_exercise.alternative
def smaller_and_negative(norm, x):
    a = torch.linspace(-3, -0.5, x.shape[0] * x.shape[1]).double().reshape(x.shape[0], -1, 1)
    return tuple((norm(y) - norm(x)).norm().item() < 1e-6 for y in (x + a, x * torch.exp(a)))


# ------------------------------------------------------------------------------- residual

residual = chapter.exercise(reference.residual, difficulty=2, minutes=10)

# Functions that a learner's `residual` is given. The first looks at neighbours, as attention does.


def earlier_tokens(x):
    return x.cumsum(-2).sin() + 0.3


def per_token(x):
    return (2 * x).tanh() - x.flip(-1)


def says_nothing(x):
    return torch.zeros_like(x)


def its_own_input(x):
    return x


def a_linear_map(t: Trial, d: int) -> nn.Linear:
    """One with seeded weights, in float64."""
    layer = torch.nn.utils.skip_init(nn.Linear, d, d, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(t.randn(d, d) / d**0.5)
        layer.bias.copy_(0.1 * t.randn(d))
    return layer.requires_grad_(False)


def a_norm(t: Trial, d: int) -> nn.LayerNorm:
    """A layer norm with a scale and a shift of its own, in float64."""
    norm = nn.LayerNorm(d, dtype=torch.float64)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * t.randn(d))
        norm.bias.copy_(0.3 * t.randn(d))
    return norm.requires_grad_(False)


@residual.group(
    "pre-norm",
    points=2,
    hint="The sublayer reads norm(x), and what it says is added to x itself.",
)
def _(t: Trial):
    t.same(tokens(t, 2, 5, 6), earlier_tokens, layer_norm)
    t.same(tokens(t, 5, 6), per_token, rms_norm, norm_first=True)
    t.same(tokens(t, 2, 3, 5, 4), earlier_tokens, layer_norm, True)


@residual.group(
    "post-norm",
    points=2,
    hint="The sublayer reads x; the sum of x and what it says is normalised.",
)
def _(t: Trial):
    t.same(tokens(t, 2, 5, 6), earlier_tokens, layer_norm, norm_first=False)
    t.same(tokens(t, 5, 6), per_token, rms_norm, False)
    t.same(tokens(t, 2, 3, 5, 4), earlier_tokens, layer_norm, False)


@residual.group(
    "a sublayer that says nothing",
    points=1,
    hint="x + 0 is x: in pre-norm the stream passes through untouched, to the last bit.",
)
def _(t: Trial):
    x = tokens(t, 2, 5, 6)
    found = t.call(x, says_nothing, layer_norm)
    t.require(torch.equal(found, x), "Pre-norm, the sublayer says 0: the stream should be x, as is")
    t.same(x, says_nothing, rms_norm, False)
    t.same(x, its_own_input, layer_norm)
    t.same(x, its_own_input, layer_norm, False)
    t.unchanged(x, earlier_tokens, layer_norm)
    t.unchanged(x, earlier_tokens, layer_norm, False)


@residual.group(
    "gradients, on both ways",
    points=1,
    hint="Nothing is detached: the gradient comes back through the sum and through the sublayer.",
)
def _(t: Trial):
    sublayer, norm = a_linear_map(t, 6), a_norm(t, 6)
    for norm_first in (True, False):
        t.same_gradients(tokens(t, 2, 5, 6, dtype=torch.float64), sublayer, norm, norm_first)


@residual.mistake("You do not add x: without the sum the stream ends at the first sublayer.")
def not_added(x, sublayer, norm, norm_first=True):
    return sublayer(norm(x)) if norm_first else norm(sublayer(x))


@residual.mistake(
    "In pre-norm you add to the normalised copy. Then the stream itself is normalised at every "
    "sublayer; add to x as it came."
)
def added_to_the_copy(x, sublayer, norm, norm_first=True):
    if norm_first:
        x = norm(x)
        return x + sublayer(x)
    return norm(x + sublayer(x))


@residual.mistake("You swapped the two orders: norm_first=True is pre-norm.")
def orders_swapped(x, sublayer, norm, norm_first=True):
    return reference.residual(x, sublayer, norm, not norm_first)


@residual.mistake("You do pre-norm always. With norm_first=False the norm comes after the sum.")
def always_pre(x, sublayer, norm, norm_first=True):
    return x + sublayer(norm(x))


@residual.mistake("You do post-norm always. With norm_first=True the norm is before the sublayer.")
def always_post(x, sublayer, norm, norm_first=True):
    return norm(x + sublayer(x))


@residual.mistake(
    "In post-norm you normalise what the sublayer says, and add it to x. The 2017 paper's order "
    "normalises the sum."
)
def branch_normalised(x, sublayer, norm, norm_first=True):
    return x + (sublayer(norm(x)) if norm_first else norm(sublayer(x)))


@residual.mistake("In post-norm you normalise x, and add the sublayer's word afterwards.")
def stream_normalised(x, sublayer, norm, norm_first=True):
    return x + sublayer(norm(x)) if norm_first else norm(x) + sublayer(x)


@residual.mistake(
    "You normalise before the sublayer and after the sum. Each order has one norm for a sublayer."
)
def twice(x, sublayer, norm, norm_first=True):
    return norm(x + sublayer(norm(x)))


@residual.mistake("In post-norm you normalise the sublayer's input as well.")
def both_in_post(x, sublayer, norm, norm_first=True):
    return x + sublayer(norm(x)) if norm_first else norm(x + sublayer(norm(x)))


@residual.mistake("You do not use the norm.")
def normless(x, sublayer, norm, norm_first=True):
    return x + sublayer(x)


@residual.mistake("You normalise the sublayer's result instead of its input in pre-norm.")
def after_the_sublayer(x, sublayer, norm, norm_first=True):
    return x + norm(sublayer(x)) if norm_first else norm(x + sublayer(x))


@residual.mistake("You divide the sum by 2. It is a sum, not an average.")
def averaged(x, sublayer, norm, norm_first=True):
    return (x + sublayer(norm(x))) / 2 if norm_first else norm((x + sublayer(x)) / 2) / 2


@residual.mistake("You add in place (`x += ...`): the caller's stream changes with yours.")
def in_place(x, sublayer, norm, norm_first=True):
    if norm_first:
        x.data += sublayer(norm(x))
        return x
    x.data += sublayer(x)
    return norm(x)


@residual.mistake(
    "You cut the stream off from its gradient (`detach`). The way through the sum is the one that "
    "reaches the lowest layer undiminished."
)
def stream_detached(x, sublayer, norm, norm_first=True):
    kept = x.detach()
    return kept + sublayer(norm(x)) if norm_first else norm(kept + sublayer(x))


@residual.mistake("You cut the sublayer off from its gradient (`detach`, `no_grad`).")
def sublayer_detached(x, sublayer, norm, norm_first=True):
    if norm_first:
        return x + sublayer(norm(x)).detach()
    return norm(x + sublayer(x).detach())


@residual.alternative
def with_both_norms_optional(x, sublayer, norm, norm_first=True):
    y = norm(x) if norm_first else x
    y = torch.add(sublayer(y), x)
    return y if norm_first else norm(y)


@residual.alternative
def by_cases(x, sublayer, norm, norm_first=True):
    kept = x.clone()
    if not norm_first:
        return norm(sublayer(x) + kept)
    said = sublayer(norm(x))
    return torch.stack([kept, said]).sum(0)


@residual.alternative
def in_place_on_its_own_copy(x, sublayer, norm, norm_first=True):
    y = x.clone()
    y += sublayer(norm(x) if norm_first else x)
    return y if norm_first else norm(y)


# ------------------------------------------------------------------------- pre_norm_stack


def pre_norm_stack(
    x: Float[Tensor, "*batch T D"],
    sublayers: list[Callable[[Tensor], Tensor]],
    norms: list[Callable[[Tensor], Tensor]],
    final_norm: Callable[[Tensor], Tensor],
) -> Float[Tensor, "*batch T D"]:
    """Run tokens through a pre-norm model: each sublayer in turn, then one last norm.

    Each sublayer reads a normalised copy of the residual stream, and what it says is added to the
    stream itself, which nothing normalises on the way. Behind the last sublayer the stream is
    normalised once, by final_norm, for whoever reads it next.

    Args:
        x: the tokens. Left unchanged.
        sublayers: functions that keep the shape, the first to be used first; none at all is fine.
        norms: as many; norms[i] goes with sublayers[i].
        final_norm: the norm behind them all.

    Returns:
        The normalised stream; gradients flow back to x.
    """
    for sublayer, norm in zip(sublayers, norms):
        x = x + sublayer(norm(x))
    return final_norm(x)


stack_exercise = chapter.exercise(pre_norm_stack, difficulty=2, minutes=10, mend="handed_out")


def _parts(t: Trial, n: int, d: int) -> tuple[list, list, nn.Module]:
    return [a_linear_map(t, d) for _ in range(n)], [a_norm(t, d) for _ in range(n)], a_norm(t, d)


@stack_exercise.group(
    "a stack of three",
    points=2,
    hint="After `x = norm(x)`, where is the stream as it was? And what is `final_norm` for?",
)
def _(t: Trial):
    t.same(tokens(t, 2, 5, 6, dtype=torch.float64), *_parts(t, 3, 6))
    t.same(tokens(t, 5, 4, dtype=torch.float64), *_parts(t, 4, 4))
    t.same(tokens(t, 2, 3, 5, 6, dtype=torch.float64), *_parts(t, 1, 6))


@stack_exercise.group(
    "the stream is never normalised on the way",
    points=1,
    hint="Without sublayers, or with sublayers that say 0, only the last norm is left to see.",
)
def _(t: Trial):
    x = tokens(t, 2, 5, 6, dtype=torch.float64)
    _, _, final = _parts(t, 0, 6)
    t.same(x, [], [], final)
    silent = [a_linear_map(t, 6) for _ in range(2)]
    for layer in silent:
        nn.init.zeros_(layer.weight), nn.init.zeros_(layer.bias)
    norms = [a_norm(t, 6), a_norm(t, 6)]
    t.same(x, silent, norms, final)
    found = t.call(x, silent, norms, nn.Identity())
    t.equal(found, x, "No sublayer says anything and the last norm is left out: it should be x")


@stack_exercise.group(
    "gradients", points=1, hint="The gradient comes back along the sum, and through each sublayer."
)
def _(t: Trial):
    t.same_gradients(tokens(t, 2, 5, 6, dtype=torch.float64), *_parts(t, 3, 6))


@stack_exercise.mistake("This is the code that you were given; it still has both its bugs.")
def handed_out(x, sublayers, norms, final_norm):
    for sublayer, norm in zip(sublayers, norms):
        x = norm(x)
        x = x + sublayer(x)
    return x


@stack_exercise.mistake(
    "The stream is still overwritten by its normalised copy, `x = norm(x)`: the sublayer's word is "
    "added to the copy, and what the stream was is lost."
)
def still_overwritten(x, sublayers, norms, final_norm):
    for sublayer, norm in zip(sublayers, norms):
        x = norm(x)
        x = x + sublayer(x)
    return final_norm(x)


@stack_exercise.mistake(
    "The last norm is still missing: what leaves the stack is as large as the stream has grown."
)
def no_final_norm(x, sublayers, norms, final_norm):
    for sublayer, norm in zip(sublayers, norms):
        x = x + sublayer(norm(x))
    return x


@stack_exercise.mistake("You made a post-norm stack. Here each norm stands before its sublayer.")
def post_norm_stack(x, sublayers, norms, final_norm):
    for sublayer, norm in zip(sublayers, norms):
        x = norm(x + sublayer(x))
    return final_norm(x)


@stack_exercise.mistake("You apply the last norm after every sublayer. It comes once, at the end.")
def final_norm_inside(x, sublayers, norms, final_norm):
    for sublayer, norm in zip(sublayers, norms):
        x = final_norm(x + sublayer(norm(x)))
    return x


@stack_exercise.mistake("You do not add: `x = sublayer(norm(x))` loses the stream.")
def no_stream(x, sublayers, norms, final_norm):
    for sublayer, norm in zip(sublayers, norms):
        x = sublayer(norm(x))
    return final_norm(x)


@stack_exercise.mistake(
    "Every sublayer reads the tokens as they came. It should read the stream as it is by then."
)
def all_in_parallel(x, sublayers, norms, final_norm):
    stream = x
    for sublayer, norm in zip(sublayers, norms):
        stream = stream + sublayer(norm(x))
    return final_norm(stream)


@stack_exercise.mistake(
    "You add each sublayer's word to the tokens as they came, and drop what the earlier ones said."
)
def added_to_the_start(x, sublayers, norms, final_norm):
    stream = x
    for sublayer, norm in zip(sublayers, norms):
        stream = x + sublayer(norm(stream))
    return final_norm(stream)


@stack_exercise.mistake("You use the first norm for all sublayers. norms[i] goes with sublayer i.")
def one_norm(x, sublayers, norms, final_norm):
    for sublayer in sublayers:
        x = x + sublayer(norms[0](x))
    return final_norm(x)


@stack_exercise.mistake("You leave out the norms on the way: each sublayer reads norms[i](x).")
def unnormalised(x, sublayers, norms, final_norm):
    for sublayer in sublayers:
        x = x + sublayer(x)
    return final_norm(x)


@stack_exercise.mistake("You go through the sublayers backwards.")
def reversed_order(x, sublayers, norms, final_norm):
    for sublayer, norm in zip(sublayers[::-1], norms[::-1]):
        x = x + sublayer(norm(x))
    return final_norm(x)


@stack_exercise.alternative
def with_residual(x, sublayers, norms, final_norm):
    for i, sublayer in enumerate(sublayers):
        x = reference.residual(x, sublayer, norms[i])
    return final_norm(x)


@stack_exercise.alternative
def with_a_name_for_the_copy(x, sublayers, norms, final_norm):
    stream = x.clone()
    for sublayer, norm in zip(sublayers, norms):
        copy = norm(stream)
        stream = sublayer(copy) + stream
    return final_norm(stream)


@stack_exercise.alternative
def by_recursion(x, sublayers, norms, final_norm):
    if not sublayers:
        return final_norm(x)
    first = x + sublayers[0](norms[0](x))
    return by_recursion(first, sublayers[1:], norms[1:], final_norm)


# ------------------------------------------------------------------------ stream_variance


def stream_variance(n_layers: int, norm_first: bool, scaled: bool = False) -> list[float]:
    """Predict how the variance of the residual stream goes through an untrained model.

    Take it that the stream starts with variance 1; that what a norm gives has variance 1; and
    that a sublayer, given numbers of variance 1, says numbers of variance 1 that have nothing to
    do with those in the stream (so that the variances add up).

    Args:
        n_layers: number of layers L, each with two sublayers, each of them in a residual block.
        norm_first: True for pre-norm, False for post-norm.
        scaled: whether what the sublayers say is multiplied by 1 / √(2L), as in GPT-2 at the
            start. Then their variance is smaller. Mind by how much.

    Returns:
        A list of 2L + 1 numbers: the variance at the start, and behind each residual block (in
        post-norm that is behind its norm).
    """
    added = 1 / (2 * n_layers) if scaled else 1
    return [1 + i * added if norm_first else 1.0 for i in range(2 * n_layers + 1)]


variance_exercise = chapter.exercise(stream_variance, difficulty=2, minutes=7)


@variance_exercise.group("pre-norm", points=1, hint="Independent variances add up.")
def _(t: Trial):
    t.same(2, True)
    t.same(t.integer(5, 9), norm_first=True)


@variance_exercise.group("post-norm", points=1, hint="What is the variance behind a norm?")
def _(t: Trial):
    t.same(3, False)
    t.same(4, norm_first=False, scaled=True)


@variance_exercise.group(
    "pre-norm with GPT-2's scale",
    points=1,
    hint="A factor c multiplies the variance by c squared. What have all 2L of them added at the "
    "end?",
)
def _(t: Trial):
    t.same(2, True, True)
    t.same(t.integer(5, 9), True, scaled=True)


@variance_exercise.mistake(
    "Your list has a number for each layer. A layer has two sublayers, each with a residual block."
)
def one_a_layer(n_layers, norm_first, scaled=False):
    return stream_variance(n_layers, norm_first, scaled)[::2]


@variance_exercise.mistake("Your list lacks the start, before the first sublayer.")
def without_the_start(n_layers, norm_first, scaled=False):
    return stream_variance(n_layers, norm_first, scaled)[1:]


@variance_exercise.mistake(
    "Your pre-norm stream doubles at every sublayer. The sublayer reads a normalised copy, so it "
    "adds the same amount each time, however large the stream."
)
def doubling(n_layers, norm_first, scaled=False):
    c = 1 / (2 * n_layers) if scaled else 1
    return [(1 + c) ** i if norm_first else 1.0 for i in range(2 * n_layers + 1)]


@variance_exercise.mistake("You give standard deviations. The variance is their square.")
def deviations(n_layers, norm_first, scaled=False):
    return [math.sqrt(v) for v in stream_variance(n_layers, norm_first, scaled)]


@variance_exercise.mistake(
    "You have the two orders the wrong way round: it is pre-norm whose stream nothing normalises."
)
def post_grows(n_layers, norm_first, scaled=False):
    return stream_variance(n_layers, not norm_first, scaled)


@variance_exercise.mistake("Your post-norm stream grows too. Behind a norm the variance is 1.")
def both_grow(n_layers, norm_first, scaled=False):
    return stream_variance(n_layers, True, scaled)


@variance_exercise.mistake("Your pre-norm stream does not grow. Its norms see copies alone.")
def neither_grows(n_layers, norm_first, scaled=False):
    return [1.0] * (2 * n_layers + 1)


@variance_exercise.mistake(
    "You add the scale itself. A factor c multiplies the numbers by c, and their variance by c "
    "squared: 1 / (2L)."
)
def scale_not_squared(n_layers, norm_first, scaled=False):
    c = 1 / math.sqrt(2 * n_layers) if scaled else 1
    return [1 + i * c if norm_first else 1.0 for i in range(2 * n_layers + 1)]


@variance_exercise.mistake("You ignore `scaled`.")
def unscaled(n_layers, norm_first, scaled=False):
    return stream_variance(n_layers, norm_first)


@variance_exercise.mistake("You scale by the number of layers. There are 2L sublayers.")
def scaled_by_layers(n_layers, norm_first, scaled=False):
    c = 1 / n_layers if scaled else 1
    return [1 + i * c if norm_first else 1.0 for i in range(2 * n_layers + 1)]


@variance_exercise.mistake(
    "You start at 0, or leave out the 1 of the start: the stream holds the tokens already."
)
def starts_at_nothing(n_layers, norm_first, scaled=False):
    return [v - 1 if norm_first else v for v in stream_variance(n_layers, norm_first, scaled)]


@variance_exercise.alternative
def step_by_step(n_layers, norm_first, scaled=False):
    variance, found = 1.0, [1.0]
    for _ in range(n_layers):
        for _ in ("attention", "feed-forward"):
            variance += (1 / math.sqrt(2 * n_layers)) ** 2 if scaled else 1.0
            if not norm_first:
                variance = 1.0
            found.append(variance)
    return found


@variance_exercise.alternative
def with_a_line(n_layers, norm_first, scaled=False):
    end = (2.0 if scaled else 1.0 + 2 * n_layers) if norm_first else 1.0
    return torch.linspace(1, end, 2 * n_layers + 1, dtype=torch.float64).tolist()


# ----------------------------------------------------------------------------- init_scale

init_scale = chapter.exercise(reference.init_scale, difficulty=1, minutes=4)


@init_scale.group("values", points=1, hint="1 / √N, where N counts the sublayers: two a layer.")
def _(t: Trial):
    t.same(12)
    t.same(2)
    t.same(1)
    t.same(t.integer(20, 200))


@init_scale.group(
    "a model of no layers is refused", points=1, hint="A ValueError, with the number."
)
def _(t: Trial):
    t.raises(ValueError, 0, naming="0")
    t.raises(ValueError, -3, naming="-3")


def _refused(n_layers):
    if n_layers < 1:
        raise ValueError(f"n_layers is {n_layers}, and should be 1 or more")


@init_scale.mistake("You count one sublayer a layer. There are two: N = 2L.")
def by_layers(n_layers):
    _refused(n_layers)
    return n_layers**-0.5


@init_scale.mistake("You forgot the root: it is the variance that is to shrink by 1 / (2L).")
def rootless(n_layers):
    _refused(n_layers)
    return 1 / (2 * n_layers)


@init_scale.mistake("You return the root, which makes the weights larger. It is 1 over the root.")
def the_root(n_layers):
    _refused(n_layers)
    return math.sqrt(2 * n_layers)


@init_scale.mistake("You put the 2 outside the root: √(2L), not 2√L.")
def two_outside(n_layers):
    _refused(n_layers)
    return 1 / (2 * math.sqrt(n_layers))


@init_scale.mistake(
    "You multiply by 0.02, the standard deviation that GPT-2 starts with. Return the factor alone: "
    "`init_scale` does not know what it multiplies."
)
def times_std(n_layers):
    _refused(n_layers)
    return 0.02 / math.sqrt(2 * n_layers)


@init_scale.mistake("You do not refuse a model of no layers. Raise a `ValueError` that names it.")
def refuses_nothing(n_layers):
    return abs(2 * n_layers or 1) ** -0.5


@init_scale.mistake("Your `ValueError` should give the number of layers that it was asked for.")
def refuses_without_a_word(n_layers):
    if n_layers < 1:
        raise ValueError("at least one layer is needed")
    return 1 / math.sqrt(2 * n_layers)


@init_scale.alternative
def as_a_power(n_layers):
    if n_layers <= 0:
        raise ValueError(f"{n_layers} layers")
    return (2 * n_layers) ** -0.5


@init_scale.alternative
def as_a_product(n_layers):
    if not n_layers >= 1:
        raise ValueError("n_layers must be positive, not " + str(n_layers))
    return (1 / math.sqrt(2)) * (1 / math.sqrt(n_layers))


# -------------------------------------------------------------------- layer_norm_backward

backward = chapter.exercise(
    reference.layer_norm_backward,
    difficulty=5,
    minutes=22,
    forbidden=[
        *TORCH_NORMS,
        "torch.Tensor.backward",
        "torch.autograd.grad",
        "torch.autograd",
        "torch.func.vjp",
        "torch.func.jacrev",
        "torch.Tensor.requires_grad_",
        "torch.native_layer_norm_backward",
    ],
)


def _at(t: Trial, *shape: int) -> tuple[Tensor, Tensor, Tensor]:
    d = torch.float64
    return t.randn(*shape, dtype=d), tokens(t, *shape, dtype=d), t.randn(shape[-1], dtype=d) + 1


@backward.group(
    "the gradient of x",
    points=3,
    hint="With g = grad * weight: take from g its mean, and what lies along the normalised token; "
    "then divide by σ.",
)
def _(t: Trial):
    d = torch.float64
    grad, x, _ = t.call(*_at(t, 2, 5, 6))
    grad, x, weight = _at(t, 2, 5, 6)
    expected = reference.layer_norm_backward(grad, x, weight)[0]
    t.equal(t.call(grad, x, weight)[0], expected, "The gradient of x is wrong")
    grad, x, weight = _at(t, 3, 4, 5)
    ones = torch.ones(5, dtype=d)
    expected = reference.layer_norm_backward(grad, x, ones)[0]
    t.equal(t.call(grad, x, ones)[0], expected, "With weights of 1, the gradient of x is wrong")


@backward.group(
    "the gradients of weight and bias",
    points=1,
    hint="Each token has its share: sum over all axes but the last.",
)
def _(t: Trial):
    for shape in [(2, 5, 6), (3, 4, 5)]:
        grad, x, weight = _at(t, *shape)
        _, of_weight, of_bias = reference.layer_norm_backward(grad, x, weight)
        found = t.call(grad, x, weight)
        t.equal(found[1], of_weight, "The gradient of the weight is wrong")
        t.equal(found[2], of_bias, "The gradient of the bias is wrong")


@backward.group(
    "any leading axes",
    points=1,
    hint="There may be no axis before the last, or several: do not count on two.",
)
def _(t: Trial):
    t.same(*_at(t, 6))
    t.same(*_at(t, 4, 6))
    t.same(*_at(t, 2, 3, 4, 5))


@backward.group(
    "eps", points=1, hint="The same eps as in the forward pass, inside the root, in x̂ and in 1/σ."
)
def _(t: Trial):
    grad, x, weight = _at(t, 2, 3, 5)
    t.same(grad, 3e-3 * x, weight)
    t.same(grad, x, weight, 0.3)
    t.same(grad, x, weight, eps=0.5)


@backward.group("leaves its inputs alone", points=1, hint="No methods with a trailing underscore.")
def _(t: Trial):
    t.unchanged(*_at(t, 2, 3, 5))
    t.same(*_at(t, 2, 3, 5))


def _pieces(x, eps, correction=0):
    centred = x - x.mean(-1, keepdim=True)
    scale = (x.var(-1, correction=correction, keepdim=True) + eps).rsqrt()
    return centred * scale, scale


def _sums(grad, normal):
    d = grad.shape[-1]
    return (grad * normal).reshape(-1, d).sum(0), grad.reshape(-1, d).sum(0)


def _means(g, normal):
    return g.mean(-1, keepdim=True), (g * normal).mean(-1, keepdim=True)


@backward.mistake(
    "You treat mean and variance as constants: your gradient of x is grad * weight / σ. They "
    "depend on x as well."
)
def constants(grad, x, weight, eps=1e-5):
    normal, scale = _pieces(x, eps)
    return scale * grad * weight, *_sums(grad, normal)


@backward.mistake("You forgot that the mean depends on x: the mean of g is to be taken away.")
def mean_forgotten(grad, x, weight, eps=1e-5):
    normal, scale = _pieces(x, eps)
    g = grad * weight
    return scale * (g - normal * _means(g, normal)[1]), *_sums(grad, normal)


@backward.mistake(
    "You forgot that the variance depends on x: what lies along the normalised token is to be "
    "taken away."
)
def variance_forgotten(grad, x, weight, eps=1e-5):
    normal, scale = _pieces(x, eps)
    g = grad * weight
    return scale * (g - _means(g, normal)[0]), *_sums(grad, normal)


@backward.mistake("You forgot to divide by σ at the end.")
def not_divided(grad, x, weight, eps=1e-5):
    normal, _ = _pieces(x, eps)
    g = grad * weight
    shift, stretch = _means(g, normal)
    return g - shift - stretch * normal, *_sums(grad, normal)


@backward.mistake("You multiply by σ. Going back, the gradient is divided by it, as x was.")
def multiplied_by_sigma(grad, x, weight, eps=1e-5):
    normal, scale = _pieces(x, eps)
    g = grad * weight
    shift, stretch = _means(g, normal)
    return (g - shift - stretch * normal) / scale, *_sums(grad, normal)


@backward.mistake(
    "You leave the weight out of the gradient of x. What reaches the normalised numbers is "
    "grad * weight."
)
def weight_left_out(grad, x, weight, eps=1e-5):
    normal, scale = _pieces(x, eps)
    shift, stretch = _means(grad, normal)
    return scale * (grad - shift - stretch * normal), *_sums(grad, normal)


@backward.mistake(
    "You multiply by the weight at the end. It belongs to the start: its elements differ, and the "
    "two means are those of grad * weight."
)
def weight_at_the_end(grad, x, weight, eps=1e-5):
    normal, scale = _pieces(x, eps)
    shift, stretch = _means(grad, normal)
    return weight * scale * (grad - shift - stretch * normal), *_sums(grad, normal)


@backward.mistake("You take sums over the token's numbers where means are meant.")
def summed(grad, x, weight, eps=1e-5):
    normal, scale = _pieces(x, eps)
    g = grad * weight
    shift, stretch = _means(g, normal)
    d = x.shape[-1]
    return scale * (g - d * shift - d * stretch * normal), *_sums(grad, normal)


@backward.mistake("You add the two corrections. They are taken away.")
def wrong_sign(grad, x, weight, eps=1e-5):
    normal, scale = _pieces(x, eps)
    g = grad * weight
    shift, stretch = _means(g, normal)
    return scale * (g + shift + stretch * normal), *_sums(grad, normal)


@backward.mistake("You use x in place of the normalised token x̂.")
def raw_tokens(grad, x, weight, eps=1e-5):
    _, scale = _pieces(x, eps)
    g = grad * weight
    shift, stretch = _means(g, x)
    return scale * (g - shift - stretch * x), *_sums(grad, x)


@backward.mistake("You divide by D - 1 in the variance. Here it is D.")
def unbiased_backward(grad, x, weight, eps=1e-5):
    normal, scale = _pieces(x, eps, correction=1)
    g = grad * weight
    shift, stretch = _means(g, normal)
    return scale * (g - shift - stretch * normal), *_sums(grad, normal)


@backward.mistake("You leave out eps. It was in the forward pass, so it is in this one.")
def eps_left_out(grad, x, weight, eps=1e-5):
    return reference.layer_norm_backward(grad, x, weight, 0.0)


@backward.mistake("Your eps is fixed at 1e-5. Use the one that you are given.")
def eps_fixed(grad, x, weight, eps=1e-5):
    return reference.layer_norm_backward(grad, x, weight, 1e-5)


@backward.mistake(
    "You sum the gradients of weight and bias over the batch alone. All tokens share them: sum "
    "over all axes but the last."
)
def summed_over_the_batch(grad, x, weight, eps=1e-5):
    normal, _ = _pieces(x, eps)
    of_x = reference.layer_norm_backward(grad, x, weight, eps)[0]
    if x.ndim < 2:
        return of_x, grad * normal, grad
    return of_x, (grad * normal).sum(0), grad.sum(0)


@backward.mistake("You average the gradients of weight and bias over the tokens. They add up.")
def averaged_over_tokens(grad, x, weight, eps=1e-5):
    of_x, of_weight, of_bias = reference.layer_norm_backward(grad, x, weight, eps)
    n = x.numel() // x.shape[-1]
    return of_x, of_weight / n, of_bias / n


@backward.mistake("You multiply the weight's gradient by the weight. It is grad * x̂, summed.")
def weight_in_its_own_gradient(grad, x, weight, eps=1e-5):
    of_x, of_weight, of_bias = reference.layer_norm_backward(grad, x, weight, eps)
    return of_x, of_weight * weight, of_bias


@backward.mistake("You return the gradients in another order. First x, then weight, then bias.")
def another_order(grad, x, weight, eps=1e-5):
    of_x, of_weight, of_bias = reference.layer_norm_backward(grad, x, weight, eps)
    return of_x, of_bias, of_weight


@backward.mistake("You return the gradient of x alone. Those of weight and bias are asked for too.")
def of_x_alone(grad, x, weight, eps=1e-5):
    return reference.layer_norm_backward(grad, x, weight, eps)[0]


@backward.mistake("You change one of the inputs in place. The caller still needs it.")
def changes_its_input(grad, x, weight, eps=1e-5):
    found = reference.layer_norm_backward(grad, x, weight, eps)
    grad *= weight
    return found


@backward.alternative
def by_the_jacobian(grad, x, weight, eps=1e-5):
    d = x.shape[-1]
    normal, scale = _pieces(x, eps)
    eye = torch.eye(d, dtype=x.dtype)
    jacobian = scale[..., None] * (eye - 1 / d - normal[..., :, None] * normal[..., None, :] / d)
    of_x = ((grad * weight)[..., None, :] @ jacobian).squeeze(-2)
    return [of_x, *_sums(grad, normal)]


@backward.alternative
def by_the_chain_rule(grad, x, weight, eps=1e-5):
    d = x.shape[-1]
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True) + eps
    g = grad * weight
    of_variance = (g * (x - mean) * -0.5 * variance**-1.5).sum(-1, keepdim=True)
    of_mean = (-g / variance.sqrt()).sum(-1, keepdim=True)
    of_x = g / variance.sqrt() + of_variance * 2 * (x - mean) / d + of_mean / d
    normal = (x - mean) / variance.sqrt()
    return of_x, torch.einsum("...d,...d->d", grad, normal), torch.einsum("...d->d", grad)


@backward.alternative
def token_by_token(grad, x, weight, eps=1e-5):
    d = x.shape[-1]
    of_weight, of_bias, rows = torch.zeros_like(weight), torch.zeros_like(weight), []
    for g, row in zip(grad.reshape(-1, d), x.reshape(-1, d)):
        normal, scale = _pieces(row, eps)
        of_weight, of_bias = of_weight + g * normal, of_bias + g
        h = g * weight
        rows.append((h - h.sum() / d - (h @ normal) / d * normal) * scale)
    return torch.stack(rows).reshape(x.shape), of_weight, of_bias
