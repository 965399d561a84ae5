"""The two languages of chapter 11."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from solutions.numerals import (
    END,
    ENGLISH,
    ENGLISH_TENS,
    GERMAN,
    GERMAN_TENS,
    IDS,
    LARGEST,
    START,
    VOCABULARY,
    draw_numbers,
    held_out,
    number_words,
    to_batch,
    to_words,
)


@pytest.mark.parametrize(
    "n, english, german",
    [
        (1, "one", "eins"),
        (12, "twelve", "zwölf"),
        (20, "twenty", "zwanzig"),
        (42, "forty two", "zwei und vierzig"),
        (71, "seventy one", "ein und siebzig"),
        (100, "one hundred", "ein hundert"),
        (101, "one hundred and one", "ein hundert eins"),
        (1001, "one thousand and one", "ein tausend eins"),
        (1100, "one thousand one hundred", "ein tausend ein hundert"),
        (101_000, "one hundred and one thousand", "ein hundert ein tausend"),
        (1_000_000, "one million", "eine Million"),
        (21_000_000, "twenty one million", "ein und zwanzig Millionen"),
        (101_000_017, "one hundred and one million and seventeen",
         "ein hundert eine Millionen siebzehn"),
    ],
)  # fmt: skip
def test_numbers_are_called_by_their_names(n, english, german):
    pair = number_words(n)
    assert (" ".join(pair.english), " ".join(pair.german)) == (english, german)


def english_value(words):
    total, group = 0, 0
    for word in words:
        if word in ENGLISH:
            group += ENGLISH.index(word) + 1
        elif word in ENGLISH_TENS:
            group += 10 * (ENGLISH_TENS.index(word) + 2)
        elif word == "hundred":
            group *= 100
        elif word in ("thousand", "million"):
            total, group = total + group * {"thousand": 1000, "million": 10**6}[word], 0
    return total + group


def german_value(words):
    total, group = 0, 0
    for word in words:
        if word in ("ein", "eine", "eins"):
            group += 1
        elif word in GERMAN:
            group += GERMAN.index(word) + 1
        elif word in GERMAN_TENS:
            group += 10 * (GERMAN_TENS.index(word) + 2)
        elif word == "hundert":
            group *= 100
        elif word in ("tausend", "Million", "Millionen"):
            total, group = total + group * (1000 if word == "tausend" else 10**6), 0
    return total + group


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.integers(1, 2000), st.integers(1, LARGEST)))
def test_both_languages_mean_the_number_and_origins_lead_to_words_of_the_same_meaning(n):
    pair = number_words(n)
    assert english_value(pair.english) == german_value(pair.german) == n
    assert len(pair.origins) == len(pair.german)
    used = [i for i in pair.origins if i is not None]
    assert sorted(used) == [i for i, word in enumerate(pair.english) if word != "and"]
    for word, origin in zip(pair.german, pair.origins):
        assert (origin is None) == (word == "und")
        if origin is not None and german_value([word]):
            assert german_value([word]) == english_value([pair.english[origin]])
        elif origin is not None:
            assert {"hundert": "hundred", "tausend": "thousand"}.get(word, "million") == (
                pair.english[origin]
            )


def test_the_vocabulary_has_every_word_once():
    assert len(set(VOCABULARY)) == len(VOCABULARY) == 68
    assert (VOCABULARY[START], VOCABULARY[END]) == ("<start>", "<end>")


@pytest.mark.parametrize("n", [0, -5, LARGEST + 1])
def test_numbers_out_of_range_are_refused(n):
    with pytest.raises(ValueError, match=f"n={n}"):
        number_words(n)


def test_one_number_in_ten_is_held_out_at_every_size():
    for digits in range(1, 7):
        numbers = torch.arange(10 ** (digits - 1), 10**digits)
        assert abs(held_out(numbers).double().mean().item() - 0.1) < (0.15 if digits < 2 else 0.02)
    assert held_out(torch.arange(1, 100)).any()


def test_seen_and_unseen_numbers_have_nothing_in_common():
    generator = torch.Generator().manual_seed(0)
    seen = draw_numbers(3000, generator, unseen=False)
    unseen = draw_numbers(1000, generator, unseen=True)
    assert len(seen) == 3000 and len(unseen) == 1000
    assert not set(seen.tolist()) & set(unseen.tolist())
    for numbers in (seen, unseen):
        assert numbers.amin() >= 1 and numbers.amax() <= LARGEST
        lengths = torch.tensor([len(str(n)) for n in numbers.tolist()])
        shares = [(lengths == d).double().mean().item() for d in range(2, 10)]
        assert all(abs(share - 1 / 9) < 0.04 for share in shares)
    assert draw_numbers(500, generator, unseen=False, digits=3).amax() <= 999


def test_batches_are_padded_and_read_back():
    numbers = torch.tensor([7, 342, 1_000_000])
    source, target = to_batch(numbers)
    assert source.shape == (3, 5) and target.shape == (3, 7)
    assert source[0].tolist() == [IDS["seven"], 0, 0, 0, 0]
    assert target[0].tolist() == [START, IDS["sieben"], END, 0, 0, 0, 0]
    assert to_words(target[1]) == "drei hundert zwei und vierzig"
    assert to_words(source[1]) == "three hundred and forty two"
