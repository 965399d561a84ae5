"""A language of little stories whose entropy is known: what a language model can at best reach.

A story is a sequence of sentences. Which sentences may come next depends on the state of the story
(does the hero hold something, is a friend there, what happened last), and each has a probability.
A sentence is a template whose blanks are either drawn afresh, `{+thing}`, or remembered, `{thing}`:

    Once, Mia was at the pond. She found a red kite. There she met Tom. She gave the red kite to
    Tom. Then she went to the mill. In the evening she went home and dreamed of the kite.

So a name, a colour or a place comes back many words later, pronouns agree, and what was found is
what is given away. Two kinds of facts about the little world hold in all its stories and can be
learned by heart: who is likely to find what, and which places lie next to each other.

No two sentences that may stand in the same place read alike, and so every text has one probability,
the product of all that was drawn. From the same tables the module computes, exactly:

- `surprises(tokens)`: -ln p of each token of a given text, given all that stands before it;
- `entropy`: the expectation of a whole story's, and `floor`, the same for each token of a long
  stream of stories: no model's loss can lie below it;
- `floor_of_windows(T)`: what the best model reaches on windows of T tokens that start where a
  story starts; and `window_gap(T)`, a bound for windows that start anywhere.
"""

import bisect
import itertools
import math
import random
import re
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

END = "<end>"  #: stands between stories; a line's end in the text


def _words(text: str) -> list[str]:
    return text.split()


GIRLS = _words(
    "Mia Emma Lena Ada Rosa Nina Ella Sara Iris Ruth Anna Clara Zoe Maya Lucy Eva Nora Jane Olga "
    "Paula Vera Amy Gina Hana"
)
BOYS = _words(
    "Tom Ben Max Paul Leo Finn Sam Noah Adam Hugo Oscar Emil Jack Liam Karl Theo Ivan Omar Pedro "
    "Simon Felix Ravi Kenji Luca"
)
THINGS = _words(
    "kite ball key book lamp shell drum hat coin boat bell rope stone cup flute map ring basket "
    "feather candle mirror spoon brush chain clock crown doll fan glove hammer jar kettle ladder "
    "mask needle pillow quilt ribbon scarf torch umbrella vase whistle blanket button carpet wheel "
    "violin"
)
PLACES = _words(
    "garden pond market harbour mill beach bridge school castle farm tower station lake museum "
    "river bakery temple orchard well library cave lighthouse meadow port"
)
COLOURS = _words("red blue green yellow white black brown pink golden silver grey purple")
MOODS = {  # by the state of the thing, the likeliest first
    "none": _words("curious hungry tired happy quiet"),
    "held": _words("happy proud curious tired worried"),
    "left": _words("sad worried quiet tired hungry"),
    "given": _words("happy quiet proud sad tired"),
}


class State(NamedTuple):
    """What decides which sentences may follow.

    Args:
        thing: of the last thing found, "none" yet, "held", "left" somewhere or "given" away.
        friend: whether a friend is there.
        last: what the last sentence told of; the next tells of something else.
    """

    thing: str = "none"
    friend: bool = False
    last: str = "start"


class Sentence(NamedTuple):
    """One way to go on.

    Args:
        about: what it tells of; no two sentences running are about the same.
        weight: how likely it is, beside the others that may stand there.
        text: words and blanks. `{+x}` is drawn and remembered as x; `{x}` is remembered.
        things: states of the thing in which it may be said.
        friends: whether a friend must be there (True), must not (False), or either (None).
        thing: state of the thing afterwards; None for as before.
        friend: whether a friend is there afterwards; None for as before.
    """

    about: str
    weight: float
    text: str
    things: str = "none held left given"
    friends: bool | None = None
    thing: str | None = None
    friend: bool | None = None


