"""Records as a pandas table, and their means with standard errors."""

from collections.abc import Sequence

import pandas as pd

from sbi_boed_plugin.benchmark.store import Record

__all__ = ["mean_and_sem", "result_table"]


def result_table(records: Sequence[Record]) -> pd.DataFrame:
    """Return a table of all jobs with a result, one row a job.

    Args:
        records: Records of jobs with flat settings and results.

    Returns:
        Columns for the settings, the results, and `seconds`, `load` and `version`, that
        of this package.
    """
    rows = []
    for record in records:
        if record["status"] == "done":
            row = {**record["job"], **record["result"]}
            added = {name: record[name] for name in ("seconds", "load")}
            added["version"] = record["versions"].get("sbi_boed_plugin")
            rows.append({**row, **added})
    return pd.DataFrame(rows)


def mean_and_sem(
    table: pd.DataFrame, by: Sequence[str], values: Sequence[str], count: str = "seeds"
) -> pd.DataFrame:
    """Return means and standard errors of columns, over the rows of each group.

    A value that is missing in one row makes the mean of its group missing: a mean over
    some of the rows would be compared with means over all.

    Args:
        table: Rows.
        by: Columns that rows of a group share. Groups keep the order of their first
            row.
        values: Columns to average.
        count: Name of the column for the number of rows.

    Returns:
        One row per group: `by`, `count`, and for each value `value` and `value_se`,
        which is missing for a single row.

    Example:
        >>> rows = pd.DataFrame({"D": [1, 1], "seed": [0, 1], "eig": [2.0, 4.0]})
        >>> print(mean_and_sem(rows, by=["D"], values=["eig"]).to_string(index=False))
         D  seeds  eig  eig_se
         1      2  3.0     1.0
    """
    numbers = table[list(values)].astype(float)
    groups = numbers.groupby([table[name] for name in by], sort=False, dropna=False)
    sizes = groups.size()
    found = groups.agg(["mean", "sem"])
    present = groups.count()
    summary = pd.DataFrame({count: sizes})
    for name in values:
        is_whole = present[name] == sizes
        summary[name] = found[name]["mean"].where(is_whole)
        summary[f"{name}_se"] = found[name]["sem"].where(is_whole)
    return summary.reset_index()
