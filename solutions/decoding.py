"""Decoding: how logits become text, one token after the other (chapter 15).

What changes logits takes logits and returns logits, so that they can be put one into the other:
`sample(top_p(temperature(logits, 0.8), 0.9), generator)`. A token that is ruled out has the logit
-inf, the probability 0.
"""

import codecs
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from solutions.json_grammar import JSON, Rules, State, shortest


def greedy(logits: Float[Tensor, "*batch V"]) -> Int[Tensor, "*batch"]:
    """Choose the most likely token."""
    return logits.argmax(dim=-1)


def sample(logits: Float[Tensor, "*batch V"], generator: torch.Generator) -> Int[Tensor, "*batch"]:
    """Draw one token from each row, each with the probability that the softmax gives it.

    Rows are drawn independently of each other. A token with the logit -inf is never drawn. All
    randomness comes from the generator.

    Args:
        logits: of V tokens each, after any number of leading axes; at least one in a row is
            finite. Left unchanged.
        generator: where the randomness comes from.

    Returns:
        An id from 0 to V - 1 for each row.

    Source: Devroye 1986, chapter III (inversion).
    """
    ends = logits.double().softmax(dim=-1).cumsum(dim=-1)  # (*batch, V): where stretches end
    darts = torch.rand(ends[..., :1].shape, generator=generator, dtype=ends.dtype)
    darts = (1 - darts) * ends[..., -1:]  # above 0, and no further than the last end
    return (ends < darts).sum(dim=-1)


def temperature(logits: Float[Tensor, "*batch V"], t: float) -> Float[Tensor, "*batch V"]:
    """Sharpen (t < 1) or flatten (t > 1) the distribution: p becomes p^(1/t), normalised.

    Args:
        logits: left unchanged.
        t: the temperature, above 0.

    Raises:
        ValueError: t is not above 0; the message gives it.

    Source: Ackley, Hinton and Sejnowski 1985.
    """
    if t <= 0:
        raise ValueError(f"t={t}, expected above 0; for the limit t = 0 take `greedy`")
    return logits / t


def top_k(logits: Float[Tensor, "*batch V"], k: int) -> Float[Tensor, "*batch V"]:
    """Keep the k most likely tokens of each row, and those that are as likely as the k-th.

    Args:
        logits: left unchanged.
        k: how many to keep, at least 1. More than V keeps all.

    Returns:
        The logits of those that are kept; -inf for all others.

    Raises:
        ValueError: k is below 1; the message gives it.

    Source: Fan, Lewis and Dauphin 2018.
    """
    if k < 1:
        raise ValueError(f"k={k}, expected at least 1")
    largest = logits.topk(min(k, logits.shape[-1])).values  # (*batch, k), falling
    return logits.masked_fill(logits < largest[..., -1:], -math.inf)


def top_p(logits: Float[Tensor, "*batch V"], p: float) -> Float[Tensor, "*batch V"]:
    """Keep the smallest set of tokens that together have at least the probability p.

    That is: of each row, drop the least likely tokens as long as all that are dropped have no more
    than 1 - p together; never the most likely one. So the token with which the sum, counted from
    the most likely, crosses p is kept. (Which of several equally likely tokens are dropped is left
    open.)

    Args:
        logits: left unchanged.
        p: above 0, at most 1; 1 keeps all.

    Returns:
        The logits of those that are kept; -inf for all others.

    Raises:
        ValueError: p is not above 0 and at most 1; the message gives it.

    Source: Holtzman et al. 2020, section 3.1.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p={p}, expected above 0 and at most 1")
    rising, order = logits.sort()  # (*batch, V), the least likely first
    below = rising.softmax(dim=-1).cumsum(dim=-1)  # of each token and all less likely ones
    dropped = below <= 1 - p
    dropped[..., -1] = False
    return logits.masked_fill(dropped.scatter(-1, order, dropped), -math.inf)


def min_p(logits: Float[Tensor, "*batch V"], p: float) -> Float[Tensor, "*batch V"]:
    """Keep the tokens that have at least p times the probability of the most likely one.

    Args:
        logits: left unchanged.
        p: above 0, at most 1; 1 keeps the most likely token, and those that are as likely.

    Returns:
        The logits of those that are kept; -inf for all others.

    Raises:
        ValueError: p is not above 0 and at most 1; the message gives it.

    Source: Nguyen et al. 2025.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p={p}, expected above 0 and at most 1")
    least = logits.amax(dim=-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < least, -math.inf)


def repetition_penalty(
    logits: Float[Tensor, "B V"], ids: Int[Tensor, "B T"], penalty: float
) -> Float[Tensor, "B V"]:
    """Make tokens that have been written less likely: CTRL's way.

    The logit of each token that stands in its row of ids is divided by the penalty if it is above
    0, and multiplied by it if not: both lower it. How often the token stands there does not matter.

    Args:
        logits: left unchanged.
        ids: what each row has read and written so far; T may be 0.
        penalty: above 1 to make repetition less likely; 1 changes nothing.

    Source: Keskar et al. 2019, section 4.1; the care for the sign is that of Hugging Face.
    """
    seen = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, True)  # (B, V)
    lowered = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(seen, lowered, logits)


