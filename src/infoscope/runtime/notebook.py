"""HTML that notebooks show of what infoscope returns; all text is escaped, for names come from files of strangers.

Colours and lines are those of the notebook, so that it reads in light and in dark themes; there are no scripts.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape

_LEFT, _RIGHT = ("text-align:left;vertical-align:top", "text-align:right;vertical-align:top")

_NO_FORMULAS = "tex2jax_ignore mathjax_ignore"
"""Else MathJax would read what stands between two dollars of a name as a formula, links in it too."""


def join(*parts: str) -> str:
    """Return parts, one below the other."""
    return f'<div class="{_NO_FORMULAS}">{"".join(parts)}</div>'


def write_title(name: str, words: str) -> str:
    """Return what something is, its type in bold."""
    return f"<p><b>{escape(name)}</b>: {escape(words)}</p>"


def write_line(words: str, code: str = "") -> str:
    """Return a sentence, after some code where there is."""
    return f"<p>{f'<code>{escape(code)}</code> ' if code else ''}{escape(words)}</p>"


def write_facts(facts: Mapping[str, str]) -> str:
    """Return texts by heading, a row each; their lines stay lines."""
    rows = (
        f'<tr><th style="{_LEFT}">{escape(name)}</th><td style="{_LEFT}">{_break(text)}</td></tr>'
        for name, text in facts.items()
    )
    return f"<table>{''.join(rows)}</table>"


def write_table(headings: Sequence[str], rows: Iterable[Sequence[str]], n_texts: int = 1) -> str:
    """Return a table whose first `n_texts` columns hold text, to the left, and the others numbers, to the right."""

    def write_row(cells: Sequence[str], tag: str) -> str:
        styles = (_LEFT if place < n_texts else _RIGHT for place in range(len(cells)))
        return "".join(
            f'<{tag} style="{style}">{escape(cell)}</{tag}>' for cell, style in zip(cells, styles, strict=True)
        )

    body = "".join(f"<tr>{write_row(row, 'td')}</tr>" for row in rows)
    return f"<table><thead><tr>{write_row(headings, 'th')}</tr></thead><tbody>{body}</tbody></table>"


def write_picture(png: bytes, words: str, width_px: int) -> str:
    """Return a picture, which the page holds itself, with words for those who do not see it."""
    data = b64encode(png).decode()
    return f'<img src="data:image/png;base64,{data}" alt="{escape(words)}" width="{width_px}">'


def _break(text: str) -> str:
    return "<br>".join(escape(line) for line in text.splitlines())
