"""Experiments to try designs on: simulators with priors, designs and exact answers."""

from sbi_boed_plugin.tasks.sir import SIR as SIR
from sbi_boed_plugin.tasks.task import Task as Task
