"""SQL over the states and results of sweeps, by DuckDB in memory. Nothing that a query does reaches a file.

Tables that a query does not name stay empty: the rows of some take long to read. Rows of finished products
and attempts never change, so they are kept on this machine; see `orchestrator.store.index`.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from orchestrator.api import tables
from orchestrator.api.state import SweepState, current_revision, parse_reference, sealed_view
from orchestrator.api.tables import TABLES, Column
from orchestrator.core.evidence import Attempt
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import UserError, nearest
from orchestrator.registry import require
from orchestrator.store import layout
from orchestrator.store.index import KEY, RowSegments, Segment, index_folder, name_of
from orchestrator.store.ledger import Ledger
from orchestrator.store.table import Rows, arrow_table, typed

if TYPE_CHECKING:
    import duckdb
    import pyarrow

_LOCKED = (
    "timezone='UTC'",  # so that `now() - started` is right: the times of the tables are in UTC
    "python_enable_replacements=false",  # a name in a query is never a variable of this program
    "autoinstall_known_extensions=false",
    "autoload_known_extensions=false",
    "enable_external_access=false",
    "lock_configuration=true",
)
"""Settings without which a query could read and write files, or fetch extensions. The last one is final."""

T = TypeVar("T")


class Answer(NamedTuple):
    """The result of a query.

    Attributes:
        columns: their names; none repeats.
        rows: a value for each column.
    """

    columns: list[str]
    rows: list[tuple[Any, ...]]


def answer_of(ledger: Ledger, sql: str, sweeps: Sequence[str] = ()) -> Answer:
    """Return the result of a query as rows of Python's values; see `query_of`."""
    return _run(ledger, sql, sweeps, lambda found: Answer(_distinct(found.columns), _values(found)))


def query_of(ledger: Ledger, sql: str, sweeps: Sequence[str] = ()) -> pyarrow.Table:
    """Return the result of a query over the sweeps of a store as an Arrow table.

    Args:
        ledger: the store.
        sql: one SELECT; see `orchestrator.api.tables.TABLES` for the tables.
        sweeps: names, each with ``@k`` for a revision or ``@*`` for all of them; by default every sweep, at
            the revision that was launched last.

    Raises:
        UserError: the SQL is wrong, a sweep is not in the store, or DuckDB is not installed.
    """
    return _run(
        ledger, sql, sweeps, lambda found: found.to_arrow_table().rename_columns(_distinct(found.columns))
    )


def _values(found: duckdb.DuckDBPyRelation) -> list[tuple[Any, ...]]:
    """Return the rows of a result. DuckDB would need a further package for a time with a zone."""
    if not any("TIME ZONE" in str(each) for each in found.types):
        rows: list[tuple[Any, ...]] = found.fetchall()
        return rows
    return list(zip(*(column.to_pylist() for column in found.to_arrow_table().columns), strict=True))


def _distinct(names: Sequence[str]) -> list[str]:
    """Return names of columns of which none repeats: ``a``, ``a_1``, as DuckDB names those of a table."""
    found: dict[str, str] = {}  # by lower case: SQL does not distinguish `Loss` from `loss`
    for name in names:
        number, free = 0, name
        while free.lower() in found:
            number += 1
            free = f"{name}_{number}"
        found[free.lower()] = free
    return list(found.values())


def _run(ledger: Ledger, sql: str, sweeps: Sequence[str], take: Callable[[duckdb.DuckDBPyRelation], T]) -> T:
    """Fill the tables that a query names, run it where it cannot reach anything else, and take its result."""
    database = _duckdb()
    views = list(_views(ledger.indexed(), sweeps))
    types = _axis_types(views)
    connection = database.connect(":memory:")
    with contextlib.closing(connection):
        try:
            kinds = [statement.type.name for statement in database.extract_statements(sql)]
            # A PIVOT is of several statements inside.
            if len(kinds) != 1 or kinds[0] not in ("SELECT", "EXPLAIN", "MULTI"):
                raise UserError("a query is one SELECT", where=sql)
            for name in TABLES:
                is_used = re.search(rf"\b{name}\b", sql, re.IGNORECASE) is not None
                _fill(connection, name, views, types, is_used=is_used)
            for setting in _LOCKED:
                connection.execute(f"set {setting}")
            return take(connection.sql(sql))
        except database.Error as error:
            known = ", ".join(TABLES)
            raise UserError(str(error).strip(), allowed=f"tables: {known}; sweep query --help") from error
        finally:
            for view in views:
                # A state refers to itself. To find such garbage takes longer than most queries.
                vars(view).clear()


