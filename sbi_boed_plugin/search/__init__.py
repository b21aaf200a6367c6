"""Searching for designs: training, scoring, and what is kept between experiments."""

from sbi_boed_plugin.search.config import DesignSearchConfig as DesignSearchConfig
from sbi_boed_plugin.search.config import MultiStartConfig as MultiStartConfig
from sbi_boed_plugin.search.design_search import DesignSearch as DesignSearch
from sbi_boed_plugin.search.result import DesignResult as DesignResult
