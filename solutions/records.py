"""Records as JSON, and a small GPT that has learned to write them (chapter 15).

A record tells of somebody: name, age, place, what they have, what they said, and a friend, of whom
there is a record in turn (but who has no friend):

    {"name": "Zoë", "age": 7, "place": "mill", "things": [{"what": "kite", "colours": ["red"]}],
     "said": "Tom asked: \\"where?\\"", "friend": null}

Written by `json.dumps`, it is what a model can learn of JSON's outside: quotes within quotes,
characters of two bytes, brackets that are closed many words later, in the right order.
"""

import json
import random
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_model

from solutions.gpt import GPT, GPTConfig
from solutions.stories import BOYS, COLOURS, GIRLS, PLACES, THINGS
from solutions.tokens import BPETokenizer, vocabulary

CHECKPOINT = Path(__file__).parent / "weights" / "records.safetensors"
END = "<end>"  #: stands between records

NAMES = [*GIRLS[:10], *BOYS[:10], "Zoë", "Jürgen", "Łucja", "Noël"]
AGES = range(3, 100)
WORDS = ["where?", "no!", "yes", "why not", "it is late", "look"]
DEPTH = 1  # how many friends, one in the other


def _schema(depth: int) -> dict[str, Any]:
    text = {"type": "string"}
    thing = {"what": text, "colours": {"type": "array", "items": text}}
    things = {"type": "array", "items": {"type": "object", "properties": thing}}
    friend = {"anyOf": [{"type": "null"}, _schema(depth - 1)]} if depth else {"type": "null"}
    return {
        "type": "object",
        "properties": {
            "name": text,
            "age": {"type": "integer"},
            "place": text,
            "things": things,
            "said": text,
            "friend": friend,
        },
    }


#: What every record looks like, as JSON Schema: the form, not what may stand in it.
SCHEMA = _schema(DEPTH)


def record(draw: random.Random, depth: int = DEPTH) -> dict[str, Any]:
    """One record at random, with a friend who may have a friend, up to a depth."""
    things = [
        {"what": draw.choice(THINGS), "colours": draw.sample(COLOURS, draw.choice([1, 1, 1, 2]))}
        for _ in range(draw.choice([0, 1, 1, 2]))
    ]
    words = draw.choice(WORDS)
    said = f'{draw.choice(NAMES)} asked: "{words}"' if words[-1] == "?" else words
    return {
        "name": draw.choice(NAMES),
        "age": draw.choice(AGES),
        "place": draw.choice(PLACES),
        "things": things,
        "said": said,
        "friend": record(draw, depth - 1) if depth and draw.random() < 0.5 else None,
    }


def is_record(found: Any, depth: int = DEPTH) -> bool:
    """Whether `record` could have made it: form and content."""
    if not isinstance(found, dict) or list(found) != list(SCHEMA["properties"]):
        return False
    said, friend = found["said"], found["friend"]
    asked = [f'{name} asked: "{words}"' for name in NAMES for words in WORDS if words[-1] == "?"]
    return (
        found["name"] in NAMES
        and type(found["age"]) is int
        and found["age"] in AGES
        and found["place"] in PLACES
        and isinstance(found["things"], list)
        and len(found["things"]) <= 2
        and all(map(_is_thing, found["things"]))
        and (said in asked or said in WORDS and said[-1] != "?")
        and (friend is None or depth > 0 and is_record(friend, depth - 1))
    )


def _is_thing(found: Any) -> bool:
    if not isinstance(found, dict) or list(found) != ["what", "colours"]:
        return False
    colours = found["colours"]
    return (
        found["what"] in THINGS
        and isinstance(colours, list)
        and 1 <= len(colours) <= 2
        and all(colour in COLOURS for colour in colours)
        and len({*colours}) == len(colours)
    )


def corpus(n: int, seed: int) -> str:
    """n records, each followed by the name of the end token."""
    draw = random.Random(seed)
    return "".join(json.dumps(record(draw), ensure_ascii=False) + END for _ in range(n))


def trained(path: Path = CHECKPOINT) -> tuple[GPT, BPETokenizer]:
    """Load the GPT that `experiments/15_json.py` has trained, and its tokenizer.

    Args:
        path: a file of `solutions.gpt.save`, whose notes hold the tokenizer's `merges`.

    Returns:
        The model, in evaluation mode, and the tokenizer, whose last token is the end token.
    """
    with safe_open(str(path), "pt") as file:
        notes = json.loads(file.metadata()["about"])
    model = GPT(GPTConfig(**notes["config"]))
    load_model(model, str(path))
    return model.eval(), tokenizer_of([tuple(pair) for pair in notes["merges"]])


def tokenizer_of(merges: list[tuple[int, int]]) -> BPETokenizer:
    """The tokenizer that has made these merges; the end token comes last."""
    tokens = vocabulary(merges)
    return BPETokenizer({token: i for i, token in enumerate(tokens)}, {END: len(tokens)})
