"""DuckDB, confined: it runs one SELECT over the views, and touches nothing else.

Rule: no extension is fetched or loaded, and no file, network or variable of Python is read; this is
set before the query is parsed, and cannot be changed by it.
"""

import os
import re
import tempfile
from typing import Any, Final

import duckdb

from lttd.errors import LttdError, UsageError
from lttd.view.sql.catalogue import Catalogue
from lttd.view.sql.reading import Reading
from lttd.view.sql.tables import ViewTable

MEMORY_SHARE: Final = 4
"""DuckDB gets this part of the machine's memory, and more of the disk for what does not fit."""
LEAST_MEMORY_BYTES: Final = 256 << 20
MOST_MEMORY_BYTES: Final = 4 << 30
TEMPORARY: Final = 4
"""So many times its memory it may use of the directory for temporary files."""
ROWS: Final = 1 << 16
"""The number of rows in a batch of the result, about."""

_NAME: Final = r'("(?:[^"]|"")+"|\w+)'
_WORD: Final = re.compile(_NAME)
_PAIR: Final = re.compile(rf"{_NAME}\s*\.\s*{_NAME}")
_NO_TABLE: Final = re.compile("Table with name (.+?) does not exist")
_IN_MEMORY: Final = ":memory:"


def memory_bytes() -> int:
    """Return how much memory DuckDB may use."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min(max(machine // MEMORY_SHARE, LEAST_MEMORY_BYTES), MOST_MEMORY_BYTES)


class Engine:
    """One connection to an empty database in memory."""

    def __init__(self, reading: Reading, catalogue: Catalogue) -> None:
        self._reading = reading
        self._catalogue = catalogue
        self._directory = tempfile.TemporaryDirectory(prefix="lttv-sql-")
        limit = memory_bytes()
        self.connection: Any = duckdb.connect(
            _IN_MEMORY,
            config={
                "autoinstall_known_extensions": "false",
                "autoload_known_extensions": "false",
                "allow_community_extensions": "false",
                "python_enable_replacements": "false",
                "memory_limit": f"{limit}B",
                "temp_directory": self._directory.name,
                "max_temp_directory_size": f"{TEMPORARY * limit}B",
                "threads": str(len(os.sched_getaffinity(0))),
            },
        )
        for setting in ("enable_external_access=false", "lock_configuration=true"):
            self.connection.execute(f"SET {setting}")

    def close(self) -> None:
        """Forget the database, and remove its temporary files."""
        self.connection.close()
        self._directory.cleanup()

    def prepare(self, query: str) -> None:
        """Make the views that a query names.

        Raises:
            UsageError: it is not one SELECT, or it names what is not there.
        """
        try:
            statements = self.connection.extract_statements(query)
        except duckdb.Error as error:
            raise told(error) from None
        if [one.type for one in statements] != [duckdb.StatementType.SELECT]:
            raise UsageError("sql: write one SELECT; lttv itself writes the output (-o FILE)")
        # Some of these words are columns or texts: a view too many costs nothing.
        for word in dict.fromkeys(_WORD.findall(query)):
            self._make(_unquoted(word))
        for pair in dict.fromkeys(_PAIR.findall(query)):
            self._make_qualified(*map(_unquoted, pair))

    def _make(self, name: str) -> bool:
        view = self._catalogue.view(name)
        if view is not None:
            self.connection.register(name, ViewTable(view, self._reading))
        return view is not None

    def _make_qualified(self, schema: str, name: str) -> None:
        """Let ``system.name`` without quotes mean ``"system.name"``."""
        whole = f"{schema}.{name}"
        if not self._make(whole):
            return
        try:
            self.connection.execute(f"CREATE SCHEMA IF NOT EXISTS {_quoted(schema)}")
            self.connection.execute(
                f"CREATE OR REPLACE VIEW {_quoted(schema)}.{_quoted(name)}"
                f" AS SELECT * FROM {_quoted(whole)}"
            )
        except duckdb.Error:  # DuckDB has a schema of this name: only the quoted form is left
            return

    def explained(self, error: BaseException) -> BaseException:
        """Return the error to show for one that DuckDB, or Arrow, raised while it ran a query."""
        if self._reading.error is not None:
            return self._reading.error
        if isinstance(error, duckdb.CatalogException) and (found := _NO_TABLE.search(str(error))):
            return self._catalogue.unknown(found[1].strip('"'))
        return told(error)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _unquoted(name: str) -> str:
    return name[1:-1].replace('""', '"') if name.startswith('"') else name


_KIND: Final = re.compile(r"^(?:[A-Z][\w-]*(?: [\w-]+)* Error|Error): ")
_AT: Final = "\n\nLINE "


def told(error: BaseException) -> BaseException:
    """Return an error of DuckDB as one line; others as they are."""
    text = str(error)
    is_ours = isinstance(error, duckdb.Error) or _KIND.match(text)
    if not is_ours:
        return error
    words = " ".join(_KIND.sub("", text.partition(_AT)[0]).split())
    if isinstance(error, duckdb.OutOfMemoryException) or text.startswith("Out of Memory Error"):
        return LttdError(
            f"sql: the query keeps more rows than fit into {memory_bytes() >> 20} MiB of memory and"
            f" {TEMPORARY} times as much of {tempfile.gettempdir()}: narrow it by --begin, --end"
        )
    return UsageError(f"sql: {words}")
