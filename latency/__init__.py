"""How long does it take? Ops, backends, profiles and measurements.

The public names stand in ``__init__.pyi``, one line each. They are imported when they are first used, so that
``import latency`` loads no torch.
"""

from latency._lazy import exports

__all__, __getattr__, __dir__ = exports(__name__, __file__)
