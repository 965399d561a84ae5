"""Feed-forward layers: what each token does by itself with what it has gathered (chapter 09)."""

import math
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F


def collapse(
    w_in: Float[Tensor, "F D"],
    b_in: Float[Tensor, "F"],
    w_out: Float[Tensor, "E F"],
    b_out: Float[Tensor, "E"],
) -> tuple[Float[Tensor, "E D"], Float[Tensor, "E"]]:
    """Fold two linear layers with nothing between them into the one that does the same.

    Weights lie as `torch.nn.Linear` keeps them, (out, in): the first layer makes x @ w_in.T + b_in
    of a token x of width D, the second takes that from width F to width E.

    Args:
        w_in: weight of the first layer.
        b_in: bias of the first layer.
        w_out: weight of the second layer.
        b_out: bias of the second layer.

    Returns:
        weight and bias of one layer, in the same layout, in the dtype of the arguments; gradients
        flow back to these.
    """
    return w_out @ w_in, w_out @ b_in + b_out


def gelu(x: Float[Tensor, "*shape"], approximate: str = "none") -> Float[Tensor, "*shape"]:
    """Weigh each number by how large it is: x Φ(x), the Gaussian error linear unit.

    Φ(x) is the probability that a standard normal number is below x. As in torch, there are two
    forms, which differ by less than 0.0005.

    Args:
        x: numbers of any shape and size: for x far above 0 the result is x, far below it is 0.
            Left unchanged.
        approximate: "none" for x Φ(x) itself; "tanh" for the approximation that GPT-2 uses,
            x/2 (1 + tanh(√(2/π) (x + 0.044715 x³))).

    Returns:
        Numbers of the shape and dtype of x; gradients flow back to x.

    Raises:
        ValueError: approximate is neither; the message gives it.

    Source: Hendrycks and Gimpel 2016, section 2.
    """
    if approximate == "none":
        return x / 2 * (1 + torch.erf(x / math.sqrt(2)))
    if approximate == "tanh":
        return x / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    raise ValueError(f"approximate={approximate!r}, expected 'none' or 'tanh'")


class FeedForward(nn.Module):
    """Transform each token by itself: up to a greater width, an activation, and down again.

    Two linear maps, `w_in`, an `nn.Linear` from d_model to d_ff, and `w_out`, one from d_ff to
    d_model, with the activation between them: w_out(activation(w_in(x))).

    Args:
        d_model: width D of the tokens.
        d_ff: width F between the two maps, the number of hidden units.
        activation: "relu", max(x, 0), as in 2017; "gelu", its exact form, as in BERT; or
            "gelu_tanh", its tanh approximation, as in GPT-2.
        bias: whether both maps have a bias.
        device: of the parameters, as in torch.nn.
        dtype: of the parameters, as in torch.nn.

    Raises:
        ValueError: activation is none of the three; the message gives it.

    Source: Vaswani et al. 2017, section 3.3, equation 2.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        activation: str = "relu",
        bias: bool = True,
        device=None,
        dtype=None,
    ):
        super().__init__()
        known = {
            "relu": torch.relu,
            "gelu": F.gelu,
            "gelu_tanh": partial(F.gelu, approximate="tanh"),
        }
        if activation not in known:
            raise ValueError(f"activation={activation!r}, expected one of {list(known)}")
        self.activation = known[activation]
        options = {"bias": bias, "device": device, "dtype": dtype}
        self.w_in = nn.Linear(d_model, d_ff, **options)
        self.w_out = nn.Linear(d_ff, d_model, **options)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Transform.

        Args:
            x: tokens of width D, after any number of leading axes.

        Returns:
            For each token its own transformation; no token sees another.
        """
        hidden = self.activation(self.w_in(x))  # (*batch, F)
        return self.w_out(hidden)  # (*batch, D)


