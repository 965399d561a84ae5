"""Recurrence and its alternative: one step after the other, or everything at once (chapter 01)."""

import torch
from jaxtyping import Float
from torch import Tensor


def rnn_cell(
    x: Float[Tensor, "*batch D"],
    h: Float[Tensor, "*batch N"],
    w_x: Float[Tensor, "D N"],
    w_h: Float[Tensor, "N N"],
    b: Float[Tensor, "N"],
) -> Float[Tensor, "*batch N"]:
    """Read one token: make the next state from the token and the state before it.

    The next state is tanh(x w_x + h w_h + b). The matrices act from the right.

    Args:
        x: one token of width D for each sequence, after any number of leading axes (also none).
        h: the state before it, of width N, with the same leading axes. Left unchanged.
        w_x: from tokens to states.
        w_h: from states to states.
        b: bias.

    Returns:
        The next state, in the dtype of the inputs; gradients flow back to all of them.

    Source: Elman 1990.
    """
    return torch.tanh(x @ w_x + h @ w_h + b)


def rnn(
    x: Float[Tensor, "B T D"],
    w_x: Float[Tensor, "D N"],
    w_h: Float[Tensor, "N N"],
    b: Float[Tensor, "N"],
    h: Float[Tensor, "B N"] | None = None,
) -> tuple[Float[Tensor, "B T N"], Float[Tensor, "B N"]]:
    """Read sequences from left to right, with the same weights at every step.

    Args:
        x: B sequences of T tokens, T at least 1.
        w_x: from tokens to states, as in `rnn_cell`.
        w_h: from states to states.
        b: bias.
        h: the state before the first token; None for zeros. Left unchanged.

    Returns:
        states: the state after each token; after token t at [:, t].
        last: the state after the last token. Given back as `h`, it lets the reading go on where
            it stopped.
        Both are in the dtype of x; gradients flow back to all inputs.

    Source: Elman 1990.
    """
    if h is None:
        h = x.new_zeros(x.shape[0], w_h.shape[0])  # (B, N)
    states = []
    for x_t in x.unbind(dim=1):  # T tokens of shape (B, D)
        h = rnn_cell(x_t, h, w_x, w_h, b)
        states.append(h)
    return torch.stack(states, dim=1), h  # (B, T, N), (B, N)


def backward_through_time(
    grad_last: Float[Tensor, "B N"],
    states: Float[Tensor, "B T N"],
    w_h: Float[Tensor, "N N"],
) -> Float[Tensor, "B T N"]:
    """Carry the gradient of a loss from the last state of an `rnn` back to every state.

    The loss looks at the last state alone. By hand, without autograd: each step back from
    state t to state t - 1 goes through the tanh of state t, then through w_h.

    Args:
        grad_last: gradient of the loss with respect to the last state.
        states: the states that `rnn` returned for the same sequences. Left unchanged.
        w_h: the weights from states to states that it used.

    Returns:
        The gradient of the loss with respect to state t at [:, t], in the dtype of the inputs;
        the last is grad_last.

    Source: Werbos 1990 (backpropagation through time); Pascanu et al. 2013, section 2.
    """
    grad = grad_last
    grads = [grad]
    for h in reversed(states[:, 1:].unbind(dim=1)):  # states T - 1 down to 1
        grad = grad * (1 - h**2) @ w_h.T  # (B, N)
        grads.append(grad)
    return torch.stack(grads[::-1], dim=1)  # (B, T, N)


def attention_pool(
    query: Float[Tensor, "*batch D"],
    keys: Float[Tensor, "*batch T D"],
    values: Float[Tensor, "*batch T N"],
) -> tuple[Float[Tensor, "*batch N"], Float[Tensor, "*batch T"]]:
    """Read a whole sequence in one step: a mean of its values, weighted by what is asked for.

    The weights are the softmax, over the T tokens, of the dot product of the query with each key.

    Args:
        query: one question for each sequence, after any number of leading axes (also none).
        keys: T vectors for each sequence, compared with its query. Dot products of any size.
        values: T vectors for each sequence, which are averaged; N may differ from D.

    Returns:
        pooled: the weighted mean of the values.
        weights: of each token; positive or 0, and their sum over the T tokens is 1.
        The inputs are left unchanged, and gradients flow back to them.

    Source: Bahdanau et al. 2015, section 3.1 (with Luong et al. 2015's dot product as the score).
    """
    scores = (keys @ query.unsqueeze(-1)).squeeze(-1)  # (*batch, T)
    weights = torch.softmax(scores, dim=-1)  # (*batch, T)
    return (weights.unsqueeze(-2) @ values).squeeze(-2), weights  # (*batch, N)


