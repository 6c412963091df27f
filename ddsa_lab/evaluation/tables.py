"""Data frames as tables to keep, to paste and to print: CSV, Markdown and LaTeX."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ddsa_lab.errors import choose
from ddsa_lab.files import atomic_write

if TYPE_CHECKING:
    import pandas as pd

# Digits as papers print them; a difference carries its sign.
FORMATS = {
    "psnr": ".2f",
    "ssim": ".4f",
    "seconds": ".2f",
    "difference": "+.3f",
    "low": "+.3f",
    "high": "+.3f",
    "effect": "+.2f",
    "seed_share": ".2f",
}
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
}


def write_csv(frame: "pd.DataFrame", path: str | Path) -> None:
    """Write all digits of `frame` as CSV, atomically and without its index.

    Raises:
        LabError: the file cannot be written; what stood there is untouched.
    """
    with atomic_write(path) as temporary:
        frame.to_csv(temporary, index=False, lineterminator="\n")


def to_markdown(frame: "pd.DataFrame", formats: Mapping[str, str] | None = None) -> str:
    """Return `frame` as a Markdown table, numbers to the right.

    Args:
        frame: its index is not shown.
        formats: format specifications by column, beside and before those of FORMATS. Columns with neither
            show whole numbers as such and others with three decimals.

    Raises:
        LabError: a format for a column that is not there.
    """
    cells = _cells(frame, formats, {"|": r"\|", "\n": " "})
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(frame.columns))]
    right = _numeric(frame)
    lines = [
        [text.rjust(width) if flush else text.ljust(width) for text, width, flush in zip(row, widths, right)]
        for row in cells
    ]
    rule = ["-" * (width - 1) + (":" if flush else "-") for width, flush in zip(widths, right)]
    return "".join("| " + " | ".join(line) + " |\n" for line in [lines[0], rule, *lines[1:]])


def to_latex(
    frame: "pd.DataFrame",
    formats: Mapping[str, str] | None = None,
    caption: str | None = None,
    label: str | None = None,
) -> str:
    r"""Return `frame` as LaTeX for the booktabs package, text escaped.

    Args:
        frame: its index is not shown.
        formats: as for `to_markdown`.
        caption: plain text; with a caption or label the tabular stands in a table environment.
        label: what \ref takes.

    Raises:
        LabError: a format for a column that is not there.
    """
    cells = _cells(frame, formats, _LATEX)
    columns = "".join("r" if flush else "l" for flush in _numeric(frame))
    rows = [" & ".join(row) + r" \\" for row in cells]
    body = [rf"\begin{{tabular}}{{{columns}}}", r"\toprule", rows[0], r"\midrule", *rows[1:]]
    body += [r"\bottomrule", r"\end{tabular}"]
    if caption is not None or label is not None:
        head = [r"\begin{table}", r"\centering"]
        head += [rf"\caption{{{_escaped(caption, _LATEX)}}}"] if caption is not None else []
        head += [rf"\label{{{label}}}"] if label is not None else []
        body = [*head, *body, r"\end{table}"]
    return "\n".join(body) + "\n"


def _numeric(frame: "pd.DataFrame") -> list[bool]:
    return [frame[column].dtype.kind in "iuf" for column in frame.columns]


def _cells(
    frame: "pd.DataFrame", formats: Mapping[str, str] | None, escapes: Mapping[str, str]
) -> list[list[str]]:
    """Header and rows as escaped text."""
    for column in formats or {}:
        choose("column", column, frame.columns)
    known = {**FORMATS, **(formats or {})}
    columns = [
        [_escaped(_text(value, known.get(column)), escapes) for value in frame[column]]
        for column in frame.columns
    ]
    return [[_escaped(str(column), escapes) for column in frame.columns], *map(list, zip(*columns))]


def _text(value: object, specification: str | None) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if not isinstance(value, float):
        return str(value)
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    if specification is None:
        specification = ".0f" if value.is_integer() else ".3f"
    return format(value, specification)


def _escaped(text: str, escapes: Mapping[str, str]) -> str:
    return "".join(escapes.get(character, character) for character in text)
