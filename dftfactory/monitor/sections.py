"""Tables of the commands that look: one content, drawn with rich on a terminal and as bare lines everywhere else.

Bare lines are never folded, have no colours and no art, so that a file or another program can have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from dftfactory.errors import printable

# One meaning each, in every table: the terminal, the web pages and the report have the same.
STATE_STYLES = {
    "COMPLETED": "green",
    "FIZZLED": "red",
    "FAILED": "red",
    "RUNNING": "blue",
    **dict.fromkeys(("READY", "WAITING", "RESERVED", "SELECTED", "QUEUED", "ARCHIVED"), "bright_black"),
    **dict.fromkeys(("DEFUSED", "PAUSED"), "magenta"),
    "softened": "dark_orange",
}


@dataclass(frozen=True)
class Column:
    """A column: its heading, whether it is of numbers, and whether its words may be folded to save room.

    Numbers are never folded nor cut.
    """

    name: str = ""
    number: bool = False
    folds: bool = False


@dataclass(frozen=True)
class Cell:
    """Text with the style that it has on a terminal; what is `art` is left out everywhere else.

    `parts` are texts with a style for each, in the place of `text`.
    """

    text: str = ""
    style: str = ""
    art: bool = False
    parts: tuple[tuple[str, str], ...] = ()


Value = Cell | str | int | None


@dataclass(frozen=True)
class Section:
    """A title, a table below it, and lines below that.

    Attributes
    ----------
    title
        One line; none where empty.
    columns, rows
        The table; without rows there is none.
    lines
        Whole sentences, folded on a terminal.
    commands
        To be pasted: split between words where they are too long, with what a shell needs for that.
    """

    title: str | Cell = ""
    columns: Sequence[Column] = ()
    rows: Sequence[Sequence[Value]] = ()
    lines: Sequence[str | Cell] = ()
    commands: Sequence[Sequence[str]] = ()
    indent: int = 2


def is_plain(console: Console) -> bool:
    """Whether the output is a file, a pipe, or a terminal that can do nothing."""
    return not console.is_terminal or console.is_dumb_terminal


def print_sections(sections: Iterable[Section], console: Console | None = None) -> None:
    """Print sections, each after an empty line on a terminal."""
    console = Console(highlight=False) if console is None else console
    if is_plain(console):
        for line in plain_lines(sections):
            console.file.write(f"{line}\n")
    else:
        console.print(drawing(sections, console.width))


def plain_lines(sections: Iterable[Section]) -> list[str]:
    """Return the bare lines of sections."""
    lines: list[str] = []
    for section in sections:
        indent = " " * section.indent
        lines += [_cell(section.title).text] if section.title else []
        lines += [f"{indent}{line}" for line in _plain_table(section)]
        lines += [f"{indent}{_cell(line).text}" for line in section.lines if not _cell(line).art]
        lines += [f"{indent}{' '.join(map(printable, words))}" for words in section.commands]
    return lines


def drawing(sections: Iterable[Section], width: int) -> Group:
    """Return what rich draws for a terminal of this width."""
    parts: list[RenderableType] = []
    for section in sections:
        parts += [Text()] if parts else []
        parts += [_text(section.title, "bold")] if section.title else []
        below: list[RenderableType] = [_table(section)] if section.rows else []
        below += [_text(line) for line in section.lines]
        below += [Text(split_command(words, width - section.indent)) for words in section.commands]
        parts += [Padding(each, (0, 0, 0, section.indent), expand=False) for each in below]
    return Group(*parts)


def split_command(words: Sequence[str], width: int) -> str:
    """Return a command in lines that a shell reads as one."""
    lines = [""]
    for word in map(printable, words):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > width:
            lines[-1] += " \\"
            lines.append("  ")
        lines[-1] += f" {word}" if lines[-1].strip() else word
    return "\n".join(lines)


def _table(section: Section) -> Table:
    has_names = any(column.name for column in section.columns)
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, show_header=has_names, header_style="bright_black")
    for column in section.columns:
        table.add_column(
            column.name,
            justify="right" if column.number else "left",
            no_wrap=not column.folds,
            overflow="fold",
            min_width=4 if column.folds else None,
        )
    for row in section.rows:
        table.add_row(*(_text(value) for value in row))
    return table


def _plain_table(section: Section) -> list[str]:
    # Art says nothing to a program.
    kept = [n for n in range(len(section.columns)) if not any(_cell(row[n]).art for row in section.rows)]
    rows = [[_cell(row[n]).text for n in kept] for row in section.rows]
    columns = [section.columns[n] for n in kept]
    if rows and any(column.name for column in columns):
        # A heading of several lines is one for a narrow table.
        rows.insert(0, [column.name.replace("\n", " ") for column in columns])
    widths = [max(len(row[n]) for row in rows) for n in range(len(columns))] if rows else []
    return [
        "  ".join(
            text.rjust(width) if column.number else text.ljust(width)
            for text, width, column in zip(row, widths, columns, strict=True)
        ).rstrip()
        for row in rows
    ]


def _cell(value: Value) -> Cell:
    """Return text with a mark for each letter that a terminal would obey."""
    cell = value if isinstance(value, Cell) else Cell("" if value is None else str(value))
    parts = tuple((printable(text), style) for text, style in cell.parts)
    text = "".join(text for text, _ in parts) if parts else printable(cell.text)
    return Cell(text, cell.style, cell.art, parts)


def _text(value: Value, style: str = "") -> Text:
    cell = _cell(value)
    if cell.parts:
        return Text.assemble(*cell.parts, overflow="fold")
    return Text(cell.text, style=cell.style or style, overflow="fold")
