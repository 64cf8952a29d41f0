"""Measure this machine against exact attention, plain mathematics and whatever peers are installed.

Every comparison is a ratio of times taken by turns in one run (`timing`); a peer is imported only when it is measured.
"""

from rfkernels.benchmark.line import Line, meets
from rfkernels.benchmark.suite import run

__all__ = ["Line", "meets", "run"]
