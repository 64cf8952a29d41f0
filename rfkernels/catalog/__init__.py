"""Sums of exp(q·y) over many items y: a catalog that can change, from a few thousand dot products a query."""
