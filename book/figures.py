"""Figures of the book: one style, inline SVG that reads in light and dark, alt text always.

Pages import it by name (`import figures`), since they are executed in this folder. Importing it
sets matplotlib's style; `show` and `slider` turn matplotlib figures into SVG that takes the text
colour of the page, so there is one picture for both themes.
"""

from __future__ import annotations

import hashlib
import html
import io
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.text import Text

# The hues of Okabe and Ito (2008), their lightness moved to the band that stands out by 3:1 from
# white as well as from the dark theme's background (WCAG 2.2, 1.4.11).
PALETTE = {
    "blue": "#0072b2",
    "orange": "#c77700",
    "green": "#009e73",
    "red": "#d1495b",
    "purple": "#9a63c4",
    "grey": "#7a7f87",
}
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = PALETTE.values()

INK = "#000000"  # becomes the page's text colour
PAPER = "#fefefe"  # becomes the page's background
BACKGROUNDS = {"light": "#ffffff", "dark": "#121212"}  # of the book's theme

_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
_RESULTS = Path(__file__).resolve().parent.parent / "experiments" / "results"

STYLE = {
    "figure.figsize": (6.4, 3.6),
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": False,
    # A line is told from another by its dashes as well as by its colour.
    "axes.prop_cycle": cycler(color=list(PALETTE.values())) + cycler(linestyle=_DASHES),
    "font.family": "sans-serif",
    "font.size": 11,
    "grid.color": INK,
    "grid.alpha": 0.15,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.handlelength": 2.4,
    "lines.linewidth": 2.0,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "hatch.color": INK,
    "hatch.linewidth": 0.5,
    "image.interpolation": "none",
    "svg.hashsalt": "attention-to-detail",
}
mpl.rcParams.update(STYLE)

# From nothing (the page shows through) to full: zero looks like the page in either theme.
WEIGHTS = LinearSegmentedColormap.from_list(
    "weights", [to_rgba("#00629b", 0.0), to_rgba("#00629b")]
)
SIGNED = LinearSegmentedColormap.from_list(
    "signed",
    [
        (0.0, to_rgba("#a83246")),
        (0.5, to_rgba("#a83246", 0.0)),
        (0.5, to_rgba("#00629b", 0.0)),
        (1.0, to_rgba("#00629b")),
    ],
)

FULL = 0.72  # how opaque a cell must be for its number to be white

_seen: Counter[str] = Counter()


class Html:
    """A piece of HTML that Jupyter shows as such; its plain form is the alt text."""

    def __init__(self, source: str, alt: str) -> None:
        self.source, self.alt = source, alt

    def _repr_html_(self) -> str:
        return self.source

    def __repr__(self) -> str:
        return f"[figure: {self.alt}]"


def show(fig: Figure, *, alt: str) -> Html:
    """Turn a matplotlib figure into inline SVG; write it as the last line of a cell.

    The caption and the number come from the cell's metadata, so that `{numref}` finds the figure:

        ```{code-cell} ipython3
        ---
        tags: [hide-input]
        mystnb:
          figure:
            name: fig-entropy
            caption: Entropy of the weights against the head width.
        ---
        fig, ax = plt.subplots()
        ...
        figures.show(fig, alt="Two lines. The unscaled one falls to zero by width 256.")
        ```

    fig: any matplotlib figure; it is closed. Black becomes the page's text colour and `PAPER` the
        page's background.
    alt: what there is to see, for those who cannot see it.
    Raises ValueError without alt text.
    """
    alt = _checked_alt(alt)
    body, size = _svg_body(fig)
    prefix = _unique(body + alt)
    return Html(f'<div class="figure-box">{_svg(_scoped(body, prefix), size, alt)}</div>', alt)


