"""Numbers in English words and in German words: two small languages, and who translates whom.

English says *forty-two*, German says *zweiundvierzig*, two-and-forty: the ones come first. A few
words have no counterpart (the English "and" behind hundreds, the German "und" before tens), and
one, "one", has four: *eins* at the end, *ein* before a noun of the number, *eine* before
*Million*, and with "million" in the singular. So translating a number is easy for those who know
the rules, and cannot be done word by word. Compound words are cut into their parts.

The German rules are those of Unicode's CLDR, `rbnf/de.xml`; so a million is *eine Million*, 101,000
is *ein hundert ein tausend*, and 101 million are *ein hundert eine Millionen*.
"""

from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

ENGLISH = (  # noqa: SIM905
    "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
    "sixteen seventeen eighteen nineteen"
).split()
ENGLISH_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()  # noqa: SIM905
GERMAN = (  # noqa: SIM905
    "eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn "
    "sechzehn siebzehn achtzehn neunzehn"
).split()
GERMAN_TENS = "zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()  # noqa: SIM905

PADDING, START, END = 0, 1, 2
VOCABULARY = [
    *("<pad>", "<start>", "<end>"),
    *ENGLISH, *ENGLISH_TENS, *("and", "hundred", "thousand", "million"),
    *GERMAN, *GERMAN_TENS, *("ein", "eine", "und", "hundert", "tausend", "Million", "Millionen"),
]  # fmt: skip
IDS = {word: i for i, word in enumerate(VOCABULARY)}
LARGEST = 999_999_999


class Pair(NamedTuple):
    """A number in both languages.

    Args:
        english: its words.
        german: its words.
        origins: for each German word, the index of the English word that it translates; None for
            "und", which translates none.
    """

    english: list[str]
    german: list[str]
    origins: list[int | None]


def number_words(n: int) -> Pair:
    """Write a number in English and in German.

    Args:
        n: from 1 to 999,999,999.

    Returns:
        Its words in both languages, and which comes from which.

    Raises:
        ValueError: n is out of range; the message gives it.
    """
    if not 1 <= n <= LARGEST:
        raise ValueError(f"n={n}, expected 1 to {LARGEST}")
    pair = Pair([], [], [])
    millions, thousands, rest = n // 1_000_000, n // 1000 % 1000, n % 1000
    if millions:
        _below_thousand(millions, "eine", pair)
        _say(pair, "million", "Million" if millions == 1 else "Millionen")
    if thousands:
        _below_thousand(thousands, "ein", pair)
        _say(pair, "thousand", "tausend")
    if rest:
        if pair.english and rest < 100:
            pair.english.append("and")
        _below_thousand(rest, "eins", pair)
    return pair


def _say(pair: Pair, english: str, german: str) -> None:
    pair.origins.append(len(pair.english))
    pair.english.append(english)
    pair.german.append(german)


def _below_thousand(n: int, one: str, pair: Pair) -> None:
    """Add 1 to 999; `one` is what a 1 at the end is called in German."""

    def german(digit: int, form: str) -> str:
        return form if digit == 1 else GERMAN[digit - 1]

    hundreds, rest = n // 100, n % 100
    if hundreds:
        _say(pair, ENGLISH[hundreds - 1], german(hundreds, "ein"))
        _say(pair, "hundred", "hundert")
        if rest:
            pair.english.append("and")
    if 0 < rest < 20:
        _say(pair, ENGLISH[rest - 1], german(rest, one))
    elif rest:
        tens, ones = rest // 10, rest % 10
        place = len(pair.english)
        pair.english.append(ENGLISH_TENS[tens - 2])
        if ones:
            pair.english.append(ENGLISH[ones - 1])
            pair.german.extend([german(ones, "ein"), "und"])
            pair.origins.extend([place + 1, None])
        pair.german.append(GERMAN_TENS[tens - 2])
        pair.origins.append(place)


def held_out(numbers: Int[Tensor, "*shape"]) -> Tensor:
    """Say which numbers no training may see: one in ten, the same ones always, of every size.

    Args:
        numbers: from 1 to 999,999,999.

    Returns:
        Booleans.
    """
    return numbers * 2_654_435_761 % 2**32 % 10 == 0  # Knuth's multiplicative hash


def draw_numbers(
    n: int, generator: torch.Generator, unseen: bool, digits: int = 9
) -> Int[Tensor, "n"]:
    """Draw numbers: first how many digits, evenly, then the number, evenly.

    Args:
        n: how many.
        generator: where the randomness comes from.
        unseen: whether they are to be held out, or to be none of those.
        digits: the most that a number has, 1 to 9.

    Returns:
        Numbers, of which some may come twice.
    """
    found = torch.empty(0, dtype=torch.int64)
    while len(found) < n:
        length = torch.randint(digits, (16 * n,), generator=generator)  # digits less one
        share = torch.rand(16 * n, generator=generator, dtype=torch.float64)
        numbers = (10**length * (1 + 9 * share)).long()
        found = torch.cat([found, numbers[held_out(numbers) == unseen]])
    return found[:n]


def to_batch(
    numbers: Int[Tensor, "B"],
) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B n"]]:
    """Turn numbers into ids to read and ids to write.

    Args:
        numbers: from 1 to 999,999,999.

    Returns:
        source: the English words, padded at the end.
        target: the start token, the German words, the end token, padding.
    """
    pairs = [number_words(number) for number in numbers.tolist()]
    sources = [[IDS[word] for word in pair.english] for pair in pairs]
    targets = [[START, *(IDS[word] for word in pair.german), END] for pair in pairs]
    return _padded(sources), _padded(targets)


def _padded(rows: list[list[int]]) -> Int[Tensor, "B n"]:
    size = max(map(len, rows))
    return torch.tensor([row + [PADDING] * (size - len(row)) for row in rows])


def to_words(ids: Int[Tensor, "n"]) -> str:
    """Join the words of ids, up to an end token; start tokens and padding are left out."""
    words = []
    for i in ids.tolist():
        if i == END:
            break
        if i not in (PADDING, START):
            words.append(VOCABULARY[i])
    return " ".join(words)
