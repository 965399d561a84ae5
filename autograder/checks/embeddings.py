"""Checks of chapter 03: tables of vectors, what is near what, shared tables, and counting."""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autograder.checking import Chapter, Trial
from solutions import embeddings as reference
from solutions.embeddings import cosine_similarity as cosines

chapter = Chapter("03_embeddings", "Embeddings")
check = chapter.check


def without_seeding(make):
    """What `make` makes, while the random numbers of whoever called stay as they are."""
    with torch.random.fork_rng(devices=[]):
        return make()


def looks_normal(t: Trial, table: Tensor, std: float) -> None:
    """Require that a table of many numbers was drawn from a normal distribution."""
    table = table.double()
    t.require(
        abs(table.std().item() / std - 1) < 0.05,
        f"At the start the table's numbers should have a standard deviation of {std}",
        found=table.std().item(),
    )
    t.require(
        abs(table.mean().item()) < 0.06 * std,
        "At the start the table's numbers should have the mean 0",
        found=table.mean().item(),
    )
    beyond = (table.abs() > 2 * std).double().mean().item()
    t.require(
        0.03 < beyond < 0.065,
        "The table should start normal: of its numbers 4.6 % lie beyond two standard deviations",
        found=beyond,
    )
    t.require(
        len(table.unique(dim=0)) == len(table), "At the start each row should have its own numbers"
    )


# ------------------------------------------------------------------------------ Embedding


def start_of(t: Trial, *args, **kwargs) -> Tensor:
    """The table of a module as it was constructed; the group ends if there is none."""
    m = t.model(*args, load=False, **kwargs)
    start = m.state()
    m.load(m.reference.state_dict())  # says what is missing
    return start["weight"]


Embedding = chapter.exercise(
    reference.Embedding,
    difficulty=3,
    minutes=15,
    forbidden=["torch.nn.Embedding", "torch.nn.functional.embedding", "torch.embedding"],
)


@Embedding.group(
    "the table",
    points=2,
    hint="`self.weight = nn.Parameter(...)`, of shape (vocab_size, d_model), drawn normal with the "
    "standard deviation std. Hand on `device` and `dtype`.",
)
def _(t: Trial):
    looks_normal(t, start_of(t, 300, 40), 0.02)
    looks_normal(t, start_of(t, 250, 50, None, 0.5), 0.5)
    m = t.model(6, 4, std=1.0, device="cpu", dtype=torch.float64)
    found = m.call(torch.tensor([2, 0, 5]))
    t.require(
        found.dtype == torch.float64,
        "With dtype=torch.float64, the table and what is looked up should be float64",
        found=str(found.dtype),
    )


@Embedding.group("the lookup", points=1, hint="Row i of the table for id i: `self.weight[ids]`.")
def _(t: Trial):
    m = t.model(7, 4, std=1.0)
    m.same(torch.tensor([6, 0, 3, 3]))
    m.same(t.randint(0, 7, (3, 5)))
    m.same(t.randint(0, 7, (3, 5)).int())


@Embedding.group(
    "ids of any shape", points=1, hint="Indexing keeps the shape of the ids and adds the last axis."
)
def _(t: Trial):
    m = t.model(9, 5, std=1.0)
    m.same(torch.tensor(8))
    m.same(t.randint(0, 9, (2, 3, 4)))
    m.same(t.randint(0, 9, (1, 6)))
    m.same(torch.zeros(2, 0, dtype=torch.int64))
    m.same(t.randint(0, 9, (3, 4)).T)


@Embedding.group(
    "wrong ids are refused",
    points=2,
    hint="In Python -1 is the last row, without a complaint. Compare the ids with 0 and with the "
    "number of rows, and raise an IndexError that gives the wrong one.",
)
def _(t: Trial):
    m = t.model(7, 4)
    m.raises(IndexError, torch.tensor([[2, 23], [0, 1]]), naming="23")
    m.raises(IndexError, torch.tensor([7, 0]))
    m.raises(IndexError, torch.tensor([3, -1, 4]), naming="-1")
    m.raises(IndexError, torch.tensor([[-7], [0]]), naming="-7")
    m.raises(IndexError, torch.tensor(-3), naming="-3")


@Embedding.group(
    "padding",
    points=2,
    hint="The vector of padding is 0 whatever its row holds: set it after the lookup. And id 0 may "
    "be padding, too: ask `padding_idx is not None`.",
)
def _(t: Trial):
    start = start_of(t, 8, 3, 5, 1.0)
    zero = (start == 0).all(1)
    t.require(
        zero.tolist() == [i == 5 for i in range(8)],
        "At the start the row of padding_idx should be 0, and no other",
        rows_of_zeros=zero.nonzero().flatten(),
    )
    for padding_idx in (5, 0):
        m = t.model(8, 3, padding_idx, 1.0)
        m.load({"weight": t.randn(8, 3)})
        m.same(torch.tensor([[1, 5, 0, 7], [0, 0, 5, 2]]))
        m.same(torch.tensor(padding_idx))
        m.same_gradients(torch.tensor([[1, 5, 0, 7], [0, 0, 5, 2]]))


@Embedding.group("gradients reach the rows that were looked up", points=1)
def _(t: Trial):
    t.model(6, 4).same_gradients(torch.tensor([[1, 4, 1], [1, 0, 4]]))


class _Table(reference.Embedding):
    """The reference in two steps, so that a mistake may replace one of them."""

    def forward(self, ids):
        self.refuse(ids)
        return self.hide(self.look_up(ids), ids)

    def refuse(self, ids):
        rows = self.weight.shape[0]
        for i in ids.reshape(-1).tolist():
            if not 0 <= i < rows:
                raise IndexError(f"there is no row {i}")

    def look_up(self, ids):
        return self.weight[ids]

    def hide(self, x, ids):
        if self.padding_idx is None:
            return x
        return x.masked_fill((ids == self.padding_idx)[..., None], 0.0)


@Embedding.mistake(
    "You let negative ids through. To Python, -1 is the last row: a wrong id gets a vector, and "
    "nobody notices."
)
class NegativeFromTheEnd(_Table):
    def refuse(self, ids):
        if (ids >= self.weight.shape[0]).any():
            raise IndexError(f"id {ids.max().item()} is too large")


@Embedding.mistake(
    "You let wrong ids through: those that are too large fail somewhere in torch, and negative "
    "ones are read from the end of the table."
)
class RefusesNothing(_Table):
    def refuse(self, ids):
        pass


@Embedding.mistake("Your message does not give the id that is wrong. Its reader will look for it.")
class WithoutAName(_Table):
    def refuse(self, ids):
        if ((ids < 0) | (ids >= self.weight.shape[0])).any():
            raise IndexError("index out of range")


@Embedding.mistake("You raise ValueError. A wrong place in a table is an IndexError.")
class RaisesValueError(_Table):
    def refuse(self, ids):
        for i in ids.reshape(-1).tolist():
            if not 0 <= i < self.weight.shape[0]:
                raise ValueError(f"there is no row {i}")


@Embedding.mistake("You use `assert`, which raises AssertionError, and nothing under `python -O`.")
class Asserts(_Table):
    def refuse(self, ids):
        for i in ids.reshape(-1).tolist():
            assert 0 <= i < self.weight.shape[0], i


@Embedding.mistake(
    "You clamp wrong ids into the table, so that they get the vector of some other token. Refuse."
)
class Clamps(_Table):
    def refuse(self, ids):
        pass

    def look_up(self, ids):
        return self.weight[ids.clamp(0, self.weight.shape[0] - 1)]


@Embedding.mistake(
    "You refuse id V - 1 as well (`>` or `>=`, or V for V - 1). It is the last row of the table."
)
class RefusesTheLastRow(_Table):
    def refuse(self, ids):
        for i in ids.reshape(-1).tolist():
            if not 0 <= i < self.weight.shape[0] - 1:
                raise IndexError(f"there is no row {i}")


@Embedding.mistake("You do not use `std`: your table starts with a standard deviation of 1.")
class UnitStart(_Table):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__(vocab_size, d_model, padding_idx, 1.0, device, dtype)


@Embedding.mistake("You do not use `std`: your table always starts with 0.02.")
class AlwaysTheDefault(_Table):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__(vocab_size, d_model, padding_idx, 0.02, device, dtype)