def slider(
    frames: Sequence[Figure],
    *,
    label: str,
    values: Sequence[object],
    alt: str | Sequence[str],
    start: int = 0,
) -> Html:
    """Join figures of one size into one that is moved through with a slider, mouse or arrow keys.

    Every frame is drawn when the page is built; the page needs no network and no kernel. Keep the
    axis limits equal across frames, so that only the data moves. Without scripts, `start` is shown.

    frames: matplotlib figures, all of one size; they are closed.
    label: what the slider sets, written beside it.
    values: one for each frame, as shown to the reader.
    alt: one text for all frames, or one for each.
    start: index of the frame shown first.
    Raises ValueError for no frames, unequal counts or sizes, a start outside, or missing alt text.
    """
    frames, values = list(frames), [str(value) for value in values]
    alts = [alt] * len(frames) if isinstance(alt, str) else list(alt)
    if not frames:
        raise ValueError("a slider needs at least one frame")
    if not len(frames) == len(values) == len(alts):
        raise ValueError(
            f"as many frames, values and alt texts expected, found {len(frames)} frames,"
            f" {len(values)} values and {len(alts)} alt texts"
        )
    if not 0 <= start < len(frames):
        raise ValueError(f"start={start}: expected 0 to {len(frames) - 1}")
    if not label.strip():
        raise ValueError("a slider needs a label that says what it sets")
    alts = [_checked_alt(text) for text in alts]
    drawn = [_svg_body(fig) for fig in frames]
    sizes = {size for _, size in drawn}
    if len(sizes) > 1:
        raise ValueError(f"frames of one size expected, found {sorted(sizes)}")
    prefix = _unique("".join(body for body, _ in drawn) + label)
    groups = "".join(
        f'<g class="frame"{"" if i == start else " display=" + chr(34) + "none" + chr(34)}>'
        f"{_scoped(body, f'{prefix}-{i}')}</g>"
        for i, (body, _) in enumerate(drawn)
    )
    data = html.escape(json.dumps({"values": values, "alts": alts}), quote=True)
    control = (
        f'<div class="slider-control"><label for="{prefix}">{html.escape(label)}</label>'
        f'<input type="range" id="{prefix}" min="0" max="{len(frames) - 1}" step="1"'
        f' value="{start}" aria-valuetext="{html.escape(values[start], quote=True)}"'
        f' autocomplete="off">'
        f'<output for="{prefix}">{html.escape(values[start])}</output></div>'
    )
    picture = _svg(groups, drawn[0][1], alts[start])
    return Html(
        f'<div class="figure-slider" data-slider="{data}">'
        f'<div class="figure-box">{picture}</div>{control}</div>',
        alts[start],
    )


