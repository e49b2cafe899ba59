"""Tables in LaTeX's booktabs style, from text that may hold anything."""

from __future__ import annotations

from collections.abc import Sequence

_ESCAPES = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "\N{MINUS SIGN}": r"$-$",
    "\N{EN DASH}": "--",
    "\N{MULTIPLICATION SIGN}": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "\N{GREEK SMALL LETTER GAMMA}": r"$\gamma$",
    "δ": r"$\delta$",
    "μ": r"$\mu$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "∅": r"$\emptyset$",
    "°": r"\textdegree{}",
    "†": r"\textdagger{}",
    "‡": r"\textdaggerdbl{}",
    "\n": " ",
}


def escape_latex(text: str) -> str:
    r"""Return text that LaTeX prints as it stands; symbols outside ASCII become commands of the standard fonts.

    >>> escape_latex("50 % of d_sae ± 1")
    '50 \\% of d\\_sae $\\pm$ 1'
    """
    return "".join(_ESCAPES.get(character, character) for character in text)


def make_latex(
    name: str,
    title: str,
    headings: Sequence[str],
    aligns: Sequence[str],
    sections: Sequence[tuple[str, Sequence[Sequence[str]]]],
    notes: Sequence[str],
) -> str:
    r"""Return a `table` environment; `aligns` holds `l` or `r` for each column, a section is (title, rows).

    Without columns it holds the notes alone.
    """
    rows = [_row(headings)]
    for section_title, section in sections:
        rows.append(r"\midrule")
        if section_title:
            rows.append(rf"\multicolumn{{{len(headings)}}}{{l}}{{\emph{{{escape_latex(section_title)}}}}} \\")
        rows += [_row(cells) for cells in section]
    lines = [
        r"\begin{table}[t]",
        r"\centering",
        rf"\caption{{{escape_latex(title)}}}",
        rf"\label{{tab:{name.replace('_', '-')}}}",
    ]
    if headings:
        begin = rf"\begin{{tabular}}{{@{{}}{''.join(aligns)}@{{}}}}"
        lines += [begin, r"\toprule", *rows, r"\bottomrule", r"\end{tabular}"]
    if notes:
        lines += [r"\par\smallskip", r"{\footnotesize\raggedright", *[rf"{escape_latex(n)}\par" for n in notes], "}"]
    return "\n".join([*lines, r"\end{table}"]) + "\n"


def _row(cells: Sequence[str]) -> str:
    # A row that begins with "[" would be read as the optional argument of the \\ before it.
    return " & ".join("{}" + text if text.startswith("[") else text for text in map(escape_latex, cells)) + r" \\"
