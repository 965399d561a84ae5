"""Checks of chapter 09: what each token does by itself."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from autograder.checking import Chapter, Trial
from solutions import feed_forward as reference

chapter = Chapter("09_feed_forward", "Feed-forward layers")
check = chapter.check

# ------------------------------------------------------------------------------- collapse

collapse = chapter.exercise(reference.collapse, difficulty=2, minutes=7)


def two_layers(t: Trial, d: int, f: int, e: int, dtype=torch.float64):
    return (
        t.randn(f, d, dtype=dtype),
        t.randn(f, dtype=dtype),
        t.randn(e, f, dtype=dtype),
        t.randn(e, dtype=dtype),
    )


def after_both(x, w_in, b_in, w_out, b_out):
    return (x @ w_in.T + b_in) @ w_out.T + b_out


@collapse.group(
    "the weight",
    points=1,
    hint="Write (x W_inᵀ) W_outᵀ without the brackets, and turn the whole round.",
)
def _(t: Trial):
    for sizes in [(3, 5, 4), (4, 2, 6)]:
        w_in, b_in, w_out, b_out = two_layers(t, *sizes)
        t.same(w_in, b_in * 0, w_out, b_out * 0)


@collapse.group(
    "the bias",
    points=1,
    hint="Send a token of zeros through both layers. What comes out is the bias of the one.",
)
def _(t: Trial):
    t.same(*two_layers(t, 3, 5, 4))
    t.same(*two_layers(t, 6, 2, 3))
    w_in, b_in, w_out, b_out = two_layers(t, 3, 5, 4)
    t.same(w_in, b_in, w_out, b_out * 0)


@collapse.group(
    "one layer does what the two do",
    points=2,
    hint="F.linear(x, weight, bias) should be F.linear(F.linear(x, w_in, b_in), w_out, b_out).",
)
def _(t: Trial):
    for sizes in [(3, 5, 4), (4, 4, 4), (7, 1, 2)]:
        layers = two_layers(t, *sizes)
        weight, bias = t.call(*layers)
        x = t.randn(2, 6, sizes[0], dtype=torch.float64)
        t.equal(
            x.to(weight.dtype) @ weight.T + bias,
            after_both(x, *layers),
            "Your one layer does not give what the two give",
        )
    t.same(*two_layers(t, 3, 5, 4), dtype=True)
    t.same(*two_layers(t, 3, 5, 4, dtype=torch.float32), dtype=True)


@collapse.group(
    "gradients",
    points=1,
    hint="Use tensor operations alone, and detach nothing.",
)
def _(t: Trial):
    t.same_gradients(*two_layers(t, 3, 5, 4))


@collapse.mistake(
    "Your weight and bias are cut off from their gradients (`detach`, `.data`, `.tolist()`)."
)
def cut_off(w_in, b_in, w_out, b_out):
    return (w_out @ w_in).detach(), (w_out @ b_in + b_out).detach()


@collapse.mistake(
    "You multiplied the weights in the wrong order. The first layer stands on the right, next to "
    "the token: w_out @ w_in."
)
def wrong_order(w_in, b_in, w_out, b_out):
    return w_in @ w_out, w_out @ b_in + b_out


@collapse.mistake(
    "Your weight is transposed: `torch.nn.Linear` keeps it as (out, in), so it is (E, D)."
)
def transposed(w_in, b_in, w_out, b_out):
    return (w_out @ w_in).T, w_out @ b_in + b_out


@collapse.mistake(
    "You kept the second bias alone. The first one goes through the second layer, and arrives."
)
def second_bias_alone(w_in, b_in, w_out, b_out):
    return w_out @ w_in, b_out


@collapse.mistake("You lost the second bias: add b_out.")
def first_bias_alone(w_in, b_in, w_out, b_out):
    return w_out @ w_in, w_out @ b_in


@collapse.mistake(
    "You added the two biases as they are. They live in different widths; the first one has to go "
    "through the second layer."
)
def biases_added(w_in, b_in, w_out, b_out):
    return w_out @ w_in, b_in + b_out


@collapse.mistake(
    "You added a constant to the bias, the mean of b_in, in place of b_in sent through w_out."
)
def mean_of_the_bias(w_in, b_in, w_out, b_out):
    return w_out @ w_in, b_in.mean() + b_out


@collapse.mistake(
    "You summed w_out over its inputs and left out b_in: the bias is w_out @ b_in + b_out."
)
def row_sums(w_in, b_in, w_out, b_out):
    return w_out @ w_in, w_out.sum(1) + b_out


@collapse.mistake(
    "You put an activation between the layers. Then there is no one linear layer that does the "
    "same; here there is none between them."
)
def with_a_relu(w_in, b_in, w_out, b_out):
    return w_out @ w_in.relu(), w_out @ b_in.relu() + b_out


@collapse.mistake("You return the bias first. The weight comes first, as in `F.linear`.")
def bias_first(w_in, b_in, w_out, b_out):
    return w_out @ b_in + b_out, w_out @ w_in


@collapse.mistake("You return the weight alone. Return the weight and the bias.")
def weight_alone(w_in, b_in, w_out, b_out):
    return w_out @ w_in


@collapse.alternative
def with_linear(w_in, b_in, w_out, b_out):
    return F.linear(w_in.T, w_out).T, F.linear(b_in, w_out, b_out)


@collapse.alternative
def with_einsum(w_in, b_in, w_out, b_out):
    weight = torch.einsum("ef,fd->ed", w_out, w_in)
    return weight, torch.einsum("ef,f->e", w_out, b_in) + b_out


@collapse.alternative
def by_probing(w_in, b_in, w_out, b_out):
    d = w_in.shape[1]
    bias = after_both(torch.zeros(d, dtype=w_in.dtype), w_in, b_in, w_out, b_out)
    columns = after_both(torch.eye(d, dtype=w_in.dtype), w_in, b_in, w_out, b_out) - bias
    return [columns.T, bias]


# ----------------------------------------------------------------------------------- gelu

gelu = chapter.exercise(
    reference.gelu,
    difficulty=2,
    minutes=10,
    forbidden=["torch.nn.functional.gelu", "torch.nn.GELU"],
)


@gelu.group(
    "the exact form",
    points=2,
    hint="x Φ(x), with Φ(x) = ½ (1 + erf(x / √2)). At 0 it is 0, at 1 it is 0.8413.",
)
def _(t: Trial):
    t.same(torch.tensor([0.0, 1.0, -1.0, 2.0, -3.0]))
    # Constants rounded to float32 are a matter of another group.
    t.same(2 * t.randn(2, 3, 5, dtype=torch.float64), tol=100)
    t.same(2 * t.randn(7, dtype=torch.float64), "none", tol=100)
    t.same(t.randn(dtype=torch.float64), approximate="none", tol=100)
    if t.graded:
        t.same(4 * t.randn(3, 1, 2, 4, dtype=torch.float64), tol=100)


@gelu.group(
    "the tanh form",
    points=2,
    hint="½ x (1 + tanh(√(2/π) (x + 0.044715 x³))). Mind what the root and the brackets hold.",
)
def _(t: Trial):
    t.same(torch.tensor([0.0, 1.0, -1.0, 2.0, -3.0], dtype=torch.float64), "tanh", tol=100)
    t.same(2 * t.randn(2, 3, 5, dtype=torch.float64), approximate="tanh", tol=100)
    if t.graded:
        t.same(4 * t.randn(6, 4, dtype=torch.float64), approximate="tanh", tol=100)


@gelu.group(
    "large numbers, and every dtype",
    points=1,
    hint="`torch.erf` and `torch.tanh` are safe for numbers of any size, and keep the dtype. Make "
    "constants with `math.sqrt`: a Python number is as exact as x.",
)
def _(t: Trial):
    large = torch.tensor([-1e4, -200.0, -12.0, 12.0, 200.0, 1e4])
    for form in ("none", "tanh"):
        t.same(large, form)
        for dtype in (torch.float16, torch.bfloat16, torch.float64):
            t.same(t.rand(3, 4, dtype=dtype) * 4 - 2, form, dtype=True)


@gelu.group(
    "gradients",
    points=1,
    hint="Compute the result from x with tensor operations alone, none of them detached.",
)
def _(t: Trial):
    for form in ("none", "tanh"):
        t.same_gradients(2 * t.randn(3, 4, dtype=torch.float64), form, tol=100)
        far = torch.tensor([-50.0, -5.0, 0.0, 5.0, 50.0], dtype=torch.float64)
        t.same_gradients(far, form, tol=100)


@gelu.group(
    "leaves its input alone",
    points=1,
    hint="`*=` and methods with a trailing underscore change the tensor that the caller holds.",
)
def _(t: Trial):
    t.unchanged(t.randn(3, 4))
    t.unchanged(t.randn(3, 4), "tanh")
    t.same(t.randn(3, 4))


@gelu.group(
    "any other form is refused",
    points=1,
    hint="A ValueError, whose message gives what was asked for.",
)
def _(t: Trial):
    t.raises(ValueError, t.randn(3), "sigmoid", naming="sigmoid")
    t.raises(ValueError, t.randn(3), approximate="Tanh", naming="Tanh")


def _form(approximate):
    if approximate not in ("none", "tanh"):
        raise ValueError(f"unknown form {approximate!r}")
    return approximate == "tanh"


def _exact(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def _tanh(x, root=(2 / math.pi) ** 0.5, factor=0.044715):
    return 0.5 * x * (1 + torch.tanh(root * (x + factor * x**3)))


@gelu.mistake("You forgot to divide by √2 inside erf: erf(x) is not Φ(x), ½ (1 + erf(x/√2)) is.")
def without_root_2(x, approximate="none"):
    return _tanh(x) if _form(approximate) else 0.5 * x * (1 + torch.erf(x))


@gelu.mistake("You forgot the ½: for large x, the result should be x, and yours is twice that.")
def without_the_half(x, approximate="none"):
    return 2 * _tanh(x) if _form(approximate) else 2 * _exact(x)


@gelu.mistake("You return Φ(x), the share that is let through. Multiply it by x.")
def probability_alone(x, approximate="none"):
    return torch.special.ndtr(x) if not _form(approximate) else _tanh(x) / x


@gelu.mistake(
    "Your exact form is the tanh approximation: they differ by up to 0.0005. `approximate='none'` "
    "means the exact one, and it is the default."
)
def always_tanh(x, approximate="none"):
    _form(approximate)
    return _tanh(x)


@gelu.mistake("You ignore `approximate`: with 'tanh' the approximation is asked for.")
def always_exact(x, approximate="none"):
    _form(approximate)
    return _exact(x)


@gelu.mistake("You swapped the two forms: 'none' is the exact one, 'tanh' the approximation.")
def forms_swapped(x, approximate="none"):
    return _exact(x) if _form(approximate) else _tanh(x)


@gelu.mistake("Your default is the tanh form. As in torch, it is the exact one, 'none'.")
def tanh_by_default(x, approximate="tanh"):
    return _tanh(x) if _form(approximate) else _exact(x)


@gelu.mistake(
    "Your exact form is x · sigmoid(1.702 x), another approximation of the paper, and coarser."
)
def with_a_sigmoid(x, approximate="none"):
    return _tanh(x) if _form(approximate) else x * torch.sigmoid(1.702 * x)


@gelu.mistake("You built the SiLU, x · sigmoid(x). The GELU weighs with Φ(x), which is steeper.")
def silu(x, approximate="none"):
    return _tanh(x) if _form(approximate) else F.silu(x)


@gelu.mistake("In the tanh form, the constant is √(2/π) ≈ 0.798: 2/π under the root.")
def without_the_root(x, approximate="none"):
    return _tanh(x, root=2 / math.pi) if _form(approximate) else _exact(x)


@gelu.mistake("In the tanh form you took √(π/2) for √(2/π).")
def root_upside_down(x, approximate="none"):
    return _tanh(x, root=math.sqrt(math.pi / 2)) if _form(approximate) else _exact(x)


@gelu.mistake("In the tanh form, the factor of x³ is 0.044715; a digit or the point is off.")
def another_factor(x, approximate="none"):
    return _tanh(x, factor=0.44715) if _form(approximate) else _exact(x)


@gelu.mistake("In the tanh form, you left out the term with x³.")
def without_the_cube(x, approximate="none"):
    return _tanh(x, factor=0) if _form(approximate) else _exact(x)


@gelu.mistake(
    "In the tanh form you took x² for x³, which is not odd: below 0 it bends the wrong way."
)
def square_for_cube(x, approximate="none"):
    if not _form(approximate):
        return _exact(x)
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**2)))


@gelu.mistake(
    "In the tanh form, √(2/π) multiplies x alone. It multiplies the whole bracket, x + 0.044715 x³."
)
def root_on_x_alone(x, approximate="none"):
    if not _form(approximate):
        return _exact(x)
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x + 0.044715 * x**3))


@gelu.mistake(
    "You wrote tanh with exponentials: for large numbers that is inf / inf, which is NaN. "
    "`torch.tanh` is safe."
)
def tanh_by_hand(x, approximate="none"):
    if not _form(approximate):
        return _exact(x)
    e = torch.exp(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    return 0.5 * x * (1 + (e - 1) / (e + 1))


@gelu.mistake("Your result is float32 whatever comes in. It should have the dtype of x.")
def always_float32(x, approximate="none"):
    return _tanh(x.float()) if _form(approximate) else _exact(x.float())


@gelu.mistake(
    "Your constants are float32 tensors, such as `torch.sqrt(torch.tensor(2.0))`: for x in float64 "
    "they are wrong from the eighth digit on. Use `math.sqrt`."
)
def rounded_constants(x, approximate="none"):
    if not _form(approximate):
        return 0.5 * x * (1 + torch.erf(x / torch.sqrt(torch.tensor(2.0))))
    return _tanh(x, root=torch.sqrt(torch.tensor(2 / math.pi)))


@gelu.mistake("You change `x` in place: the caller still needs it.")
def in_place(x, approximate="none"):
    result = _tanh(x) if _form(approximate) else _exact(x)
    x.data.mul_(0.5)
    return result


@gelu.mistake("You take any form that is not 'tanh' for the exact one. Raise a ValueError.")
def refuses_nothing(x, approximate="none"):
    return _tanh(x) if approximate == "tanh" else _exact(x)


@gelu.mistake("Your ValueError should give the form that was asked for, so that its reader knows.")
def refuses_without_a_word(x, approximate="none"):
    if approximate not in ("none", "tanh"):
        raise ValueError("unknown form")
    return _tanh(x) if approximate == "tanh" else _exact(x)


@gelu.mistake(
    "Your result is cut off from its gradients (`detach`, `.data`, `.item()`, `no_grad`): nothing "
    "would be learned."
)
def without_gradients(x, approximate="none"):
    return (_tanh(x) if _form(approximate) else _exact(x)).detach()


@gelu.alternative
def with_the_distribution(x, approximate="none"):
    if approximate == "none":
        return x * torch.distributions.Normal(0.0, 1.0).cdf(x).to(x.dtype)
    if approximate != "tanh":
        raise ValueError(f"approximate must be 'none' or 'tanh', not {approximate}")
    inner = 0.7978845608028654 * x * (1 + 0.044715 * x * x)
    return 0.5 * x * (1 + inner.tanh())


@gelu.alternative
def with_the_complement(x, approximate="none"):
    match approximate:
        case "none":
            return 0.5 * x * torch.erfc(-x / math.sqrt(2))
        case "tanh":
            # ½ (1 + tanh(u)) is a sigmoid of 2u
            return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x.pow(3)))
    raise ValueError(approximate)


@gelu.alternative
def in_double_precision(x, approximate="none"):
    if approximate not in {"none", "tanh"}:
        raise ValueError(f"{approximate!r}?")
    wide = x.double()
    if approximate == "tanh":
        u = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
        return ((1 + torch.tanh(u)) * wide / 2).to(x.dtype)
    return (wide * torch.special.ndtr(wide)).to(x.dtype)


# ---------------------------------------------------------------------------- FeedForward

FeedForward = chapter.exercise(reference.FeedForward, difficulty=3, minutes=12)


@FeedForward.group(
    "its parameters",
    points=2,
    hint="Two `nn.Linear`, called `w_in` and `w_out`. Hand `device` and `dtype` on to both.",
)
def _(t: Trial):
    m = t.model(6, 10)
    m.call(t.randn(2, 5, 6))
    m = t.model(5, 3, device="cpu", dtype=torch.float64)
    found = m.call(t.randn(2, 4, 5, dtype=torch.float64))
    t.require(
        found.dtype == torch.float64,
        "With dtype=torch.float64, parameters and output should be float64",
        found=str(found.dtype),
    )


@FeedForward.group(
    "with ReLU, the default",
    points=2,
    hint="Up to d_ff, then the activation, then down to d_model. Nothing after that.",
)
def _(t: Trial):
    t.model(6, 10).same(2 * t.randn(2, 5, 6))
    t.model(7, 3).same(2 * t.randn(3, 4, 7))
    t.model(5, 8, "relu").same(5 * t.randn(2, 3, 5))


@FeedForward.group(
    "with either GELU",
    points=1,
    hint="'gelu' is your `gelu(x)`, 'gelu_tanh' is `gelu(x, approximate='tanh')`.",
)
def _(t: Trial):
    for activation in ("gelu", "gelu_tanh"):
        t.model(6, 10, activation=activation).same(4 * t.randn(3, 9, 6))
        t.model(5, 16, activation).same(3 * t.randn(2, 12, 5))


@FeedForward.group(
    "without a bias",
    points=1,
    hint="`bias=False` leaves it out of both maps. `nn.Linear` takes that argument.",
)
def _(t: Trial):
    t.model(6, 10, bias=False).same(2 * t.randn(2, 5, 6))
    t.model(4, 7, "gelu", False).same(2 * t.randn(3, 2, 4))


@FeedForward.group(
    "each token by itself, any leading axes",
    points=1,
    hint="`nn.Linear` acts on the last axis and leaves the others alone. So should the layer.",
)
def _(t: Trial):
    m = t.model(6, 10)
    x = t.randn(2, 3, 5, 6)
    together = m.same(x)
    m.same(t.randn(6))
    t.equal(
        m.call(x[1:, 2, 3]),
        together[1:, 2, 3],
        "A token alone should get the output that it gets in company",
    )


@FeedForward.group("gradients reach every parameter", points=1)
def _(t: Trial):
    t.model(6, 10).same_gradients(t.randn(2, 5, 6))
    t.model(4, 7).same_gradients(t.randn(3, 4))


@FeedForward.group(
    "an unknown activation is refused",
    points=1,
    hint="Look in `__init__` whether the name is known, and raise a ValueError that gives it.",
)
def _(t: Trial):
    t.raises(ValueError, 6, 10, "swish", naming="swish")
    t.raises(ValueError, 4, 7, activation="GELU", naming="GELU")


class _Layer(reference.FeedForward):
    """The reference's parameters, ahead of another computation."""

    def forward(self, x):
        return self.compute(x)

    def compute(self, x):
        return self.w_out(self.activation(self.w_in(x)))


