"""Residual stream and normalisation: what lets a hundred layers be stacked (chapter 10)."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LayerNorm(nn.Module):
    """Give every token mean 0 and variance 1 over its own numbers, then a learned scale and shift.

    The variance is the mean of the squared deviations from the mean (divided by D, not D - 1),
    and eps is added to it before the root. Two parameters of shape (D,), named as in torch.nn:
    `weight`, which starts as ones, and `bias`, which starts as zeros.

    Args:
        d_model: width D of the tokens.
        eps: added to the variance, so that a token of equal numbers does not divide by 0.
        device: of the parameters, as in torch.nn.
        dtype: of the parameters, as in torch.nn.

    Source: Ba, Kiros and Hinton 2016, section 3.
    """

    def __init__(self, d_model: int, eps: float = 1e-5, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.zeros(d_model, device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Normalise each token by itself.

        Args:
            x: tokens of width D, after any number of leading axes. Half precision (float16,
                bfloat16) is computed in float32. Numbers far from 0 lose no accuracy: they are
                centred before they are squared.

        Returns:
            The normalised tokens, in the shape and the dtype of x.

        Raises:
            ValueError: x is not d_model wide; the message gives the width found and d_model.
        """
        if x.shape[-1] != len(self.weight):
            raise ValueError(f"x has width {x.shape[-1]}, expected d_model={len(self.weight)}")
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        centred = wide - wide.mean(dim=-1, keepdim=True)  # (*batch, D)
        variance = centred.square().mean(dim=-1, keepdim=True)  # (*batch, 1)
        normal = centred * torch.rsqrt(variance + self.eps)  # (*batch, D)
        return (normal * self.weight + self.bias).to(x.dtype)


class RMSNorm(nn.Module):
    """Divide every token by the root of the mean of its squares, then a learned scale.

    LayerNorm without the mean and without the bias. eps is added to the mean of the squares
    before the root. One parameter of shape (D,), named as in torch.nn: `weight`, which starts as
    ones.

    Args:
        d_model: width D of the tokens.
        eps: added to the mean of the squares.
        device: of the parameter, as in torch.nn.
        dtype: of the parameter, as in torch.nn.

    Source: Zhang and Sennrich 2019, section 4.
    """

    def __init__(self, d_model: int, eps: float = 1e-6, device=None, dtype=None):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(d_model, device=device, dtype=dtype))

    def forward(self, x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
        """Normalise each token by itself.

        Args:
            x: tokens of width D, after any number of leading axes. Half precision (float16,
                bfloat16) is computed in float32.

        Returns:
            The normalised tokens, in the shape and the dtype of x.

        Raises:
            ValueError: x is not d_model wide; the message gives the width found and d_model.
        """
        if x.shape[-1] != len(self.weight):
            raise ValueError(f"x has width {x.shape[-1]}, expected d_model={len(self.weight)}")
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        mean_square = wide.square().mean(dim=-1, keepdim=True)  # (*batch, 1)
        return (wide * torch.rsqrt(mean_square + self.eps) * self.weight).to(x.dtype)


def residual(
    x: Float[Tensor, "*batch D"],
    sublayer: Callable[[Tensor], Tensor],
    norm: Callable[[Tensor], Tensor],
    norm_first: bool = True,
) -> Float[Tensor, "*batch D"]:
    """Add what a sublayer says to the stream, with a norm before the sublayer or after the sum.

    Args:
        x: the residual stream. Left unchanged.
        sublayer: attention, a feed-forward layer, or any function that keeps the shape. One that
            takes more than the tokens (a mask, say) comes wrapped: `lambda y: attention(y, mask)`.
        norm: `LayerNorm`, `RMSNorm`, or any function that keeps the shape.
        norm_first: True for pre-norm: the sublayer reads a normalised copy, and the stream itself
            is never normalised. False for post-norm: the sum is normalised. The name is that of
            torch.nn.TransformerEncoderLayer.

    Returns:
        The stream behind the sublayer, x + sublayer(norm(x)) or norm(x + sublayer(x)); gradients
        flow back to x on both ways, through the sum and through the sublayer.

    Source: Vaswani et al. 2017, section 3.1 (post-norm); Xiong et al. 2020, table 1 (both).
    """
    if norm_first:
        return x + sublayer(norm(x))
    return norm(x + sublayer(x))


def init_scale(n_layers: int) -> float:
    """Say by how much to shrink, at the start, the weights that write into the residual stream.

    A layer has two of them, the last projection of attention and that of the feed-forward layer.
    Multiplied by this factor, all 2L of them together add to the stream as much variance as one
    would alone, however deep the model.

    Args:
        n_layers: number of layers L, each with two sublayers.

    Returns:
        1 / √(2L).

    Raises:
        ValueError: n_layers is less than 1; the message gives it.

    Source: Radford et al. 2019, section 2.3.
    """
    if n_layers < 1:
        raise ValueError(f"n_layers={n_layers}: expected at least 1")
    return 1 / math.sqrt(2 * n_layers)


def layer_norm_backward(
    grad: Float[Tensor, "*batch D"],
    x: Float[Tensor, "*batch D"],
    weight: Float[Tensor, "D"],
    eps: float = 1e-5,
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "D"], Float[Tensor, "D"]]:
    """Carry a gradient back through a layer norm, by hand.

    Args:
        grad: gradient of the loss with respect to the output, LayerNorm's of x.
        x: the tokens that were normalised, after any number of leading axes.
        weight: the learned scale.
        eps: as in the forward pass.

    Returns:
        The gradient of the loss with respect to x, to weight and to bias, in this order. The
        last two are summed over all tokens.

    Source: Xu et al. 2019 (without the learned scale).
    """
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = torch.rsqrt(centred.square().mean(dim=-1, keepdim=True) + eps)  # 1 / σ, (*batch, 1)
    normal = centred * scale  # (*batch, D)
    g = grad * weight  # what reaches the normalised numbers
    shift = g.mean(dim=-1, keepdim=True)  # (*batch, 1)
    stretch = (g * normal).mean(dim=-1, keepdim=True)  # (*batch, 1)
    grad_x = scale * (g - shift - stretch * normal)  # (*batch, D)
    grad_weight = (grad * normal).reshape(-1, len(weight)).sum(dim=0)  # (D,)
    grad_bias = grad.reshape(-1, len(weight)).sum(dim=0)  # (D,)
    return grad_x, grad_weight, grad_bias
