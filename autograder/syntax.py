"""Read a learner's cells without running them."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import re
import symtable
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

MAGIC = re.compile(
    r"^([ \t]*)(?:[\w, \t]+=[ \t]*)?(?:[%!]|\?).*$|^([ \t]*)[\w.]+\?{1,2}[ \t]*$", re.M
)
#: Ways to reach a name without writing it where it can be read.
HIDDEN = {"eval", "exec", "compile", "globals", "locals", "vars", "setattr", "__import__"}
HIDDEN |= {"attrgetter", "methodcaller", "import_module", "__dict__", "__getattribute__"}
HIDDEN |= {"__code__", "__globals__", "__builtins__", "_getframe"}
LOOKUPS = ("getattr", "attrgetter", "methodcaller", "__getattribute__")
NAMESPACE = re.compile(r"(__dict__|vars\(.*\)|globals\(\)|locals\(\))$")


def without_magics(source: str) -> str:
    """A cell with `pass` in place of IPython's magics, shell lines and questions.

    A cell that begins with a magic of the whole cell is dropped, unless that magic would only
    time it or catch its output.
    """
    first, _, rest = source.lstrip("\n").partition("\n")
    if first.startswith("%%"):
        source = "\n" + rest if re.match(r"%%(time|timeit|capture)\b", first) else ""
    return MAGIC.sub(lambda m: (m[1] or m[2] or "") + "pass", source)


def parsed(source: str) -> ast.Module | None:
    """A cell's syntax tree, magics left out; None if Python cannot read it."""
    for text in (source, without_magics(source)):
        try:
            return ast.parse(text)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            continue
    return None


@dataclass
class Use:
    """A forbidden name in a cell: what was written, and in which line (from 1)."""

    name: str
    line: int


def source_of(answer: Callable) -> str | None:
    """The whole text of the cell that defines a function or class; None if it is not known."""
    code = getattr(inspect.unwrap(answer), "__code__", None)
    if code is None and isinstance(answer, type):
        methods = [v for v in vars(answer).values() if inspect.isfunction(v)]
        code = methods[0].__code__ if methods else None
    if code is None:
        return None
    lines = linecache.getlines(code.co_filename)
    return "".join(lines) or None


def forbidden_uses(source: str, forbidden: Iterable[str], module: str = "") -> list[Use]:
    """Where a cell uses what the exercise rules out.

    A name is forbidden as an attribute (`torch.softmax`, `x.softmax`), as an import, and as a
    literal that Python looks names up by (`getattr(torch, "softmax")`, a key, a text for `eval`);
    the bare name is not, for the learner's own function may bear it.

    Args:
        source: the text of the cell.
        forbidden: dotted names; only the last part counts (`torch.softmax` also rules out
            `F.softmax` and `x.softmax`). An operator is given as itself: `@`.
        module: a module that may not be imported from, with all that is in it
            (the reference solution of the same chapter).
    """
    tree = parsed(source)
    return [] if tree is None else _uses_in([tree], tuple(forbidden), module)


def uses_behind(
    name: str, cells: Sequence[str], forbidden: Iterable[str], module: str = ""
) -> list[Use]:
    """Where code that stands behind a name uses what the exercise rules out.

    That is each statement of these cells that binds the name, or a name which such a statement
    reads, and so on: a helper is part of the answer, a cell that only compares with the ruled-out
    function is not.

    Args:
        name: of the exercise.
        cells: texts of the learner's cells, without the exercise's own (`forbidden_uses`).
        forbidden: as there.
        module: as there.
    """
    binding: dict[str, list[tuple[ast.stmt, frozenset[str]]]] = {}
    for cell in cells:
        for statement, names, read in _statements(cell):
            for bound in names:
                binding.setdefault(bound, []).append((statement, read))
    behind = [statement for statement, _ in binding.get("*", [])]
    todo, seen = [name], {name}
    while todo:
        for statement, read in binding.get(todo.pop(), []):
            if statement in behind:
                continue
            behind.append(statement)
            todo += read - seen
            seen |= read
    return _uses_in(behind, tuple(forbidden), module)


def hidden_ways(source: str) -> list[str]:
    """What a cell uses of the ways by which Python reaches a name that is not written there."""
    tree = parsed(source)
    found = set()
    for node in ast.walk(tree) if tree else ():
        name = getattr(node, "attr", None) or getattr(node, "id", None)
        if isinstance(node, (ast.Attribute, ast.Name)) and name in HIDDEN:
            found.add(name)
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", "") == "getattr"
            and len(node.args) > 1
            and not isinstance(node.args[1], ast.Constant)
        ):
            found.add("getattr")
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names} & HIDDEN
    return sorted(found)