def sampler(
    tokens: Sequence[str], logits: Sequence[float], *, t: float = 1.0, k: int = 0, p: float = 1.0
) -> Html:
    """Bars of a next-token distribution, with sliders for temperature, top-k and top-p.

    Everything is computed in the page (`course.js`), in this order: temperature, top-k, top-p.
    Outlines show the model's own probabilities. Without scripts, the start is shown.

    tokens: what each bar is called, the most likely first.
    logits: of each, falling.
    t, k, p: the start; k = 0 keeps all.
    Raises ValueError where counts differ, or for logits that do not fall.
    """
    tokens, logits = [str(token) for token in tokens], [float(x) for x in logits]
    if len(tokens) != len(logits) or not tokens:
        raise ValueError(f"found {len(tokens)} tokens and {len(logits)} logits")
    if sorted(logits, reverse=True) != logits:
        raise ValueError("the most likely token first: the logits have to fall")
    k = k or len(tokens)
    own, drawn = sampled(logits, 1.0, len(tokens), 1.0), sampled(logits, t, k, p)
    alt = sampler_alt(tokens, drawn)
    prefix = _unique("".join(tokens) + repr(logits))
    rows = []
    for i, (token, before, now) in enumerate(zip(tokens, own, drawn)):
        y, text = 26 * i + 4, f"{100 * now:.1f} %" if now else "out"
        bar = f'x="92" y="{y}" height="18"'
        rows.append(
            f'<g class="bar"><text x="84" y="{y + 13}" text-anchor="end">{html.escape(token)}'
            f'</text><rect class="now" {bar} width="{280 * now:.2f}" fill="{BLUE}"/>'
            f'<rect {bar} width="{280 * before:.2f}" fill="none" stroke="currentColor"'
            f' stroke-width="1.2" stroke-dasharray="3 2"/><text class="value"'
            f' x="{100 + 280 * max(before, now):.2f}" y="{y + 13}">{text}</text></g>'
        )
    knobs = [
        ("t", "Temperature", 0.1, 3, 0.05, t, f"{t:.2f}"),
        ("k", "Top-k", 1, len(tokens), 1, k, str(k)),
        ("p", "Top-p", 0.02, 1, 0.02, p, f"{p:.2f}"),
    ]
    controls = "".join(
        f'<div class="slider-control"><label for="{prefix}-{name}">{label}</label>'
        f'<input type="range" id="{prefix}-{name}" name="{name}" min="{low}" max="{high}"'
        f' step="{step}" value="{value}" autocomplete="off">'
        f'<output for="{prefix}-{name}">{shown}</output></div>'
        for name, label, low, high, step, value, shown in knobs
    )
    data = html.escape(json.dumps({"tokens": tokens, "logits": logits}), quote=True)
    picture = (
        f'<svg role="img" aria-label="{html.escape(alt, quote=True)}" font-size="14"'
        f' viewBox="0 0 460 {26 * len(tokens) + 4}" width="460" fill="currentColor"'
        f' xmlns="http://www.w3.org/2000/svg">{"".join(rows)}</svg>'
    )
    return Html(
        f'<div class="figure-sampler" data-sampler="{data}">'
        f'<div class="figure-box">{picture}</div>{controls}</div>',
        alt,
    )


def sampled(logits: Sequence[float], t: float, k: int, p: float) -> list[float]:
    """Probabilities after temperature, top-k and top-p, of logits that fall.

    `course.js` has the same function.
    """
    weights = [math.exp((x - logits[0]) / t) for x in logits]
    weights = [w if x >= logits[min(k, len(logits)) - 1] else 0.0 for w, x in zip(weights, logits)]
    total, before, kept = sum(weights), 0.0, []
    for w in weights:
        kept.append(w if p >= 1 or before < p * total else 0.0)
        before += w
    return [w / sum(kept) for w in kept]


def sampler_alt(tokens: Sequence[str], drawn: Sequence[float]) -> str:
    """What there is to see in a `sampler`; `course.js` has the same."""
    left = sum(x > 0 for x in drawn)
    return (
        f"{left} of {len(tokens)} tokens are left. The most likely, {tokens[0]}, has"
        f" {100 * drawn[0]:.1f} %, the last of them {100 * min(x for x in drawn if x):.1f} %."
    )