@Embedding.mistake("You took std for a variance: the table's standard deviation is its root.")
class StdAsVariance(_Table):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__(vocab_size, d_model, padding_idx, std**0.5, device, dtype)


@Embedding.mistake("Your table starts at 0: all tokens are the same, and nothing tells them apart.")
class StartsAtZero(_Table):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__(vocab_size, d_model, padding_idx, 0.0, device, dtype)


@Embedding.mistake(
    "Your table starts uniform (`rand`, from 0 to 1). It should be normal, with mean 0 (`randn`)."
)
class Uniform(_Table):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__(vocab_size, d_model, padding_idx, std, device, dtype)
        self.weight = nn.Parameter(
            torch.rand(vocab_size, d_model, device=device, dtype=dtype) * std
        )
        if padding_idx is not None:
            self.weight.data[padding_idx] = 0


@Embedding.mistake("Your table has the shape (d_model, vocab_size). A token's vector is a row.")
class Transposed(_Table):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__(d_model, vocab_size, None, std, device, dtype)


@Embedding.mistake("You ignore `dtype`. Hand it (and `device`) to the tensor that you draw.")
class IgnoresDtype(_Table):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__(vocab_size, d_model, padding_idx, std)


@Embedding.mistake(
    "Your table is no parameter, so training would never change it: wrap it in `nn.Parameter`."
)
class ABuffer(_Table):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__(vocab_size, d_model, padding_idx, std, device, dtype)
        table = self.weight.data
        del self.weight
        self.register_buffer("weight", table)


@Embedding.mistake(
    "You cut the table off from its gradients (`.data`, `detach`, `no_grad`): it would never learn."
)
class Detached(_Table):
    def look_up(self, ids):
        return self.weight.detach()[ids]


@Embedding.mistake(
    "You scale by √D. The transformer of 2017 does that behind its embedding; this one looks up."
)
class Scaled(_Table):
    def look_up(self, ids):
        return self.weight[ids] * math.sqrt(self.weight.shape[1])


@Embedding.mistake("You scaled the vectors to length 1. A lookup hands them over as they are.")
class UnitLength(_Table):
    def look_up(self, ids):
        return F.normalize(self.weight[ids], dim=-1)


@Embedding.mistake("You flatten the ids. What comes out keeps their shape: (*shape, D).")
class Flattened(_Table):
    def look_up(self, ids):
        return self.weight[ids.reshape(-1)]

    def hide(self, x, ids):
        return super().hide(x, ids.reshape(-1))


@Embedding.mistake(
    "Your code takes ids of two axes only. Any shape may come, also a single id without axes."
)
class TwoAxes(_Table):
    def look_up(self, ids):
        b, t = ids.shape
        return self.weight[ids.reshape(-1)].reshape(b, t, -1)


@Embedding.mistake("Your `padding_idx` does nothing: padding gets its row like any other token.")
class PaddingIgnored(_Table):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__(vocab_size, d_model, None, std, device, dtype)


@Embedding.mistake(
    "The row of padding starts at 0, and does not stay there: your lookup hands over whatever the "
    "table holds, and lets a gradient back. Hide it in `forward`."
)
class ZeroAtTheStartOnly(_Table):
    def hide(self, x, ids):
        return x


@Embedding.mistake(
    "You hide padding in `forward`; at the start its row should be 0 in the table as well."
)
class NotZeroAtTheStart(_Table):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__(vocab_size, d_model, None, std, device, dtype)
        self.padding_idx = padding_idx


@Embedding.mistake(
    "You ask `if padding_idx`, and 0 counts as false. Ask `is not None`: id 0 is often the padding."
)
class ZeroIsFalse(_Table):
    def hide(self, x, ids):
        return super().hide(x, ids) if self.padding_idx else x


@Embedding.mistake(
    "You set the row of padding to 0 in the table at each call. The value is right, but a gradient "
    "still flows to that row. Set what was looked up to 0 instead."
)
class ZeroedInTheTable(_Table):
    def look_up(self, ids):
        if self.padding_idx is not None:
            self.weight.data[self.padding_idx] = 0
        return self.weight[ids]

    def hide(self, x, ids):
        return x


@Embedding.mistake("You hide id 0, whatever padding_idx says.")
class AlwaysIdZero(_Table):
    def hide(self, x, ids):
        return x if self.padding_idx is None else x.masked_fill((ids == 0)[..., None], 0.0)


@Embedding.alternative
class ByOneHotProduct(nn.Module):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__()
        self.n, self.pad = vocab_size, padding_idx
        self.weight = nn.Parameter(
            std * torch.randn(vocab_size, d_model, device=device, dtype=dtype)
        )
        if padding_idx is not None:
            with torch.no_grad():
                self.weight[padding_idx].zero_()

    def forward(self, ids):
        if ids.numel() and (ids.min() < 0 or ids.max() >= self.n):
            worst = ids.min() if ids.min() < 0 else ids.max()
            raise IndexError(f"{int(worst)} not in 0..{self.n - 1}")
        one_hot = F.one_hot(ids.long(), self.n).to(self.weight.dtype)
        if self.pad is not None:
            one_hot = one_hot * (torch.arange(self.n) != self.pad)
        return one_hot @ self.weight


@Embedding.alternative
class BySelectingRows(nn.Module):
    def __init__(self, vocab_size, d_model, padding_idx=None, std=0.02, device=None, dtype=None):
        super().__init__()
        self.padding_idx = padding_idx
        self.weight = nn.Parameter(torch.empty((vocab_size, d_model), device=device, dtype=dtype))
        nn.init.normal_(self.weight, mean=0.0, std=std)
        if self.padding_idx is not None:
            nn.init.zeros_(self.weight.data[padding_idx])

    def forward(self, ids):
        flat = ids.flatten().long()
        for i in flat:
            if i < 0 or i > len(self.weight) - 1:
                raise IndexError(f"bad id: {i}")
        x = self.weight.index_select(0, flat).view(*ids.shape, self.weight.size(1))
        if self.padding_idx is not None:
            x = torch.where(ids.unsqueeze(-1) == self.padding_idx, torch.zeros_like(x), x)
        return x


@Embedding.alternative
class ByMultiplying(_Table):
    def look_up(self, ids):
        rows = [self.weight[i] for i in ids.reshape(-1).tolist()]
        width = self.weight.shape[1]
        x = torch.stack(rows) if rows else self.weight[:0]
        return x.reshape(*ids.shape, width)

    def hide(self, x, ids):
        return x if self.padding_idx is None else x * (ids != self.padding_idx).unsqueeze(-1)


# ------------------------------------------------------------------------ lookup_gradient

lookup_gradient = chapter.exercise(
    reference.lookup_gradient,
    difficulty=4,
    minutes=14,
    forbidden=[
        "torch.autograd.grad",
        "torch.Tensor.backward",
        "torch.nn.Embedding",
        "torch.nn.functional.embedding",
    ],
)


def _distinct(t: Trial, vocab_size: int, n: int) -> Tensor:
    return t.randperm(vocab_size)[:n]


@lookup_gradient.group(
    "ids that occur once, ids that do not occur",
    points=1,
    hint="Start from zeros of shape (V, D). The gradient at place t belongs to row ids[t].",
)
def _(t: Trial):
    t.same(t.randn(5, 3), _distinct(t, 9, 5), 9)
    t.same(t.randn(4, 2), _distinct(t, 11, 4), 11)
    t.same(t.randn(1, 6), torch.tensor([2]), 4)


@lookup_gradient.group(
    "ids that occur several times",
    points=2,
    hint="`table[ids] += grad` keeps one of several places. `index_add`, or a loop, or a one-hot "
    "product adds them all up.",
)
def _(t: Trial):
    t.same(t.randn(6, 3), torch.tensor([4, 1, 4, 4, 0, 1]), 5)
    t.same(t.randn(7, 2), torch.full((7,), 3), 6)
    if t.graded:
        t.same(t.randn(40, 5), t.randint(0, 6, (40,)), 8)


