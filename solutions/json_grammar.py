"""The grammar of JSON, byte by byte, as data (chapter 15).

A state is a tuple of symbols: what is still to come, from left to right. Each symbol has a rule:
by the byte that comes, the symbols that have to follow it in this symbol's place. The rule of
"colon" says that after a colon nothing more is to come; that of "list" begins

    {ord("]"): (), ord("1"): ("digits?", "more elements"), ...}

A symbol whose name ends in "?" may also be left out. A rule never has two ways for one byte, and a
byte that fits a symbol that may be left out fits nothing behind it; so there is never a choice, and
reading a text means to follow it byte by byte.
"""

import json
import math
from typing import Any

Rule = dict[int, tuple[str, ...]]
Rules = dict[str, Rule]
State = tuple[str, ...]

SPACE, DIGITS, HEX = b" \t\n\r", b"0123456789", b"0123456789abcdefABCDEF"
SIGNS = bytes(range(0x20, 0x80)).translate(None, b'"\\')  # what stands for itself in a string


def _rule(*ways: tuple[bytes, str]) -> Rule:
    """From pairs: bytes that may come, and the symbols that follow any of them."""
    return {byte: tuple(then.split()) for come, then in ways for byte in come}


def _between(first: int, last: int) -> bytes:
    return bytes(range(first, last + 1))


def literal(text: bytes) -> State:
    """Symbols for a text that has to stand there as it is: one for each byte."""
    return tuple(f"={byte:02x}" for byte in text)


#: Parts that every grammar here uses: single bytes, strings (RFC 8259, section 7, in UTF-8 as in
#: RFC 3629, section 4), numbers (RFC 8259, section 6).
PARTS: Rules = {
    **{f"={byte:02x}": {byte: ()} for byte in range(256)},
    # the rest of a string, after its first quote
    "string": _rule(
        (b'"', ""),
        (b"\\", "escape string"),
        (SIGNS, "string"),
        (_between(0xC2, 0xDF), "tail string"),
        (b"\xe0", "tail-e0 tail string"),
        (_between(0xE1, 0xEC) + b"\xee\xef", "tail tail string"),
        (b"\xed", "tail-ed tail string"),
        (b"\xf0", "tail-f0 tail tail string"),
        (_between(0xF1, 0xF3), "tail tail tail string"),
        (b"\xf4", "tail-f4 tail tail string"),
    ),
    "tail": _rule((_between(0x80, 0xBF), "")),
    "tail-e0": _rule((_between(0xA0, 0xBF), "")),  # no longer than it needs to be
    "tail-ed": _rule((_between(0x80, 0x9F), "")),  # no surrogates
    "tail-f0": _rule((_between(0x90, 0xBF), "")),
    "tail-f4": _rule((_between(0x80, 0x8F), "")),  # nothing beyond U+10FFFF
    "escape": _rule((b'"\\/bfnrt', ""), (b"u", "hex hex hex hex")),
    "hex": _rule((HEX, "")),
    # numbers, after their minus, their 0, their first digit
    "number": _rule((b"0", "fraction?"), (b"123456789", "digits?")),
    "digits?": _rule((DIGITS, "digits?"), (b".", "decimal"), (b"eE", "exponent")),
    "fraction?": _rule((b".", "decimal"), (b"eE", "exponent")),
    "decimal": _rule((DIGITS, "decimals?")),
    "decimals?": _rule((DIGITS, "decimals?"), (b"eE", "exponent")),
    "exponent": _rule((b"+-", "power"), (DIGITS, "powers?")),
    "power": _rule((DIGITS, "powers?")),
    "powers?": _rule((DIGITS, "powers?")),
    "integer": _rule((b"0", ""), (b"123456789", "integers?")),
    "integers?": _rule((DIGITS, "integers?")),
}

NUMBER = {byte: then for byte, then in PARTS["number"].items()} | _rule((b"-", "number"))
INTEGER = {byte: then for byte, then in PARTS["integer"].items()} | _rule((b"-", "integer"))


