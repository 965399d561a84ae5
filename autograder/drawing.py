"""The picture of an assembled library: a GPT, and which of its parts are whose."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

if TYPE_CHECKING:
    from autograder.assembling import Part

# Told apart by more than the colour: what is yours is filled, the reference an outline.
YOURS, REFERENCE, INK = "#0072b2", "#6b7178", "#1f2328"


@dataclass(frozen=True)
class Box:
    """A place in the model, and the symbols of the library that stand in it.

    Args:
        title: what it does.
        symbols: as `module.name`.
    """

    title: str
    symbols: tuple[str, ...]


#: From the text that goes in, at the bottom, to the token that comes out.
BEFORE = (
    Box("text to ids, and back", ("tokens.train_bpe", "tokens.encode", "tokens.decode")),
    Box(
        "ids to vectors, with their positions",
        ("embeddings.Embedding", "positional_encoding.LearnedPositions"),
    ),
)
BLOCK = (
    Box("a norm ahead of each sublayer", ("residuals_and_norms.LayerNorm",)),
    Box(
        "every token asks those before it",
        (
            "multi_head_attention.MultiHeadAttention",
            "multi_head_attention.split_heads",
            "multi_head_attention.merge_heads",
        ),
    ),
    Box("each token by itself", ("feed_forward.FeedForward",)),
    Box("both added to the residual stream", ("residuals_and_norms.residual",)),
    Box("the block, and how it starts", ("gpt.Block", "residuals_and_norms.init_scale")),
)
AFTER = (
    Box("vectors to logits", ("embeddings.TiedHead",)),
    Box("the model, which writes one token after another", ("gpt.GPT", "gpt.generate")),
    Box(
        "what trains it",
        (
            "training.get_batch",
            "training.cross_entropy",
            "training.clip_grad_norm",
            "training.AdamW",
            "training.cosine_schedule",
            "training.train",
        ),
    ),
)

WIDTH = 6.4  # inches of the model's column; the chapters' is beside it
CHIP, GAP = 0.26, 0.09  # a symbol's height, and what is between two
LETTER = 0.073  # width of one, at the size that symbols have


def draw(parts: Sequence[Part], path: Path) -> None:
    """Write the picture as SVG.

    Args:
        parts: all of the library; what the model has no place for is shown with its chapter.
        path: the file.
    """
    chapters: dict[str, list[Part]] = {}
    for part in parts:
        chapters.setdefault(part.exercise.chapter.slug, []).append(part)
    known = {part.exercise.symbol: part for part in parts}
    height = max(_height(known), 0.42 * len(chapters) + 0.9) + 1.2
    # Letters stay letters, so that the picture can be read aloud and searched.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "parts", "font.family": "sans-serif"}):
        figure = Figure(figsize=(WIDTH + 4.6, height), facecolor="white")
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, WIDTH + 4.6), ylim=(0, height))
        axes.set_axis_off()
        yours = sum(part.yours for part in parts)
        title = f"Your transformer: {yours} of {len(parts)} parts are yours"
        axes.text(0.3, height - 0.4, title, fontsize=15, fontweight="bold", color=INK)
        _chip(axes, 0.3, height - 0.85, "yours", True)
        _chip(axes, 0.3 + _width("yours") + GAP, height - 0.85, "the course's", False)
        _model(axes, known)
        axes.text(0.3, height - 1.3, "The GPT, from the text up", fontsize=11, color=INK)
        _chapters(axes, chapters, height - 1.3)
        figure.savefig(path, format="svg", metadata={"Title": title, "Date": None})


def _model(axes: Axes, known: dict[str, Part]) -> None:
    y = 0.3
    for boxes, frame in ((BEFORE, ""), (BLOCK, "one block of L"), (AFTER, "")):
        bottom = y
        y += 0.14 if frame else 0
        for box in boxes:
            y = _box(axes, box, known, y)
        if frame:
            edge = FancyBboxPatch(
                (0.2, bottom + 0.02), WIDTH - 0.35, y - bottom - 0.02, boxstyle="round,pad=0.05"
            )
            edge.set(facecolor="none", edgecolor=REFERENCE, linewidth=1)
            axes.add_patch(edge)
            axes.text(WIDTH - 0.25, y - 0.02, frame, ha="right", va="top", fontsize=9, color=INK)
            y += 0.2


def _box(axes: Axes, box: Box, known: dict[str, Part], y: float) -> float:
    """Draw a box with its lower edge at y. Returns where the next one begins."""
    lines = _lines(box, known)
    for line in reversed(lines):
        x = 0.4
        for symbol in line:
            name = symbol.rpartition(".")[2]
            _chip(axes, x, y, name, known[symbol].yours)
            x += _width(name) + GAP
        y += CHIP + GAP
    if lines:
        axes.text(0.4, y, box.title, fontsize=9, color=INK, va="bottom")
        y += 0.3
    return y


def _lines(box: Box, known: dict[str, Part]) -> list[list[str]]:
    """The symbols of a box that the library has, in lines that fit."""
    lines: list[list[str]] = []
    x = WIDTH
    for symbol in (s for s in box.symbols if s in known):
        width = _width(symbol.rpartition(".")[2]) + GAP
        if x + width > WIDTH - 0.4:
            lines.append([])
            x = 0.4
        lines[-1].append(symbol)
        x += width
    return lines


def _height(known: dict[str, Part]) -> float:
    rows = [len(_lines(box, known)) for box in (*BEFORE, *BLOCK, *AFTER)]
    return 0.7 + sum(n * (CHIP + GAP) + 0.3 for n in rows if n)


def _chapters(axes: Axes, chapters: dict[str, list[Part]], top: float) -> None:
    """A line for each chapter, and in it a square for each of its parts."""
    axes.text(WIDTH + 0.3, top, "All parts, chapter by chapter", fontsize=11, color=INK)
    for i, (slug, parts) in enumerate(chapters.items()):
        y = top - 0.42 * (i + 1)
        label = f"{slug[:2]} {parts[0].exercise.chapter.title}"
        axes.text(WIDTH + 0.3, y + 0.05, label, fontsize=8.5, color=INK)
        for j, part in enumerate(parts):
            _patch(axes, WIDTH + 0.3 + 0.2 * j, y - 0.14, 0.13, 0.13, part.yours)


def _width(name: str) -> float:
    return LETTER * len(name) + 0.2


def _patch(axes: Axes, x: float, y: float, width: float, height: float, yours: bool) -> None:
    patch = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.05")
    patch.set(facecolor=YOURS if yours else "white", edgecolor=YOURS if yours else REFERENCE)
    patch.set(linestyle="-" if yours else "--", linewidth=1)
    axes.add_patch(patch)


def _chip(axes: Axes, x: float, y: float, name: str, yours: bool) -> None:
    _patch(axes, x, y, _width(name), CHIP, yours)
    text = axes.text(x + _width(name) / 2, y + CHIP / 2, name, ha="center", va="center")
    text.set(fontsize=8.5, family="monospace", color="white" if yours else INK)


def placed() -> list[str]:
    """The symbols that have a place in the model."""
    return [symbol for box in (*BEFORE, *BLOCK, *AFTER) for symbol in box.symbols]
