"""Everything that is kept: tables, queries, the database itself."""
