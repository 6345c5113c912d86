"""Rows as CSV, JSON and Parquet.

A text that begins with ``=``, ``+``, ``-``, ``@``, a tab or a carriage return is a formula to the
spreadsheets that open CSV, and a dataset's label or an error's text may begin so. In CSV such a
text gets an apostrophe before it; numbers never do. JSON and Parquet hold texts as they are.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

Rows = Sequence[Mapping[str, Any]]

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def to_json(rows: Rows) -> str:
    """Return a list of objects."""
    return json.dumps(list(rows), indent=1, ensure_ascii=False) + "\n"


def to_csv(rows: Rows, columns: Sequence[str] | None = None) -> str:
    """Return a line a row; mappings, lists and truth values as JSON, None as an empty cell.

    Args:
        rows: all with the same keys.
        columns: their order; that of the first row by default.
    """
    stream = io.StringIO()
    heads = list(rows[0]) if columns is None else list(columns)
    writer = csv.DictWriter(stream, fieldnames=heads, lineterminator="\n")
    writer.writerow({head: _cell(head) for head in heads})
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in row.items()})
    return stream.getvalue()


def to_parquet(
    rows: Rows, types: Mapping[str, type], columns: Sequence[str] | None = None
) -> bytes:
    """Return the same rows as a Parquet file, with typed columns.

    Args:
        rows: all with the same keys.
        types: column -> int (int64), float (double) or str (string, other values as JSON), so
            that a study has the same columns before and after its trials are done. A column that
            is not named takes the type that all its values have, or is string.
        columns: their order; that of the first row by default.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    heads = list(rows[0]) if columns is None else list(columns)
    arrays = {head: _array([row.get(head) for row in rows], types.get(head)) for head in heads}
    sink = io.BytesIO()
    pq.write_table(pa.table(arrays), sink, compression="zstd")
    return sink.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, bool | Mapping | list | tuple):
        return json.dumps(value, sort_keys=True)
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")  # readers end a line at either
    return f"'{text}" if value.startswith(_FORMULA) else text


def _array(values: Sequence[Any], given: type | None) -> pa.Array:
    import pyarrow as pa

    kind = given or _kind({type(value) for value in values if value is not None})
    if kind is str:
        return pa.array([None if value is None else _text(value) for value in values], pa.string())
    return pa.array(values, {int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[kind])


def _kind(found: set[type]) -> type:
    if len(found) == 1 and found <= {bool, int}:
        return found.pop()
    return float if found and found <= {int, float} else str


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
