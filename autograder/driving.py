"""Drivers: they use a learner's symbol where plain calls do not reach.

An optimizer lives on the parameters that it was given, and a training loop on a model. Such things
cannot pass the door of `autograder.subjects`. So a driver goes in: it runs in the learner's
process, makes what the symbol needs out of plain data, uses it, and gives plain data back. A check
names one: `t.drive("optimizer_run", ...)`. The first argument of each is the learner's symbol.
"""

from __future__ import annotations

import copy
import io
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Noted(torch.optim.SGD):
    """Plain gradient descent that notes what it was told and in which order."""

    def __init__(self, params, lr: float, log: list[str]):
        super().__init__(params, lr=lr)
        self.log, self.rates, self.norms = log, [], []

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.log.append("zero_grad")
        super().zero_grad(set_to_none)

    def step(self, closure: Any = None) -> None:
        self.log.append("step")
        self.rates.append([float(group["lr"]) for group in self.param_groups])
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        self.norms.append(float(torch.stack([g.norm() for g in grads]).norm()) if grads else 0.0)
        super().step(closure)


class _Bigram(nn.Module):
    """A table of logits for each token to follow each token, and a scale; it may drop some."""

    def __init__(self, table: Tensor, log: list[str], dropout: float = 0.0):
        super().__init__()
        self.table = nn.Parameter(table.clone())
        self.scale = nn.Parameter(torch.ones((), dtype=table.dtype))
        self.unused = nn.Parameter(torch.ones(2, dtype=table.dtype))  # never gets a gradient
        self.log, self.dropout = log, dropout

    def forward(self, inputs: Tensor) -> Tensor:
        self.log.append("forward in training" if self.training else "forward in evaluation")
        return F.dropout(self.table[inputs], self.dropout, self.training) * self.scale


def optimizer_run(
    make: Callable,
    parameters: Sequence[Tensor],
    gradients: Sequence[Sequence[Tensor | None]],
    options: Mapping[str, Any],
    groups: Sequence[Mapping[str, Any]] = (),
    rates: Sequence[float] = (),
    resume: int | None = None,
) -> dict[str, Any]:
    """Construct an optimizer, take steps with given gradients, and say what became of it all.

    Args:
        make: the optimizer's class.
        parameters: their values at the start.
        gradients: for each step, those of each parameter.
        options: of the optimizer.
        groups: for each parameter, the options of a group of its own. Empty: no groups.
        rates: learning rate to be set before each step. Empty: left alone.
        resume: after this many steps, go on in a new optimizer that loads the state of the old.

    Returns:
        "parameters": their values after each step; "gradients": as the last step left them;
        "leaves": whether all parameters are still leaves that ask for a gradient.
    """
    leaves = [p.clone().requires_grad_() for p in parameters]

    def construct() -> Any:
        if groups:
            parts = [{"params": [p], **g} for p, g in zip(leaves, groups)]
            return make(parts, **options)
        return make(iter(leaves), **options)

    optimizer, history = construct(), []
    for i, step in enumerate(gradients):
        if i == resume:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = construct()
            optimizer.load_state_dict(saved)
        for p, g in zip(leaves, step):
            p.grad = None if g is None else g.clone()
        if rates:
            for group in optimizer.param_groups:
                group["lr"] = rates[i]
        optimizer.step()
        history.append([p.detach().clone() for p in leaves])
    return {
        "parameters": history,
        "gradients": [None if p.grad is None else p.grad.clone() for p in leaves],
        "leaves": all(p.is_leaf and p.requires_grad for p in leaves),
    }


def clipped(
    clip: Callable, gradients: Sequence[Tensor | None], max_norm: float, once: bool = True
) -> dict[str, Any]:
    """Have gradients clipped.

    Args:
        clip: called with parameters and max_norm.
        gradients: of the parameters.
        max_norm: as for torch.nn.utils.clip_grad_norm_.
        once: hand the parameters over as an iterator, as `model.parameters()` does.

    Returns:
        "norm": what it returned; "gradients": afterwards; "kept": whether they are the same
        tensors as before; "values": the parameters.
    """
    parameters = []
    for g in gradients:
        p = torch.ones(3) if g is None else torch.ones_like(g)
        p.requires_grad_()
        p.grad = None if g is None else g.clone()
        parameters.append(p)
    before = [p.grad for p in parameters]
    norm = clip(iter(parameters) if once else parameters, max_norm)
    return {
        "norm": norm,
        "gradients": [None if p.grad is None else p.grad.clone() for p in parameters],
        "kept": all(p.grad is g for p, g in zip(parameters, before)),
        "values": [p.detach().clone() for p in parameters],
    }


