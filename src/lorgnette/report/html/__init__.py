"""HTML pages: the report of a run, the comparison, and those of `check` and `preview`."""