@lookup_gradient.group(
    "any shape",
    points=2,
    hint="Flatten the ids to (N,) and grad to (N, D): each place is one row of grad.",
)
def _(t: Trial):
    t.same(t.randn(2, 5, 3), torch.tensor([[1, 6, 1, 0, 3], [6, 1, 5, 5, 0]]), 7)
    t.same(t.randn(2, 3, 2, 4), t.randint(0, 5, (2, 3, 2)), 6)
    t.same(t.randn(3), torch.tensor(2), 5)
    t.same(t.randn(4, 3, 2).transpose(0, 1), t.randint(0, 5, (4, 3)).T, 5)
    t.same(t.randn(2, 0, 3), torch.zeros(2, 0, dtype=torch.int64), 4)


@lookup_gradient.group(
    "keeps the dtype, changes no input",
    points=1,
    hint="`grad.new_zeros(...)`, or `dtype=grad.dtype`. And do not write into grad or ids.",
)
def _(t: Trial):
    ids = torch.tensor([[4, 1, 1], [0, 4, 2]])
    t.same(t.randn(2, 3, 4, dtype=torch.float64), ids, 5, dtype=True)
    t.same(t.randn(2, 3, 4, dtype=torch.float16), ids, 5, dtype=True)
    t.unchanged(t.randn(2, 3, 4), ids, 5)


def _rows(grad, ids):
    return grad.reshape(-1, grad.shape[-1]), ids.reshape(-1).tolist()


def _zeros(grad, vocab_size):
    return torch.zeros(vocab_size, grad.shape[-1], dtype=grad.dtype)


@lookup_gradient.mistake(
    "Of the places of an id, you keep one: `table[ids] += grad` (or `=`) writes each row once, "
    "with whichever came last. They have to be added up."
)
def one_place_each(grad, ids, vocab_size):
    table = _zeros(grad, vocab_size)
    for g, i in zip(*_rows(grad, ids)):
        table[i] = g
    return table


@lookup_gradient.mistake("Of the places of an id, you keep the first. They have to be added up.")
def first_place_each(grad, ids, vocab_size):
    table, seen = _zeros(grad, vocab_size), set()
    for g, i in zip(*_rows(grad, ids)):
        if i not in seen:
            table[i] = g
        seen.add(i)
    return table


@lookup_gradient.mistake(
    "You average over the places of an id. Each place adds its share to the loss: take the sum."
)
def mean_of_places(grad, ids, vocab_size):
    total = reference.lookup_gradient(grad, ids, vocab_size)
    count = torch.bincount(ids.reshape(-1), minlength=vocab_size).clamp(min=1)
    return total / count[:, None].to(grad.dtype)


@lookup_gradient.mistake("You divide by the number of all places. The gradient is a sum.")
def divided_by_all_places(grad, ids, vocab_size):
    return reference.lookup_gradient(grad, ids, vocab_size) / max(ids.numel(), 1)


@lookup_gradient.mistake("You count how often each id occurs, and do not look at grad.")
def counts_only(grad, ids, vocab_size):
    return reference.lookup_gradient(torch.ones_like(grad), ids, vocab_size)


@lookup_gradient.mistake(
    "You give every row that occurs the sum over all places. A row gets those of its own id alone."
)
def everything_to_everyone(grad, ids, vocab_size):
    rows, flat = _rows(grad, ids)
    table = _zeros(grad, vocab_size)
    table[flat] = rows.sum(0)
    return table


@lookup_gradient.mistake("You looked up in grad instead of adding to the table.")
def looked_up(grad, ids, vocab_size):
    rows, flat = _rows(grad, ids)
    table = _zeros(grad, vocab_size)
    for place, i in enumerate(flat):
        if i < len(rows):
            table[place % vocab_size] += rows[i]
    return table


@lookup_gradient.mistake(
    "Your table has as many rows as the largest id needs. It has vocab_size rows, seen or not."
)
def only_as_many_rows_as_seen(grad, ids, vocab_size):
    rows = int(ids.max()) + 1 if ids.numel() else 0
    return reference.lookup_gradient(grad, ids, rows)


@lookup_gradient.mistake("Your table is (D, V). A token's vector is a row: (V, D).")
def table_transposed(grad, ids, vocab_size):
    return reference.lookup_gradient(grad, ids, vocab_size).T


@lookup_gradient.mistake(
    "You start a new table for each sequence of the batch, and return the last one."
)
def last_sequence_only(grad, ids, vocab_size):
    if ids.ndim < 2 or not len(ids):
        return reference.lookup_gradient(grad, ids, vocab_size)
    return reference.lookup_gradient(grad[-1], ids[-1], vocab_size)


@lookup_gradient.mistake(
    "Your places and gradients do not belong together once there are several axes: flatten both in "
    "the same order, with D kept as the last axis."
)
def flattened_in_another_order(grad, ids, vocab_size):
    if ids.ndim < 2:
        return reference.lookup_gradient(grad, ids, vocab_size)
    return reference.lookup_gradient(grad, ids.transpose(0, 1).reshape(ids.shape), vocab_size)


@lookup_gradient.mistake("Your code takes ids of one axis only. They may have any shape.")
def one_axis_only(grad, ids, vocab_size):
    return _zeros(grad, vocab_size).index_add(0, ids, grad)


@lookup_gradient.mistake("Your code takes ids of one or two axes only. They may have any shape.")
def up_to_two_axes(grad, ids, vocab_size):
    if ids.ndim == 2:
        grad, ids = grad.flatten(0, 1), ids.flatten()
    return _zeros(grad, vocab_size).index_add(0, ids, grad)


@lookup_gradient.mistake(
    "You always return float32. The table's gradient has the dtype of grad: `grad.new_zeros(...)`."
)
def always_single(grad, ids, vocab_size):
    return reference.lookup_gradient(grad, ids, vocab_size).float()


@lookup_gradient.mistake("You write into `grad`. Its owner still needs it.")
def writes_into_grad(grad, ids, vocab_size):
    table = reference.lookup_gradient(grad, ids, vocab_size)
    grad.zero_()
    return table


@lookup_gradient.alternative
def by_loops(grad, ids, vocab_size):
    table = torch.zeros((vocab_size, grad.size(-1)), dtype=grad.dtype)
    for g, i in zip(grad.reshape(-1, grad.size(-1)), ids.reshape(-1)):
        table[i] += g
    return table


@lookup_gradient.alternative
def by_one_hot_product(grad, ids, vocab_size):
    one_hot = F.one_hot(ids.flatten(), vocab_size).to(grad.dtype)
    return one_hot.T @ grad.reshape(-1, grad.shape[-1])


@lookup_gradient.alternative
def by_accumulating(grad, ids, vocab_size):
    table = grad.new_zeros((vocab_size, grad.shape[-1]))
    return table.index_put_((ids,), grad, accumulate=True)


@lookup_gradient.alternative
def by_scatter(grad, ids, vocab_size):
    width = grad.shape[-1]
    index = ids.reshape(-1, 1).expand(-1, width)
    return torch.zeros(vocab_size, width).to(grad).scatter_add(0, index, grad.reshape(-1, width))


# ---------------------------------------------------------------------- cosine_similarity

cosine_similarity = chapter.exercise(
    reference.cosine_similarity,
    difficulty=2,
    minutes=8,
    forbidden=["torch.nn.functional.cosine_similarity", "torch.nn.CosineSimilarity"],
)


@cosine_similarity.group(
    "every vector with every other",
    points=2,
    hint="Divide each vector by its own length (along the last axis), then one matrix product.",
)
def _(t: Trial):
    t.same(t.randn(4, 3), t.randn(6, 3))
    t.same(t.randn(1, 5) + 1, 3 * t.randn(2, 5) - 1)
    t.same(
        torch.tensor([[3.0, 4.0], [-8.0, 6.0]]),
        torch.tensor([[0.5, 0.0], [-3.0, -4.0], [4.0, 3.0]]),
    )
    t.same(t.randn(3, 1), t.randn(5, 1))


@cosine_similarity.group(
    "batches", points=1, hint="`.mT` turns the last two axes; `.T` turns all of them."
)
def _(t: Trial):
    t.same(t.randn(2, 4, 3), t.randn(2, 5, 3))
    t.same(t.randn(2, 3, 4, 6), t.randn(2, 3, 1, 6))