SENTENCES = [
    Sentence("start", 3, "once , {+hero} was at the {+place} ."),
    Sentence("start", 2, "one day , {+hero} went to the {+place} ."),
    Sentence("start", 2, "{+hero} was a {kind} who lived near the {+place} ."),
    Sentence("start", 1, "near the {+place} lived {+hero} , a {kind} ."),
    Sentence("find", 5, "{he} found a {+colour} {+thing} .", "none left given", thing="held"),
    Sentence("find", 3, "{hero} saw a {+colour} {+thing} and picked it up .", "none left given",
             thing="held"),
    Sentence("leave", 2, "{he} left the {thing} at the {place} .", "held", thing="left"),
    Sentence("leave", 1, "{he} hid the {colour} {thing} near the {place} .", "held", thing="left"),
    Sentence("give", 4, "{he} gave the {colour} {thing} to {friend} .", "held", True,
             thing="given"),
    Sentence("show", 1, "{friend} liked the {thing} .", "held", True),
    Sentence("meet", 3, "there {he} met {+friend} .", friends=False, friend=True),
    Sentence("meet", 1, "{+friend} came to the {place} .", friends=False, friend=True),
    Sentence("part", 1, "{friend} said goodbye to {him} .", friends=True, friend=False),
    Sentence("move", 3, "then {he} went to the {+place} .", friends=False),
    Sentence("move", 2, "{hero} and {friend} walked to the {+place} .", friends=True),
    Sentence("feel", 1, "{he} was {+mood} ."),
    Sentence("think", 2, "{he} thought of the {colour} {thing} at the {spot} .", "left"),
    Sentence("think", 2, "{he} thought of the {colour} {thing} that {owner} had now .", "given"),
    Sentence("end", 4, "in the evening {he} carried the {colour} {thing} home . <end>", "held"),
    Sentence("end", 6, "in the evening {he} went home without the {thing} . <end>", "left"),
    Sentence("end", 6, "in the evening {he} went home and dreamed of the {thing} . <end>", "given"),
]  # fmt: skip

START = State()
LITERALS = {w for s in SENTENCES for w in s.text.split() if w[0] != "{"}
LITERALS |= {"he", "she", "him", "her", "girl", "boy"}
# Blanks of one kind that may stand in the same place of two sentences: their words always differ.
APART = [{"hero", "+friend"}, {"hero", "friend"}]


class _Way(NamedTuple):
    """A sentence in a state: its probability there, its tokens and blanks, and what follows."""

    probability: float
    pieces: tuple[int | str, ...]
    about: str
    state: State | None  # None: the story is over


class _Mean(NamedTuple):
    entropy: float
    length: float


class _Table:
    """What a blank may hold: each token with its probability.

    Args:
        words: by token.
        weights: by token; the probabilities are in proportion.
    """

    def __init__(self, words: dict[int, str], weights: Sequence[float]):
        total = sum(weights)
        self.tokens = list(words)
        self.chances = {token: w / total for token, w in zip(words, weights)}
        self.sums = list(itertools.accumulate(self.chances.values()))
        self.entropy = -sum(p * math.log(p) for p in self.chances.values())
        self.lengths = {token: len(word) for token, word in words.items()}
        self.length = sum(p * self.lengths[token] for token, p in self.chances.items())

    def draw(self, uniform: Callable[[], float]) -> int:
        return self.tokens[_pick(self.sums, uniform())]

    def chance(self, token: int) -> float:
        return self.chances.get(token, 0.0)

    def items(self) -> Iterable[tuple[int, float]]:
        return self.chances.items()


class _Others:
    """A table without one of its tokens, the others' probabilities in proportion.

    Args:
        table: it.
        token: the one that is left out.
    """

    def __init__(self, table: _Table, token: int):
        self.table, self.token = table, token
        p = table.chance(token)
        self.rest = math.fsum(q for t, q in table.items() if t != token)
        self.entropy = (table.entropy + p * math.log(p)) / self.rest + math.log(self.rest)
        self.length = (table.length - p * table.lengths[token]) / self.rest

    def draw(self, uniform: Callable[[], float]) -> int:
        while True:
            if (token := self.table.draw(uniform)) != self.token:
                return token

    def chance(self, token: int) -> float:
        return 0.0 if token == self.token else self.table.chance(token) / self.rest

    def items(self) -> Iterable[tuple[int, float]]:
        return ((t, p / self.rest) for t, p in self.table.items() if t != self.token)


