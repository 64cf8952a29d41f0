"""Sums of exp(q·y) over many items y: a catalog that can change, from a few thousand dot products a query."""

from rfkernels.catalog.facade import Catalog
from rfkernels.catalog.records import Draws, Estimate, Top
from rfkernels.catalog.reductions import Expectation

__all__ = ["Catalog", "Draws", "Estimate", "Expectation", "Top"]