@cosine_similarity.group(
    "the length does not matter",
    points=1,
    hint="A number added to the lengths, against division by zero, spoils short vectors. Treat the "
    "length 0 apart instead.",
)
def _(t: Trial):
    a, b = t.randn(4, 3), t.randn(5, 3)
    sizes = torch.tensor([1e-6, 1e-3, 1.0, 1e6])[:, None]
    t.same(a * sizes, b)
    t.same(a * 1e-6, b * 1e-6)
    t.same(a * 1e6, b * 1e6)


@cosine_similarity.group(
    "a vector of zeros",
    points=1,
    hint="0 / 0 is NaN. Where the length is 0, divide by 1 (`masked_fill`, `where` or `clamp`).",
)
def _(t: Trial):
    a, b = t.randn(3, 4), t.randn(5, 4)
    a[1] = 0
    b[4] = 0
    t.same(a, b)
    found = t.call(torch.zeros(2, 3), t.randn(4, 3))
    t.require(bool((found == 0).all()), "Zeros should have the similarity 0", found=found)


@cosine_similarity.group(
    "dtype and gradients", points=1, hint="Divide, do not round: no `.float()`, no `detach`."
)
def _(t: Trial):
    a, b = t.randn(3, 4, dtype=torch.float64), t.randn(2, 4, dtype=torch.float64)
    t.same(a, b, dtype=True)
    t.same_gradients(a, b)
    t.unchanged(a, b)


def _length(x, p=2.0, dim=-1):
    length = torch.linalg.vector_norm(x, p, dim=dim, keepdim=True)
    return length.masked_fill(length == 0, 1.0)


@cosine_similarity.mistake(
    "You took the dot product. It grows with the lengths; divide each vector by its own first."
)
def dot_product(a, b):
    return a @ b.mT


@cosine_similarity.mistake("You divided by the length of a alone. Both have one.")
def length_of_a_alone(a, b):
    return (a / _length(a)) @ b.mT


@cosine_similarity.mistake("You divided by the length of b alone. Both have one.")
def length_of_b_alone(a, b):
    return a @ (b / _length(b)).mT


@cosine_similarity.mistake("You divided by the squared lengths: the root is missing.")
def squared_lengths(a, b):
    return (a / _length(a) ** 2) @ (b / _length(b) ** 2).mT


@cosine_similarity.mistake(
    "You summed the absolute values. The length is the root of the sum of squares."
)
def sum_of_absolute_values(a, b):
    return (a / _length(a, 1)) @ (b / _length(b, 1)).mT


@cosine_similarity.mistake("You took the length along the wrong axis: each vector has its own.")
def along_the_wrong_axis(a, b):
    return (a / _length(a, dim=-2)) @ (b / _length(b, dim=-2)).mT


@cosine_similarity.mistake(
    "You divided by one length for the whole tensor (`norm()` without `dim`). Each vector has "
    "its own."
)
def one_length_for_all(a, b):
    return (a / a.norm()) @ (b / b.norm()).mT


@cosine_similarity.mistake(
    "You subtracted the means first: that is the correlation. The cosine takes vectors as they are."
)
def correlation(a, b):
    a, b = a - a.mean(-1, keepdim=True), b - b.mean(-1, keepdim=True)
    return reference.cosine_similarity(a, b)


@cosine_similarity.mistake("You return a distance, 1 - cosine. More similar should be more.")
def distance(a, b):
    return 1 - reference.cosine_similarity(a, b)


@cosine_similarity.mistake(
    "You took the absolute value: opposite vectors have the similarity -1, not 1."
)
def absolute(a, b):
    return reference.cosine_similarity(a, b).abs()


@cosine_similarity.mistake("You return the angle. Its cosine is asked for.")
def angle(a, b):
    return reference.cosine_similarity(a, b).clamp(-1, 1).acos()


@cosine_similarity.mistake("You mapped the cosine to 0..1. It goes from -1 to 1.")
def from_0_to_1(a, b):
    return (1 + reference.cosine_similarity(a, b)) / 2


@cosine_similarity.mistake(
    "You added a small number to the denominator. For short vectors it is not small: their "
    "similarity comes out too low."
)
def with_a_small_number(a, b):
    return a @ b.mT / (a.norm(dim=-1)[..., None] * b.norm(dim=-1)[..., None, :] + 1e-8)


@cosine_similarity.mistake(
    "You clamp the product of the lengths at a small number. For two short vectors the product is "
    "smaller than that: clamp each length by itself, or treat 0 apart."
)
def product_clamped(a, b):
    lengths = a.norm(dim=-1)[..., None] * b.norm(dim=-1)[..., None, :]
    return a @ b.mT / lengths.clamp(min=1e-8)


@cosine_similarity.mistake("A vector of zeros gives NaN: 0 / 0. Its similarity should be 0.")
def nan_for_zeros(a, b):
    return (a / a.norm(dim=-1, keepdim=True)) @ (b / b.norm(dim=-1, keepdim=True)).mT


@cosine_similarity.mistake(
    "You use `.T`, which turns *all* axes. `.mT` turns the last two, and leaves a batch alone."
)
def all_axes_turned(a, b):
    return (a / _length(a)) @ (b / _length(b)).permute(*reversed(range(b.ndim)))


@cosine_similarity.mistake("Your result has the axes swapped: rows belong to a, columns to b.")
def rows_of_b(a, b):
    return reference.cosine_similarity(b, a)


@cosine_similarity.mistake("You cut off the gradients of the lengths (`detach`, `.data`).")
def lengths_detached(a, b):
    return (a / _length(a).detach()) @ (b / _length(b).detach()).mT


@cosine_similarity.alternative
def by_normalize(a, b):
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).transpose(-2, -1)


@cosine_similarity.alternative
def by_einsum(a, b):
    dots = torch.einsum("...nd,...md->...nm", a, b)
    na, nb = a.square().sum(-1).sqrt(), b.square().sum(-1).sqrt()
    lengths = na[..., :, None] * nb[..., None, :]
    return torch.where(lengths > 0, dots / torch.where(lengths > 0, lengths, 1), 0)


@cosine_similarity.alternative
def one_by_one(a, b):
    return torch.stack([F.cosine_similarity(a, b[..., m : m + 1, :], dim=-1, eps=1e-12)
                        for m in range(b.shape[-2])], dim=-1)  # fmt: skip


# -------------------------------------------------------------------------------- nearest

nearest = chapter.exercise(
    reference.nearest,
    difficulty=3,
    minutes=12,
    forbidden=["torch.nn.functional.cosine_similarity", "torch.nn.CosineSimilarity"],
)


@nearest.group(
    "the most similar first",
    points=2,
    hint="`cosine_similarity(query, table)` is (Q, V). `topk` along V gives values and indices.",
)
def _(t: Trial):
    sizes = 0.2 + 5 * t.rand(11, 1)
    t.same(t.randn(3, 4), sizes * t.randn(11, 4), 5)
    t.same(2 * t.randn(1, 5), sizes[:7] * t.randn(7, 5), 1)
    t.same(t.randn(4, 3), t.randn(6, 3), 6)
    if t.graded:
        t.same(t.randn(2, 6, dtype=torch.float64), t.randn(20, 6, dtype=torch.float64), 9)


@nearest.group(
    "what is excluded is not found",
    points=2,
    hint="Give the excluded places of (Q, V) a similarity of -inf, row by row: `scatter`.",
)
def _(t: Trial):
    table = (0.2 + 5 * t.rand(9, 1)) * t.randn(9, 4)
    own = torch.tensor([[4], [0], [8]])
    t.same(table[own[:, 0]], table, 3, own)
    t.same(table[own[:, 0]], table, k=8, exclude=own)
    t.same(t.randn(2, 4), table, 4, torch.tensor([[1, 7, 3], [0, 7, 5]]))
    t.same(t.randn(2, 4), table, 6, torch.tensor([[2, 4, 6], [8, 0, 1]]))
    # What points exactly the other way is still found before what is excluded.
    opposite = torch.tensor([[-1.0, 0.0]]) * torch.arange(1.0, 9.0)[:, None]
    out = torch.tensor([[0, 1, 2], [3, 4, 5], [5, 6, 7]])
    found = t.call(torch.tensor([[2.0, 0.0]] * 3), opposite, 5, out)
    t.require(
        not (found[0][:, :, None] == out[:, None, :]).any(),
        "A row that was excluded is found, although others are left",
        excluded=out,
        found=found[0],
    )


