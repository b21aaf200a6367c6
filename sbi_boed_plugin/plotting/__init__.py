"""Figures of a designed experiment.

Every function returns a :class:`matplotlib.figure.Figure` and leaves matplotlib's
global state as it is: nothing is shown, saved or kept in pyplot. Information is in
nats. The colours are those of Okabe and Ito, which stay apart for colour-blind people,
and maps of even lightness.
"""

from sbi_boed_plugin.plotting.information import plot_trace as plot_trace
from sbi_boed_plugin.plotting.over_design import plot_eig_map as plot_eig_map
from sbi_boed_plugin.plotting.over_design import (
    plot_eig_over_design as plot_eig_over_design,
)
from sbi_boed_plugin.plotting.policy import plot_policy as plot_policy
from sbi_boed_plugin.plotting.policy import (
    plot_policy_candidates as plot_policy_candidates,
)
from sbi_boed_plugin.plotting.posterior import plot_posterior as plot_posterior
from sbi_boed_plugin.plotting.posterior import (
    plot_posterior_sequence as plot_posterior_sequence,
)
from sbi_boed_plugin.plotting.predictive import plot_predictive as plot_predictive
