"""The figures of the book: readable by everyone, in light and dark, the same bytes every time."""

import importlib
import itertools
import json
import re
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from solutions.decoding import temperature, top_k, top_p

# What red-, green- and blue-blind eyes see, as maps on linear RGB (Machado, Oliveira and Fernandes
# 2009, severity 1).
COLOUR_BLIND = {
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.fixture(scope="module")
def figures(root):
    sys.path.insert(0, str(root / "book"))
    try:
        yield importlib.import_module("figures")
    finally:
        sys.path.remove(str(root / "book"))


@pytest.fixture(autouse=True)
def _no_figure_left_open():
    yield
    left = plt.get_fignums()
    plt.close("all")
    assert not left, "a figure was left open, and a notebook would show it a second time"


def line(ys=(1, 3, 2), **figure):
    fig, ax = plt.subplots(**figure)
    ax.plot(ys)
    ax.set(xlabel="step", ylabel="loss", title="A line")
    return fig


def lab(colour, blind=None):
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if blind:
        linear = np.clip(np.array(COLOUR_BLIND[blind]) @ linear, 0, 1)
    xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ) @ linear / np.array([0.9505, 1.0, 1.089])  # fmt: skip
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_contrast_agrees_with_known_values(figures):
    assert figures.contrast("#000", "#fff") == pytest.approx(21)
    assert figures.contrast("#777", "#fff") == pytest.approx(4.478, abs=1e-3)
    assert figures.contrast("#abc", "#abc") == pytest.approx(1)


def test_every_colour_stands_out_from_both_backgrounds(figures):
    for name, colour in figures.PALETTE.items():
        for theme, background in figures.BACKGROUNDS.items():
            ratio = figures.contrast(colour, background)
            assert ratio >= 3, f"{name} on {theme}: {ratio:.2f}"


@pytest.mark.parametrize("blind", [None, *COLOUR_BLIND])
def test_colours_differ_for_every_kind_of_eye(figures, blind):
    for one, other in itertools.combinations(figures.PALETTE, 2):
        distance = np.linalg.norm(
            lab(figures.PALETTE[one], blind) - lab(figures.PALETTE[other], blind)
        )
        assert distance > 8, f"{one} and {other} for {blind or 'typical'}: {distance:.1f}"


def test_lines_differ_by_their_dashes_as_well(figures):
    styles = [str(style["linestyle"]) for style in figures.STYLE["axes.prop_cycle"]]
    assert len(set(styles)) == len(figures.PALETTE)


def test_the_numbers_in_a_heatmap_stand_out_from_their_cells(figures):
    """Text is white on full cells and the page's text colour on others; 3:1 at least everywhere."""
    text = {"light": "#323232", "dark": "#ced6dd"}  # the theme's text
    for cmap in (figures.WEIGHTS, figures.SIGNED):
        for theme, background in figures.BACKGROUNDS.items():
            for level in np.linspace(0, 1, 41):
                *rgb, alpha = cmap(level)
                cell = alpha * np.array(rgb) + (1 - alpha) * np.array(to_rgb(background))
                ink = "#ffffff" if alpha > figures.FULL else text[theme]
                assert figures.contrast(tuple(cell), ink) >= 3, (cmap.name, theme, level)


@pytest.mark.parametrize("alt", [None, "", "   ", "a plot", 3])
def test_a_figure_without_a_sentence_of_alt_text_is_refused(figures, alt):
    fig = line()
    with pytest.raises(ValueError, match="alt="):
        figures.show(fig, alt=alt)
    plt.close(fig)


def test_a_figure_is_one_svg_that_takes_the_page_s_colours(figures):
    html = figures.show(line(), alt='It rises, then "falls" & ends.')._repr_html_()
    assert html.count("<svg ") == 1
    assert 'role="img"' in html
    assert 'aria-label="It rises, then &quot;falls&quot; &amp; ends."' in html
    assert re.search(r'viewBox="0 0 460\.8 259\.2"', html)
    assert "currentColor" in html
    assert "#000000" not in html and figures.PAPER not in html
    assert "DejaVu" not in html
    assert "<script" not in html and "onclick" not in html
    assert set(re.findall(r"https?://[^/\"]+", html)) == {"http://www.w3.org"}


def test_formulas_are_drawn_and_need_no_font(figures):
    fig = line()
    fig.axes[0].set_xlabel(r"$\sqrt{d}$")
    html = figures.show(fig, alt="A line that rises and falls")._repr_html_()
    assert "<text" not in html


def test_the_same_figure_gives_the_same_bytes(figures):
    figures._seen.clear()
    first = figures.show(line(), alt="A line that rises and falls").source
    figures._seen.clear()
    assert figures.show(line(), alt="A line that rises and falls").source == first