@nearest.group(
    "a query's own row need not be the first",
    points=1,
    hint="Exclude by id. Dropping the first one found is right only where it is the excluded one.",
)
def _(t: Trial):
    table = t.randn(8, 3)
    t.same(t.randn(2, 3), table, 4, torch.tensor([[5], [2]]))
    a, b, c = torch.tensor([1, 6]), torch.tensor([3, 0]), torch.tensor([7, 2])
    t.same(table[b] - table[a] + table[c], table, 3, torch.stack([a, b, c], dim=1))


@nearest.group(
    "more than there are is refused",
    points=1,
    hint="V rows, less the E that are excluded. Exactly as many is allowed.",
)
def _(t: Trial):
    query, table = t.randn(2, 3), t.randn(7, 3)
    t.raises(ValueError, query, table, 9, naming="9")
    t.raises(ValueError, query, table, 8, naming="7")
    own = torch.tensor([[1, 4], [0, 6]])
    t.raises(ValueError, query, table, 6, own, naming="6")
    t.raises(ValueError, query, table, 7, own, naming="5")
    t.same(query, table, 5, own)


def _refused(table, k, exclude):
    left = len(table) - (0 if exclude is None else exclude.shape[1])
    if k > left:
        raise ValueError(f"{k} of {left}")


def _found(scores, k, exclude, fill=-torch.inf, largest=True):
    if exclude is not None:
        scores = scores.scatter(1, exclude, fill)
    found = scores.topk(k, largest=largest)
    return found.indices, found.values


@nearest.mistake("You return the similarities first. The ids come first here.")
def values_first(query, table, k, exclude=None):
    return reference.nearest(query, table, k, exclude)[::-1]


@nearest.mistake("You return the ids alone. The similarities come with them.")
def ids_alone(query, table, k, exclude=None):
    return reference.nearest(query, table, k, exclude)[0]


@nearest.mistake(
    "You compare by dot product, which prefers long vectors. Compare directions: the cosine."
)
def by_dot_product(query, table, k, exclude=None):
    _refused(table, k, exclude)
    return _found(query @ table.T, k, exclude)


@nearest.mistake(
    "You take the vectors with the smallest distance. Length counts there; compare by cosine."
)
def by_distance(query, table, k, exclude=None):
    _refused(table, k, exclude)
    ids, _ = _found(-torch.cdist(query, table), k, exclude)
    return ids, cosines(query, table).gather(1, ids)


@nearest.mistake("You found the least similar rows: `largest=False`, or an ascending sort.")
def least_similar(query, table, k, exclude=None):
    _refused(table, k, exclude)
    return _found(cosines(query, table), k, exclude, torch.inf, largest=False)


@nearest.mistake("You found the right rows and return the least similar of them first.")
def least_similar_first(query, table, k, exclude=None):
    return [x.flip(1) for x in reference.nearest(query, table, k, exclude)]


@nearest.mistake("You ignore `exclude`: each row is its own nearest.")
def excludes_nothing(query, table, k, exclude=None):
    _refused(table, k, exclude)
    return _found(cosines(query, table), k, None)


@nearest.mistake(
    "You drop the first ones found, as if they were the excluded ones. They need not be: exclude "
    "by id."
)
def drops_the_first(query, table, k, exclude=None):
    _refused(table, k, exclude)
    e = 0 if exclude is None else exclude.shape[1]
    ids, values = _found(cosines(query, table), k + e, None)
    return ids[:, e:], values[:, e:]


@nearest.mistake(
    "You give what is excluded a similarity of 0. Then it beats all that point the other way."
)
def filled_with_zero(query, table, k, exclude=None):
    _refused(table, k, exclude)
    return _found(cosines(query, table), k, exclude, 0.0)


@nearest.mistake(
    "You give what is excluded a similarity of -1. So has what points exactly the other way, and "
    "that may be found: use -inf."
)
def filled_with_minus_one(query, table, k, exclude=None):
    _refused(table, k, exclude)
    return _found(cosines(query, table), k, exclude, -1.0)


@nearest.mistake(
    "You exclude for all queries what is excluded for one of them. Each has its own row of ids."
)
def excluded_for_all(query, table, k, exclude=None):
    _refused(table, k, exclude)
    scores = cosines(query, table).clone()
    if exclude is not None:
        scores[:, exclude.flatten()] = -torch.inf
    found = scores.topk(k)
    return found.indices, found.values


@nearest.mistake(
    "You exclude row q for query q (the diagonal). What is excluded are the ids in `exclude`."
)
def excludes_the_diagonal(query, table, k, exclude=None):
    _refused(table, k, exclude)
    scores = cosines(query, table).clone()
    if exclude is not None:
        scores.fill_diagonal_(-torch.inf)
    found = scores.topk(k)
    return found.indices, found.values


@nearest.mistake("You exclude the first id of each row alone. There may be several.")
def excludes_one_each(query, table, k, exclude=None):
    _refused(table, k, exclude)
    return _found(cosines(query, table), k, None if exclude is None else exclude[:, :1])


@nearest.mistake(
    "You took the excluded rows out of the table, so that all ids behind them are too small."
)
def ids_shifted(query, table, k, exclude=None):
    _refused(table, k, exclude)
    if exclude is None:
        return reference.nearest(query, table, k)
    found = []
    for q, out in zip(query, exclude.tolist()):
        kept = [i for i in range(len(table)) if i not in out]
        found.append(reference.nearest(q[None], table[kept], k))
    return torch.cat([f[0] for f in found]), torch.cat([f[1] for f in found])


@nearest.mistake("You return distances, 1 - cosine. The similarities are asked for.")
def gives_distances(query, table, k, exclude=None):
    ids, similarity = reference.nearest(query, table, k, exclude)
    return ids, 1 - similarity


@nearest.mistake(
    "You refuse nothing. With k too large, `topk` complains of a `selected index k`, or hands out "
    "excluded rows."
)
def refuses_nothing(query, table, k, exclude=None):
    return _found(cosines(query, table), k, exclude)


@nearest.mistake(
    "You compare k with V alone. The excluded rows are not there to be found: V - E are left."
)
def forgets_the_excluded(query, table, k, exclude=None):
    if k > len(table):
        raise ValueError(f"k={k} of {len(table)}")
    return _found(cosines(query, table), k, exclude)


@nearest.mistake("You refuse k = V - E as well. Exactly as many as are left can be found.")
def refuses_exactly_all(query, table, k, exclude=None):
    _refused(table, k + 1, exclude)
    return reference.nearest(query, table, k, exclude)


@nearest.mistake("Your `ValueError` should give k and the number of rows that are left.")
def refuses_without_numbers(query, table, k, exclude=None):
    try:
        _refused(table, k, exclude)
    except ValueError:
        raise ValueError("k is too large") from None
    return reference.nearest(query, table, k, exclude)


@nearest.alternative
def by_sorting(query, table, k, exclude=None):
    scores = cosines(query, table).clone()
    excluded = 0
    if exclude is not None:
        excluded = exclude.size(1)
        scores[torch.arange(len(query))[:, None], exclude] = -2
    if len(table) - excluded < k:
        raise ValueError(f"asked for {k}, only {len(table) - excluded} rows")
    order = scores.argsort(dim=1, descending=True)[:, :k]
    return order, scores.gather(1, order)


@nearest.alternative
def query_by_query(query, table, k, exclude=None):
    out = [[] for _ in query] if exclude is None else exclude.tolist()
    ids, values = [], []
    for q, without in zip(query, out):
        if k > table.shape[0] - len(without):
            raise ValueError(
                f"k={k}, {table.shape[0]} - {len(without)} = {table.shape[0] - len(without)}"
            )
        row = {i: float(s) for i, s in enumerate(cosines(q[None], table)[0]) if i not in without}
        best = sorted(row, key=row.get, reverse=True)[:k]
        ids.append(best)
        values.append([row[i] for i in best])
    return torch.tensor(ids), torch.tensor(values, dtype=query.dtype)


# ------------------------------------------------------------------------------- TiedHead

TiedHead = chapter.exercise(reference.TiedHead, difficulty=2, minutes=8)


def a_table(t: Trial, rows: int, width: int, dtype=torch.float32) -> nn.Embedding:
    """An `nn.Embedding` of seeded numbers."""
    return nn.Embedding.from_pretrained(t.randn(rows, width, dtype=dtype), freeze=False)