def heatmap(
    ax: Axes,
    matrix,
    rows: Sequence[object] | None = None,
    columns: Sequence[object] | None = None,
    *,
    mask=None,
    numbers: bool | str | None = None,
    vmin: float | None = None,
    vmax: float | None = None,
) -> Axes:
    """Draw a matrix as coloured cells, row 0 on top; zero looks like the page.

    A matrix with negative numbers gets two hues, equally long on either side of zero.

    ax: where to draw.
    matrix: (R, C), tensor or array.
    rows, columns: R and C labels; None for the indices.
    mask: (R, C), True where attention is allowed; other cells are hatched and carry no number.
    numbers: write the value into each cell; True for two decimals, or a format such as ".1f".
        None writes them up to 100 cells.
    vmin, vmax: value of the palest and the fullest colour; by default 0 (or -max) and max.
    Returns ax. Raises ValueError for a matrix that is not 2-D, or labels or a mask that do not fit.
    """
    matrix = _array(matrix).astype(float)
    if matrix.ndim != 2:
        raise ValueError(f"a heatmap needs a matrix, found shape {matrix.shape}")
    n_rows, n_columns = matrix.shape
    allowed = np.ones(matrix.shape, dtype=bool) if mask is None else _array(mask).astype(bool)
    if allowed.shape != matrix.shape:
        raise ValueError(f"mask of shape {allowed.shape} for a matrix of shape {matrix.shape}")
    for name, labels, count in (("rows", rows, n_rows), ("columns", columns, n_columns)):
        if labels is not None and len(labels) != count:
            raise ValueError(f"{len(labels)} {name} labels for {count} {name}")

    seen = matrix[allowed & np.isfinite(matrix)]
    top = vmax if vmax is not None else (np.abs(seen).max() if seen.size else 1.0) or 1.0
    signed = vmin < 0 if vmin is not None else bool(seen.size and seen.min() < 0)
    bottom = vmin if vmin is not None else (-top if signed else 0.0)
    cmap, norm = (SIGNED if signed else WEIGHTS), Normalize(bottom, top, clip=True)

    drawn = np.ma.masked_where(~allowed | ~np.isfinite(matrix), matrix)
    if matrix.size <= 2500:  # one shape a cell: sharp at any zoom
        ax.pcolormesh(drawn, cmap=cmap, norm=norm, edgecolors="none", linewidth=0)
        ax.set(xlim=(0, n_columns), ylim=(n_rows, 0))
    else:
        ax.imshow(drawn, cmap=cmap, norm=norm, extent=(0, n_columns, n_rows, 0), aspect="auto")
    small = matrix.size <= 400
    if small:
        for row, column in np.argwhere(~allowed):
            ax.add_patch(Rectangle((column, row), 1, 1, fill=False, hatch="////", lw=0, alpha=0.5))
        # a thin frame around each cell, so that pale cells can be counted
        for edge in range(n_rows + 1):
            ax.axhline(edge, color=INK, lw=0.6, alpha=0.18, ls="-", clip_on=False)
        for edge in range(n_columns + 1):
            ax.axvline(edge, color=INK, lw=0.6, alpha=0.18, ls="-", clip_on=False)
    if numbers is None:
        numbers = matrix.size <= 100
    if numbers:
        fmt = numbers if isinstance(numbers, str) else ".2f"
        for row, column in np.argwhere(allowed):
            value = matrix[row, column]
            strength = cmap(norm(value))[3] if np.isfinite(value) else 0.0
            text = format(value, fmt) if np.isfinite(value) else str(value).replace("inf", "∞")
            # white where the cell is full, the page's text colour where the page shines through
            colour = "#ffffff" if strength > FULL else INK
            ax.text(column + 0.5, row + 0.5, text.replace("-", "−"), ha="center",
                    va="center_baseline", fontsize=9.5, color=colour)  # fmt: skip
    for axis, labels, count in ((ax.yaxis, rows, n_rows), (ax.xaxis, columns, n_columns)):
        if labels is None and count > 20:
            continue  # matplotlib's own few ticks
        axis.set_ticks(np.arange(count) + 0.5, [str(x) for x in (labels or range(count))])
    ax.tick_params(length=0)
    ax.xaxis.set_ticks_position("top")
    ax.xaxis.set_label_position("top")
    for spine in ax.spines.values():
        spine.set_visible(False)
    return ax


def diagram(width: float = 6.4, height: float = 2.4) -> tuple[Figure, Axes]:
    """Make a blank drawing whose units are inches, origin at the lower left, for `box` and `arrow`.

    width, height: in inches; 6.4 fills the page's column.
    """
    fig = plt.figure(figsize=(width, height), layout="none")
    ax = fig.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    return fig, ax


def box(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    *,
    width: float = 1.1,
    height: float | None = None,
    color: str = GREY,
    fontsize: float = 10.5,
) -> tuple[float, float]:
    """Draw a rounded box with text around the centre (x, y), all in the units of `diagram`.

    height: by default what the lines of text need.
    Returns the centre, so that `arrow` can use it.
    """
    if height is None:
        height = 0.22 + 0.2 * len(text.splitlines())
    ax.add_patch(
        FancyBboxPatch(
            (x - width / 2, y - height / 2), width, height,
            boxstyle="round,pad=0,rounding_size=0.07",
            facecolor=to_rgba(color, 0.16), edgecolor=color, linewidth=1.3,
        )
    )  # fmt: skip
    ax.text(x, y, text, ha="center", va="center", fontsize=fontsize, linespacing=1.25)
    return x, y