@FeedForward.mistake(
    "You apply the activation after the second map as well (or only there). It stands between the "
    "two; the output may be negative."
)
class ActivatesTheOutput(_Layer):
    def compute(self, x):
        return self.activation(super().compute(x))


@FeedForward.mistake(
    "Your activation comes after both maps, with nothing between them: the two are one linear map."
)
class ActivatesTooLate(_Layer):
    def compute(self, x):
        return self.activation(self.w_out(self.w_in(x)))


@FeedForward.mistake(
    "There is no activation in your layer: two linear maps in a row are one linear map."
)
class WithoutActivation(_Layer):
    def compute(self, x):
        return self.w_out(self.w_in(x))


@FeedForward.mistake("You activate the token before the first map. The activation comes after it.")
class ActivatesTheInput(_Layer):
    def compute(self, x):
        return self.w_out(self.w_in(self.activation(x)))


@FeedForward.mistake(
    "You add the token to its result. That is the residual connection of chapter 10, and no part "
    "of this layer."
)
class AddsTheToken(_Layer):
    def compute(self, x):
        return x + super().compute(x)


@FeedForward.mistake("You ignore `activation`, and always use ReLU.")
class AlwaysReLU(_Layer):
    def compute(self, x):
        return self.w_out(self.w_in(x).relu())


