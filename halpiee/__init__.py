"""Make a network meet a latency on a device, and keep as much accuracy as that latency allows.

The public names stand in ``__init__.pyi``, one line each. They are imported when they are first used, so that
``import halpiee`` loads no torch.
"""

from latency._lazy import exports

__version__ = "0.1.0"

__all__, __getattr__, __dir__ = exports(__name__, __file__)
