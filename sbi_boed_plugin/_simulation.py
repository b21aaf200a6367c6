"""Names of the boundary to a simulator under their earlier path."""

from sbi_boed_plugin.simulation import (
    CheckedSimulator,
    Simulations,
    Simulator,
    run_simulator,
)

__all__ = ["CheckedSimulator", "Simulations", "Simulator", "run_simulator"]
