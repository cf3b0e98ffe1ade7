"""The public names, one line each; ``__init__.py`` imports one when it is first used."""

from latency.backends import Backend as Backend
from latency.backends import Built as Built
from latency.backends import Runner as Runner
from latency.backends import Way as Way
from latency.backends import backend as backend
from latency.device import TimingPolicy as TimingPolicy
from latency.device import environment as environment
from latency.device import policy_for as policy_for
from latency.device import register_policy as register_policy
from latency.errors import HalpieeError as HalpieeError
from latency.errors import MeasurementError as MeasurementError
from latency.errors import MissingError as MissingError
from latency.errors import OutputInUseError as OutputInUseError
from latency.errors import ProfileError as ProfileError
from latency.errors import UnsupportedOpError as UnsupportedOpError
from latency.errors import UsageError as UsageError
from latency.op import Op as Op
from latency.predict import Calibration as Calibration
from latency.predict import fit as fit
from latency.profiles import Profile as Profile
from latency.sweeping import sweep as sweep
from latency.sweeping.design import Estimate as Estimate
from latency.table import Table as Table
from latency.timing.benchmark import Comparison as Comparison
from latency.timing.benchmark import Measurement as Measurement
from latency.timing.benchmark import compare as compare
from latency.timing.benchmark import measure as measure

__all__: list[str]