def test_no_id_is_used_twice_on_a_page_and_every_reference_has_its_target(figures):
    def matrix():
        fig, ax = plt.subplots()
        figures.heatmap(ax, np.eye(4), mask=np.tril(np.ones((4, 4))))
        return fig

    page = "".join(
        [
            figures.show(matrix(), alt="Four cells are full").source,
            figures.show(matrix(), alt="Four cells are full").source,
            figures.slider(
                [line(), line(), matrix_sized(matrix)],
                label="x", values="abc", alt="A line, a line, a matrix",
            ).source,
        ]
    )  # fmt: skip
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:url\(#|href="#| for=")([^)"]+)', page))
    assert used and used <= set(ids)


def matrix_sized(make):
    fig = make()
    fig.set_size_inches(6.4, 3.6)
    return fig


def test_a_slider_shows_its_start_and_describes_every_frame(figures):
    alts = ["The first of them", "The second of them", "The third of them"]
    html = figures.slider(
        [line((0, k)) for k in range(3)], label="Scale", values=[0.5, 1, 2], alt=alts, start=1
    )._repr_html_()
    frames = re.findall(r'<g class="frame"( display="none")?>', html)
    assert frames == [' display="none"', "", ' display="none"']
    assert 'type="range"' in html and 'max="2"' in html and 'value="1"' in html
    assert 'aria-label="The second of them"' in html
    data = json.loads(re.search(r'data-slider="([^"]+)"', html).group(1).replace("&quot;", '"'))
    assert data == {"values": ["0.5", "1", "2"], "alts": alts}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": [1]}, "2 frames, 1 values"),
        ({"alt": ["only one of two"]}, "1 alt texts"),
        ({"start": 2}, "start=2"),
        ({"label": " "}, "label"),
        ({"alt": ["one is fine here", ""]}, "alt="),
    ],
)
def test_a_slider_refuses_what_does_not_fit(figures, change, message):
    frames = [line(), line()]
    with pytest.raises(ValueError, match=message):
        figures.slider(
            frames, **{"label": "k", "values": [1, 2], "alt": "a line in a box", **change}
        )
    plt.close("all")


def test_a_sampler_shows_its_start_and_says_so(figures):
    tokens, logits = ["red", "<blue>", "green"], [1.0, 0.5, -2.0]
    html = figures.sampler(tokens, logits, t=2.0, k=2)._repr_html_()
    assert html.count('class="bar"') == 3 and html.count('type="range"') == 3
    assert "&lt;blue&gt;" in html and "<blue>" not in html
    assert html.count(">out</text>") == 1
    assert "2 of 3 tokens are left. The most likely, red, has 56.2 %" in html
    data = json.loads(re.search(r'data-sampler="([^"]+)"', html).group(1).replace("&quot;", '"')
                      .replace("&lt;", "<").replace("&gt;", ">"))  # fmt: skip
    assert data == {"tokens": tokens, "logits": logits}


def test_a_sampler_refuses_what_does_not_fit(figures):
    for tokens, logits in ((["a"], [1.0, 0.0]), ([], []), (["a", "b"], [0.0, 1.0])):
        with pytest.raises(ValueError, match="logits"):
            figures.sampler(tokens, logits)


@pytest.mark.parametrize("t", [0.3, 1.0, 2.5])
@pytest.mark.parametrize("k", [1, 4, 12])
@pytest.mark.parametrize("p", [0.1, 0.7, 1.0])
def test_a_sampler_computes_what_chapter_15_does(figures, t, k, p):
    logits = torch.randn(12, generator=torch.Generator().manual_seed(1)).double()
    logits = logits.sort(descending=True).values
    found = figures.sampled(logits.tolist(), t, k, p)
    expected = top_p(top_k(temperature(logits, t), k), p).softmax(-1)
    assert found == pytest.approx(expected.tolist(), abs=1e-12)


def test_a_slider_needs_frames_of_one_size(figures):
    with pytest.raises(ValueError, match="at least one"):
        figures.slider([], label="k", values=[], alt=[])
    with pytest.raises(ValueError, match="one size"):
        figures.slider(
            [line(), line(figsize=(3, 3))], label="k", values=[1, 2], alt="a line in a box"
        )


def test_a_heatmap_writes_allowed_numbers_and_takes_tensors(figures):
    fig, ax = plt.subplots()
    mask = torch.tril(torch.ones(2, 2)).bool()
    matrix = torch.tensor([[0.25, 7.0], [-0.5, 0.75]], requires_grad=True)
    figures.heatmap(ax, matrix, rows=["a", "b"], columns=["c", "d"], mask=mask)
    html = figures.show(fig, alt="Three numbers under a triangle").source
    words = re.findall(r"<text[^>]*>([^<]+)</text>", html)
    assert {"0.25", "−0.50", "0.75", "a", "b", "c", "d"} <= set(words)
    assert "7.00" not in words


def test_a_large_heatmap_stays_small(figures):
    fig, ax = plt.subplots()
    figures.heatmap(ax, np.random.default_rng(0).random((128, 128)))
    assert len(figures.show(fig, alt="Noise in a large square").source) < 200_000


def test_a_heatmap_refuses_what_does_not_fit(figures):
    fig, ax = plt.subplots()
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        figures.heatmap(ax, np.zeros(3))
    with pytest.raises(ValueError, match="1 rows labels for 2 rows"):
        figures.heatmap(ax, np.zeros((2, 2)), rows=["a"])
    with pytest.raises(ValueError, match="mask of shape"):
        figures.heatmap(ax, np.zeros((2, 2)), mask=np.ones((2, 3)))
    plt.close(fig)


def test_missing_results_name_the_command_that_makes_them(figures):
    with pytest.raises(FileNotFoundError, match="course.py experiment 99_nothing"):
        figures.results("99_nothing")
