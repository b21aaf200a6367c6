"""Figures of a designed experiment.

Every function returns a :class:`matplotlib.figure.Figure` and leaves matplotlib's
global state as it is: nothing is shown, saved or kept in pyplot. Information is in
nats. The colours are those of Okabe and Ito, which stay apart for colour-blind people,
and maps of even lightness.
"""

from sbi_boed_plugin.plotting.information import plot_eig_over_design, plot_trace
from sbi_boed_plugin.plotting.policy import plot_policy, visited_designs
from sbi_boed_plugin.plotting.posterior import plot_posterior, plot_posterior_sequence
from sbi_boed_plugin.plotting.predictive import plot_predictive

__all__ = [
    "plot_eig_over_design",
    "plot_policy",
    "plot_posterior",
    "plot_posterior_sequence",
    "plot_predictive",
    "plot_trace",
    "visited_designs",
]