@FeedForward.mistake("Your 'gelu' is the tanh form. It is the exact one, as in BERT.")
class AlwaysTanh(_Layer):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        super().__init__(d_model, d_ff, activation, bias, device, dtype)
        if activation == "gelu":
            self.activation = nn.GELU(approximate="tanh")


@FeedForward.mistake("Your 'gelu_tanh' is the exact form. Pass `approximate='tanh'` to `gelu`.")
class NeverTanh(_Layer):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        super().__init__(d_model, d_ff, activation, bias, device, dtype)
        if activation == "gelu_tanh":
            self.activation = nn.GELU()


@FeedForward.mistake('Your default activation is the GELU. It is "relu", as in the 2017 model.')
class GELUByDefault(_Layer):
    def __init__(self, d_model, d_ff, activation="gelu", bias=True, device=None, dtype=None):
        super().__init__(d_model, d_ff, activation, bias, device, dtype)


@FeedForward.mistake("You ignore `bias`: with `bias=False` neither map has one.")
class AlwaysBiased(_Layer):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        super().__init__(d_model, d_ff, activation, True, device, dtype)


@FeedForward.mistake("With `bias=False`, only your first map goes without. Pass it to both.")
class OutputAlwaysBiased(_Layer):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        super().__init__(d_model, d_ff, activation, bias, device, dtype)
        self.w_out = nn.Linear(d_ff, d_model, device=device, dtype=dtype)


@FeedForward.mistake("Your maps have no bias. By default both have one.")
class UnbiasedByDefault(_Layer):
    def __init__(self, d_model, d_ff, activation="relu", bias=False, device=None, dtype=None):
        super().__init__(d_model, d_ff, activation, bias, device, dtype)


@FeedForward.mistake("You ignore `dtype`. Hand it (and `device`) on to each `nn.Linear`.")
class IgnoresDtype(_Layer):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        super().__init__(d_model, d_ff, activation, bias)


@FeedForward.mistake(
    "Your maps run the other way: `w_in` goes from d_model up to d_ff, `w_out` back down."
)
class TheOtherWay(_Layer):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        super().__init__(d_ff, d_model, activation, bias, device, dtype)


@FeedForward.mistake(
    "Your maps have other names. Call them `self.w_in` and `self.w_out`: weights are loaded by "
    "name."
)
class OtherNames(nn.Module):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        super().__init__()
        known = {"relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU("tanh")}
        if activation not in known:
            raise ValueError(activation)
        options = {"bias": bias, "device": device, "dtype": dtype}
        self.net = nn.Sequential(
            nn.Linear(d_model, d_ff, **options),
            known[activation],
            nn.Linear(d_ff, d_model, **options),
        )

    def forward(self, x):
        return self.net(x)


@FeedForward.mistake(
    "You drop units at random (dropout). This layer has none: where a model wants it, it puts it "
    "around the layer."
)
class DropsUnits(_Layer):
    def compute(self, x):
        return self.w_out(F.dropout(self.activation(self.w_in(x)), 0.1, self.training))


@FeedForward.mistake(
    "You mix the tokens: something in your layer runs along their axis. Each token is transformed "
    "by itself."
)
class MixesTokens(_Layer):
    def compute(self, x):
        if x.ndim < 2:
            return super().compute(x)
        return super().compute(x - x.mean(-2, keepdim=True))


@FeedForward.mistake(
    "You return the hidden units, of width d_ff. The second map takes them back to d_model."
)
class ReturnsHidden(_Layer):
    def compute(self, x):
        return self.activation(self.w_in(x))


@FeedForward.mistake(
    "You take an unknown activation for ReLU. A typing error would go unseen: raise a ValueError."
)
class RefusesNothing(_Layer):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        known = activation if activation in ("relu", "gelu", "gelu_tanh") else "relu"
        super().__init__(d_model, d_ff, known, bias, device, dtype)


@FeedForward.mistake(
    "You look the activation up in a dict and leave the KeyError to the reader. Raise a ValueError "
    "that gives the name."
)
class RaisesKeyError(_Layer):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        {"relu": 0, "gelu": 1, "gelu_tanh": 2}[activation]
        super().__init__(d_model, d_ff, activation, bias, device, dtype)


@FeedForward.mistake(
    "You cut the result off from its gradients (`detach`, `.data`, `no_grad`): nothing is learned."
)
class WithoutGradients(_Layer):
    def compute(self, x):
        return super().compute(x).detach()


@FeedForward.alternative
class WithBranches(nn.Module):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        super().__init__()
        if activation not in ["relu", "gelu", "gelu_tanh"]:
            raise ValueError(f"unknown activation: {activation}")
        self.kind = activation
        self.w_out = nn.Linear(d_ff, d_model, bias, device, dtype)
        self.w_in = nn.Linear(d_model, d_ff, bias, device, dtype)

    def forward(self, x):
        h = self.w_in(x)
        if self.kind == "relu":
            h = h.clamp(min=0)
        elif self.kind == "gelu":
            h = F.gelu(h)
        else:
            h = F.gelu(h, approximate="tanh")
        return self.w_out(h)


@FeedForward.alternative
class WithModules(nn.Module):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, *, device=None, dtype=None):
        super().__init__()
        try:
            make = {"relu": nn.ReLU, "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU("tanh")}[
                activation
            ]
        except KeyError:
            raise ValueError(f"{activation} is not an activation") from None
        self.w_in = nn.Linear(d_model, d_ff, bias=bias, device=device, dtype=dtype)
        self.act = make()
        self.w_out = nn.Linear(d_ff, d_model, bias=bias, device=device, dtype=dtype)

    def forward(self, x):
        return self.w_out(self.act(self.w_in(x)))