class Stories:
    """A language of stories, and all that can be known about its probabilities.

    Args:
        names: how many names there are, girls' and boys' in turn, from 2 to 4000. Beyond 48 they
            are made up of syllables.
        things: how many things can be found, up to 48.
        places: how many places there are, from 2 to 24.
        colours: how many colours there are, up to 12.
        zipf: how uneven the draws are: the word of rank r has a probability in proportion to
            1 / (r + 1) ** zipf; 0 makes all alike. (Places to start from are always alike.)
        seed: of the world: who is likely to find what, and where the paths lead.

    Raises:
        ValueError: a number that is out of range; the message names it.
    """

    def __init__(
        self,
        names: int = 16,
        things: int = 20,
        places: int = 10,
        colours: int = 6,
        zipf: float = 1.0,
        seed: int = 0,
    ):
        limits = {"names": (names, 2, 4000), "things": (things, 1, 48), "places": (places, 2, 24)}
        for name, (value, low, high) in (limits | {"colours": (colours, 1, 12)}).items():
            if not low <= value <= high:
                raise ValueError(f"{name}={value}, expected {low} to {high}")
        self.names = _names(names)
        self.things, self.places = THINGS[:things], PLACES[:places]
        self.colours = COLOURS[:colours]
        blanks = {*self.names, *self.things, *self.places, *self.colours, *sum(MOODS.values(), [])}
        #: Every token: the end of a story first, then signs and words in alphabetical order.
        self.vocabulary = [END, *sorted((LITERALS | blanks) - {END})]
        self._id = {word: i for i, word in enumerate(self.vocabulary)}
        self._girls = {self._id[name] for name in self.names[::2]}
        self._draws = self._tables(zipf, random.Random(seed))
        self._next = {state: self._ways(state) for state in _reachable()}
        self._means: dict[tuple, _Mean] = {}
        self._check_unambiguous()
        self._costs = {
            state: [self._surprise(state, way) for way in ways]
            for state, (ways, _) in self._next.items()
        }

    def __len__(self) -> int:
        """Number of tokens, V."""
        return len(self.vocabulary)

    # ---- text and tokens

    def encode(self, text: str) -> list[int]:
        """Turn stories into tokens, one for each word, each sign and each line's end.

        Raises:
            ValueError: a word that is not in the vocabulary; the message names it.
        """
        tokens = []
        for word in re.findall(r"\w+|[^\w\s]|\n", text):
            word = END if word == "\n" else word
            token = self._id.get(word, self._id.get(word.lower()))
            if token is None:
                raise ValueError(f"{word!r} is not in the vocabulary")
            tokens.append(token)
        return tokens

    def decode(self, tokens: Sequence[int] | Int[Tensor, "n"]) -> str:
        """Turn tokens into text: sentences start with a capital, a story ends with its line.

        `encode` turns it back into the same tokens, whatever they are.
        """
        parts, capital, line = [], True, True
        for token in torch.as_tensor(tokens).tolist():
            word = self.vocabulary[token]
            if word == END:
                parts.append("\n")
                capital = line = True
                continue
            if word.isalpha():
                parts.append(("" if line else " ") + (word.capitalize() if capital else word))
            else:
                parts.append(word)
            capital, line = word == ".", False
        return "".join(parts)

    # ---- writing

    def write(self, n: int, generator: torch.Generator) -> list[list[int]]:
        """n stories, each a list of tokens that closes with the end token."""
        draw = _fast(generator)
        return [self._story(draw) for _ in range(n)]

    def stream(self, n: int, generator: torch.Generator) -> Int[Tensor, "n"]:
        """n tokens of stories one after the other, as much of the last as there is room for.

        The first token is the end token, as if of a story before: so that windows may start at
        every end token, and the first word of each story has something before it to follow.
        """
        draw, tokens = _fast(generator), [0]
        while len(tokens) < n:
            tokens += self._story(draw)
        return torch.tensor(tokens[:n])

    def _story(self, draw: random.Random) -> list[int]:
        state, memory, tokens, uniform = START, {}, [], draw.random
        while state is not None:
            ways, cumulative = self._next[state]
            way = ways[_pick(cumulative, uniform())]
            for piece in way.pieces:
                if isinstance(piece, int):
                    tokens.append(piece)
                elif piece[0] == "+":
                    token = self._table(piece, state, memory).draw(uniform)
                    tokens.append(token)
                    self._remember(memory, piece, token)
                else:
                    tokens.append(memory[piece])
            _after(memory, state, way)
            state = way.state
        return tokens

    # ---- what a given text is worth

    def surprises(self, tokens: Sequence[int] | Int[Tensor, "n"]) -> Float[Tensor, "n"]:
        """-ln p of each token, given all that stands before it: a perfect model's loss on it.

        Args:
            tokens: stories one after the other; the last may stop anywhere. An end token in front
                of the first, as `stream` puts there, is taken as given: its surprise is 0.

        Returns:
            Nats, in float64. inf at the first token that the language does not allow there, and
            NaN for what follows it.
        """
        reader, found = _Reader(self), []
        for i, token in enumerate(torch.as_tensor(tokens).tolist()):
            if i == 0 and token == 0:
                found.append(0.0)
            elif found and not math.isfinite(found[-1]):
                found.append(math.nan)
            else:
                p = reader.read(token)
                found.append(-math.log(p) if p > 0 else math.inf)
        return torch.tensor(found, dtype=torch.float64)

    def log_probability(self, tokens: Sequence[int] | Int[Tensor, "n"]) -> float:
        """ln p of a text from a story's start on, -inf if the language does not allow it."""
        surprise = self.surprises(tokens)
        return -math.inf if surprise.isinf().any() else -surprise.sum().item()

    def distribution(self, tokens: Sequence[int] | Int[Tensor, "n"]) -> Float[Tensor, "V"]:
        """Probability of each token to come next, after a text as in `surprises`.

        Raises:
            ValueError: the language does not allow this text.
        """
        reader = _Reader(self)
        for i, token in enumerate(torch.as_tensor(tokens).tolist()):
            if (i or token) and reader.read(token) == 0:
                raise ValueError(f"token {i}, {self.vocabulary[token]!r}, cannot stand there")
        return reader.distribution()

    # ---- what to expect of the language

    @cached_property
    def entropy(self) -> float:
        """Entropy of one story, in nats: the expectation of -ln p."""
        return self._expected(lambda state, way: sum(self._surprise(state, way)))

    @cached_property
    def tokens_per_story(self) -> float:
        """Expected number of tokens of a story, the end token included."""
        return self._expected(lambda state, way: len(way.pieces))

    @cached_property
    def characters_per_story(self) -> float:
        """Expected number of characters of a story's text, the line's end included."""
        space = 1  # before each word but the first
        return self._expected(self._characters) - space

    @property
    def floor(self) -> float:
        """Entropy of each token of a long stream, in nats: the lowest loss that there can be."""
        return self.entropy / self.tokens_per_story

    @property
    def floor_per_character(self) -> float:
        """Entropy of each character of a long text, in nats."""
        return self.entropy / self.characters_per_story

    def floor_of_windows(self, length: int) -> Float[Tensor, "T"]:
        """The lowest expected loss at each position of a window that starts where a story starts.

        Such a window holds the whole beginning of every story that it holds a part of, so a model
        that sees the window lacks nothing. Its inputs start with an end token (of the story
        before); position t grades the token after input t. The mean over positions comes close to
        `floor` as windows get longer.

        Args:
            length: tokens graded in a window, T.

        Returns:
            Nats at each position, in float64; its mean is the lowest loss of a batch.
        """
        surprise = [0.0] * length
        starts: list[dict[State, float]] = [{} for _ in range(length + 1)]
        starts[0] = {START: 1.0}  # probability that a sentence starts there, in that state
        for t in range(length):
            for state, chance in starts[t].items():
                for way, costs in zip(self._next[state][0], self._costs[state]):
                    share = chance * way.probability
                    for i, cost in enumerate(costs[: length - t]):
                        surprise[t + i] += share * cost
                    after = START if way.state is None else way.state
                    then = starts[min(t + len(costs), length)]
                    then[after] = then.get(after, 0.0) + share
        return torch.tensor(surprise, dtype=torch.float64)

    def window_gap(self, length: int) -> float:
        """How far above `floor` the best model can be on windows that start anywhere, at most.

        Such a window may start in the middle of a story whose hero it has not seen. What the lost
        beginning tells about all that follows, it tells through what the story remembers and where
        in its sentence it is: so over the whole window it is worth no more than the entropy of
        these, and that is no more than the logarithm of how many there are.

        Args:
            length: tokens graded in a window, T.

        Returns:
            Nats per token. The bound is generous; the true gap is a fraction of it.
        """
        places = sum(len(way.pieces) for ways, _ in self._next.values() for way in ways)
        names, spots = len(self.names), len(self.places)
        hero_and_friend, spot_or_owner = names * names, max(names, spots)
        memory = hero_and_friend * len(self.things) * len(self.colours) * spots * spot_or_owner
        return math.log(places * memory) / length

    # ---- inner workings

    def _tables(self, zipf: float, world: random.Random) -> dict:
        """For each fresh blank: words, running sums and probabilities, by what they depend on."""

        def table(words: Sequence[str], power: float = zipf) -> _Table:
            return _Table(
                {self._id[w]: w for w in words}, [(r + 1) ** -power for r in range(len(words))]
            )

        names = table(self.names)
        draws = {
            ("+hero", None): names,
            ("+colour", None): table(self.colours),
            ("+place", None): table(self.places, 0.0),
        }
        circle = world.sample(self.places, len(self.places))
        reach = min(4, len(circle) - 1)  # how many lie near a place, itself not among them
        for i, place in enumerate(circle):
            near = [circle[(i + step) % len(circle)] for step in range(1, reach + 1)]
            draws["+place", self._id[place]] = table(near)
        for name in names.tokens:
            draws["+thing", name] = table(world.sample(self.things, len(self.things)))
            draws["+friend", name] = _Others(names, name)
        for thing, felt in MOODS.items():
            draws["+mood", thing] = table(felt)
        return draws

    def _table(self, piece: str, state: State, memory: dict[str, int]) -> _Table | _Others:
        if piece in ("+thing", "+friend"):
            return self._draws[piece, memory["hero"]]
        if piece == "+place":
            return self._draws[piece, memory.get("place")]
        return self._draws[piece, state.thing if piece == "+mood" else None]

    def _remember(self, memory: dict[str, int], piece: str, token: int) -> None:
        memory[piece[1:]] = token
        if piece == "+hero":
            girl = token in self._girls
            memory["he"] = self._id["she" if girl else "he"]
            memory["him"] = self._id["her" if girl else "him"]
            memory["kind"] = self._id["girl" if girl else "boy"]

    def _ways(self, state: State) -> tuple[list[_Way], list[float]]:
        """The sentences that may follow a state, and the running sums of their probabilities."""
        said = [s for s in SENTENCES if _may_follow(s, state)]
        total = sum(s.weight for s in said)
        ways = []
        for s in said:
            pieces = tuple(w[1:-1] if w[0] == "{" else self._id[w] for w in s.text.split())
            ways.append(_Way(s.weight / total, pieces, s.about, _state_after(s, state)))
        return ways, list(itertools.accumulate(w.probability for w in ways))

    def _check_unambiguous(self) -> None:
        """Two sentences that may stand in one place part at two words that always differ."""
        for ways, _ in self._next.values():
            for one, other in itertools.combinations(ways, 2):
                a, b = next((a, b) for a, b in zip(one.pieces, other.pieces) if a != b)
                blanks = isinstance(a, str) and isinstance(b, str) and {a, b} not in APART
                assert not blanks or _kind(a) != _kind(b), f"{one} and {other} may read alike"

    def _surprise(self, state: State, way: _Way) -> list[float]:
        """The expected surprise at each token of a sentence, over all that its blanks may hold."""
        ways, _ = self._next[state]
        costs, before = [], 1.0
        for i, piece in enumerate(way.pieces):
            start = way.pieces[: i + 1]
            mass = sum(w.probability for w in ways if w.pieces[: i + 1] == start)
            cost = math.log(before / mass)
            if isinstance(piece, str) and piece[0] == "+":
                cost += self._mean(state, piece).entropy
            costs.append(cost)
            before = mass
        return costs

    def _mean(self, state: State, piece: str) -> _Mean:
        """Of the tables that a fresh blank may be drawn from: entropy and length, on average.

        The sentences do not depend on the words. So in any state the hero is who the first draw
        made it; and the place may be any: each step leads round a circle, and a place drawn evenly
        stays so.
        """
        key = piece, state.thing if piece == "+mood" else None, state == START
        if key not in self._means:
            over = {"+thing": "+hero", "+friend": "+hero", "+place": "+place"}.get(piece)
            if over is None or state == START:
                tables = [(1.0, self._table(piece, state, {}))]
            else:
                given = self._draws[over, None].items()
                tables = [(p, self._draws[piece, token]) for token, p in given]
            self._means[key] = _Mean(
                math.fsum(p * t.entropy for p, t in tables),
                math.fsum(p * t.length for p, t in tables),
            )
        return self._means[key]

    def _characters(self, state: State, way: _Way) -> float:
        """Expected characters of a sentence, with a space before each word."""
        total = 0.0
        for piece in way.pieces:
            if isinstance(piece, int):
                word = self.vocabulary[piece]
                total += len(word) + 1 if word.isalpha() else 1
            elif piece in ("he", "him", "kind"):
                heroes = self._draws["+hero", None].items()
                total += 1 + sum(p * len(self.vocabulary[self._of(h, piece)]) for h, p in heroes)
            elif piece == "hero":
                total += 1 + self._draws["+hero", None].length
            else:
                source = {"spot": "place", "owner": "friend"}.get(piece, piece)
                total += 1 + self._mean(state, "+" + source.lstrip("+")).length
        return total

    def _of(self, hero: int, piece: str) -> int:
        memory: dict[str, int] = {}
        self._remember(memory, "+hero", hero)
        return memory[piece]

    def _expected(self, value) -> float:
        """The expected sum of value(state, way) over the sentences of a story."""
        states = list(self._next)
        index = {state: i for i, state in enumerate(states)}
        n = len(states)
        system = torch.eye(n, dtype=torch.float64)  # total = own + chance of each next @ total
        own = torch.zeros(n, dtype=torch.float64)
        for state, i in index.items():
            for way in self._next[state][0]:
                own[i] += way.probability * value(state, way)
                if way.state is not None:
                    system[i, index[way.state]] -= way.probability
        return torch.linalg.solve(system, own)[index[START]].item()


