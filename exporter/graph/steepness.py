"""Channels of a BatchNorm whose running variance is next to nothing: a fold multiplies weights by what that leaves.

A channel that was dead in training ends with a variance far below ``eps``, and then ``gamma / sqrt(eps)`` is 316 times gamma with the usual eps.
"""

from __future__ import annotations

import numpy as np

from exporter.artifacts import Steep
from exporter.graph.abstract import BatchNorm, Role
from exporter.graph.algebra import affine_from_batch_norm
from exporter.graph.rewrites import Constants

__all__ = ["steepness_of"]

_TINY = 1e-3
"""Share of the median variance below which a variance is tiny; one that is not above eps is so in any case."""
_BEYOND_NEIGHBOURS = 16.0
_BEYOND_ALL = 100.0


def steepness_of(role: Role | None, constants: Constants) -> Steep | None:
    """Return the channels with a tiny variance whose factor is large, beside the other channels' or at all; None where there are none."""
    if not isinstance(role, BatchNorm) or role.var is None or role.mean is None:
        return None
    var, mean = constants.read(role.var), constants.read(role.mean)
    smallest = var.min(initial=np.inf)
    if smallest > role.eps and smallest >= _TINY * var.max(initial=0.0):  # False where a variance is NaN or infinite
        return None
    gamma = None if role.gamma is None else constants.read(role.gamma)
    factors = np.abs(affine_from_batch_norm(gamma, None, mean, var, role.eps)[0])
    known = np.isfinite(factors) & np.isfinite(var)
    if not known.any():
        return None
    typical, usual = float(np.median(factors[known])), float(np.median(var[known]))
    is_tiny = (var <= role.eps) | (var < _TINY * usual)
    is_steep = is_tiny & known & ((factors >= _BEYOND_NEIGHBOURS * typical) | (factors >= _BEYOND_ALL)) & (factors > 0)
    if not is_steep.any():
        return None
    channel = int(np.argmax(np.where(is_steep, factors, 0.0)))
    return Steep(channel, float(var[channel]), float(factors[channel]), typical, int(is_steep.sum()))