def arrow(
    ax: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    *,
    color: str = INK,
    bend: float = 0.0,
    width: float = 1.3,
    style: str = "-",
) -> None:
    """Draw an arrow from start to end in data units, with a small text at its middle.

    bend: 0 for straight, ±0.3 for a gentle arc. width: in points. style: a line style.
    """
    ax.annotate(
        "", xy=end, xytext=start,
        arrowprops={
            "arrowstyle": "-|>,head_width=0.22,head_length=0.42", "color": color, "lw": width,
            "ls": style, "connectionstyle": f"arc3,rad={bend}", "shrinkA": 0, "shrinkB": 0,
        },
    )  # fmt: skip
    if text:
        middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
        ax.annotate(text, middle, xytext=(0, 4), textcoords="offset points", ha="center",
                    va="bottom", fontsize=9.5)  # fmt: skip


def results(name: str) -> dict:
    """Load what `experiments/<name>.py` recorded.

    name: such as "04_scaling".
    Raises FileNotFoundError that says which command records it.
    """
    path = _RESULTS / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"no recorded results for {name!r}: run `python3 course.py experiment {name}`"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def contrast(one: str, other: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2.2, relative luminance)."""

    def luminance(colour: str) -> float:
        linear = [
            c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgba(colour)[:3]
        ]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    pale, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (pale + 0.05) / (dark + 0.05)


def _checked_alt(alt: str) -> str:
    if not isinstance(alt, str) or len(alt.split()) < 3:
        raise ValueError(f"alt={alt!r}: expected a sentence that says what there is to see")
    return " ".join(alt.split())


def _array(values) -> np.ndarray:
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _unique(text: str) -> str:
    """An id that depends on the content alone, and differs for a second copy on the same page."""
    digest = hashlib.sha256(text.encode()).hexdigest()[:10]
    _seen[digest] += 1
    return f"f{digest}" + (f"-{_seen[digest]}" if _seen[digest] > 1 else "")


def _svg_body(fig: Figure) -> tuple[str, tuple[float, float]]:
    """The figure's SVG without its outer element, in the page's colours; its size in points."""
    buffer = io.StringIO()
    # Text stays text, except where there is a formula: its pieces are placed for one font.
    formula = any("$" in text.get_text() for text in fig.findobj(Text))
    style = {**STYLE, "svg.fonttype": "path" if formula else "none"}
    with mpl.rc_context(style):
        fig.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    plt.close(fig)
    text = buffer.getvalue()
    width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text).groups())
    body = text[text.index(">", text.index("<svg")) + 1 : text.rindex("</svg>")]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r">\s+<", "><", body).strip()
    body = body.replace("xlink:href", "href")
    body = re.sub(r"(fill|stroke): #000000", r"\1: currentColor", body)
    body = re.sub(f"(fill|stroke): {PAPER}", r"\1: var(--pst-color-background, #fff)", body)
    # Without a family, text is in the page's font; matplotlib would name one that few readers have.
    body = re.sub(r"font-family: 'DejaVu Sans',[^;\"]+; ?", "", body)
    body = re.sub(r' transform="rotate\(-0 [^"]+"', "", body)
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', body))
    body = re.sub(
        r' id="([^"]+)"', lambda found: found.group(0) if found.group(1) in used else "", body
    )
    return body, (width, height)


def _scoped(body: str, prefix: str) -> str:
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{prefix}-", body)


def _svg(body: str, size: tuple[float, float], alt: str) -> str:
    width, height = size
    label = html.escape(alt, quote=True)
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {width:g} {height:g}"'
        f' width="{width * 4 / 3:.0f}" fill="currentColor" xmlns="http://www.w3.org/2000/svg">'
        f"{body}</svg>"
    )