def swiglu_hidden_size(d_model: int, multiple_of: int = 256, multiplier: float = 1.0) -> int:
    """Choose the width of a SwiGLU layer, as Llama does.

    A plain layer of width 4 d_model has two matrices, a gated one three. Two thirds of that width
    give it as many weights. From there, in this order: two thirds of 4 d_model, rounded down to
    a whole number; times the multiplier, rounded down to a whole number; rounded up to a multiple
    (which leaves a number alone that is one already).

    Args:
        d_model: width of the tokens.
        multiple_of: the width will be a multiple of it, which suits the hardware.
        multiplier: makes the layer wider than an equal count of weights allows. Llama 3 has 1.3.

    Returns:
        The width d_ff, a whole number.

    Source: Shazeer 2020, section 2, for the two thirds; the rest follows the code of Llama.
    """
    size = int(multiplier * (2 * 4 * d_model // 3))
    return math.ceil(size / multiple_of) * multiple_of


class SwiGLU(nn.Module):
    """A gated feed-forward layer: one map of the token opens and shuts the units of another.

    Three linear maps without bias, named as in Hugging Face's Llama, so that its weights fit one
    to one: `gate_proj` and `up_proj`, each an `nn.Linear` from d_model to d_ff, and `down_proj`,
    one from d_ff to d_model: down_proj(silu(gate_proj(x)) * up_proj(x)), with
    silu(z) = z · sigmoid(z).

    Args:
        d_model: width D of the tokens.
        d_ff: number F of hidden units; `swiglu_hidden_size` gives Llama's choice.
        device: of the parameters, as in torch.nn.
        dtype: of the parameters, as in torch.nn.

    Source: Shazeer 2020, equation 6.
    """

    def __init__(self, d_model: int, d_ff: int, device=None, dtype=None):
        super().__init__()
        options = {"bias": False, "device": device, "dtype": dtype}
        self.gate_proj = nn.Linear(d_model, d_ff, **options)
        self.up_proj = nn.Linear(d_model, d_ff, **options)
        self.down_proj = nn.Linear(d_ff, d_model, **options)

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Transform.

        Args:
            x: tokens of width D, after any number of leading axes.

        Returns:
            For each token its own transformation; no token sees another.
        """
        gate = F.silu(self.gate_proj(x))  # (*batch, F)
        return self.down_proj(gate * self.up_proj(x))  # (*batch, D)


def memory_contributions(
    x: Float[Tensor, "*batch D"],
    w_in: Float[Tensor, "F D"],
    b_in: Float[Tensor, "F"],
    w_out: Float[Tensor, "D F"],
) -> Float[Tensor, "*batch F D"]:
    """Take the output of a ReLU layer apart into what each hidden unit adds to it.

    Unit i is a memory. Its key is row i of w_in, and how well the key fits the token, with the
    bias and after the ReLU, is its coefficient. Its value is column i of w_out. It adds the
    coefficient times the value. All units together, plus the bias of `w_out`, are the output.

    Args:
        x: tokens of width D, after any number of leading axes. Left unchanged.
        w_in: weight of `FeedForward.w_in`, as `torch.nn.Linear` keeps it.
        b_in: bias of `FeedForward.w_in`.
        w_out: weight of `FeedForward.w_out`.

    Returns:
        What unit i adds to the output, at [..., i, :], without the bias of `w_out`.

    Source: Geva et al. 2021, section 2.
    """
    coefficients = torch.relu(x @ w_in.T + b_in)  # (*batch, F)
    return coefficients[..., None] * w_out.T  # (*batch, F, 1) * (F, D)


def trigger_examples(coefficients: Float[Tensor, "B T F"], k: int) -> Int[Tensor, "F k 2"]:
    """Find the tokens on which each hidden unit fires most.

    Args:
        coefficients: activation of unit f at token t of sequence b, at [b, t, f]. Negative ones,
            which a GELU or a gate can give, are weaker than 0. No two of a unit are equal. Left
            unchanged.
        k: how many tokens to find for each unit, at most B T.

    Returns:
        Sequence b and position t of the i-th strongest activation of unit f, among all the tokens
        of all the sequences, at [f, i]: the strongest comes first.

    Source: Geva et al. 2021, section 3, where they are called trigger examples.
    """
    tokens = coefficients.flatten(0, 1)  # (B T, F)
    best = tokens.topk(k, dim=0).indices.T  # (F, k)
    length = coefficients.shape[1]
    return torch.stack([best // length, best % length], dim=-1)  # (F, k, 2)
