"""Exact weights for near and heavy keys, groups for all others: what linear attention of trained models needs.

A sequence is cut into blocks. A query sees exactly the keys of its own block, of the blocks that its window reaches,
and the heavy keys, wherever they are; of all others it sees sums: one for each group of keys (order 0), or features,
or features of what is left of a key once the centre of its group is subtracted. All weights are positive, on one log
scale, and nothing is subtracted from a sum.
"""

from rfkernels.grouping.records import BlockState, Far, Groups, Plan, plan_for

__all__ = ["BlockState", "Far", "Groups", "Plan", "plan_for"]
