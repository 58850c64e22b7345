"""Instruments: look at, check, print, time and record every pass of a run, without changing what it does."""

from .base import CheckFailure, Instrument, PassStep
from .check_each import CheckEach
from .dumps import DumpEach
from .printing import PrintIR, When
from .reproducer import Reproducer
from .stages import PassStages
from .timing import PrintTiming
from .verify_each import VerifyEach