def frequency_penalty(
    logits: Float[Tensor, "B V"], ids: Int[Tensor, "B T"], amount: float
) -> Float[Tensor, "B V"]:
    """Take off the logit of each token an amount for each time that it has been written.

    Args:
        logits: left unchanged.
        ids: what each row has read and written so far; T may be 0.
        amount: above 0 to make repetition less likely; 0 changes nothing.
    """
    counts = torch.zeros_like(logits).scatter_add(-1, ids, torch.ones_like(ids).to(logits))
    return logits - amount * counts


def logit_bias(
    logits: Float[Tensor, "*batch V"], bias: Mapping[int, float]
) -> Float[Tensor, "*batch V"]:
    """Add a number to the logits of some tokens: b multiplies the odds of a token by exp(b).

    Args:
        logits: left unchanged.
        bias: what to add, by the id of the token; -inf rules a token out. May be empty.
    """
    added = logits.new_zeros(logits.shape[-1])  # (V)
    for token, amount in bias.items():
        added[token] = amount
    return logits + added


def beam_search(
    next_log_probs: Callable[[Int[Tensor, "n t"]], Float[Tensor, "n V"]],
    start: Int[Tensor, "T"],
    width: int,
    n: int,
    end: int,
    alpha: float = 0.0,
) -> list[tuple[float, list[int]]]:
    """Search for the most likely continuation, keeping the best few at each step.

    A continuation that ends with the end token is finished: it stays as it is. Each step extends
    every other one that is kept by every token of a probability above 0, and of all these and the
    finished ones keeps the `width` with the highest scores. The score of a continuation is its
    log-probability divided by the number of its tokens to the power of alpha. The search is over
    after n steps, or when all that are kept are finished.

    Args:
        next_log_probs: for n sequences of t ids, log-probabilities of the V tokens that may follow.
        start: what is continued, T ids, at least one.
        width: how many continuations to keep, at least 1; 1 is greedy decoding.
        n: length of the longest continuation, at least 1.
        end: id of the end token.
        alpha: 0 compares log-probabilities, 1 their mean over tokens. Scores are below 0: the
            larger alpha, the better off are long continuations.

    Returns:
        Score and ids of each continuation that was kept (without start; with the end token, if it
        is finished), the best first.

    Source: Sutskever et al. 2014, section 3.2; alpha as in Wu et al. 2016, section 7, but of
    the plain length.
    """

    def score(beam: tuple[float, list[int]]) -> float:
        return beam[0] / len(beam[1]) ** alpha

    beams: list[tuple[float, list[int]]] = [(0.0, [])]
    for _ in range(n):
        candidates = [beam for beam in beams if end in beam[1]]
        live = [beam for beam in beams if end not in beam[1]]
        if not live:
            break
        texts = torch.stack([torch.cat([start, start.new_tensor(ids)]) for _, ids in live])
        log_p = next_log_probs(texts)  # (live, V)
        best = log_p.topk(min(width, log_p.shape[-1]))  # no more of any can be kept
        for (total, ids), values, tokens in zip(live, best.values.tolist(), best.indices.tolist()):
            for value, token in zip(values, tokens):
                if value > -math.inf:
                    candidates.append((total + value, [*ids, token]))
        beams = sorted(candidates, key=score, reverse=True)[:width]
    return [(score(beam), beam[1]) for beam in beams]


def write(
    next_logits: Callable[[Int[Tensor, "1 t"]], Float[Tensor, "1 V"]],
    ids: Int[Tensor, "T"],
    n: int,
    choose: Callable[[Float[Tensor, "1 V"], Int[Tensor, "1 t"]], Int[Tensor, "1"]],
    end: int | None = None,
) -> Iterator[int]:
    """Write one token after the other, and hand over each as soon as it is there.

    Args:
        next_logits: for a sequence, the logits of the token that follows.
        ids: what is read first.
        n: how many tokens to write at most.
        choose: given the logits and all ids so far, the next id.
        end: the token after which to stop; it is not handed over. None for none.
    """
    for _ in range(n):
        logits = next_logits(ids[None])  # (1, V)
        token = choose(logits, ids[None])  # (1)
        if token.item() == end:
            return
        yield token.item()
        ids = torch.cat([ids, token])


