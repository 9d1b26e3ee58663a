"""A fold as a plan that can be applied again: to new weights of the same network, in milliseconds, without torch.

What the planner decided depends on the graph, and only where a rewrite says so on numbers. So the plan is the list of what it tried: each
attempt names a rewrite and holds the match, that is the operators with their roles. Applying it calls ``apply`` of the same rewrites with
the new numbers, in the same order, so the result is bit for bit that of a fresh fold. Where an attempt comes to something else than it
did (a maximum meets a negative scale, a shift became zero, a number leaves the range of its dtype), the network needs another plan, and the
weights are refused; so they are where something could be folded now that could not before.

    document.py   the plan, and its JSON
    coding.py     roles, operators and matches <-> JSON
    origins.py    where numbers come from: the state dict, the plan itself, or arithmetic on these
    recording.py  exported program + plan of the planner -> plan (the only part that needs torch)
    applying.py   plan + weights -> folded weights

The JSON is an object:

    format, schema  "exporter fold plan", 1
    sha256          of the canonical JSON of ``plan``: a damaged plan is refused
    plan
      made_by       versions
      weights       name in the network's state dict -> dtype and shape; what new weights have to be
      values        name in the traced graph -> origin of its numbers and dtype
      operators     every operator that an attempt names, once
      attempts      rewrite, match (operators by number), outline, is_finite, is_taken; in order
      results       name in the folded state dict -> dtype, and either ``kept`` as it is, or a part of the numbers of an operator, or an origin
"""

from exporter.graph.replay.applying import apply_plan
from exporter.graph.replay.document import FoldPlan, read_plan, write_plan

__all__ = ["FoldPlan", "apply_plan", "read_plan", "write_plan"]