def _duckdb() -> Any:
    require("query", what="a query")
    import duckdb

    return duckdb


def _views(ledger: Ledger, sweeps: Sequence[str]) -> Iterator[SweepState]:
    """Yield the states of the named revisions.

    Raises:
        UserError: a name is not in the store.
        DamagedRecord: which cells a sweep has cannot be read.
    """
    known = ledger.sweeps()
    for word in sweeps or known:
        reference = parse_reference(word.removesuffix("@*"))
        numbers = [reference.revision] if reference.revision else []
        if word.endswith("@*"):
            numbers = sorted(ledger.revision_numbers(reference.name))
        elif not numbers and (number := current_revision(ledger, reference.name)) is not None:
            numbers = [number]
        # A launch that died before it sealed anything leaves a name without a revision.
        if not numbers and sweeps:
            near = nearest(reference.name, known)
            raise UserError(f"{word} was never launched here", where=ledger.objects.url, allowed=near)
        for number in numbers:
            view = sealed_view(ledger, reference.name, number)
            view.check_decisions()
            yield view


def _fill(
    connection: duckdb.DuckDBPyConnection,
    name: str,
    views: Sequence[SweepState],
    types: Mapping[str, set[type]],
    *,
    is_used: bool,
) -> None:
    """Create a table, with its rows if the query names it."""
    columns = _columns_of(name, views, types)
    defined = ", ".join(f"{_quoted(column.name)} {column.type}" for column in columns)
    if name not in ("results", "predictions") or not is_used:
        connection.execute(f"create table {name} ({defined})")
    if not is_used:
        return
    if name == "results":
        _fill_results(connection, columns, views)
    elif name == "predictions":
        _fill_predictions(connection, defined, views)
    elif name == "metrics":
        _fill_metrics(connection, views)
    else:
        _insert(connection, name, list(_rows_of(name, views)))


def _columns_of(name: str, views: Sequence[SweepState], types: Mapping[str, set[type]]) -> list[Column]:
    """Return the columns of a table: for `cells` and `results` the axes follow the cell."""
    fixed = list(TABLES[name])
    if name not in ("cells", "results"):
        return fixed
    taken = [column.name for column in fixed]
    # Labels are numbers in one sweep and text in another, so the rows decide on the type.
    axes: dict[str, set[type]] = {}
    for view in views:
        for axis, column in tables.axis_columns(view.sweep, taken).items():
            axes.setdefault(column, set()).update(types[axis])
    place = taken.index("cell") + 1
    return [*fixed[:place], *(Column(name, _sql_type(of), "") for name, of in axes.items()), *fixed[place:]]


def _axis_types(views: Sequence[SweepState]) -> dict[str, set[type]]:
    """Return the types of the values of each axis."""
    found: dict[str, set[type]] = {}
    for view in views:
        for cell in view.sweep.cells:
            for axis, label in cell.axes.items():
                found.setdefault(axis, set()).add(type(typed(cell, axis, label)))
    return found


def _sql_type(types: set[type]) -> str:
    """Return the SQL type of values that are all booleans or numbers; that of text for others."""
    types = types - {type(None)}
    if types == {bool}:
        return "BOOLEAN"
    if types == {int}:
        return "BIGINT"
    return "DOUBLE" if types and types <= {int, float} else "VARCHAR"