def batches(
    get_batch: Callable,
    tokens: Tensor,
    batch: int,
    length: int,
    seeds: Sequence[int],
    starts: Tensor | None = None,
) -> dict[str, Any]:
    """Draw a batch with a new generator of each seed, and one more with the last generator.

    Returns:
        "batches": them, as the function returned them; "unmoved": whether torch's own random
        numbers, and the text, were left alone.
    """
    before, text = torch.get_rng_state(), tokens.clone()
    drawn, generator = [], None
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn.append(get_batch(tokens, batch, length, generator, *_given(starts)))
    drawn.append(get_batch(tokens, batch, length, generator, *_given(starts)))
    unmoved = torch.equal(before, torch.get_rng_state()) and torch.equal(text, tokens)
    return {"batches": drawn, "unmoved": unmoved}


def _given(starts: Tensor | None) -> tuple:
    return () if starts is None else (starts,)


def training_run(
    train: Callable,
    table: Tensor,
    data: Sequence[tuple[Tensor, Tensor]],
    rates: Sequence[float],
    steps: Sequence[int],
    max_norm: float | None = None,
    leftover: bool = False,
    evaluation: bool = False,
) -> dict[str, Any]:
    """Train a small model, and note all that happens.

    Args:
        train: called with model, batch, optimizer, schedule, steps and perhaps max_norm.
        table: logits that the model starts with, (V, V).
        data: the batches, in order.
        rates: of the schedule, by number of step.
        steps: their numbers.
        max_norm: None leaves it to its default.
        leftover: whether gradients of something else lie about at the start.
        evaluation: whether the model is handed over in evaluation mode.

    Returns:
        "history": what it returned; "table" and "scale": the parameters afterwards; "order": what
        happened when; "rates": of each group at each step; "norms": of the gradient, at each step
        of the optimizer; "batches": how many were drawn; "asked": the steps that the schedule was
        asked for.
    """
    log: list[str] = []
    asked: list[int] = []
    drawn: list[int] = []
    model = _Bigram(table, log)
    groups = [{"params": [model.table]}, {"params": [model.scale, model.unused], "lr": 7.0}]
    optimizer = _Noted(groups, lr=5.0, log=log)
    if leftover:
        model.table.grad = torch.ones_like(table)
        model.scale.grad = torch.ones((), dtype=table.dtype)
    if evaluation:
        model.eval()

    def batch() -> tuple[Tensor, Tensor]:
        drawn.append(len(drawn))
        inputs, targets = data[(len(drawn) - 1) % len(data)]
        return inputs.clone(), targets.clone()

    def schedule(step: int) -> float:
        asked.append(int(step))
        return rates[step]

    more = {} if max_norm is None else {"max_norm": max_norm}
    history = train(model, batch, optimizer, schedule, steps, **more)
    return {
        "history": history,
        "table": model.table.detach().clone(),
        "scale": model.scale.detach().clone(),
        "order": [entry for entry in log if entry != "zero_grad"],
        "rates": optimizer.rates,
        "norms": optimizer.norms,
        "batches": len(drawn),
        "asked": asked,
    }