def a_linear(t: Trial, rows: int, width: int) -> nn.Linear:
    """An `nn.Linear` of seeded numbers: a module with more than a weight."""
    made = without_seeding(lambda: nn.Linear(width, rows))
    made.weight.data, made.bias.data = t.randn(rows, width), t.randn(rows)
    return made


@TiedHead.group(
    "it keeps the module that it was given",
    points=2,
    hint="One line in `__init__`: `self.embedding = embedding`. No parameter of its own.",
)
def _(t: Trial):
    t.model(a_table(t, 7, 4)).same(t.randn(2, 4))
    t.model(a_linear(t, 5, 3)).same(t.randn(4, 3))


@TiedHead.group(
    "the table's numbers, at the start and later",
    points=2,
    hint="Read `self.embedding.weight` in `forward`. A copy kept in `__init__` grows old.",
)
def _(t: Trial):
    x = t.randn(3, 5, 4)
    m = t.model(a_table(t, 7, 4), load=False)
    m.same(x)
    m.load({"embedding.weight": t.randn(7, 4)})
    m.same(x)


@TiedHead.group(
    "any leading axes", points=1, hint="`weight.T` is (D, V); `x @ ...` keeps the axes in front."
)
def _(t: Trial):
    m = t.model(a_table(t, 6, 3))
    m.same(t.randn(3))
    m.same(t.randn(2, 4, 5, 3))
    m = t.model(a_table(t, 4, 6, torch.float64))
    m.same(t.randn(2, 6, dtype=torch.float64), dtype=True)


@TiedHead.group("gradients reach the table and x", points=1, hint="No `detach`, no `.data`.")
def _(t: Trial):
    t.model(a_table(t, 7, 4)).same_gradients(t.randn(2, 5, 4))