def _rows_of(name: str, views: Sequence[SweepState]) -> Iterable[dict[str, Any]]:
    if name == "attempts":
        return tables.attempt_rows(_attempts(views))
    make: Callable[[SweepState], Iterable[dict[str, Any]]] = {
        "cells": tables.cell_rows,
        "stages": tables.stage_rows,
        "failures": tables.failure_rows,
    }.get(name, tables.job_rows)
    if make is tables.job_rows:
        # Revisions of a sweep share their submissions.
        views = list({view.sweep.name: view for view in views}.values())
    return (row for view in views for row in make(view))


def _attempts(views: Sequence[SweepState]) -> dict[str, tuple[StageInstance, Sequence[Attempt]]]:
    found: dict[str, tuple[StageInstance, Sequence[Attempt]]] = {}
    for view in views:
        for digest, instance in view.instances.items():
            if digest not in found:
                found[digest] = (instance, view.attempts(instance))
    return found


def _insert(connection: duckdb.DuckDBPyConnection, name: str, rows: Rows) -> None:
    """Insert rows; a value that its column's type does not fit is converted by the database."""
    if rows:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        # A list for each column. Arrow would do, but to make an array of it imports pandas.
        lists = [[row.get(column) for row in rows] for column in columns]
        lists = [values if _is_even(values) else _as_text(values) for values in lists]
        parts = (f"unnest(${number}) as {_quoted(column)}" for number, column in enumerate(columns, start=1))
        connection.execute(f"insert into {name} by name select {', '.join(parts)}", lists)


def _is_even(values: Sequence[Any]) -> bool:
    return len({type(value) for value in values} - {type(None)}) <= 1


def _as_text(values: Sequence[Any]) -> list[str | None]:
    return [None if value is None else str(value) for value in values]


def _fill_results(
    connection: duckdb.DuckDBPyConnection, columns: Sequence[Column], views: Sequence[SweepState]
) -> None:
    """Create `results` from the segments of its sweeps, in the order of columns of `sweep collect`."""
    wanted: _Wanted = {}
    attempts = []
    for view in views:
        names = tables.axis_columns(view.sweep, [*tables.ENGINE])
        for cell, instance, done in tables.products(view):
            if done.rows:
                # The nonce is of this very product; another generation has another one.
                key = f"{view.sweep.name}@{view.number} {cell.id} {done.nonce}"
                make = tables.result_rows(view, names, cell, instance, done)
                wanted.setdefault(_title(view), {})[key] = make
                attempts.append({KEY: key, "attempts": view.cells[cell.id].attempts})
    if not attempts:
        defined = ", ".join(f"{_quoted(column.name)} {column.type}" for column in columns)
        connection.execute(f"create table results ({defined})")
        return
    source = _source(connection, views[0].ledger, "results", wanted)
    present = [row[0] for row in connection.execute(f"describe {source}").fetchall()]
    types = {column.name: column.type for column in columns}
    own = dict.fromkeys(name for view in views for cell in view.sweep.cells for name in cell.columns)
    (*axes,) = (name for name in types if name not in tables.ENGINE)
    parts = []
    seen: set[str] = set()
    for name in ["cell", *axes, *own, *(name for name in types if name != "cell"), *present]:
        if name in seen or name == KEY or not (name in present or name in types):
            continue
        # SQL does not distinguish `Loss` from `loss`.
        alias = f"{name}_row" if name.lower() in {each.lower() for each in seen} else name
        seen |= {name, alias}
        value = "a.attempts" if name == "attempts" else f"r.{_quoted(name)}" if name in present else "null"
        cast = f"::{types[name]}" if name in types else ""
        parts.append(f"{value}{cast} as {_quoted(alias)}")
    connection.execute(f"create temp table numbers ({KEY} VARCHAR, attempts INTEGER)")
    _insert(connection, "numbers", attempts)
    chosen = f"select {', '.join(parts)} from {source} r join numbers a using ({KEY})"
    connection.execute(f"create table results as {chosen}")


_Wanted = dict[str, dict[str, Callable[[], Rows]]]
"""Sweep and revision to keys, and to what returns the rows of each key."""


