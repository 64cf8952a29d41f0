"""Sums of exp(q·y) over many items y: a catalog that can change, from a few thousand dot products a query."""

from rfkernels.catalog.facade import Catalog
from rfkernels.catalog.records import Draws, Estimate, Expectation, Top

__all__ = ["Catalog", "Draws", "Estimate", "Expectation", "Top"]
