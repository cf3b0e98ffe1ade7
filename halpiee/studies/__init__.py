"""The papers' experiments as files, and one's own: a grid over the options of ``halpiee train``, repeated over seeds.

A study is a YAML file: options that all its trainings share, a grid over others, the quantities that are read off each
training, the table and the figure that they end in. Every training is a *cell*; its results are one row of a file that
several processes fill together.
"""

from latency._lazy import exports

__all__, __getattr__, __dir__ = exports(__name__, __file__)