class _Map(nn.Module):
    """A linear map whose parameters are named like those of nn.Linear."""

    def __init__(self, columns, rows, bias, device, dtype):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, columns, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(rows, device=device, dtype=dtype)) if bias else None


@FeedForward.alternative
class WithWeightsOfItsOwn(nn.Module):
    def __init__(self, d_model, d_ff, activation="relu", bias=True, device=None, dtype=None):
        super().__init__()
        if activation == "relu":
            self.activation = torch.relu
        elif activation == "gelu":
            self.activation = reference.gelu
        elif activation == "gelu_tanh":
            self.activation = lambda x: reference.gelu(x, "tanh")
        else:
            raise ValueError(f"activation {activation}")
        self.w_in = _Map(d_model, d_ff, bias, device, dtype)
        self.w_out = _Map(d_ff, d_model, bias, device, dtype)

    def forward(self, x):
        hidden = torch.einsum("fd,...d->...f", self.w_in.weight, x)
        if self.w_in.bias is not None:
            hidden = hidden + self.w_in.bias
        return F.linear(self.activation(hidden), self.w_out.weight, self.w_out.bias)


# --------------------------------------------------------------------------- is_per_token


def is_per_token(layer: Callable[[Tensor], Tensor], x: Float[Tensor, "B T D"]) -> bool:
    """Find out whether a layer treats each token by itself, and all of them alike.

    A feed-forward layer keeps this promise: an output depends on its own token and on nothing
    else, not on the other tokens of the sequence, nor on the other sequences, nor on where the
    token stands. Attention does not keep it, though it too gives shuffled outputs for shuffled
    tokens.

    Args:
        layer: takes a batch of sequences, (B, T, D) with any B and T, and gives an output of the
            same shape.
        x: tokens to try it on, no two of them alike. Left unchanged. Differences up to 1e-6 are
            rounding; a layer that breaks the promise does so by more than 1e-3 for these tokens,
            wherever it does it.

    Returns:
        True if every output is one and the same function of its own token.
    """
    together = layer(x)
    for b in range(x.shape[0]):
        for t in range(x.shape[1]):
            alone = layer(x[b : b + 1, t : t + 1])  # (1, 1, D)
            if not torch.allclose(alone, together[b : b + 1, t : t + 1], atol=1e-6):
                return False
    return True


# What it is tried on: functions of tokens (B, T, D). The names say what they do.


def _fixed(rows: int, columns: int) -> Tensor:
    """A matrix without chance: the functions below have to be the same at each call."""
    grid = torch.arange(rows * columns, dtype=torch.float64).view(rows, columns)
    return torch.sin(1.7 * grid + 0.3)


def feed_forward(x):
    d = x.shape[-1]
    return torch.relu(x @ _fixed(d, 7).to(x.dtype)) @ _fixed(7, d).to(x.dtype)


def normalised_token(x):
    return F.layer_norm(x, x.shape[-1:])


def softmax_over_the_width(x):
    return x.softmax(-1)


def rounds_with_the_length(x):
    return 0.01 * x.tanh() + 1e-7 * x.shape[1]


def attention(x):
    return (x @ x.mT).softmax(-1) @ x


def causal_attention(x):
    t = x.shape[1]
    later = torch.ones(t, t).triu(1).bool()
    return (x @ x.mT).masked_fill(later, -torch.inf).softmax(-1) @ x


def minus_the_mean_of_the_sequence(x):
    return feed_forward(x) - x.mean(1, keepdim=True)


def softmax_over_the_tokens(x):
    return x.softmax(1)


def each_sees_the_one_before(x):
    return x + F.pad(x[:, :-1], (0, 0, 1, 0))


def backwards(x):
    return x.flip(1)


def with_positions(x):
    places = torch.arange(x.shape[1], dtype=x.dtype)
    return feed_forward(x) + 0.1 * places[:, None] * torch.linspace(-1, 1, x.shape[-1])


def another_layer_at_each_position(x):
    return x * (1 + 0.1 * torch.arange(x.shape[1]))[:, None].to(x.dtype)


def last_position_differs(x):
    scale = F.pad(torch.ones(min(5, x.shape[1])), (0, max(0, x.shape[1] - 5)), value=1.1)
    return x * scale[:, None].to(x.dtype)


def normalised_over_the_batch(x):
    mean = x.mean((0, 1))
    return (x - mean) / (1 + (x - mean).square().mean((0, 1))).sqrt()


def second_sequence_hears_the_first(x):
    heard = 0.5 * x[:1] * (torch.arange(len(x)) == 1).view(-1, 1, 1)
    return feed_forward(x) + heard


def first_sequence_hears_the_second(x):
    heard = 0.5 * x[1:2] if len(x) > 1 else 0 * x
    return feed_forward(x) + heard * (torch.arange(len(x)) == 0).view(-1, 1, 1)


def second_sequence_differs(x):
    return x * (1 + 0.1 * (torch.arange(len(x)) == 1)).view(-1, 1, 1).to(x.dtype)


def last_of_five_sequences_differs(x):
    return x * (1 + 0.1 * (torch.arange(len(x)) == 4)).view(-1, 1, 1).to(x.dtype)


def third_token_hears_the_fifth(x):
    heard = torch.zeros_like(x)
    if x.shape[1] > 4:
        heard[:, 2] = 0.5 * x[:, 4]
    return feed_forward(x) + heard


def a_whisper_of_the_others(x):
    return feed_forward(x) + 0.05 * x.sum(1, keepdim=True)


is_per_token_exercise = chapter.exercise(is_per_token, difficulty=4, minutes=14)


def _try(t: Trial, *functions: Callable) -> None:
    for function in functions:
        t.same(function, t.randn(2, 6, 3, dtype=torch.float64))


@is_per_token_exercise.group(
    "layers that keep the promise, and attention",
    points=2,
    hint="What does a token get when it is alone, and what does it get in company?",
)
def _(t: Trial):
    _try(t, feed_forward, normalised_token, softmax_over_the_width)
    _try(t, attention, causal_attention, minus_the_mean_of_the_sequence)
    if t.graded:
        _try(t, softmax_over_the_tokens, each_sees_the_one_before)


@is_per_token_exercise.group(
    "positions",
    points=1,
    hint="A layer may look at no other token and still treat position 3 in another way than "
    "position 0.",
)
def _(t: Trial):
    _try(t, with_positions, another_layer_at_each_position, last_position_differs, backwards)


