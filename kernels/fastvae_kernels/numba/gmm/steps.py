"""The steps of a fit: what a pass over a problem's rows computes, and which step follows on what it found.

    LLOYD      k-means, from seeds                          LEFT       its centers hardly move, or one has no rows
    EM         EM, until the bound hardly rises             AGAIN      its sums about the new means, see FAR
    LAST       the log-likelihood of what was found         DONE

A problem's record holds its step. Whoever finishes a problem's pass takes the next step by `next_step`, in the kernel:
where rows are many, a launch is one step of all problems that go on; where they are few, all steps of a problem are one
work unit, the rows stay in a cache, and Python is not asked in between.
Specification: fastvae/reference/gmm/engine.py
"""

import math

from ..language.jit import loop_jit, math_jit, outlined
from ..language.layout import Layout
from ..language.memory import F64, array_at, row_at
from .modes import CENTERS, LINEAR, MERGE, NEAREST, NOTHING, PARAMETERS, POSTERIOR, PRODUCTS
from .update import FAR, SINGULAR

LLOYD, LEFT, EM, AGAIN, LAST, DONE = range(6)
CONVERGED, MAX_ITER, RESCUED, DEGENERATE = 1, 2, 4, 8  # of a fit: the values of fastvae.Status
LLOYD_STEPS, LLOYD_TOL = 300, 1e-3  # of the variance of a feature, that all centers move; EM goes on from there
MOST_RESCUES = 10  # of a problem, before it is given up

# A problem's record: its step; which of its two parameter blocks is the one to evaluate; iterations of Lloyd, then of
# EM; the fit's status; how often a component was put elsewhere; the bound, and the one before; total weight; how far
# centers may move in Lloyd's last iteration; the log-likelihood.
STEP, TURN, COUNT, STATUS, RESCUES, BOUND, BEFORE, TOTAL, LIMIT, LIKELIHOOD, RECORD = range(11)

# Parameter blocks [P, size]: to evaluate, to write, and those whose means sums are taken about. Where there are records
# the first two change places from step to step.
PARAMETERS_OF = Layout("old new centers size")
# Records [P, RECORD], or 0 where a launch is one pass of its own; bounds, so many for each problem; what was found.
FIT = Layout("records bounds most_bounds found max_iter tol:float")


@math_jit
def pass_of(step):
    """Responsibilities, statistics and what follows, of a step."""
    if step == LLOYD:
        return NEAREST, LINEAR, CENTERS
    if step == LAST:
        return POSTERIOR, NOTHING, MERGE
    return POSTERIOR, PRODUCTS, PARAMETERS


@math_jit
def parameters_of(f, fit, p):
    """The addresses of a problem's blocks: to evaluate, to write, to take sums about."""
    at = 8 * p * f.size
    old, new, centers = f.old + at, f.new + at, f.centers + at
    if fit.records:
        record = row_at(fit.records, p, RECORD, F64)
        if record[TURN] != 0:
            old, new = new, old
        if record[STEP] == LAST:
            old = fit.found + at
        centers = new if record[STEP] == AGAIN else old
    return old, new, centers


@loop_jit
def next_step(f, fit, p, value, first, second):
    """The step after one whose pass found the log-likelihood ``value``, and flags and splits, or how far centers moved
    and how many have no rows. What was found at the end is kept.
    """
    outlined()
    record = row_at(fit.records, p, RECORD, F64)
    old, new, _ = parameters_of(f, fit, p)
    step = int(record[STEP])
    if step == LLOYD:
        step = after_lloyd(record, first, second)
        if step == LEFT:
            keep(f, fit, p, new)
    elif step == LAST:
        record[LIKELIHOOD] = value
        step = DONE
    elif step == EM and int(first) & FAR:
        record[BOUND] = value / record[TOTAL]
        step = AGAIN
    else:
        if step == EM:
            record[BOUND] = value / record[TOTAL]
        step = after_em(fit, record, p, int(first) & SINGULAR, second != 0)
        if step == LAST:
            keep(f, fit, p, old if int(record[STATUS]) & DEGENERATE else new)
    if step in (LLOYD, EM):
        record[TURN] = 1 - record[TURN]
    record[STEP] = step
    return step


@math_jit
def after_lloyd(record, moved, empty):
    """LLOYD, or LEFT."""
    record[COUNT] += 1
    return LLOYD if moved > record[LIMIT] and empty == 0 and record[COUNT] < LLOYD_STEPS else LEFT


@math_jit
def after_em(fit, record, p, singular, split):
    """EM, or LAST with the status that says why."""
    bound, before = record[BOUND], record[BEFORE]
    if record[COUNT] < fit.most_bounds:
        row_at(fit.bounds, p, fit.most_bounds, F64)[int(record[COUNT])] = bound
    status = int(record[STATUS])
    if split:
        status |= RESCUED
        record[RESCUES] += 1
    step = LAST
    if singular or not abs(bound) < math.inf or record[RESCUES] > MOST_RESCUES:
        status |= DEGENERATE
    else:
        record[COUNT] += 1
        record[BEFORE] = -math.inf if split else bound  # the next may be lower, and says nothing
        if abs(bound - before) < fit.tol and not split:
            status |= CONVERGED
        elif record[COUNT] >= fit.max_iter:
            status |= MAX_ITER
        else:
            step = EM
    record[STATUS] = status
    return step


@math_jit
def keep(f, fit, p, block):
    """Copy a problem's parameters to where what was found belongs."""
    found, block = row_at(fit.found, p, f.size, F64), array_at(block, f.size, F64)
    for j in range(f.size):
        found[j] = block[j]