class _Reader:
    """Reads token by token, and knows the probability of each. The forward algorithm.

    Which sentence is being read may be open for some tokens. Every sentence that fits so far is
    kept, with its probability and the memory that it would leave.
    """

    def __init__(self, language: "Stories"):
        self.language = language
        self.state, self.place = START, 0
        self._open({})

    def _open(self, memory: dict[str, int]) -> None:
        ways, _ = self.language._next[self.state]
        self.threads = [(way.probability, way, memory) for way in ways]
        self.place = 0

    def read(self, token: int) -> float:
        """The probability of the token to come next, after all that has been read."""
        total, kept = sum(p for p, _, _ in self.threads), []
        for p, way, memory in self.threads:
            piece = way.pieces[self.place]
            fresh = isinstance(piece, str) and piece[0] == "+"
            if fresh:
                chance = self.language._table(piece, self.state, memory).chance(token)
            else:
                chance = float(token == (piece if isinstance(piece, int) else memory[piece]))
            if chance:
                if fresh:
                    memory = dict(memory)
                    self.language._remember(memory, piece, token)
                kept.append((p * chance, way, memory))
        self.threads, self.place = kept, self.place + 1
        probability = sum(p for p, _, _ in kept) / total if kept else 0.0
        if len(kept) == 1 and self.place == len(kept[0][1].pieces):
            _, way, memory = kept[0]
            memory = dict(memory)
            _after(memory, self.state, way)
            over = way.state is None
            self.state = START if over else way.state
            self._open({} if over else memory)
        return probability

    def distribution(self) -> Float[Tensor, "V"]:
        """The probability of every token to come next."""
        found = torch.zeros(len(self.language), dtype=torch.float64)
        for p, way, memory in self.threads:
            piece = way.pieces[self.place]
            if isinstance(piece, int):
                found[piece] += p
            elif piece[0] == "+":
                for token, chance in self.language._table(piece, self.state, memory).items():
                    found[token] += p * chance
            else:
                found[memory[piece]] += p
        return found / found.sum()


