"""SQL over the events of a trace, by DuckDB: ``lttv sql`` and ``trace.sql()``.

    query ─▶ engine: DuckDB binds it, and asks each view for the columns and rows that it needs
             tables: such a request, an Arrow scan
             views:  decode these columns within these bounds, a piece of the window at a time
             result: batches of rows, in the caller's thread

Rule: DuckDB opens no file and loads no extension; lttv writes the output.
Rule: memory does not grow with the trace; a query that keeps rows may use a part of the disk.
"""