def interrupted_run(
    snapshot: Callable,
    table: Tensor,
    before: int,
    after: int,
    seed: int,
    adam: bool = True,
    dropout: float = 0.5,
    file: bool = False,
) -> dict[str, Any]:
    """Train, take a snapshot, train on; then go back to the snapshot and train on once more.

    Args:
        snapshot: called with model, optimizer, generator and step.
        table: logits that the model starts with, (V, V).
        before: steps up to the snapshot.
        after: steps from there.
        seed: of the batches and the dropout.
        adam: whether the optimizer remembers anything.
        dropout: of the model.
        file: whether the snapshot goes through a file in between.

    Returns:
        "first" and "second": the losses of the steps after the snapshot, in either run; "ends":
        the parameters after each; "step": of the snapshot; "undisturbed": whether
        taking it changed nothing; "plain": whether it survived the file.
    """
    vocab = len(table)

    def parts(seed: int) -> tuple:
        model = _Bigram(table, [], dropout)
        make = torch.optim.AdamW if adam else torch.optim.SGD
        optimizer = make(model.parameters(), lr=0.1)
        return model, optimizer, torch.Generator().manual_seed(seed)

    def go_on(model: nn.Module, optimizer: Any, generator: torch.Generator, n: int) -> list[float]:
        losses = []
        for _ in range(n):
            tokens = torch.randint(vocab, (2, 6), generator=generator)
            logits = model(tokens[:, :-1])
            loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    torch.manual_seed(seed)
    model, optimizer, generator = parts(seed)
    go_on(model, optimizer, generator, before)
    states = model.table.detach().clone(), generator.get_state(), torch.get_rng_state()
    saved = snapshot(model, optimizer, generator, before)
    if not isinstance(saved, dict):
        raise TypeError(f"a snapshot is a dict, and this is of type {type(saved).__name__}")
    now = model.table.detach(), generator.get_state(), torch.get_rng_state()
    undisturbed = all(torch.equal(a, b) for a, b in zip(states, now))
    first = go_on(model, optimizer, generator, after)
    ends = [model.table.detach().clone()]

    plain = None
    if file:
        try:
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            buffer.seek(0)
            saved, plain = torch.load(buffer, weights_only=True), True
        except Exception:  # what it holds is the learner's affair
            plain = False
    model, optimizer, generator = parts(seed + 1)
    torch.manual_seed(seed + 2)
    model.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    generator.set_state(saved["generator"])
    torch.set_rng_state(saved["random"])
    second = go_on(model, optimizer, generator, after)
    ends.append(model.table.detach().clone())
    return {
        "first": first,
        "second": second,
        "ends": ends,
        "step": saved["step"],
        "undisturbed": undisturbed,
        "plain": plain,
    }


# ------------------------------------------------------------------- models that write text


def gpt_parts(
    make: Callable,
    config: Any,
    state: Mapping[str, Tensor],
    ids: Tensor,
    depths: Sequence[int | None],
) -> dict[str, Any]:
    """Use the parts of a GPT one by one.

    Args:
        make: the model's class.
        config: its sizes.
        state: its weights.
        ids: what it reads.
        depths: where its stream is to be read.

    Returns:
        "streams": at these depths; "read": what `read` makes of the last of them, for all tokens
        and for one alone; "logits": of `forward`; "follows": whether the head follows the table of
        embeddings when that is changed.
    """
    model = make(config)
    model.load_state_dict(dict(state))
    with torch.no_grad():
        streams = [model.stream(ids, depth) for depth in depths]
        found = {
            "streams": streams,
            "read": [model.read(streams[-1]), model.read(streams[-1][:, -1])],
            "logits": model(ids),
        }
        model.embedding.weight.add_(1.0)
        found["follows"] = not torch.allclose(model.read(streams[-1]), found["read"][0])
    return found


def initial_weights(make: Callable, config: Any, dtype: torch.dtype) -> dict[str, str]:
    """Construct a model, and say of each parameter how it was drawn.

    Args:
        make: the model's class.
        config: its sizes, large enough to tell standard deviations apart.
        dtype: to ask for.

    Returns:
        By name: "zeros", "ones", or "normal, 0.02 * 2^k" with k in steps of a half, or what else
        it may be; and the dtype.
    """
    kinds = {}
    for name, p in make(config, dtype=dtype).named_parameters():
        end = f", {str(p.dtype).removeprefix('torch.')}"
        p = p.detach().double()
        if (p == p.flatten()[0]).all():
            value = p.flatten()[0].item()
            kinds[name] = {0.0: "zeros", 1.0: "ones"}.get(value, f"all {value:.2g}") + end
            continue
        std, halves = p.std().item(), 0.0
        if std > 0:
            halves = round(2 * torch.tensor(std / 0.02).log2().item()) / 2
        # Of a normal distribution 4.6 % lie beyond two standard deviations, of an even one none.
        far = (p.abs() > 2 * std).double().mean().item()
        shape = "normal" if p.numel() < 1000 or far > 0.015 else "not normal"
        kinds[name] = f"{shape}, 0.02 * 2^{halves:g}{end}"
    return kinds