@functools.lru_cache(1_000)  # the cells of a notebook are looked at for every exercise
def _statements(cell: str) -> list[tuple[ast.stmt, frozenset[str], frozenset[str]]]:
    """A cell's statements, each with the names of the notebook that it binds and reads."""
    tree = parsed(cell)
    return [(s, *map(frozenset, globals_of(s))) for s in (tree.body if tree else ())]


def globals_of(statement: ast.stmt) -> tuple[set[str], set[str]]:
    """The names of the notebook that a statement binds, and those that it reads.

    What is local to a function or a class in it is neither.
    """
    try:
        tables = [symtable.symtable(ast.unparse(statement), "cell", "exec")]
    except (SyntaxError, ValueError, RecursionError):
        tables = []  # a cell that cannot be compiled defines nothing
    bound: set[str] = set()
    read: set[str] = set()
    while tables:
        table = tables.pop()
        tables += table.get_children()
        for symbol in table.get_symbols():
            if table.get_type() == "module" or symbol.is_global():
                if symbol.is_assigned() or symbol.is_imported():
                    bound.add(symbol.get_name())
                if symbol.is_referenced():
                    read.add(symbol.get_name())
    for node in ast.walk(statement):
        if isinstance(node, (ast.Attribute, ast.Subscript)) and isinstance(node.ctx, ast.Store):
            # `Model.forward = ...` changes what `Model` is.
            base = node.value
            while isinstance(base, (ast.Attribute, ast.Subscript)):
                base = base.value
            if isinstance(base, ast.Name) and base.id in read:
                bound.add(base.id)
        elif isinstance(node, ast.ImportFrom) and any(a.name == "*" for a in node.names):
            bound.add("*")
    return bound, read


def _uses_in(trees: Iterable[ast.AST], forbidden: tuple[str, ...], module: str) -> list[Use]:
    operators = {"@": ast.MatMult}
    names = {f.rsplit(".", 1)[-1] for f in forbidden if f not in operators}
    ruled_out = tuple(operators[f] for f in forbidden if f in operators)
    uses: list[Use] = []
    trees = list(trees)
    everything = any(
        alias.name == "*"
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    )
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and node.attr in names:
            uses.append(Use(ast.unparse(node), node.lineno))
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            uses += [
                Use(f"{origin}.{alias.name}", node.lineno)
                for alias in node.names
                if alias.name in names or (module and _within(f"{origin}.{alias.name}", module))
            ]
        elif isinstance(node, ast.Import):
            uses += [
                Use(alias.name, node.lineno)
                for alias in node.names
                if alias.name.rsplit(".", 1)[-1] in names
                or (module and _within(alias.name, module))
            ]
        elif isinstance(node, (ast.BinOp, ast.AugAssign)) and isinstance(node.op, ruled_out):
            uses.append(Use(ast.unparse(node), node.lineno))
        elif isinstance(node, ast.Call):
            uses += _by_literal(node, node.args, names, ruled_out)
            # After `from torch import *` a bare name may be torch's.
            if everything and isinstance(node.func, ast.Name) and node.func.id in names:
                uses.append(Use(node.func.id, node.lineno))
        elif isinstance(node, ast.Subscript) and NAMESPACE.search(ast.unparse(node.value)):
            uses += _by_literal(node, [node.slice], names, ruled_out)
    return sorted(uses, key=lambda use: use.line)


def _within(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


def _by_literal(node: ast.expr, given: list[ast.expr], names: set[str], operators: tuple) -> list:
    """Uses through a text: that names it, or that is code for `eval` and its like."""
    looked_up = ast.unparse(getattr(node, "func", node)).rsplit(".", 1)[-1]
    texts = [g.value for g in given if isinstance(g, ast.Constant) and isinstance(g.value, str)]
    if isinstance(node, ast.Subscript) or looked_up in LOOKUPS:
        return [Use(ast.unparse(node), node.lineno) for t in texts if t.split(".")[-1] in names]
    if looked_up in ("eval", "exec", "compile", "import_module", "__import__"):
        for text in texts:
            tree = parsed(text)
            if any(re.search(rf"\b{re.escape(name)}\b", text) for name in names) or (
                tree is not None and operators and _uses_in([tree], ("@",), "")
            ):
                return [Use(ast.unparse(node)[:80], node.lineno)]
    return []