@TiedHead.mistake(
    "You keep the weight instead of the module, as `self.weight`. If it is a copy, the tie is "
    "broken. Keep the embedding itself, as `self.embedding`."
)
class KeepsTheWeight(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.weight = nn.Parameter(embedding.weight.detach().clone())

    def forward(self, x):
        return x @ self.weight.T


@TiedHead.mistake(
    "You keep the module and a parameter `weight` beside it. As a copy it would go its own way; "
    "the head needs no parameter of its own."
)
class KeepsBoth(reference.TiedHead):
    def __init__(self, embedding):
        super().__init__(embedding)
        self.weight = nn.Parameter(embedding.weight.detach().clone())

    def forward(self, x):
        return x @ self.weight.T


@TiedHead.mistake(
    "You made an `nn.Linear` and gave it the weight. Here the head keeps the embedding itself, as "
    "`self.embedding`, and reads its weight."
)
class ALinearLayer(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        rows, width = embedding.weight.shape
        self.linear = without_seeding(lambda: nn.Linear(width, rows, bias=False))
        self.linear.weight = embedding.weight

    def forward(self, x):
        return self.linear(x)


@TiedHead.mistake("You made a new embedding of the same size. Keep the one that you were given.")
class ANewOne(reference.TiedHead):
    def __init__(self, embedding):
        nn.Module.__init__(self)
        self.embedding = without_seeding(lambda: nn.Embedding(*embedding.weight.shape))


@TiedHead.mistake(
    "You made a new embedding and copied the numbers. From the first step of training on, the two "
    "tables differ: keep the module that you were given."
)
class ANewOneWithItsNumbers(reference.TiedHead):
    def __init__(self, embedding):
        nn.Module.__init__(self)
        self.embedding = nn.Embedding.from_pretrained(
            embedding.weight.detach().clone(), freeze=False
        )


@TiedHead.mistake(
    "You copied the numbers in `__init__`, and use that copy. When training changes the table, "
    "your head does not see it."
)
class AnOldCopy(reference.TiedHead):
    def __init__(self, embedding):
        super().__init__(embedding)
        self.kept = embedding.weight.detach().clone()

    def forward(self, x):
        return x @ self.kept.T


@TiedHead.mistake(
    "You cut the table off from its gradients (`.data`, `detach`): the head would teach it nothing."
)
class TableDetached(reference.TiedHead):
    def forward(self, x):
        return x @ self.embedding.weight.detach().T


@TiedHead.mistake("You compare by cosine. Logits are plain dot products: lengths count.")
class ByCosine(reference.TiedHead):
    def forward(self, x):
        weight = self.embedding.weight
        return F.normalize(x, dim=-1) @ F.normalize(weight, dim=-1).T


@TiedHead.mistake("You scale by 1/√D. That belongs to attention; logits are plain dot products.")
class ScaledDown(reference.TiedHead):
    def forward(self, x):
        return super().forward(x) / math.sqrt(x.shape[-1])


@TiedHead.mistake("You scale by √D. The logits are plain dot products.")
class ScaledUp(reference.TiedHead):
    def forward(self, x):
        return super().forward(x) * math.sqrt(x.shape[-1])


@TiedHead.mistake("You return probabilities. Logits come before the softmax.")
class AfterTheSoftmax(reference.TiedHead):
    def forward(self, x):
        return super().forward(x).softmax(-1)


@TiedHead.mistake("You return log-probabilities. Logits come before the softmax.")
class AfterTheLogSoftmax(reference.TiedHead):
    def forward(self, x):
        return super().forward(x).log_softmax(-1)


@TiedHead.mistake("You return the ids of the largest logits, instead of all logits.")
class LargestOnly(reference.TiedHead):
    def forward(self, x):
        return super().forward(x).argmax(-1)


@TiedHead.mistake(
    "You call the module that you were given. That looks up (or maps, with a bias); the head takes "
    "the dot product with its weight."
)
class CallsIt(reference.TiedHead):
    def forward(self, x):
        return self.embedding(x)


@TiedHead.mistake("You did not transpose: x is (…, D), the table is (V, D), and D has to meet D.")
class NotTransposed(reference.TiedHead):
    def forward(self, x):
        return x @ self.embedding.weight


@TiedHead.mistake("Your head has a bias. It has no parameter of its own.")
class WithABias(reference.TiedHead):
    def __init__(self, embedding):
        super().__init__(embedding)
        self.bias = nn.Parameter(torch.zeros(embedding.weight.shape[0]))

    def forward(self, x):
        return super().forward(x) + self.bias


@TiedHead.alternative
class ByLinear(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.embedding = embedding

    def forward(self, x):
        return F.linear(x, self.embedding.weight)


@TiedHead.alternative
class ByEinsum(nn.Module):
    def __init__(self, embedding):
        super().__init__()
        self.add_module("embedding", embedding)

    @property
    def table(self):
        return self.embedding.weight

    def forward(self, x):
        return torch.einsum("...d,vd->...v", x, self.table)


@TiedHead.alternative
class BySumming(reference.TiedHead):
    def forward(self, x):
        return (x.unsqueeze(-2) * self.embedding.weight).sum(-1)


# ----------------------------------------------------------------------------- tied_model


def tied_model(vocab_size: int, d_model: int) -> nn.Sequential:
    """Build the smallest language model with one table: look a token up, score the next one.

    Args:
        vocab_size: number of tokens V.
        d_model: width D.

    Returns:
        An nn.Sequential of two parts: `embedding`, an nn.Embedding, and `head`, an nn.Linear from D
        to V without a bias. It has a single parameter, of shape (V, D): `head.weight` is the very
        one that `embedding.weight` is. Its numbers start normal with mean 0 and standard deviation
        0.02.
    """
    embedding = nn.Embedding(vocab_size, d_model)
    nn.init.normal_(embedding.weight, std=0.02)
    head = nn.Linear(d_model, vocab_size, bias=False)
    head.weight = embedding.weight
    return nn.Sequential(OrderedDict(embedding=embedding, head=head))


tied_model_exercise = chapter.exercise(tied_model, difficulty=3, minutes=8, mend="handed_out")


@tied_model_exercise.group(
    "one table: what is written to one end, the other reads",
    points=2,
    hint="Two parameters with equal numbers are still two. Assign the Parameter itself.",
)
def _(t: Trial):
    m = t.model(7, 4, load=False)
    m.load({"embedding.weight": t.randn(7, 4), "head.weight": t.randn(7, 4)})
    state = m.state()
    t.equal(
        state["embedding.weight"],
        state["head.weight"],
        "A new table was loaded into `embedding`, another one into `head`, and both are there: "
        "these are two tables",
    )
    m.same(t.randint(0, 7, (2, 5)))


@tied_model_exercise.group(
    "one gradient, from both ends",
    points=2,
    hint="The gradient of a shared parameter is the sum of its gradients as a table and as a head.",
)
def _(t: Trial):
    t.model(6, 3).same_gradients(t.randint(0, 6, (2, 5)))
    t.model(5, 4).same_gradients(torch.tensor([3, 3, 0]))


@tied_model_exercise.group(
    "the start",
    points=1,
    hint="Normal, with standard deviation 0.02, for the table that is used in the end.",
)
def _(t: Trial):
    state = t.model(300, 40, load=False).state()
    t.require("embedding.weight" in state, "`embedding.weight` is missing", found=list(state))
    if "embedding.weight" in state:
        looks_normal(t, state["embedding.weight"], 0.02)
    t.require(
        "head.bias" not in state,
        "`head.bias` is not expected: the head has no bias",
        found=list(state),
    )
    if {"embedding.weight", "head.weight"} <= set(state):
        t.equal(
            state["head.weight"],
            state["embedding.weight"],
            "At the start the two ends should hold the same numbers",
        )


def _parts(embedding, head):
    return nn.Sequential(OrderedDict(embedding=embedding, head=head))


def _two(vocab_size, d_model, bias=False, std=0.02):
    embedding = nn.Embedding(vocab_size, d_model)
    if std is not None:
        nn.init.normal_(embedding.weight, std=std)
    return embedding, nn.Linear(d_model, vocab_size, bias=bias)


@tied_model_exercise.mistake("This is the code that you were given; it still has both its bugs.")
def handed_out(vocab_size, d_model):
    embedding = nn.Embedding(vocab_size, d_model)
    nn.init.normal_(embedding.weight, 0.02)
    head = nn.Linear(d_model, vocab_size, bias=False)
    head.weight = nn.Parameter(embedding.weight.clone())  # tie the two
    return nn.Sequential(OrderedDict(embedding=embedding, head=head))


@tied_model_exercise.mistake(
    "The head's weight is still a copy: equal at the start, and a parameter of its own from then "
    "on. Assign the Parameter itself."
)
def still_a_copy(vocab_size, d_model):
    embedding, head = _two(vocab_size, d_model)
    head.weight = nn.Parameter(embedding.weight.clone())
    return _parts(embedding, head)


@tied_model_exercise.mistake("Your head has a bias: V parameters more than the one table.")
def with_a_bias(vocab_size, d_model):
    embedding, head = _two(vocab_size, d_model, bias=True)
    head.weight = embedding.weight
    return _parts(embedding, head)


@tied_model_exercise.mistake(
    "Your two parameters share their memory, and are still two (`.data = …`, or a new "
    "`nn.Parameter`): each has a gradient of its own, and an optimizer takes them for two. Assign "
    "the Parameter itself."
)
def same_memory(vocab_size, d_model):
    embedding, head = _two(vocab_size, d_model)
    head.weight.data = embedding.weight.data
    return _parts(embedding, head)


@tied_model_exercise.mistake(
    "You froze one end: the head's weight is no parameter that learns (`detach`, `requires_grad`)."
)
def frozen(vocab_size, d_model):
    embedding, head = _two(vocab_size, d_model)
    head.weight = nn.Parameter(embedding.weight.detach(), requires_grad=False)
    return _parts(embedding, head)


@tied_model_exercise.mistake(
    "You tied the two. The start is still the one that you were given: in `normal_(weight, 0.02)`, "
    "the 0.02 is the mean, and the standard deviation is 1."
)
def still_the_mean(vocab_size, d_model):
    embedding, head = _two(vocab_size, d_model, std=None)
    nn.init.normal_(embedding.weight, 0.02)
    head.weight = embedding.weight
    return _parts(embedding, head)


@tied_model_exercise.mistake("The two ends are not tied at all.")
def not_tied(vocab_size, d_model):
    return _parts(*_two(vocab_size, d_model))


@tied_model_exercise.mistake(
    "You tied the two and left the start to nn.Embedding: a standard deviation of 1, not 0.02."
)
def started_at_1(vocab_size, d_model):
    embedding, head = _two(vocab_size, d_model, std=None)
    head.weight = embedding.weight
    return _parts(embedding, head)


@tied_model_exercise.mistake(
    "You gave the embedding the head's weight after you had set the start: the table starts as "
    "nn.Linear does. Set the start of the table that is used in the end."
)
def started_as_linear(vocab_size, d_model):
    embedding, head = _two(vocab_size, d_model)
    embedding.weight = head.weight
    return _parts(embedding, head)


@tied_model_exercise.mistake(
    "You pass the *embedding's* result through a TiedHead or under other names. The two parts are "
    "`embedding` and `head`, and `head` is an nn.Linear."
)
def other_names(vocab_size, d_model):
    embedding, _ = _two(vocab_size, d_model)
    return _parts(embedding, reference.TiedHead(embedding))


@tied_model_exercise.mistake(
    "Your Sequential has no names: its parts are `0` and `1`. Keep the OrderedDict."
)
def without_names(vocab_size, d_model):
    embedding, head = _two(vocab_size, d_model)
    head.weight = embedding.weight
    return nn.Sequential(embedding, head)


@tied_model_exercise.alternative
def head_first(vocab_size, d_model):
    embedding = nn.Embedding(vocab_size, d_model)
    head = nn.Linear(d_model, vocab_size, False)
    embedding.weight = head.weight
    torch.nn.init.normal_(head.weight, 0.0, 0.02)
    return nn.Sequential(OrderedDict([("embedding", embedding), ("head", head)]))


@tied_model_exercise.alternative
def one_parameter_for_both(vocab_size, d_model):
    table = nn.Parameter(0.02 * torch.randn(vocab_size, d_model))
    model = nn.Sequential()
    model.add_module("embedding", nn.Embedding(vocab_size, d_model))
    model.add_module("head", nn.Linear(d_model, vocab_size, bias=False))
    model.embedding.weight = model.head.weight = table
    return model


# ----------------------------------------------------------------------- count_parameters

count_parameters = chapter.exercise(reference.count_parameters, difficulty=1, minutes=5)


@count_parameters.group(
    "all parts, however deep", points=1, hint="`module.parameters()` walks through all submodules."
)
def _(t: Trial):
    a, b, c = 2 + t.integer(0, 5), 8 + t.integer(0, 5), 14 + t.integer(0, 5)
    deep = lambda: nn.Sequential(  # noqa: E731
        nn.Embedding(a, b),
        nn.Sequential(nn.Linear(b, c), nn.Sequential(nn.LayerNorm(c))),
        nn.GELU(),
    )
    t.same(without_seeding(lambda: nn.Linear(a, b)))
    t.same(without_seeding(deep))
    t.same(nn.Identity())
    t.same(without_seeding(lambda: nn.TransformerEncoderLayer(6, 2, 5)))


@count_parameters.group(
    "what is shared counts once",
    points=2,
    hint="A state dict lists a shared parameter under each of its names. `parameters()` does not.",
)
def _(t: Trial):
    shared = without_seeding(lambda: nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)))
    shared[1].weight = shared[0].weight
    t.same(shared)
    layer = without_seeding(lambda: nn.Linear(5, 5))
    t.same(nn.Sequential(layer, nn.ReLU(), layer))
    one, other = without_seeding(lambda: (nn.Linear(3, 4), nn.Linear(3, 4)))
    other.weight = one.weight
    t.same(nn.Sequential(one, nn.Sequential(other)))
    twins = nn.Sequential(nn.LayerNorm(6), nn.LayerNorm(6))  # equal numbers, and still two
    t.same(twins)


@count_parameters.group(
    "frozen ones count, buffers do not",
    points=1,
    hint="`requires_grad` does not matter here, and a buffer is no parameter.",
)
def _(t: Trial):
    frozen = without_seeding(lambda: nn.Sequential(nn.Linear(4, 7), nn.Linear(7, 2)))
    frozen[0].weight.requires_grad_(False)
    t.same(frozen)
    t.same(nn.Sequential(nn.BatchNorm1d(5), nn.BatchNorm1d(3)))


@count_parameters.mistake(
    "You count the state dict: a shared parameter stands there under each name, and buffers "
    "as well."
)
def state_dict_entries(module):
    return sum(value.numel() for value in module.state_dict().values())


@count_parameters.mistake("You count a shared parameter once for each name that it has.")
def once_a_name(module):
    return sum(p.numel() for _, p in module.named_parameters(remove_duplicate=False))


@count_parameters.mistake("You leave out what is frozen. It is a parameter all the same.")
def trainable_only(module):
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


@count_parameters.mistake("You count the buffers too. A running mean is no parameter.")
def with_buffers(module):
    return reference.count_parameters(module) + sum(b.numel() for b in module.buffers())


@count_parameters.mistake("You count tensors. A tensor holds `numel()` numbers.")
def tensors(module):
    return len(list(module.parameters()))


@count_parameters.mistake("You count rows (`len`). A tensor holds `numel()` numbers.")
def rows(module):
    return sum(len(p) for p in module.parameters())


@count_parameters.mistake("You count the module's own parameters, and not those of its parts.")
def own_only(module):
    return sum(p.numel() for p in module.parameters(recurse=False))


@count_parameters.mistake(
    "You go through `modules()` and take `parameters()` of each, which goes through its parts "
    "again: what lies deep counts several times."
)
def again_and_again(module):
    return sum(p.numel() for part in module.modules() for p in part.parameters())


@count_parameters.mistake(
    "You go through `children()`, which is one level deep, and miss what lies deeper or is the "
    "module's own."
)
def children_only(module):
    found = {p for c in module.children() for p in c.parameters(recurse=False)}
    return sum(p.numel() for p in found)


@count_parameters.mistake("You leave out the biases: you count tensors of two axes alone.")
def matrices_only(module):
    return sum(p.numel() for p in module.parameters() if p.ndim > 1)


@count_parameters.mistake(
    "You take parameters with equal numbers for one. Shared means the same object, "
    "not equal values."
)
def equal_values_once(module):
    different = {str(p.tolist()): p.numel() for p in module.parameters()}
    return sum(different.values())


@count_parameters.mistake("You give bytes. Each number counts as 1.")
def in_bytes(module):
    return sum(p.numel() * p.element_size() for p in module.parameters())


@count_parameters.alternative
def by_identity(module):
    found = {}
    for _, p in module.named_parameters(remove_duplicate=False):
        found[id(p)] = math.prod(p.shape)
    return sum(found.values())


@count_parameters.alternative
def by_walking(module, seen=None):
    seen = set() if seen is None else seen
    total = 0
    for p in module._parameters.values():
        if p is not None and p not in seen:
            seen.add(p)
            total += p.numel()
    return total + sum(by_walking(child, seen) for child in module.children())


# ------------------------------------------------------------------------ gpt2_parameters

gpt2_parameters = chapter.exercise(reference.gpt2_parameters, difficulty=2, minutes=10)


def to_the_last_digit(t: Trial, *args, **kwargs) -> None:
    """Require the reference's number exactly, also where the learner's is a float."""
    found = t.same(*args, **kwargs)
    expected = reference.gpt2_parameters(*args, **kwargs)
    t.require(float(found) == expected, "The count should be right to the last digit", found=found)


@gpt2_parameters.group(
    "the four that were released",
    points=2,
    hint="A linear map from m to n has m·n + n parameters, a LayerNorm 2 D. List the parts of one "
    "layer, multiply by L, and add the two tables and the last LayerNorm.",
)
def _(t: Trial):
    to_the_last_digit(t, 12, 768)
    to_the_last_digit(t, 24, 1024)
    to_the_last_digit(t, 36, 1280)
    to_the_last_digit(t, n_layers=48, d_model=1600)


@gpt2_parameters.group(
    "other sizes", points=1, hint="No number of GPT-2 may stand in the formula: all are arguments."
)
def _(t: Trial):
    to_the_last_digit(
        t, t.integer(3, 9), 10 + t.integer(0, 7), 100 + t.integer(0, 50), 30 + t.integer(0, 20)
    )
    to_the_last_digit(t, 0, 12, vocab_size=70, context=9)
    to_the_last_digit(t, 1, 5, context=8, vocab_size=11)


@gpt2_parameters.group(
    "with a head of its own", points=1, hint="Untied, the head adds V · D; it has no bias."
)
def _(t: Trial):
    to_the_last_digit(t, 12, 768, tied=False)
    to_the_last_digit(t, 2, 7, 23, 5, False)
    to_the_last_digit(t, 2, 7, 23, 5, True)


def _gpt2(part="", n_layers=0, d=0, v=0, context=0, tied=True):
    """The count with one part of it wrong."""
    norm = d if part == "norm without shift" else 2 * d
    qkv = d * d + d if part == "one of three" else 3 * d * d + 3 * d
    mix = 0 if part == "no mix" else d * d + d
    up, down = 4 * d * d + 4 * d, 4 * d * d + d
    if part == "narrow":
        up, down = d * d + d, d * d + d
    if part == "no biases":
        qkv, mix, up, down = 3 * d * d, d * d, 4 * d * d, 4 * d * d
    if part == "one way":
        down = 0
    if part == "wide bias":
        down = 4 * d * d + 4 * d
    norms = {"one norm": norm, "no norms": 0}.get(part, 2 * norm)
    layer = qkv + mix + up + down + norms
    positions = 0 if part == "no positions" else context * d
    last = 0 if part in ("no norms", "no last norm") else norm
    head = 0 if tied else v * d
    if part == "head twice":
        head = v * d
    if part == "always tied":
        head = 0
    if part == "head bias":
        head = 0 if tied else v * d + v
    if part == "one layer":
        n_layers = min(n_layers, 1)
    return v * d + positions + n_layers * layer + last + head


def _wrong(part, sentence):
    def answer(n_layers, d_model, vocab_size=50_257, context=1024, tied=True):
        return _gpt2(part, n_layers, d_model, vocab_size, context, tied)

    answer.__name__ = part.replace(" ", "_")
    gpt2_parameters.mistake(sentence)(answer)


_wrong("no positions", "You left out the table of positions: context · D.")
_wrong("no biases", "You left out the biases. Every linear map but the head has one.")
_wrong("no last norm", "You left out the LayerNorm at the end: 2 D.")
_wrong("no norms", "You left out the LayerNorms: two in each layer and one at the end, 2 D each.")
_wrong("one norm", "You counted one LayerNorm in each layer. There are two.")
_wrong("norm without shift", "You gave a LayerNorm D parameters. It scales and shifts: 2 D.")
_wrong(
    "one of three", "You counted a map from D to D for queries, keys and values. It goes to 3 D."
)
_wrong("no mix", "You left out the map from D to D in each layer.")
_wrong("one way", "You counted the map from D to 4 D, and not the one back.")
_wrong("narrow", "Your feed-forward maps go from D to D. The first goes to 4 D, the second back.")
_wrong("wide bias", "The bias of the map from 4 D to D has D numbers, not 4 D: it is added to D.")
_wrong("head twice", "You counted the head although it is tied: it is the table of tokens again.")
_wrong("always tied", "You ignore `tied`: with a head of its own there are V · D more.")
_wrong("head bias", "You gave the head a bias. It has none.")
_wrong("one layer", "You counted one layer. There are n_layers of them.")


@gpt2_parameters.alternative
def in_one_formula(n_layers, d_model, vocab_size=50_257, context=1024, tied=True):
    d = d_model
    return (2 - tied) * vocab_size * d + context * d + n_layers * (12 * d**2 + 13 * d) + 2 * d


@gpt2_parameters.alternative
def by_building(n_layers, d_model, vocab_size=50_257, context=1024, tied=True):
    with torch.device("meta"):
        layer = nn.TransformerEncoderLayer(d_model, 1, 4 * d_model)
        parts = [nn.Embedding(vocab_size, d_model), nn.Embedding(context, d_model)]
        parts.append(nn.LayerNorm(d_model))
        if not tied:
            parts.append(nn.Linear(d_model, vocab_size, bias=False))
    total = sum(p.numel() for part in parts for p in part.parameters())
    return total + n_layers * sum(p.numel() for p in layer.parameters())