@is_per_token_exercise.group(
    "across sequences",
    points=1,
    hint="The other sequences of the batch are company, too.",
)
def _(t: Trial):
    _try(t, normalised_over_the_batch, second_sequence_differs)
    _try(t, first_sequence_hears_the_second, second_sequence_hears_the_first)
    t.same(last_of_five_sequences_differs, t.randn(5, 2, 3, dtype=torch.float64))


@is_per_token_exercise.group(
    "a single pair, a whisper, and rounding",
    points=1,
    hint="Try every token. And leave differences up to 1e-6 to rounding.",
)
def _(t: Trial):
    _try(t, third_token_hears_the_fifth, a_whisper_of_the_others, rounds_with_the_length)


@is_per_token_exercise.group(
    "leaves x alone",
    points=1,
    hint="If you change tokens, change those of a copy: `x.clone()`.",
)
def _(t: Trial):
    x = t.randn(2, 6, 3, dtype=torch.float64)
    t.unchanged(feed_forward, x)
    t.same(attention, x)


def _alone(layer, x, places, atol=1e-6):
    together = layer(x)
    return all(
        torch.allclose(layer(x[b : b + 1, t : t + 1])[0, 0], together[b, t], atol=atol)
        for b, t in places
    )


def _places(x):
    return [(b, t) for b in range(x.shape[0]) for t in range(x.shape[1])]


@is_per_token_exercise.mistake(
    "You answer the wrong way round: True means that each token is treated by itself."
)
def wrong_way_round(layer, x):
    return not is_per_token(layer, x)


@is_per_token_exercise.mistake(
    "You only shuffle the tokens. Attention passes that: shuffled in, shuffled out, and still each "
    "token looks at all the others."
)
def shuffled_only(layer, x):
    order = torch.arange(x.shape[1] - 1, -1, -1)
    return torch.allclose(layer(x[:, order]), layer(x)[:, order], atol=1e-6)


@is_per_token_exercise.mistake(
    "You only change a token and watch the others. A layer that adds positions passes that: it is "
    "another function at each place."
)
def changed_only(layer, x):
    before = layer(x)
    for b, t in _places(x):
        changed = x.clone()
        changed[b, t] += 1
        others = torch.ones(x.shape[:2], dtype=torch.bool)
        others[b, t] = False
        if not torch.allclose(layer(changed)[others], before[others], atol=1e-6):
            return False
    return True


@is_per_token_exercise.mistake(
    "You make each token a sequence of its own, and hand over all of them in one batch. What mixes "
    "the batch, as batch normalisation does, goes unseen."
)
def all_in_one_batch(layer, x):
    alone = layer(x.reshape(-1, 1, x.shape[-1])).view(x.shape)
    return torch.allclose(alone, layer(x), atol=1e-6)


@is_per_token_exercise.mistake(
    "You look at the first sequence alone. Another one may be treated otherwise."
)
def first_sequence_only(layer, x):
    return _alone(layer, x, [(b, t) for b, t in _places(x) if b == 0])


@is_per_token_exercise.mistake(
    "You look at the first token of each sequence alone. Try every token."
)
def first_token_only(layer, x):
    return _alone(layer, x, [(b, t) for b, t in _places(x) if t == 0])


@is_per_token_exercise.mistake(
    "You look at the last token of each sequence alone. Try every token."
)
def last_token_only(layer, x):
    return _alone(layer, x, [(b, t) for b, t in _places(x) if t == x.shape[1] - 1])


@is_per_token_exercise.mistake(
    "You compare sequences that are alone in their batch with themselves in company. The tokens of "
    "a sequence are company, too."
)
def sequences_alone(layer, x):
    together = layer(x)
    return all(
        torch.allclose(layer(x[b : b + 1])[0], together[b], atol=1e-6) for b in range(len(x))
    )


@is_per_token_exercise.mistake(
    "You compare positions across all sequences at once, `x[:, t : t + 1]`: each token still has "
    "the other sequences for company."
)
def positions_alone(layer, x):
    together = layer(x)
    return all(
        torch.allclose(layer(x[:, t : t + 1])[:, 0], together[:, t], atol=1e-6)
        for t in range(x.shape[1])
    )


@is_per_token_exercise.mistake(
    "You require the very same bits. A token alone is computed in another order, and rounds "
    "otherwise: allow 1e-6."
)
def to_the_last_bit(layer, x):
    together = layer(x)
    return all(
        bool(((layer(x[b : b + 1, t : t + 1])[0, 0] - together[b, t]).abs() < 1e-12).all())
        for b, t in _places(x)
    )


@is_per_token_exercise.mistake(
    "Your tolerance is so wide that a whisper passes for rounding. Rounding stays below 1e-6."
)
def wide_tolerance(layer, x):
    return _alone(layer, x, _places(x), atol=0.5)


@is_per_token_exercise.mistake("You compare shapes. Nearly every layer keeps the shape.")
def shapes_only(layer, x):
    return layer(x).shape == x.shape


@is_per_token_exercise.mistake(
    "You change x itself. The caller still needs it: change `x.clone()`."
)
def changes_x(layer, x):
    found = is_per_token(layer, x)
    x[:, 0] += 1
    return found


@is_per_token_exercise.alternative
def changed_and_shuffled(layer, x):
    before = layer(x)
    for b, t in _places(x):
        changed = x.clone()
        changed[b, t] = torch.randn_like(changed[b, t])
        moved = (layer(changed) - before).abs().amax(-1) > 1e-6
        moved[b, t] = False
        if moved.any():
            return False
    flat, tokens = before.flatten(0, 1), x.flatten(0, 1)
    for shift in range(1, len(tokens)):
        order = torch.arange(len(tokens)).roll(shift)
        if not torch.allclose(
            layer(tokens[order].view(x.shape)).flatten(0, 1), flat[order], atol=1e-6
        ):
            return False
    return True


@is_per_token_exercise.alternative
def all_the_tokens_of_one_kind(layer, x):
    together = layer(x)
    for b, t in _places(x):
        crowd = x[b, t].expand(3, 4, -1).clone()  # a crowd of itself
        if (layer(crowd) - together[b, t]).abs().max() > 1e-6:
            return False
        if (layer(crowd[:1, :1]) - together[b, t]).abs().max() > 1e-6:
            return False
    return True


@is_per_token_exercise.alternative
def stacked(layer, x):
    alone = torch.stack([
        torch.cat([layer(token[None, None])[0] for token in sequence]) for sequence in x
    ])  # fmt: skip
    return bool((alone - layer(x)).abs().max() <= 1e-6)


# --------------------------------------------------------------------- swiglu_hidden_size

swiglu_hidden_size = chapter.exercise(reference.swiglu_hidden_size, difficulty=2, minutes=7)


def _whole(t: Trial, found) -> None:
    t.require(isinstance(found, int), "The width should be a whole number, an `int`", found=found)


@swiglu_hidden_size.group(
    "two thirds of 4 d_model",
    points=2,
    hint="With multiple_of=1 there is nothing to round up to: 48 gives 128, and 64 gives 170.",
)
def _(t: Trial):
    _whole(t, t.same(48, multiple_of=1))
    _whole(t, t.same(64, 1))
    t.same(3 * t.integer(20, 60) + 1, 1)
    t.same(3 * t.integer(20, 60) + 2, 1)
    t.same(1, 1)


@swiglu_hidden_size.group(
    "rounded up to a multiple",
    points=2,
    hint="If it is a multiple already it stays; otherwise it goes up to the next one.",
)
def _(t: Trial):
    _whole(t, t.same(4096))
    t.same(5120)
    t.same(96)
    t.same(96, 128)
    t.same(97, 64)
    t.same(60, multiple_of=7)
    if t.graded:
        t.same(t.integer(1000, 2000), multiple_of=64)


@swiglu_hidden_size.group(
    "times the multiplier",
    points=1,
    hint="Two thirds, rounded down; times the multiplier, rounded down; up to a multiple.",
)
def _(t: Trial):
    _whole(t, t.same(4096, 1024, 1.3))
    t.same(8192, multiple_of=4096, multiplier=1.3)
    t.same(100, 1, 1.5)
    t.same(50, 7, 1.1)
    t.same(50, multiplier=0.5, multiple_of=3)


