"""What nbgrader's feedback needs to be read anywhere: no script, no address of our own server."""

from __future__ import annotations

import functools
import html
from typing import Any

from docutils.utils.math import latex2mathml
from nbconvert.exporters import HTMLExporter, TemplateExporter
from nbconvert.filters import Highlight2HTML
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from nbconvert.filters.widgetsdatatypefilter import WidgetsDataTypeFilter
from nbformat import NotebookNode


class Renderer(IPythonRenderer):
    """nbconvert's renderer, with MathML, which browsers draw by themselves, for formulas."""

    def block_math(self, body: str) -> str:
        return _mathml(body, block=True)

    def inline_math(self, body: str) -> str:
        return _mathml(body, block=False)

    def link(self, text: str, url: str, title: str | None = None) -> str:
        # The book and JupyterLab are not there where feedback is read.
        return text if url.startswith(("/", ".")) else super().link(text, url, title)

    def latex_environment(self, name: str, body: str) -> str:
        return _mathml(f"\\begin{{{name}}}{body}\\end{{{name}}}", block=True)


def _mathml(tex: str, block: bool) -> str:
    try:
        return latex2mathml.tex2mathml(tex, as_block=block)
    except Exception:  # the parser's errors are many; the formula's text is better than none
        return f"<code>{html.escape(tex)}</code>"


@functools.lru_cache(1_000)  # a class's submissions share most of their cells
def markdown(source: str) -> str:
    """A markdown cell as HTML."""
    renderer = Renderer(escape=False, exclude_anchor_links=True)
    return MarkdownWithMath(renderer=renderer).render(source)


@functools.lru_cache(1_000)
def _highlighted(source: str) -> str:
    return Highlight2HTML(pygments_lexer="ipython3")(source)


def highlighted(source: str, metadata: Any = None) -> str:
    """A code cell's text as HTML."""
    return _highlighted(source)


class PageExporter(HTMLExporter):
    """nbconvert's, without its last step: it reads the finished page again, to mark what may have
    the focus in a template that is not ours, which takes as long as all the rest.
    """

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict | None = None, **kw: Any
    ) -> tuple[str, dict]:
        """The page of a notebook, and nbconvert's resources."""
        resources = self._init_resources(resources)
        kept = WidgetsDataTypeFilter(
            notebook_metadata=self._nb_metadata, parent=self, resources=resources
        )
        self.register_filter("highlight_code", highlighted)
        self.register_filter("filter_data_type", kept)
        return TemplateExporter.from_notebook_node(self, nb, resources, **kw)
