"""What the division by √d does to fresh attention: scores, weights, gradients (chapter 04).

Queries and keys are standard normal, as in the argument of Vaswani et al. 2017 (footnote 4), for
many widths d. A second part looks at a real layer, as torch initialises it. About a minute.
"""

import torch

from experiments._record import record
from solutions.self_attention import SelfAttention, attention_entropy, softmax

SEEDS = list(range(10))
WIDTHS = [2**i for i in range(1, 11)]
KEYS = 64
QUERIES = 16
BATCH = 32  # so many sets of keys a seed
D_MODEL = 256
SCALES = {"none": lambda d: 1.0, "root": lambda d: d**-0.5, "width": lambda d: 1 / d}


def jacobian_norm(weights):
    """Frobenius norm of the softmax's derivative, diag(p) - p pᵀ, for each row p.

    The largest weight is taken apart from the others: near 1, differences with it would cancel.
    """
    top, place = weights.max(dim=-1, keepdim=True)
    others = weights.scatter(-1, place, 0.0)
    top = top.squeeze(-1)
    squares = others.pow(2).sum(-1)
    diagonal = (top * others.sum(-1)).pow(2) + (others * (1 - others)).pow(2).sum(-1)
    rest = 2 * top.pow(2) * squares + squares.pow(2) - others.pow(4).sum(-1)
    return (diagonal + rest).sqrt()


def fresh_attention(d, scale, generator):
    """Measure one width and one scale on one seed's draw."""
    draw = {"generator": generator, "dtype": torch.float64}
    q = torch.randn(BATCH, QUERIES, d, **draw).requires_grad_()
    k, v = torch.randn(BATCH, KEYS, d, **draw), torch.randn(BATCH, KEYS, 1, **draw)
    scores = q @ k.mT * scale
    weights = softmax(scores)
    (to_q,) = torch.autograd.grad((weights @ v).sum(), q)
    weights = weights.detach()
    norm, to_q = jacobian_norm(weights).flatten(), to_q.norm(dim=-1).flatten()
    return {
        "variance": scores.var().item(),
        "entropy": attention_entropy(weights).mean().item(),
        "largest_weight": weights.amax(-1).mean().item(),
        "jacobian_mean": norm.mean().item(),
        "jacobian_median": norm.median().item(),
        "jacobian_p10": norm.quantile(0.1).item(),
        "jacobian_p90": norm.quantile(0.9).item(),
        "query_gradient_mean": to_q.mean().item(),
        "query_gradient_median": to_q.median().item(),
    }


def layer_variance(d, seed):
    """Variance of the scores before scaling in a layer as torch initialises it."""
    torch.manual_seed(seed)
    layer = SelfAttention(D_MODEL, d)
    x = torch.randn(BATCH, KEYS, D_MODEL)
    with torch.no_grad():
        return (layer.query(x) @ layer.key(x).mT).var().item()


def main():
    torch.set_num_threads(1)
    rows, layer = [], []
    for d in WIDTHS:
        for name, scale in SCALES.items():
            for seed in SEEDS:  # the same draw for every scale
                generator = torch.Generator().manual_seed(1000 * d + seed)
                found = fresh_attention(d, scale(d), generator)
                rows.append({"width": d, "scale": name, "seed": seed, **found})
        layer += [{"width": d, "seed": s, "variance": layer_variance(d, s)} for s in SEEDS]
        print(f"width {d:4}: done")
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "widths": WIDTHS, "keys": KEYS, "queries": QUERIES, "batch": BATCH,
            "d_model": D_MODEL, "dtype": "float64 (the layer: float32)",
        },
        results={"fresh": rows, "layer": layer},
    )  # fmt: skip


if __name__ == "__main__":
    main()