def sequential_steps(layer: str, n: int, n_layers: int = 1) -> int:
    """Count the steps that must wait for one another, however many machines there are.

    One step computes a layer's output at a position (one `rnn_cell`, one window of a convolution,
    one `attention_pool`), once what it reads is there. Steps that do not wait for each other are
    done at the same time. A recurrent layer reads the state before, and the token at its own
    position; so the second layer may start as soon as the first has read one token. A convolution
    and attention read only the outputs of the layer below.

    Args:
        layer: "rnn", "cnn" or "attention".
        n: tokens in the sequence, at least 1.
        n_layers: layers of that kind on top of each other, at least 1.

    Returns:
        The number of steps after which the last output of the top layer is there.

    Raises:
        ValueError: another kind of layer; the message names it.

    Source: Vaswani et al. 2017, table 1 (for one layer, there as an order of growth).
    """
    if layer == "rnn":
        return n + n_layers - 1
    if layer in ("cnn", "attention"):
        return n_layers
    raise ValueError(f'layer={layer!r}: expected "rnn", "cnn" or "attention"')


def max_path_length(layer: str, n: int, width: int = 3) -> int:
    """Count the steps through which the first of n tokens reaches the last output.

    "rnn": one cell for each token. "attention": one step. The two others need as many layers as
    it takes for an output to see all n tokens. In "cnn", output t of each layer reads the `width`
    positions t, t - 1, t - 2, ...; in "dilated cnn", layer l (from 0) reads `width` positions
    that lie width**l apart: t, t - width**l, t - 2 * width**l, ... Even a single token takes one
    step.

    Args:
        layer: "rnn", "cnn", "dilated cnn" or "attention".
        n: tokens in the sequence, at least 1. The answer is exact, also for millions of them.
        width: positions that one window of a convolution reads, at least 2.

    Returns:
        The number of cells, layers or steps.

    Raises:
        ValueError: another kind of layer; the message names it.

    Source: Vaswani et al. 2017, table 1 and section 4 (there as an order of growth).
    """
    if layer == "rnn":
        return n
    if layer == "attention":
        return 1
    if layer == "cnn":  # an output sees width - 1 further tokens with each layer
        return max(1, -(-(n - 1) // (width - 1)))  # rounded up
    if layer == "dilated cnn":  # the top window stands for `width` stretches of n / width tokens
        return 1 if n <= width else 1 + max_path_length(layer, -(-n // width), width)
    raise ValueError(f'layer={layer!r}: expected "rnn", "cnn", "dilated cnn" or "attention"')


def parallel_scan(a: Float[Tensor, "B T N"], x: Float[Tensor, "B T N"]) -> Float[Tensor, "B T N"]:
    """Compute a linear recurrence in about log2(T) steps instead of T.

    The recurrence is h[t] = a[t] * h[t - 1] + x[t], element by element, from a state of zeros.
    Each round joins what is known of two neighbouring stretches, so their length doubles.

    Args:
        a: how much of each number of the state before is kept; any numbers. Left unchanged.
        x: what is added to it. Left unchanged.

    Returns:
        The state after each token, h[t] at [:, t], in the dtype of the inputs; gradients flow
        back to both.

    Source: Hillis and Steele 1986; Martin and Cundy 2018, section 2 (for neural networks).
    """
    for i in range((x.shape[1] - 1).bit_length()):  # log2(T) rounds, rounded up
        step = 2**i
        later_x = x[:, step:] + a[:, step:] * x[:, :-step]  # (B, T - step, N)
        later_a = a[:, step:] * a[:, :-step]
        x = torch.cat([x[:, :step], later_x], dim=1)  # (B, T, N)
        a = torch.cat([a[:, :step], later_a], dim=1)
    return x
