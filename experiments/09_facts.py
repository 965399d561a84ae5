"""How many facts a feed-forward layer holds, and how its units hold them (chapter 09).

Made-up facts: a land, a relation (exports, imports, lacks, prizes) and a good, drawn at random from
the same twelve goods for all relations. Lands, relations and goods have random vectors that are
never trained, so that whatever is learned is in the layer. It reads the sum of the vectors of land
and relation, and its output is compared with the vectors of the goods. Measured: the share of
facts recalled against the number of hidden units, for several numbers of facts; a linear map in
place of the layer; SwiGLU with as many weights; and for one ReLU layer, on how many facts a unit
fires and what is forgotten as units are switched off. Each seed draws facts, vectors and weights.
About three minutes on one core.
"""

import torch
from torch import nn
from torch.nn import functional as F

from experiments._record import record
from solutions.feed_forward import FeedForward, SwiGLU, memory_contributions

SEEDS = list(range(5))
RELATIONS, GOODS, WIDTH = 4, 12, 32
FACTS, UNITS = [64, 128, 256, 512], [0, 4, 8, 16, 32, 64, 128]
GATED = [5, 11, 22, 43]  # no more weights than 8, 16, 32 and 64 plain units have
STEPS, RATE = 600, 1e-2
LOOK_FACTS, LOOK_UNITS = 128, 64


def world(facts, seed):
    """Inputs (facts, WIDTH), answers (facts,), and the vectors of the goods (GOODS, WIDTH)."""
    generator = torch.Generator().manual_seed(seed)
    lands = torch.randn(facts // RELATIONS, WIDTH, generator=generator)
    relations = torch.randn(RELATIONS, WIDTH, generator=generator)
    goods = torch.randn(GOODS, WIDTH, generator=generator) / WIDTH**0.5
    x = (lands[:, None] + relations).flatten(0, 1)  # one row for each land and relation
    return x, torch.randint(GOODS, (facts,), generator=generator), goods


def fit(layer, x, answers, goods):
    """Train on all the facts at once."""
    optimizer = torch.optim.Adam(layer.parameters(), lr=RATE)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / STEPS)
    for _ in range(STEPS):
        loss = F.cross_entropy(layer(x) @ goods.T, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rates.step()
    return layer


@torch.no_grad()
def recalled(outputs, answers, goods):
    """Which facts the goods nearest to the outputs get right."""
    return (outputs @ goods.T).argmax(-1) == answers


@torch.no_grad()
def look_inside(layer, x, answers, goods):
    """How a trained ReLU layer spreads its facts over its units."""
    w_in, b_in, w_out, b_out = (
        layer.w_in.weight, layer.w_in.bias, layer.w_out.weight, layer.w_out.bias,
    )  # fmt: skip
    parts = memory_contributions(x, w_in, b_in, w_out)  # (facts, F, WIDTH)
    fires = (x @ w_in.T + b_in) > 0  # (facts, F)
    votes = parts @ goods.T  # (facts, F, GOODS)
    # how far a unit lifts the right good above the average of all
    lift = votes.gather(-1, answers[:, None, None].expand(-1, votes.shape[1], 1))[..., 0]
    lift = lift - votes.mean(-1)  # (facts, F)
    best_first = lift.argsort(-1, descending=True)

    def without(units):
        """Facts still recalled when units (facts, n) are switched off, each fact's own."""
        kept = torch.ones_like(lift).scatter(-1, units, 0.0)
        return recalled((parts * kept[..., None]).sum(1) + b_out, answers, goods)

    before = without(best_first[:, :0])
    one_off = torch.stack(
        [without(torch.full((len(x), 1), unit)) for unit in range(lift.shape[1])]
    )  # (F, facts)
    generator = torch.Generator().manual_seed(0)
    shuffled = torch.rand(lift.shape, generator=generator).argsort(-1)
    values_alone = (w_out.T @ goods.T).argmax(-1)  # (F,): the good that each value promotes
    strongest = lift.argmax(-1)  # (facts,)
    return {
        "recalled": before.float().mean().item(),
        "facts_per_unit": fires.float().sum(0).tolist(),
        "units_per_fact": fires.float().sum(1).mean().item(),
        "lost_by_one_unit": (before & ~one_off).float().sum(1).tolist(),
        "best_unit_off": without(best_first[:, :1]).float().mean().item(),
        "best_off": [without(best_first[:, :n]).float().mean().item() for n in range(9)],
        "random_off": [without(shuffled[:, :n]).float().mean().item() for n in range(9)],
        "value_names_answer": (values_alone[strongest] == answers).float().mean().item(),
    }


def main():
    torch.set_num_threads(1)
    counts, inside = [], []

    def note(kind, units, layer, facts, seed, x, answers, goods):
        right = recalled(fit(layer, x, answers, goods)(x), answers, goods).float().mean().item()
        weights = sum(p.numel() for p in layer.parameters())
        counts.append(
            {"kind": kind, "units": units, "facts": facts, "seed": seed, "recalled": right,
             "parameters": weights}
        )  # fmt: skip

    for seed in SEEDS:
        for facts in FACTS:
            x, answers, goods = world(facts, seed)
            for units in UNITS:
                torch.manual_seed(seed)
                layer = FeedForward(WIDTH, units) if units else nn.Linear(WIDTH, WIDTH)
                note("relu" if units else "linear", units, layer, facts, seed, x, answers, goods)
            for units in GATED:
                torch.manual_seed(seed)
                layer = SwiGLU(WIDTH, units)
                note("swiglu", units, layer, facts, seed, x, answers, goods)
        x, answers, goods = world(LOOK_FACTS, seed)
        torch.manual_seed(seed)
        layer = fit(FeedForward(WIDTH, LOOK_UNITS), x, answers, goods)
        inside.append({"seed": seed, **look_inside(layer, x, answers, goods)})
        shown = [c for c in counts if c["seed"] == seed and c["facts"] == 256]
        print(
            f"seed {seed}, 256 facts:",
            ", ".join(f"{c['kind']} {c['units']} {c['recalled']:.0%}" for c in shown),
        )
    record(
        __file__,
        seeds=SEEDS,
        settings={
            "relations": RELATIONS, "goods": GOODS, "width": WIDTH, "facts": FACTS, "units": UNITS,
            "gated": GATED, "steps": STEPS, "rate": RATE, "optimizer": "Adam",
            "look_facts": LOOK_FACTS, "look_units": LOOK_UNITS,
        },
        results={"recall": counts, "inside": inside},
    )  # fmt: skip


if __name__ == "__main__":
    main()