def _up(size, multiple_of):
    return -(-size // multiple_of) * multiple_of


@swiglu_hidden_size.mistake("You round down to a multiple. Llama rounds up.")
def rounds_down(d_model, multiple_of=256, multiplier=1.0):
    return int(multiplier * (8 * d_model // 3)) // multiple_of * multiple_of


@swiglu_hidden_size.mistake("You round to the nearest multiple. Llama always rounds up.")
def rounds_to_the_nearest(d_model, multiple_of=256, multiplier=1.0):
    return round(int(multiplier * (8 * d_model // 3)) / multiple_of) * multiple_of


@swiglu_hidden_size.mistake(
    "You add a multiple even where the width is one already. Only what lies between goes up."
)
def always_one_more(d_model, multiple_of=256, multiplier=1.0):
    return (int(multiplier * (8 * d_model // 3)) // multiple_of + 1) * multiple_of


@swiglu_hidden_size.mistake(
    "You kept 4 d_model. With three matrices in place of two, take two thirds of it."
)
def without_two_thirds(d_model, multiple_of=256, multiplier=1.0):
    return _up(int(multiplier * 4 * d_model), multiple_of)


@swiglu_hidden_size.mistake("You took two thirds of d_model. It is two thirds of 4 d_model.")
def without_the_four(d_model, multiple_of=256, multiplier=1.0):
    return _up(int(multiplier * (2 * d_model // 3)), multiple_of)


@swiglu_hidden_size.mistake(
    "You divided by two thirds: three matrices need a smaller width, not a larger one."
)
def three_halves(d_model, multiple_of=256, multiplier=1.0):
    return _up(int(multiplier * (4 * d_model * 3 // 2)), multiple_of)


@swiglu_hidden_size.mistake(
    "You ignore `multiple_of`: the width should be rounded up to a multiple of it."
)
def ignores_the_multiple(d_model, multiple_of=256, multiplier=1.0):
    return int(multiplier * (8 * d_model // 3))


@swiglu_hidden_size.mistake("You ignore `multiplier`.")
def ignores_the_multiplier(d_model, multiple_of=256, multiplier=1.0):
    return _up(8 * d_model // 3, multiple_of)


@swiglu_hidden_size.mistake(
    "You multiply after rounding up to a multiple, and so leave the multiple again. The rounding "
    "up comes last."
)
def multiplies_last(d_model, multiple_of=256, multiplier=1.0):
    return int(_up(8 * d_model // 3, multiple_of) * multiplier)


@swiglu_hidden_size.mistake(
    "You multiply before you round the two thirds down. Each step ends in a whole number."
)
def one_rounding_for_two(d_model, multiple_of=256, multiplier=1.0):
    return _up(int(8 * d_model / 3 * multiplier), multiple_of)


@swiglu_hidden_size.mistake("You round the two thirds up. They are rounded down.")
def two_thirds_up(d_model, multiple_of=256, multiplier=1.0):
    return _up(int(multiplier * math.ceil(8 * d_model / 3)), multiple_of)


@swiglu_hidden_size.mistake("You round the two thirds to the nearest. They are rounded down.")
def two_thirds_nearest(d_model, multiple_of=256, multiplier=1.0):
    return _up(int(multiplier * round(8 * d_model / 3)), multiple_of)


@swiglu_hidden_size.mistake("You return a `float`. A width is a whole number: `int(...)` or `//`.")
def a_float(d_model, multiple_of=256, multiplier=1.0):
    return float(_up(int(multiplier * (8 * d_model // 3)), multiple_of))


@swiglu_hidden_size.alternative
def as_llama_writes_it(d_model, multiple_of=256, multiplier=1.0):
    hidden = int(2 * (4 * d_model) / 3)
    hidden = int(multiplier * hidden)
    return multiple_of * ((hidden + multiple_of - 1) // multiple_of)


@swiglu_hidden_size.alternative
def with_a_loop(d_model, multiple_of=256, multiplier=1.0):
    size = math.floor(multiplier * math.floor(8 * d_model / 3))
    while size % multiple_of:
        size += 1
    return size


@swiglu_hidden_size.alternative
def with_the_remainder(d_model, multiple_of=256, multiplier=1.0):
    size = int((d_model * 8 // 3) * multiplier)
    return size + (-size) % multiple_of


# --------------------------------------------------------------------------------- SwiGLU

SwiGLU = chapter.exercise(reference.SwiGLU, difficulty=3, minutes=9)


@SwiGLU.group(
    "its parameters",
    points=2,
    hint="Three `nn.Linear` without bias: `gate_proj`, `up_proj` and `down_proj`.",
)
def _(t: Trial):
    m = t.model(6, 10)
    m.call(t.randn(2, 5, 6))
    m = t.model(5, 3, device="cpu", dtype=torch.float64)
    found = m.call(t.randn(2, 4, 5, dtype=torch.float64))
    t.require(
        found.dtype == torch.float64,
        "With dtype=torch.float64, parameters and output should be float64",
        found=str(found.dtype),
    )


@SwiGLU.group(
    "what it computes",
    points=2,
    hint="silu of the gate, times what goes up, element by element; then down.",
)
def _(t: Trial):
    t.model(6, 10).same(3 * t.randn(2, 5, 6))
    t.model(7, 4).same(3 * t.randn(3, 2, 7))
    if t.graded:
        t.model(5, 12).same(6 * t.randn(4, 3, 5))


@SwiGLU.group(
    "each token by itself, any leading axes",
    points=1,
    hint="`nn.Linear` acts on the last axis and leaves the others alone. So should the layer.",
)
def _(t: Trial):
    m = t.model(6, 10)
    x = 2 * t.randn(2, 3, 5, 6)
    together = m.same(x)
    m.same(t.randn(6))
    t.equal(
        m.call(x[1:, 2, 3]),
        together[1:, 2, 3],
        "A token alone should get the output that it gets in company",
    )


@SwiGLU.group("gradients reach every parameter", points=1)
def _(t: Trial):
    t.model(6, 10).same_gradients(2 * t.randn(2, 5, 6))


class _Gated(reference.SwiGLU):
    """The reference's parameters, ahead of another computation."""

    def forward(self, x):
        return self.compute(self.gate_proj(x), self.up_proj(x))

    def compute(self, gate, up):
        return self.down_proj(F.silu(gate) * up)


@SwiGLU.mistake(
    "You put the SiLU on `up_proj`. It belongs to `gate_proj`; with the weights of a trained model "
    "the two cannot be exchanged."
)
class GatesTheOther(_Gated):
    def compute(self, gate, up):
        return self.down_proj(gate * F.silu(up))


@SwiGLU.mistake(
    "Your gate is a plain sigmoid: that is the GLU of 2017. SwiGLU's is z · sigmoid(z)."
)
class WithSigmoid(_Gated):
    def compute(self, gate, up):
        return self.down_proj(gate.sigmoid() * up)


@SwiGLU.mistake("Your gate is a GELU: that is GEGLU, Shazeer's other variant. Use the SiLU.")
class WithGELU(_Gated):
    def compute(self, gate, up):
        return self.down_proj(F.gelu(gate) * up)


@SwiGLU.mistake("Your gate is a ReLU: that is ReGLU. Use the SiLU.")
class WithReLU(_Gated):
    def compute(self, gate, up):
        return self.down_proj(gate.relu() * up)


@SwiGLU.mistake("There is no activation on your gate. `F.silu` goes around `gate_proj(x)`.")
class Bilinear(_Gated):
    def compute(self, gate, up):
        return self.down_proj(gate * up)


@SwiGLU.mistake("You add the gate. It multiplies, element by element.")
class AddsTheGate(_Gated):
    def compute(self, gate, up):
        return self.down_proj(F.silu(gate) + up)


@SwiGLU.mistake("You apply the SiLU to the product. It goes around the gate alone, before that.")
class ActivatesTheProduct(_Gated):
    def compute(self, gate, up):
        return self.down_proj(F.silu(gate * up))


@SwiGLU.mistake("You apply the SiLU to both maps. What goes up stays linear.")
class ActivatesBoth(_Gated):
    def compute(self, gate, up):
        return self.down_proj(F.silu(gate) * F.silu(up))


@SwiGLU.mistake("You do not use `up_proj`: yours is a plain layer with a SiLU.")
class WithoutUp(_Gated):
    def compute(self, gate, up):
        return self.down_proj(F.silu(gate))


@SwiGLU.mistake("Gate and what it gates are one map in yours. The second one is `up_proj(x)`.")
class GatesItself(_Gated):
    def compute(self, gate, up):
        return self.down_proj(F.silu(gate) * gate)


@SwiGLU.mistake("You applied the SiLU to the output. It goes around the gate.")
class ActivatesTheResult(_Gated):
    def compute(self, gate, up):
        return F.silu(self.down_proj(gate * up))


@SwiGLU.mistake("You return the gated units, of width d_ff: `down_proj` takes them to d_model.")
class ReturnsGated(_Gated):
    def compute(self, gate, up):
        return F.silu(gate) * up


@SwiGLU.mistake("You add the token to its result. That is the residual connection of chapter 10.")
class AddsToken(_Gated):
    def forward(self, x):
        return x + super().forward(x)


@SwiGLU.mistake("Your maps have a bias. Pass `bias=False` to all three.")
class WithBias(_Gated):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__(d_model, d_ff, device, dtype)
        self.gate_proj = nn.Linear(d_model, d_ff, device=device, dtype=dtype)
        self.up_proj = nn.Linear(d_model, d_ff, device=device, dtype=dtype)
        self.down_proj = nn.Linear(d_ff, d_model, device=device, dtype=dtype)


@SwiGLU.mistake("You ignore `dtype`. Hand it (and `device`) on to each `nn.Linear`.")
class DtypeIgnored(_Gated):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__(d_model, d_ff)


@SwiGLU.mistake(
    "You take two thirds of d_ff inside. The caller has done that already: d_ff is the width."
)
class TwoThirdsInside(_Gated):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__(d_model, 2 * d_ff // 3, device, dtype)


@SwiGLU.mistake("Your maps run the other way: gate and up go from d_model to d_ff, down goes back.")
class WidthsSwapped(_Gated):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__(d_ff, d_model, device, dtype)


@SwiGLU.mistake(
    "You made one matrix of gate and up. That is a fine trick, but the weights of Llama come as "
    "`gate_proj` and `up_proj`."
)
class Fused(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        options = {"bias": False, "device": device, "dtype": dtype}
        self.gate_up_proj = nn.Linear(d_model, 2 * d_ff, **options)
        self.down_proj = nn.Linear(d_ff, d_model, **options)

    def forward(self, x):
        gate, up = self.gate_up_proj(x).chunk(2, -1)
        return self.down_proj(F.silu(gate) * up)


@SwiGLU.mistake(
    "Your gate sees no gradient (`detach`, `no_grad`, `.data`): it would stay as it began."
)
class DetachedGate(_Gated):
    def compute(self, gate, up):
        return self.down_proj(F.silu(gate).detach() * up)


@SwiGLU.alternative
class ByHand(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        for name, a, b in [("down", d_ff, d_model), ("up", d_model, d_ff), ("gate", d_model, d_ff)]:
            setattr(self, f"{name}_proj", nn.Linear(a, b, False, device, dtype))

    def forward(self, x):
        z = self.gate_proj(x)
        return self.down_proj(self.up_proj(x) * z / (1 + torch.exp(-z)))


@SwiGLU.alternative
class WithASubmodule(nn.Module):
    def __init__(self, d_model, d_ff, *, device=None, dtype=None):
        super().__init__()
        self.act_fn = nn.SiLU()
        self.gate_proj = nn.Linear(d_model, d_ff, bias=False, device=device, dtype=dtype)
        self.up_proj = nn.Linear(d_model, d_ff, bias=False, device=device, dtype=dtype)
        self.down_proj = nn.Linear(d_ff, d_model, bias=False, device=device, dtype=dtype)

    def forward(self, x):
        return self.down_proj(self.act_fn(self.gate_proj(x)) * self.up_proj(x))


@SwiGLU.alternative
class OneProduct(nn.Module):
    def __init__(self, d_model, d_ff, device=None, dtype=None):
        super().__init__()
        self.gate_proj = _Map(d_model, d_ff, False, device, dtype)
        self.up_proj = _Map(d_model, d_ff, False, device, dtype)
        self.down_proj = _Map(d_ff, d_model, False, device, dtype)

    def forward(self, x):
        both = F.linear(x, torch.cat([self.gate_proj.weight, self.up_proj.weight]))
        gate, up = both.chunk(2, dim=-1)
        return torch.einsum("...f,df->...d", gate * gate.sigmoid() * up, self.down_proj.weight)


# ------------------------------------------------------------------- memory_contributions

memory_contributions = chapter.exercise(reference.memory_contributions, difficulty=3, minutes=9)


def memories(t: Trial, *batch: int, d=4, f=6, dtype=torch.float64):
    return (
        t.randn(*batch, d, dtype=dtype),
        t.randn(f, d, dtype=dtype),
        t.randn(f, dtype=dtype),
        t.randn(d, f, dtype=dtype),
    )


@memory_contributions.group(
    "what each unit adds",
    points=2,
    hint="A coefficient for each unit, (*batch, F), times a value for each unit, (F, D). Where "
    "does each need an axis of size 1?",
)
def _(t: Trial):
    t.same(*memories(t, 5))
    t.same(*memories(t, 2, 3, d=7, f=3))
    t.same(*memories(t, 2, 3, d=5, f=5))
    t.same(*memories(t, 4, dtype=torch.float32), dtype=True)


@memory_contributions.group(
    "together they are the layer's output",
    points=1,
    hint="Summed over the units, and with the bias of `w_out`, it is `FeedForward(x)`.",
)
def _(t: Trial):
    x, w_in, b_in, w_out = memories(t, 2, 5, d=3, f=8)
    b_out = t.randn(3, dtype=torch.float64)
    found = t.call(x, w_in, b_in, w_out)
    t.equal(
        found.sum(-2) + b_out,
        torch.relu(x @ w_in.T + b_in) @ w_out.T + b_out,
        "The sum over all units, plus the bias, is not what the layer gives",
    )
    silent = t.call(x, w_in, b_in - 100, w_out)
    t.equal(silent, torch.zeros_like(silent), "A unit whose key does not fit adds nothing")


@memory_contributions.group(
    "any leading axes",
    points=1,
    hint="Count axes from the end: units on axis -2 of the result, the width on axis -1.",
)
def _(t: Trial):
    t.same(*memories(t))
    t.same(*memories(t, 2, 1, 3))


@memory_contributions.group("gradients, and x as it was", points=1)
def _(t: Trial):
    t.same_gradients(*memories(t, 2, 3))
    t.unchanged(*memories(t, 3))


@memory_contributions.mistake(
    "You took rows of `w_out` for the values. As `nn.Linear` keeps it, (D, F), value i is column i."
)
def rows_as_values(x, w_in, b_in, w_out):
    return torch.relu(x @ w_in.T + b_in)[..., None] * w_out


@memory_contributions.mistake(
    "You reshaped `w_out` to (F, D). That cuts its columns to pieces: transpose it."
)
def reshaped(x, w_in, b_in, w_out):
    return torch.relu(x @ w_in.T + b_in)[..., None] * w_out.reshape(w_in.shape)


@memory_contributions.mistake("You left out the ReLU: a unit whose key does not fit is silent.")
def without_relu(x, w_in, b_in, w_out):
    return (x @ w_in.T + b_in)[..., None] * w_out.T


@memory_contributions.mistake(
    "You apply the ReLU to the contributions. Values may be negative; only coefficients are not."
)
def relu_too_late(x, w_in, b_in, w_out):
    return torch.relu((x @ w_in.T + b_in)[..., None] * w_out.T)


@memory_contributions.mistake("You left out the bias `b_in`, which belongs to the coefficient.")
def without_bias(x, w_in, b_in, w_out):
    return torch.relu(x @ w_in.T)[..., None] * w_out.T


@memory_contributions.mistake("You add the bias after the ReLU. It decides with the key who fires.")
def bias_too_late(x, w_in, b_in, w_out):
    return (torch.relu(x @ w_in.T) + b_in)[..., None] * w_out.T


@memory_contributions.mistake("You summed over the units. Each one's own part is asked for.")
def summed(x, w_in, b_in, w_out):
    return torch.relu(x @ w_in.T + b_in) @ w_out.T


@memory_contributions.mistake("You return the coefficients. Multiply each by its unit's value.")
def coefficients_alone(x, w_in, b_in, w_out):
    return torch.relu(x @ w_in.T + b_in)


@memory_contributions.mistake("You swapped the axes: the units are axis -2, the width is axis -1.")
def width_first(x, w_in, b_in, w_out):
    return torch.relu(x @ w_in.T + b_in)[..., None, :] * w_out


@memory_contributions.mistake("You used the keys as values. The values are in `w_out`.")
def keys_as_values(x, w_in, b_in, w_out):
    return torch.relu(x @ w_in.T + b_in)[..., None] * w_in


@memory_contributions.mistake(
    "You put the coefficients through a softmax. These memories do not share a total of 1."
)
def softmaxed(x, w_in, b_in, w_out):
    return torch.softmax(x @ w_in.T + b_in, -1)[..., None] * w_out.T


@memory_contributions.mistake("Only the best-fitting unit is left in your result. All of them add.")
def winner_takes_all(x, w_in, b_in, w_out):
    a = torch.relu(x @ w_in.T + b_in)
    return (a * (a == a.amax(-1, keepdim=True)))[..., None] * w_out.T


@memory_contributions.mistake(
    "Your result is cut off from its gradients (`detach`, `.data`, `no_grad`)."
)
def detached(x, w_in, b_in, w_out):
    return reference.memory_contributions(x, w_in, b_in, w_out).detach()


@memory_contributions.alternative
def memories_with_einsum(x, w_in, b_in, w_out):
    a = F.relu(F.linear(x, w_in, b_in))
    return torch.einsum("...f,df->...fd", a, w_out)


@memory_contributions.alternative
def unit_by_unit(x, w_in, b_in, w_out):
    parts = []
    for i in range(len(w_in)):
        coefficient = ((x * w_in[i]).sum(-1) + b_in[i]).clamp(min=0)
        parts.append(coefficient.unsqueeze(-1) * w_out[:, i])
    return torch.stack(parts, dim=-2)


@memory_contributions.alternative
def with_a_diagonal(x, w_in, b_in, w_out):
    return torch.relu(x @ w_in.mT + b_in).diag_embed() @ w_out.mT


# ----------------------------------------------------------------------- trigger_examples

trigger_examples = chapter.exercise(
    reference.trigger_examples, difficulty=3, minutes=10, mend="handed_out"
)


def activations(t: Trial, b: int, length: int, f: int, dtype=torch.float64) -> Tensor:
    """Distinct numbers of either sign; the negative ones are the larger in size."""
    ranks = t.rand(b * length, f).argsort(0)
    values = (ranks + 1.0 - 0.6 * b * length).to(dtype)
    return values.view(b, length, f) + 0.25 * t.rand(b, length, f, dtype=dtype)


@trigger_examples.group(
    "sequence and position",
    points=2,
    hint="Place n of a table with T columns, read row by row, is in row n // T and column n % T.",
)
def _(t: Trial):
    t.same(activations(t, 2, 5, 3).abs(), 1)
    t.same(activations(t, 7, 3, 2) + 30, 4)
    t.same(activations(t, 1, 6, 4) + 30, 2)
    t.same(activations(t, 6, 1, 4) + 30, 2)


@trigger_examples.group(
    "the strongest, not the largest in size",
    points=2,
    hint="Which is the stronger activation, 0.5 or -0.9?",
)
def _(t: Trial):
    t.same(activations(t, 4, 4, 3), 3)
    t.same(activations(t, 3, 3, 2) - 30, 2)
    t.same(activations(t, 3, 3, 2), 9)


@trigger_examples.group(
    "both at once",
    points=1,
    hint="Make a small example on paper: two sequences of three tokens, one unit.",
)
def _(t: Trial):
    t.same(activations(t, 3, 5, 4), 4)
    t.same(activations(t, 5, 2, 3, dtype=torch.float32), 3)
    t.unchanged(activations(t, 3, 2, 2), 2)


def _found(coefficients, k, width, of=lambda tokens: tokens):
    best = of(coefficients.flatten(0, 1)).topk(k, dim=0).indices.T
    return torch.stack([best // width, best % width], dim=-1)


@trigger_examples.mistake("This is the code that you were given; it still has both its bugs.")
def handed_out(coefficients, k):
    tokens = coefficients.flatten(0, 1)  # (B T, F)
    best = tokens.abs().topk(k, dim=0).indices.T  # (F, k)
    length = coefficients.shape[0]
    return torch.stack([best // length, best % length], dim=-1)  # (F, k, 2)


@trigger_examples.mistake(
    "You still take activations by their size. -0.9 is no strong activation, it is none."
)
def still_by_size(coefficients, k):
    return _found(coefficients, k, coefficients.shape[1], torch.abs)


@trigger_examples.mistake(
    "You still count in rows of B tokens. Flattened, a sequence takes T places, one after another."
)
def still_rows_of_b(coefficients, k):
    return _found(coefficients, k, coefficients.shape[0])


@trigger_examples.mistake("You count in rows of F. The units are no part of the flattened axis.")
def rows_of_f(coefficients, k):
    return _found(coefficients, k, coefficients.shape[2])


@trigger_examples.mistake("You return position and sequence. The sequence comes first.")
def position_first(coefficients, k):
    return _found(coefficients, k, coefficients.shape[1]).flip(-1)


@trigger_examples.mistake("You found the weakest activations. `topk` has the largest by default.")
def the_weakest(coefficients, k):
    return _found(coefficients, k, coefficients.shape[1], torch.neg)


@trigger_examples.mistake("Your list ends with the strongest. It should come first.")
def strongest_last(coefficients, k):
    return _found(coefficients, k, coefficients.shape[1]).flip(1)


@trigger_examples.mistake(
    "You return the places in the flattened tokens. Say which sequence and which position."
)
def flat_places(coefficients, k):
    return coefficients.flatten(0, 1).topk(k, dim=0).indices.T


@trigger_examples.mistake("Your axes are (k, F, 2). The unit comes first: (F, k, 2).")
def ranks_first(coefficients, k):
    return _found(coefficients, k, coefficients.shape[1]).transpose(0, 1)


@trigger_examples.mistake("You look in the first sequence alone. All of them count.")
def first_sequence(coefficients, k):
    length = coefficients.shape[1]
    return _found(coefficients[:1], min(k, length), length)


@trigger_examples.mistake(
    "You leave negative activations out of the order (a ReLU makes them all alike). Negative is "
    "weaker than 0, but -0.1 is still stronger than -0.9."
)
def negatives_alike(coefficients, k):
    return _found(coefficients, k, coefficients.shape[1], torch.relu)


@trigger_examples.mistake(
    "You flatten with the positions first. Then place n is position n // B of sequence n % B, and "
    "not what you return."
)
def positions_outside(coefficients, k):
    return _found(coefficients.transpose(0, 1), k, coefficients.shape[1])


@trigger_examples.alternative
def with_unravel_index(coefficients, k):
    b, t, _ = coefficients.shape
    best = coefficients.reshape(b * t, -1).argsort(dim=0, descending=True)[:k].T
    return torch.stack(torch.unravel_index(best, (b, t)), dim=-1)


@trigger_examples.alternative
def with_python(coefficients, k):
    b, t, f = coefficients.shape
    rows = []
    for unit in range(f):
        places = [(i, j) for i in range(b) for j in range(t)]
        places.sort(key=lambda p: coefficients[p[0], p[1], unit].item(), reverse=True)
        rows.append(places[:k])
    return torch.tensor(rows)


@trigger_examples.alternative
def with_divmod(coefficients, k):
    by_unit = coefficients.permute(2, 0, 1).flatten(1)  # (F, B T)
    best = by_unit.topk(k).indices
    row = torch.div(best, coefficients.size(1), rounding_mode="floor")
    return torch.stack((row, best - row * coefficients.size(1)), -1)
