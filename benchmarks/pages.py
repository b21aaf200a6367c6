"""Writes the tables of `docs/results.md` from the CSV files beside it.

    python -m benchmarks.pages

A table stands between `<!-- NAME -->` and `<!-- end -->`; the text around it is written
by hand.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

__all__ = ["PAGE", "TABLES", "Table", "fill"]

PAGE = Path(__file__).parents[1] / "docs" / "results.md"

Cell = Callable[[pd.Series], str]


@dataclass(frozen=True)
class Table:
    """How a table follows from a CSV file.

    Attributes:
        file: Name of the CSV file, without its ending.
        rows: Columns that make up a row, by their headers.
        cells: What stands in a cell, by its header: `{}` is the value of `columns`.
        columns: Columns whose values make up a column of the table.
        prepare: What happens to the rows of the file first.
    """

    file: str
    rows: dict[str, str]
    cells: dict[str, Cell]
    columns: Sequence[str] = ()
    prepare: Callable[[pd.DataFrame], pd.DataFrame] = field(default=lambda table: table)

    def render(self) -> str:
        """Return the table in Markdown."""
        table = self.prepare(pd.read_csv(PAGE.parent / "results" / f"{self.file}.csv"))
        lines: dict[tuple[str, ...], dict[str, str]] = {}
        for _, row in table.iterrows():
            line = lines.setdefault(tuple(_text(row[name]) for name in self.rows), {})
            values = [_text(row[name]) for name in self.columns]
            for header, cell in self.cells.items():
                line[header.format(*values)] = cell(row)
        headers = list(dict.fromkeys(name for line in lines.values() for name in line))
        body = [
            [*key, *(line.get(name, "–") for name in headers)]
            for key, line in lines.items()
        ]
        head = [*self.rows.values(), *headers]
        return "\n".join(
            f"| {' | '.join(line)} |".replace("|  |", "| |")
            for line in [head, ["---"] * len(head), *body]
        )


def fill(text: str) -> str:
    """Return a page with all tables made anew.

    Raises:
        KeyError: If there is no table of a name.
    """

    def made(match: re.Match) -> str:
        return f"<!-- {match[1]} -->\n\n{TABLES[match[1]].render()}\n\n<!-- end -->"

    pattern = r"<!-- ([\w-]+) -->\n.*?<!-- end -->"
    return re.sub(pattern, made, text, flags=re.DOTALL)


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def number(name: str, decimals: int = 2, error_name: str | None = None) -> Cell:
    """A value, with its standard error where there is one."""
    error_name = error_name or f"{name}_se"

    def cell(row: pd.Series) -> str:
        if pd.isna(row[name]):
            return "–"
        error = row.get(error_name)
        known = error is not None and not pd.isna(error)
        text = f"{row[name]:.{decimals}f}"
        return (f"{text} ± {error:.{decimals}f}" if known else text).replace("-", "−")

    return cell


def text(name: str) -> Cell:
    """A value as it is."""
    return lambda row: "–" if pd.isna(row[name]) else _text(row[name])


def percent(name: str, decimals: int = 0) -> Cell:
    """A share."""
    return lambda row: (
        "–" if pd.isna(row[name]) else f"{100.0 * row[name]:.{decimals}f} %"
    )


def in_brackets(first: Cell, second: Cell) -> Cell:
    """Two cells, the second one in brackets."""
    return lambda row: f"{first(row)} ({second(row)})"


def _gain_and_time(row: pd.Series) -> str:
    gains = f"{row['gain']:+.2f} ({row['median_gain']:+.2f})".replace("-", "−")
    return f"{gains}, {row['time']:.1f}×"


def _shortfalls(table: pd.DataFrame) -> pd.DataFrame:
    groups = table.groupby(["policy", "gradient", "objective"], sort=False)["shortfall"]
    found = groups.agg(shortfall="mean", shortfall_se="sem", worst="max")
    return found.reset_index()


def _each_bound(table: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for _, row in table.iterrows():
        for name in table.columns:
            if f"{name}_cap" in table:
                columns = {
                    f"value{end}": row[name + end] for end in ("", "_se", "_cap")
                }
                rows.append({"bound": name.replace("_", " "), **row, **columns})
    return pd.DataFrame(rows)


def _draws(table: pd.DataFrame) -> pd.DataFrame:
    table = table.sort_values(["num_partition_samples", "latent_features"])
    shown = {0: "θ and x", 1: "θ, x and noise"}
    return table.assign(shown=table["latent_features"].map(shown))


def _dimensions(table: pd.DataFrame) -> pd.DataFrame:
    table = table.sort_values(["num_simulations", "dim_theta", "dim_x"], kind="stable")
    dims = [
        f"{row.dim_theta}, {row.dim_x}{' embedded' * row.embedded}"
        for row in table.itertuples()
    ]
    return table.assign(dims=dims)


TABLES = {
    "design-recovery": Table(
        "design-recovery_summary",
        {"task": "task", "dim_design": "values of a design", "seeds": "seeds"},
        {
            "exact information of the design found [nats]": number("exact_eig", 3),
            "optimum": lambda row: f"{row['optimum']:.3f}",
            "reported": number("reported_lower_bound", 3),
        },
    ),
    "honest-bounds": Table(
        "honest-bounds_summary",
        {"task": "task", "dim_design": "values of a design"},
        {
            "reported [nats]": number("reported"),
            "exact [nats]": number("exact"),
            "said to be far too low": lambda row: (
                f"{round(row['told'] * row['seeds'])} of {row['seeds']}"
            ),
        },
        prepare=lambda table: table.sort_values(["task", "dim_design"]),
    ),
    "lace-objective": Table(
        "lace-objective_summary",
        {"task": "task"},
        {
            "{}: exact information of the design [nats]": number("exact"),
            "{}: CPU seconds": number("cpu_seconds", 1),
        },
        ["objective"],
    ),
    "sir-check": Table(
        "sir-check",
        {"seed": "seed"},
        {
            "time found": number("design", 1),
            "reported [nats]": lambda row: (
                f"{row['reported_eig']:.3f} ± {row['reported_standard_error']:.3f}"
            ),
            "brute force there": lambda row: (
                f"{row['brute_force_eig']:.3f} ± "
                f"{row['brute_force_standard_error']:.3f}"
            ),
            "best of 16 times": number("best_eig_on_grid", 3),
            "SBC, p of β": number("sbc_ks_p_beta"),
            "SBC, p of γ": number("sbc_ks_p_gamma"),
            "SBC, C2ST of ranks": number("sbc_c2st_ranks"),
            "L-C2ST at the truth's data (p)": in_brackets(
                number("lc2st_statistic", 4), number("lc2st_p")
            ),
        },
    ),
    "objective-defaults": Table(
        "objective-defaults_summary",
        {"setting": "objective"},
        {
            "{}: C2ST": number("c2st", 3),
            "{}: held-out log q": lambda row: (
                f"{row['held_out_log_likelihood']:.2f}".replace("-", "−")
            ),
        },
        ["task"],
    ),
    "gradients": Table(
        "gradients",
        {"gradient": "gradient"},
        {
            "{}, ξ = {}": lambda row: (
                f"{row['value']:.3f} ± {row['standard_error']:.3f} "
                f"({row['variance_of_a_batch']:.0e})"
            ).replace("-", "−"),
        },
        ["objective", "location"],
    ),
    "bounds": Table(
        "bounds",
        {"bound": "bound, densities, L"},
        {
            "{} measurements": number("value", 3),
            "{}: cap": number("value_cap", 3),
        },
        ["dim_design"],
        _each_bound,
    ),
    "location": Table(
        "location_summary",
        {"method": "designs", "experiments": "experiments"},
        {"lower bound": text("spce"), "upper bound": text("snmc")},
    ),
    "pharmacokinetic": Table(
        "pharmacokinetic_summary",
        {"method": "times", "experiments": "experiments"},
        {
            "lower bound": text("spce"),
            "upper bound": text("snmc"),
            "more than random": text("beyond_random"),
        },
    ),
    "sir-ablation": Table(
        "sir-ablation",
        {"policy": "policy", "gradient": "gradient"},
        {"{}": number("shortfall", 3), "{}: worst": number("worst", 3)},
        ["objective"],
        _shortfalls,
    ),
    "table-sir": Table(
        "table-sir_summary",
        {"method": "designs and training"},
        {
            "median distance [people]": text("median_distance"),
            "published": text("published_distance"),
            "at ten common times": text("common_distance"),
            "L-C2ST": text("lc2st"),
            "L-C2ST of an update": text("lc2st_update"),
            "L-C2ST, published": text("published_lc2st"),
            "information reported [nats]": text("information"),
        },
    ),
    "table-bmp": Table(
        "table-bmp_summary",
        {"method": "designs and training"},
        {
            "noise {}: distance": text("distance_percent"),
            "noise {}: L-C2ST": text("lc2st"),
            "noise {}: L-C2ST of an update": text("lc2st_update"),
            "noise {}: exact information of the three [nats]": text("exact_all"),
            "noise {}: CPU seconds": text("cpu_seconds"),
        },
        ["noise"],
    ),
    "linear-scaling": Table(
        "linear-scaling_summary",
        {"dim_design": "measurements"},
        {"{}, λ = {}": in_brackets(percent("share", 1), number("log_likelihood", 1))},
        ["objective", "regularization_strength"],
    ),
    "two-moons-contrastive": Table(
        "two-moons_summary",
        {"num_contrastive": "L, at λ = 0.1"},
        {
            "bound reported": number("reported_eig"),
            "cap": number("cap"),
            "the same networks with 4,095 samples": number("eig_many", 1),
        },
        prepare=lambda table: table[table["regularization_strength"] == 0.1].assign(
            cap=lambda t: (t["num_contrastive"] + 1).map(math.log)
        ),
    ),
    "two-moons-strength": Table(
        "two-moons_summary",
        {"regularization_strength": "λ, at L = 15"},
        {"held-out log-likelihood": number("log_likelihood")},
        prepare=lambda table: table[table["num_contrastive"] == 15],
    ),
    "hybrid-tasks": Table(
        "hybrid-tasks_summary",
        {"task": "task"},
        {
            "{}: base": lambda row: f"{row['c2st_forest_base']:.3f}",
            "{}: hybrid": lambda row: f"{row['c2st_forest']:.3f}",
            "{}: gain [nats]": number("gain"),
            "{}: accepts": percent("acceptance_rate"),
        },
        ["num_simulations"],
    ),
    "hybrid-two-moons": Table(
        "hybrid-two-moons_summary",
        {"method": "method"},
        {
            "forest: base alone": number("c2st_forest_base", 3),
            "forest: method": number("c2st_forest", 3),
            "perceptron: base alone": number("c2st_mlp_base", 3),
            "perceptron: method": number("c2st_mlp", 3),
        },
    ),
    "sbibm": Table(
        "sbibm/summary",
        {"task": "task", "num_simulations": "simulations"},
        {
            "`{}`": lambda row: f"{number('c2st', 3)(row)} ({int(row['num_done'])})",
        },
        ["method"],
    ),
    "gkl-dimension": Table(
        "gkl-dimension_summary",
        {"dim": "parameters"},
        {
            "{}: base": number("kl_base"),
            "{}: hybrid": number("kl_hybrid"),
            "{}: accepts": percent("acceptance_rate", 1),
        },
        ["base"],
    ),
    "gkl-acceptance": Table(
        "gkl-acceptance_summary",
        {"task": "posterior"},
        {"{}: gain": number("gain"), "{}: accepts": percent("acceptance_rate")},
        ["base"],
        lambda table: table[table["num_simulations"] == 10_000],
    ),
    "gkl-variance": Table(
        "gkl-variance_summary",
        {"num_partition_samples": "draws K (0: the base)"},
        {"shown {}: gain [nats]": number("gain"), "shown {}: C2ST": number("c2st", 3)},
        ["shown"],
        _draws,
    ),
    "speed-training": Table(
        "speed_training",
        {"flow": "flow"},
        {"L = {} ({} evaluations)": number("ratio", 1)},
        ["L", "evaluations"],
    ),
    "training": Table(
        "training_summary",
        {"task": "task", "method": "method"},
        {"{}, {}": _gain_and_time},
        ["model", "num_simulations"],
        lambda table: table[table["task"] != "all"].sort_values(
            ["num_simulations", "model"], kind="stable"
        ),
    ),
    "people": Table(
        "people_summary",
        {"problem": "problem"},
        {
            "{}: share of the best (worst seed)": in_brackets(
                number("share", 3), number("worst", 3)
            ),
            "{}: reported below exact [nats]": number("below"),
            "{}: CPU seconds": number("cpu_seconds", 0),
        },
        ["budget"],
    ),
    "hybrid-calibration": Table(
        "hybrid-calibration_summary",
        {"task": "likelihood of", "sampler": "sampled by"},
        {
            "smallest p of ranks": number("ks_p"),
            "C2ST to the prior": number("c2st_dap"),
            "L-C2ST": number("lc2st", 4),
            "its p": number("lc2st_p"),
            "CPU seconds": number("cpu_seconds", 0),
        },
    ),
    "training-c2st": Table(
        "training-c2st_summary",
        {"task": "task", "num_simulations": "simulations"},
        {
            "`npe`, sbi": number("c2st_npe, sbi", 3),
            "`npe`": number("c2st_npe, averaged", 3),
            "`npe_gkl`": number("c2st_npe_gkl, averaged", 3),
            "`nle`, sbi": number("c2st_nle, sbi", 3),
            "`nle`": number("c2st_nle, averaged", 3),
            "`nle_hybrid`": number("c2st_nle_hybrid, averaged", 3),
            "best": number("c2st_best", 3),
        },
    ),
    "adaptive": Table(
        "adaptive_summary",
        {"task": "task", "experiments": "experiments", "method": "method"},
        {
            "seeds": lambda row: _text(row["seeds"]),
            "sPCE [nats]": number("lower", error_name="error"),
            "sNMC [nats]": number("upper"),
            "LACE [nats]": number("lace_lower"),
            "reported [nats]": number("reported", error_name="reported_error"),
            "rank error": number("rank_error"),
            "calls": text("calls"),
            "CPU seconds": number("cpu_seconds", 0),
            "ms a design": number("milliseconds", 1),
        },
    ),
    "few-simulations": Table(
        "few-simulations_summary",
        {"task": "task", "size": "measurements", "budget": "calls"},
        {"{}": in_brackets(number("share", 2), number("worst", 2))},
        ["method"],
        lambda table: table.drop(columns=["share_se", "seeds"]).assign(
            # Where it is free.
            size=table["size"].map(lambda size: size or "–")
        ),
    ),
    "training-rule": Table(
        "training-rule_summary",
        {"model": "network", "num_simulations": "simulations", "dims": "θ, x"},
        {
            "steps": lambda row: _text(int(row["num_steps"])),
            "CPU seconds": number("cpu_seconds", 0),
            **{
                name: number(name)
                for name in (
                    "rate / 3",
                    "rate × 3",
                    "batch 50",
                    "batch 200",
                    "batch 800",
                    "decay 0.1",
                    "dropout 0.1",
                    "three networks",
                )
            },
        },
        prepare=_dimensions,
    ),
    "training-growth": Table(
        "training-growth",
        {"num_simulations": "simulations"},
        {
            "{}: µs per row": number("us_per_row", 0),
            "{}: memory [MB]": number("memory_mb", 0),
        },
        ["loop"],
    ),
    "speed-epochs": Table(
        "speed_epochs",
        {"training": "training", "network": "network"},
        {"ratio": number("ratio", 1)},
    ),
    "speed-searches": Table(
        "speed_searches",
        {"objective": "objective"},
        {
            "{}": in_brackets(
                number("seconds_to_97_percent", 1), percent("share_at_the_end", 1)
            )
        },
        ["gradient"],
    ),
    "speed-growth": Table(
        "speed_growth",
        {"dim_design": "measurements"},
        {
            "L = {}": lambda row: (
                f"{row['ms_per_step']:,.0f} ms, {row['peak_memory_MB']:,.0f} MB"
            )
        },
        ["L"],
    ),
    "speed-hybrid": Table(
        "speed_hybrid",
        {"what": "what", "peer": "peer"},
        {"{}": number("ratio")},
        ["base"],
    ),
}


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
