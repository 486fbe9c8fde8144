"""How the commands speak: numbers with units, tables for people, JSON for programs."""

import json
import os
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def size(count: float) -> str:
    """
    >>> size(0), size(4096), size(1536 * 1024), size(10 << 30)
    ('0 B', '4 KiB', '1.5 MiB', '10 GiB')
    """
    for unit in _UNITS:
        if abs(count) < 1024 or unit == _UNITS[-1]:
            break
        count /= 1024
    return f"{rounded(count)} {unit}"


def rounded(value: float) -> str:
    """Three digits that count, and none that say nothing.

    >>> rounded(3.14159), rounded(12), rounded(123456.7), rounded(0.0123)
    ('3.14', '12', '123,457', '0.0123')
    """
    if value == 0 or abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def duration(nanoseconds: float) -> str:
    """
    >>> duration(950), duration(45_600), duration(7.5e6), duration(3e9)
    ('950 ns', '45.6 us', '7.5 ms', '3 s')
    """
    for unit in ("ns", "us", "ms"):
        if nanoseconds < 1_000:
            return f"{rounded(nanoseconds)} {unit}"
        nanoseconds /= 1_000
    return f"{rounded(nanoseconds)} s"


def count_of(number: int, noun: str) -> str:
    """
    >>> count_of(1, "file"), count_of(2_000, "file")
    ('1 file', '2,000 files')
    """
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def name(path: str) -> str:
    """A path as one can print it: with its odd bytes escaped.

    >>> name("/a\\udcff\\n")
    '/a\\\\xff\\\\n'
    """
    if path.isprintable():
        return path
    raw = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in raw)


def out() -> Console:
    """Where results go.  Not wrapped where a program reads them: a line stays a line."""
    width = None if sys.stdout.isatty() else 10_000
    return Console(highlight=False, emoji=False, width=width, soft_wrap=False, markup=False)


def facts(rows: list[tuple[str, str]], title: str = "") -> Table:
    """Names and values, one pair a line."""
    table = Table(title=title, title_justify="left", show_header=False, box=None, padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in rows:
        table.add_row(label, value)
    return table


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=1, ensure_ascii=True))


def print_json_line(value: Any) -> None:
    """One of many, for programs that read them as they come."""
    print(json.dumps(value, ensure_ascii=True))


def err() -> Console:
    """Where progress goes."""
    return Console(stderr=True, highlight=False, emoji=False, markup=False)