def _fast(generator: torch.Generator) -> random.Random:
    """A plain generator, which is quicker for single numbers, seeded from a torch one."""
    return random.Random(torch.randint(2**62, (), generator=generator).item())


def _pick(sums: list[float], uniform: float) -> int:
    """The index that a number from [0, 1) falls to."""
    return bisect.bisect(sums, uniform * sums[-1], 0, len(sums) - 1)


def _names(n: int) -> list[str]:
    """Girls' and boys' names in turn."""
    known = [name for pair in zip(GIRLS, BOYS) for name in pair]
    starts = ["".join(s) for s in itertools.product("bdfgklmnprstvz", "aeiou")]
    made = ("".join(s).capitalize() for s in itertools.product(starts, starts))
    # At the start of a sentence a word is capitalised too: none may look like a name then.
    taken = {*LITERALS, *PLACES, *THINGS, *COLOURS, *sum(MOODS.values(), [])}
    more = (name for name in made if name.lower() not in taken and name not in known)
    return [*known, *itertools.islice(more, max(0, n - len(known)))][:n]


def _may_follow(sentence: Sentence, state: State) -> bool:
    if (sentence.about == "start") != (state == START):
        return False
    return (
        sentence.about == "start"
        or sentence.about != state.last
        and state.thing in sentence.things.split()
        and sentence.friends in (None, state.friend)
    )


def _state_after(sentence: Sentence, state: State) -> State | None:
    if sentence.about == "end":
        return None
    return State(
        state.thing if sentence.thing is None else sentence.thing,
        state.friend if sentence.friend is None else sentence.friend,
        "opening" if sentence.about == "start" else sentence.about,
    )


def _after(memory: dict[str, int], state: State, way: _Way) -> None:
    """What is remembered of a sentence besides its blanks: where a thing was left, who got it."""
    if way.about == "leave":
        memory["spot"] = memory["place"]
    elif way.about == "give":
        memory["owner"] = memory["friend"]


def _reachable() -> list[State]:
    found, todo = [START], [START]
    while todo:
        state = todo.pop()
        for s in SENTENCES:
            after = _state_after(s, state)
            if _may_follow(s, state) and after is not None and after not in found:
                found.append(after)
                todo.append(after)
    return found


def _kind(piece: str) -> str:
    """The kind of word that stands in a blank."""
    name = piece.lstrip("+")
    return {"hero": "name", "friend": "name", "owner": "name", "spot": "place"}.get(name, name)