def _title(view: SweepState) -> str:
    return f"{view.sweep.name}@{view.number}"


def _source(connection: duckdb.DuckDBPyConnection, ledger: Ledger, name: str, wanted: _Wanted) -> str:
    """Read the rows of the wanted keys into a temporary table, and return its name.

    They come from segments if this machine has a place for these.
    """
    error = _duckdb().Error
    for _ in range(2):
        # Another reader may have merged the segments meanwhile.
        with contextlib.suppress(OSError, error):
            home = index_folder() / "rows"
            segments = [
                segment
                for title, keys in wanted.items()
                for segment in RowSegments(home / f"{name}-{name_of(ledger.objects.url, title)}").update(keys)
            ]
            _union(connection, segments)
            return "kept"
    rows = [{**row, KEY: key} for keys in wanted.values() for key, make in keys.items() for row in make()]
    connection.register("made", arrow_table(rows or [{KEY: ""}]))
    return "made"


def _union(connection: duckdb.DuckDBPyConnection, segments: Sequence[Segment]) -> None:
    """Make the rows of segments known as ``kept``."""
    paths = ", ".join(_literal(str(segment.path)) for segment in segments)
    parts = [f"select * from read_parquet([{paths}], union_by_name=true, filename='_file')"]
    for number, segment in enumerate(segment for segment in segments if not segment.is_whole):
        connection.execute(f"create temp table keys{number} as select unnest($1) as key", [[*segment.keys]])
        file = _literal(str(segment.path))
        parts.append(f"(_file != {file} or {KEY} in (select key from keys{number}))")
    where = f" where {' and '.join(parts[1:])}" if parts[1:] else ""
    connection.execute(
        f"create or replace temp view kept as select * exclude (_file) from ({parts[0]}{where})"
    )


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _fill_metrics(connection: duckdb.DuckDBPyConnection, views: Sequence[SweepState]) -> None:
    """Insert the metrics of all attempts; those of attempts that have ended are kept."""
    wanted: _Wanted = {}
    running: Rows = []
    for view in views:
        for instance, attempts in _attempts([view]).values():
            for attempt in attempts:
                make = _metrics_reader(view.ledger, instance, attempt.number)
                if attempt.end is None or attempt.claim is None:
                    running += make()
                else:
                    key = f"{instance.digest} {attempt.number} {attempt.claim.nonce}"
                    wanted.setdefault(_title(view), {})[key] = make
    if wanted:
        source = _source(connection, views[0].ledger, "metrics", wanted)
        present = {row[0] for row in connection.execute(f"describe {source}").fetchall()}
        if "metric" in present:
            names = ", ".join(column.name for column in TABLES["metrics"])
            # Revisions may share an attempt.
            connection.execute(f"insert into metrics by name select distinct {names} from {source}")
    _insert(connection, "metrics", running)


def _metrics_reader(ledger: Ledger, instance: StageInstance, number: int) -> Callable[[], Rows]:
    def make() -> Rows:
        data = ledger.objects.get(layout.metrics(instance, number)) or b""
        return tables.metric_rows(instance, number, data)

    return make


def _fill_predictions(
    connection: duckdb.DuckDBPyConnection, defined: str, views: Sequence[SweepState]
) -> None:
    """Create `predictions` from the files of products, and the cells that each belongs to."""
    files = [{**which, "_file": path} for view in views for which, path in tables.prediction_files(view)]
    if not files:
        connection.execute(f"create table predictions ({defined})")
        return
    connection.execute(f"create temp table files ({defined}, _file VARCHAR)")
    _insert(connection, "files", files)
    own = ", ".join(f"f.{column.name}" for column in TABLES["predictions"])
    paths = ", ".join(_literal(path) for path in dict.fromkeys(str(row["_file"]) for row in files))
    connection.execute(
        f"create table predictions as select {own}, p.* exclude (_file) from files f join "
        f"read_parquet([{paths}], union_by_name=true, filename='_file') p using (_file)"
    )


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