class _Reader(nn.Module):
    """Stands for a GPT: its logits depend on every token in its window, and on where it stands."""

    def __init__(self, table: Tensor, n_positions: int):
        super().__init__()
        self.table = nn.Parameter(table.clone())  # (V, V)
        self.config = types.SimpleNamespace(n_positions=n_positions, vocab_size=len(table))
        self.lengths: list[int] = []
        self.positions_read: list[int] = []

    def stream(self, ids: Tensor, depth: int | None = None) -> Tensor:
        n_tokens, window = ids.shape[1], self.config.n_positions
        if not 1 <= n_tokens <= window:
            raise ValueError(f"{n_tokens} tokens, expected 1 to n_positions={window}")
        self.lengths.append(n_tokens)
        places = torch.arange(1, n_tokens + 1, dtype=self.table.dtype)[:, None]
        return (self.table[ids] * places.sqrt()).cumsum(1)  # (B, T, V)

    def read(self, x: Tensor) -> Tensor:
        self.positions_read.append(x.shape[:-1].numel() // (x.shape[0] or 1))
        return (3 * x).sin()

    def forward(self, ids: Tensor) -> Tensor:
        return self.read(self.stream(ids))


def reading(next_logits: Callable, table: Tensor, window: int, ids: Tensor) -> dict[str, Any]:
    """Ask what follows a text.

    Args:
        next_logits: called with a model and ids.
        table: of the model, (V, V).
        window: its context window.
        ids: the text.

    Returns:
        "logits"; "lengths", of what the model was given to read; "positions": at how many its head
        was asked, in each sequence; "graph": whether the logits carry one.
    """
    model = _Reader(table, window)
    logits = next_logits(model, ids)
    return {
        "logits": logits,
        "lengths": model.lengths,
        "positions": model.positions_read,
        "graph": isinstance(logits, Tensor) and logits.requires_grad,
    }


def _ranked(logits: Tensor, rank: int) -> Tensor:
    return logits.argsort(dim=-1, descending=True, stable=True)[:, rank]


def writing(
    generate: Callable,
    table: Tensor,
    window: int,
    ids: Tensor,
    n: int,
    rank: int | None = None,
) -> dict[str, Any]:
    """Have tokens written.

    Args:
        generate: called with a model, ids, n and perhaps choose.
        table: of the model, (V, V).
        window: its context window.
        ids: the prompt.
        n: how many tokens.
        rank: which token to choose, 0 for the most likely; None leaves the choice to `generate`.

    Returns:
        "ids": as it returned them; "lengths": of what the model was given to read; "asked": the
        shapes of the logits that were to be chosen from; "prompt": afterwards.
    """
    model, asked = _Reader(table, window), []

    def choose(logits: Tensor) -> Tensor:
        asked.append(list(logits.shape))
        return _ranked(logits, rank or 0)

    more = () if rank is None else (choose,)
    written = generate(model, ids, n, *more)
    return {"ids": written, "lengths": model.lengths, "asked": asked, "prompt": ids}


def loaded(
    load: Callable, state: Mapping[str, Tensor], config: Mapping[str, Any], ids: Tensor
) -> dict[str, Any]:
    """Load somebody's weights, and let the model read.

    Args:
        load: called with the weights and the config.
        state: the weights.
        config: theirs.
        ids: what the model reads.

    Returns:
        "logits", and their "dtype"; "state": the weights afterwards.
    """
    model = load(state, config)
    with torch.no_grad():
        logits = model(ids)
    return {"logits": logits, "dtype": str(logits.dtype), "state": dict(state)}


def refusal(
    load: Callable, state: Mapping[str, Tensor], config: Mapping[str, Any], naming: str
) -> dict[str, Any]:
    """Hand over weights that do not fit.

    Args:
        load: called with the weights and the config.
        state: the weights.
        config: theirs.
        naming: what the error's message has to name.

    Returns:
        "refused": the name of the error's class, "" if there was none; "named": whether its message
        holds `naming`.
    """
    try:
        load(state, config)
    except NotImplementedError:
        raise  # a stub
    except Exception as error:
        kind = "ValueError" if isinstance(error, ValueError) else type(error).__name__
        return {"refused": kind, "named": naming in str(error)}
    return {"refused": "", "named": False}


def draws(sample: Callable, logits: Tensor, seeds: Sequence[int]) -> dict[str, Any]:
    """Draw tokens with a new generator of each seed, and once more with the last generator.

    Returns:
        "drawn": the ids, as the function returned them; "unmoved": whether torch's own random
        numbers, and the logits, were left alone.
    """
    before, given = torch.get_rng_state(), logits.clone()
    drawn, generator = [], None
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        drawn.append(sample(logits, generator))
    drawn.append(sample(logits, generator))
    unmoved = torch.equal(before, torch.get_rng_state()) and torch.equal(given, logits)
    return {"drawn": drawn, "unmoved": unmoved}


def beams(
    search: Callable,
    table: Tensor,
    start: Tensor,
    width: int,
    n: int,
    end: int,
    alpha: float | None = None,
    never: int | None = None,
) -> list:
    """Search in a tree whose next distribution depends on the whole text.

    Args:
        search: called with a model, start, width, n, end and perhaps alpha.
        table: (T, V, V): what the token at each place adds to the logits of the next one.
        start, width, n, end: as for the function.
        alpha: None leaves it to its default.
        never: a token that never comes.

    Returns:
        What the function returned.
    """

    def next_log_probs(ids: Tensor) -> Tensor:
        logits = sum(table[t, ids[:, t]] for t in range(ids.shape[1]))  # (n, V)
        if never is not None:
            logits = logits.clone()
            logits[:, never] = -float("inf")
        return logits.log_softmax(dim=-1)

    more = () if alpha is None else (alpha,)
    return search(next_log_probs, start.clone(), width, n, end, *more)


def streamed(stream: Callable, tokens: Sequence[bytes], stops: Sequence[str]) -> dict[str, Any]:
    """Stream text, and note what came when.

    Returns:
        "pieces": each piece, with the number of tokens that had been taken by then; "taken": how
        many were in the end.
    """
    taken = 0

    def source():
        nonlocal taken
        for token in tokens:
            taken += 1
            yield token

    pieces = []
    for piece in stream(source(), list(stops)):
        pieces.append([piece, taken])
        if len(pieces) > 3 * len(tokens) + 9:
            raise RuntimeError("pieces of text without end")
    return {"pieces": pieces, "taken": taken}


def constraint_answers(
    make: Callable,
    tokens: Sequence[bytes | None],
    rules: Mapping[str, Mapping[int, tuple]] | None,
    reads: Sequence[tuple[tuple, bytes]] = (),
    masks: Sequence[tuple[bytes, int]] = (),
    advances: Sequence[tuple[bytes, int]] = (),
) -> dict[str, Any]:
    """Construct a constraint and ask it.

    Args:
        make: its class.
        tokens: the bytes of each id; None stands where the end token is.
        rules: of the grammar; None leaves them to the default.
        reads: states and texts to be read from there. A state may be given as bytes: what is read
            from the start on.
        masks: texts read so far, and budgets.
        advances: texts read so far, and tokens.

    Returns:
        "reads": what was read to; "needs": of each of these that is a state; "masks";
        "advances"; "kept": for how many states costs are kept; "start": whether the start is as
        it was; "refused": what it says to ranks that lack the byte 255.
    """
    ranks = {text: i for i, text in enumerate(tokens) if text is not None}
    more = {} if rules is None else {"rules": rules}
    constraint = make(ranks, tokens.index(None), **more)
    start = constraint.start
    found, needs, answers, after_tokens = [], [], [], []
    for state, text in reads:
        if isinstance(state, bytes):
            state = constraint.read(start, state)
        after = constraint.read(state, text)
        found.append(after)
        needs.append(None if after is None else constraint.needs(after))
    for text, budget in masks:
        answers.append(constraint.mask(constraint.read(start, text), budget))
    for text, token in advances:
        after_tokens.append(constraint.advance(constraint.read(start, text), token))
    try:
        make({text: i for text, i in ranks.items() if text != b"\xff"}, tokens.index(None), **more)
        refused = ""
    except ValueError as error:
        refused = str(error)
    return {
        "reads": found,
        "needs": needs,
        "masks": answers,
        "advances": after_tokens,
        "refused": refused,
        "kept": len(constraint.costs),
        "start": constraint.start == ("value",),
    }


def translator_parts(
    make: Callable,
    sizes: Sequence[int],
    options: Mapping[str, Any],
    state: Mapping[str, Tensor],
    source: Tensor,
    target: Tensor,
) -> dict[str, Any]:
    """Construct an encoder-decoder and use its parts one by one.

    Args:
        make: the model's class.
        sizes: of its constructor, by place.
        options: of its constructor, by name.
        state: its weights.
        source: ids to read.
        target: ids written so far.

    Returns:
        "memory", of `encode`; "logits" and "weights", of `decode`, which is given a memory that
        `encode` did not make, and a source that is padding in its first column.
    """
    model = make(*sizes, **options)
    model.load_state_dict(state)
    model.eval()
    memory = model.encode(source)
    hidden = source.clone()
    hidden[:, 0] = options.get("padding_idx", 0)
    logits, weights = model.decode(target, 2 * memory.flip(-1), hidden)
    return {"memory": memory, "logits": logits, "weights": weights}


class _Script(nn.Module):
    """A translator that knows by heart what to write, and loses the thread if it is misled."""

    def __init__(self, script: Tensor, start: int, padding_idx: int, log: list[str]):
        super().__init__()
        self.script, self.start, self.padding_idx, self.log = script, start, padding_idx, log
        self.strength = nn.Parameter(torch.tensor(5.0))
        self.vocab = int(script.max()) + 2  # the last id is what it says when it is lost

    def encode(self, source: Tensor) -> Tensor:
        self.log.append("encode")
        return self.strength * source[..., None].float()  # (B, S, 1)

    def decode(self, target: Tensor, memory: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        mode = "training" if self.training else "evaluation"
        self.log.append(f"decode in {mode}, {'with' if torch.is_grad_enabled() else 'no'} graph")
        batch, t = target.shape
        known = memory.shape == (*source.shape, 1) and torch.equal(
            memory.detach()[..., 0], self.strength.detach() * source
        )
        said = torch.full((batch, t), self.vocab - 1)
        for b in range(batch):
            right = [self.start, *self.script[source[b, 0]].tolist()]
            for i in range(min(t, len(right) - 1)):
                if known and not self.training and target[b, : i + 1].tolist() == right[: i + 1]:
                    said[b, i] = right[i + 1]
        logits = self.strength * F.one_hot(said, self.vocab)
        return logits, torch.zeros(1, batch, 1, t, source.shape[1])


def greedy_run(
    decode: Callable,
    script: Tensor,
    source: Tensor,
    start: int,
    end: int,
    max_length: int,
    padding_idx: int = 0,
    training: bool = True,
) -> dict[str, Any]:
    """Have a translator translate that knows its translations by heart.

    Args:
        decode: called with model, source, start, end and max_length.
        script: what to write for a sentence whose first id is i, in row i.
        source: the sentences.
        start: id of the start token.
        end: id of the end token.
        max_length: as for `decode`.
        padding_idx: of the model.
        training: whether the model comes in training mode.

    Returns:
        "written": what it returned; "read": how often the source was read; "steps": how the model
        was asked, each way once; "training": the mode in which the model was left.
    """
    log: list[str] = []
    model = _Script(script, start, padding_idx, log).train(training)
    written = decode(model, source, start, end, max_length)
    return {
        "written": written,
        "read": log.count("encode"),
        "steps": sorted(set(log) - {"encode"}),
        "training": model.training,
    }