def json_rules() -> Rules:
    """The rules of all JSON texts, white space included (but none after the text).

    Source: RFC 8259.
    """
    value = {
        **_rule((SPACE, "value"), (b'"', "string"), (b"{", "object"), (b"[", "list")),
        **NUMBER,
        **{ord(word[0]): literal(word[1:].encode()) for word in ("true", "false", "null")},
    }
    member = "string colon value"
    return {
        **PARTS,
        "value": value,
        "object": _rule((SPACE, "object"), (b"}", ""), (b'"', f"{member} more-members")),
        "more-members": _rule((SPACE, "more-members"), (b"}", ""), (b",", "member more-members")),
        "member": _rule((SPACE, "member"), (b'"', member)),
        "colon": _rule((SPACE, "colon"), (b":", "")),
        "list": {
            **{byte: (*then, "more-elements") for byte, then in value.items()},
            **_rule((SPACE, "list"), (b"]", "")),
        },
        "more-elements": _rule((SPACE, "more-elements"), (b"]", ""), (b",", "value more-elements")),
    }


def schema_rules(schema: dict[str, Any]) -> Rules:
    """The rules of the texts that `json.dumps` writes of values that a schema describes.

    Args:
        schema: a small part of JSON Schema. `{"type": ...}` of "string", "number", "integer",
            "boolean" or "null"; `{"enum": [...]}` of values; `{"type": "array", "items": schema}`;
            `{"type": "object", "properties": {...}}`, all of which are there, in this order, and no
            others; `{"anyOf": [...]}` of schemas whose texts differ in the first byte.

    Raises:
        ValueError: something else; the message gives it.
    """
    rules = dict(PARTS)
    rules["value"] = _of_schema(schema, rules, "value")
    return rules


def _of_schema(schema: dict[str, Any], rules: Rules, name: str) -> Rule:
    """A schema's rule; what it needs besides goes into `rules`, under names that start alike."""
    kind = schema.get("type")
    if "enum" in schema:
        return _one_of([json.dumps(v).encode() for v in schema["enum"]], rules, name)
    if "anyOf" in schema:
        rule: Rule = {}
        for i, option in enumerate(schema["anyOf"]):
            found = _of_schema(option, rules, f"{name}|{i}")
            if rule.keys() & found.keys():
                raise ValueError(f"anyOf: two of the options start alike: {schema['anyOf']}")
            rule |= found
        return rule
    if kind == "string":
        return _rule((b'"', "string"))
    if kind == "number":
        return dict(NUMBER)
    if kind == "integer":
        return dict(INTEGER)
    if kind == "boolean":
        return _one_of([b"true", b"false"], rules, name)
    if kind == "null":
        return _one_of([b"null"], rules, name)
    if kind == "array":
        item, more = f"{name}[]", f"{name}[],"
        rules[item] = _of_schema(schema["items"], rules, item)
        rules[more] = {ord(","): ("=20", item, more), ord("]"): ()}
        first = {byte: (*then, more) for byte, then in rules[item].items()}
        rules[f"{name}["] = {**first, ord("]"): ()}
        return {ord("["): (f"{name}[",)}
    if kind == "object":
        then: State = ()
        for key, part in schema["properties"].items():
            symbol = f"{name}.{key}"
            rules[symbol] = _of_schema(part, rules, symbol)
            comma = ", " if then else ""
            then += (*literal(f"{comma}{json.dumps(key)}: ".encode()), symbol)
        return {ord("{"): (*then, *literal(b"}"))}
    raise ValueError(f"a schema that is not known here: {schema}")


def _one_of(texts: list[bytes], rules: Rules, name: str) -> Rule:
    """One of several texts: what they have in common is read before they part."""
    rule: Rule = {}
    for first in sorted({text[0] for text in texts}):
        rest = [text[1:] for text in texts if text[0] == first]
        symbol = f"{name}/{first:02x}" + ("?" if b"" in rest else "")
        going_on = [text for text in rest if text]
        rule[first] = (symbol,) if going_on else ()
        if going_on:
            rules[symbol] = _one_of(going_on, rules, symbol.removesuffix("?"))
    return rule


def shortest(rules: Rules) -> dict[str, int]:
    """For each symbol, how many bytes the shortest text has that completes it.

    Args:
        rules: of a grammar.

    Raises:
        ValueError: a symbol that no text completes; the message names it.
    """
    lengths = {symbol: 0 if symbol.endswith("?") else math.inf for symbol in rules}
    changed = True
    while changed:
        changed = False
        for symbol, rule in rules.items():
            for then in set(rule.values()):
                length = 1 + sum(lengths[part] for part in then)
                if length < lengths[symbol]:
                    lengths[symbol], changed = length, True
    endless = [symbol for symbol, length in lengths.items() if length == math.inf]
    if endless:
        raise ValueError(f"no text completes {endless[0]!r}")
    return lengths


#: All JSON texts.
JSON = json_rules()