def stream_text(tokens: Iterable[bytes], stops: Sequence[str] = ()) -> Iterator[str]:
    """Turn tokens into text as they come, up to a stop sequence.

    What is handed over is never taken back. So a character waits until all its bytes are there; and
    text waits as long as it may be the beginning of a stop sequence, be it one token or several.
    All else is handed over at once: after each token at most one piece of text, never an empty one.

    The text ends before the stop sequence that is complete first (of two that end at the same
    character, the longer one), and then no further token is taken. If there is none, it ends when
    the tokens do, and what waits is handed over then. However the text is cut into tokens, the
    pieces joined are the same.

    Args:
        tokens: the bytes of each token, in order. Those of one need not be whole characters; bytes
            that are no UTF-8 become U+FFFD.
        stops: stop sequences, none of them empty.
    """
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    waiting = ""
    for token in tokens:
        waiting += decoder.decode(token)
        found = [(at + len(stop), at) for stop in stops if (at := waiting.find(stop)) >= 0]
        begun = [k for stop in stops for k in range(1, len(stop)) if waiting.endswith(stop[:k])]
        ready = min(found)[1] if found else len(waiting) - max(begun, default=0)
        if ready:
            yield waiting[:ready]
        if found:
            return
        waiting = waiting[ready:]
    waiting += decoder.decode(b"", final=True)
    if waiting:
        yield waiting


class JsonConstraint:
    """Says which tokens may come next, so that what is written is JSON: always, and in time.

    A state is what is still to come (see `solutions.json_grammar`), and `start` the first one. Any
    grammar of that form will do, such as that of a schema.

    Args:
        ranks: the id of each token, by its bytes, all 256 single bytes among them: what
            `BPETokenizer` of chapter 02 has. Special tokens are not among them.
        end: the id of the end token. Ids run from 0 to V - 1, the end token's included.
        rules: the grammar; its first symbol is "value".

    Raises:
        ValueError: some single byte is not a token.

    Source: Willard and Louf 2023, for masks by the state of an automaton.
    """

    def __init__(self, ranks: Mapping[bytes, int], end: int, rules: Rules = JSON):
        missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
        if missing:
            raise ValueError(f"ranks hold no id for the bytes {missing}")
        self.ranks, self.end, self.rules = dict(ranks), end, rules
        self.texts = {i: text for text, i in self.ranks.items()}
        self.vocab_size = max(end, *self.texts) + 1
        self.least = shortest(rules)  # bytes that complete a symbol, at least
        self.start: State = ("value",)
        self.costs: dict[State, Tensor] = {}

    def read(self, state: State, text: bytes) -> State | None:
        """Follow a text, byte by byte.

        The first symbol of the state whose rule has the byte gives way to what the rule says. The
        symbols before it fall away, if they may be left out; if one of them may not, or if no rule
        has the byte, the byte cannot come.

        Args:
            state: what is still to come.
            text: any bytes.

        Returns:
            What is still to come after the text, or None if it cannot come.
        """
        for byte in text:
            for i, symbol in enumerate(state):
                if byte in self.rules[symbol]:
                    state = self.rules[symbol][byte] + state[i + 1 :]
                    break
                if not symbol.endswith("?"):
                    return None
            else:
                return None
        return state

    def needs(self, state: State) -> int:
        """How many bytes complete a state, at least; 0 if it may end here."""
        return sum(self.least[symbol] for symbol in state)

    def mask(self, state: State, budget: int) -> Bool[Tensor, "V"]:
        """Which tokens may come next, if no more than `budget` tokens may be written from here on.

        A token may come if the grammar allows all of its bytes, and what it leaves to be written
        needs no more bytes than there are tokens left after it: each byte is a token, so there is
        room to finish. The end token may come if the state may end here; it needs no room.

        What a state costs each token is computed once and kept in `self.costs`.

        Args:
            state: what is still to come.
            budget: number of tokens, the end token not counted; at least `needs(state)`.

        Returns:
            True for each token that may come.
        """
        if state not in self.costs:
            costs = [math.inf] * self.vocab_size
            for text, i in self.ranks.items():
                after = self.read(state, text)
                if after is not None:
                    costs[i] = 1 + self.needs(after)
            if self.needs(state) == 0:
                costs[self.end] = 0
            self.costs[state] = torch.tensor(costs)
        return self.costs[state] <= budget

    def advance(self, state: State, token: int) -> State | None:
        """The state after a token. After the end token nothing more is to come."""
        return () if token == self.end else self.read(state, self.texts[token])


def constrained(
    constraint: JsonConstraint,
    budget: int,
    choose: Callable[[Float[Tensor, "B V"]], Int[Tensor, "B"]],
) -> Callable[[Float[Tensor, "B V"]], Int[Tensor, "B"]]:
    """Keep a way to choose to a constraint, for a batch of texts that begin now.

    Args:
        constraint: what the texts have to be.
        budget: number of tokens for each text, at least `needs` of the constraint's start.
        choose: given the logits that are left, the next ids; it never takes one of -inf.

    Returns:
        A way to choose, to be asked budget + 1 times, with the logits of V tokens for each text.
        What a text has after its first end token are end tokens.
    """
    states: list[State] = []
    left = budget

    def choose_within(logits: Float[Tensor, "B V"]) -> Int[Tensor, "B"]:
        nonlocal states, left
        states = states or [constraint.start] * len(logits)
        allowed = torch.stack([constraint.mask(state, left) for state in states])  # (B, V)
        ids = choose(logits.masked_fill(~allowed, -math.inf))
        states = [constraint.advance(s, i) for s, i in zip(states, ids.tolist())]
        left -= 1
        return ids

    return choose_within
