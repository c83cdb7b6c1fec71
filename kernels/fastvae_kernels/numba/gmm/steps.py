"""The steps of a fit, pass by pass: what a pass computes, and what follows on what it found.

    LLOYD      k-means, from seeds                          LEFT       its centers hardly move, or one has no rows
    CLIMB      EM, until the bound hardly rises             AGAIN      its sums about the new means, see FAR
    LAST       the log-likelihood of what was found

`gmm.Run` takes these steps for all problems side by side. Where a problem's rows are few, one work unit takes them all
by `follow`, one after the other, to the same bits: the rows stay in a cache, and nothing is said to Python in between.
Specification: fastvae/reference/gmm/engine.py
"""

import math

from ..language.jit import loop_jit, math_jit, outlined
from .update import FAR, SINGULAR

POSTERIOR, GIVEN, NEAREST, RANDOM = range(4)  # where responsibilities come from
NOTHING, LINEAR, PRODUCTS, SQUARES = range(4)  # statistics that are wanted
LEAVE, MERGE, PARAMETERS, CENTERS = range(4)  # what follows on the last slot of a problem
LLOYD, LEFT, CLIMB, AGAIN, LAST, DONE = range(6)
CONVERGED, MAX_ITER, RESCUED, DEGENERATE = 1, 2, 4, 8  # of a fit: the values of fastvae.Status
LLOYD_STEPS, LLOYD_TOL = 300, 1e-3  # of the variance of a feature, that all centers move; EM goes on from there
MOST_RESCUES = 10  # of a problem, before it is given up

# A problem's record: its step; iterations of Lloyd, then of EM; the fit's status; how often a component was put
# elsewhere; the bound, and the one before; total weight; how far centers may move in Lloyd's last iteration; the
# log-likelihood; whether what was found is the new parameters or the old.
STEP, COUNT, STATUS, RESCUES, BOUND, BEFORE, TOTAL, LIMIT, LIKELIHOOD, IS_NEW, RECORD = range(11)


@math_jit
def pass_of(step):
    """Source, statistics and what follows, of a step."""
    if step == LLOYD:
        return NEAREST, LINEAR, CENTERS
    if step == LAST:
        return POSTERIOR, NOTHING, MERGE
    return POSTERIOR, PRODUCTS, PARAMETERS


@loop_jit
def follow(record, bounds, value, first, second, tol, max_iter):
    """The step after one whose pass found log-likelihood ``value``, and flags and splits, or how far centers moved and
    how many have no rows.
    """
    outlined()
    step, status = int(record[STEP]), int(record[STATUS])
    after = DONE
    if step == LLOYD:
        record[COUNT] += 1
        going = first > record[LIMIT] and record[COUNT] < LLOYD_STEPS
        after = LLOYD if going and second == 0 else LEFT
    elif step == LAST:
        record[LIKELIHOOD] = value
    else:
        if step == CLIMB:
            record[BOUND] = value / record[TOTAL]
        if step == CLIMB and int(first) & FAR:
            after = AGAIN
        else:
            bound, split = record[BOUND], second != 0
            bounds[int(record[COUNT])] = bound
            if split:
                status |= RESCUED
                record[RESCUES] += 1
            if int(first) & SINGULAR or not abs(bound) < math.inf or record[RESCUES] > MOST_RESCUES:
                after, status = LAST, status | DEGENERATE
                record[IS_NEW] = 0
            else:
                record[COUNT] += 1
                after = CLIMB
                if abs(bound - record[BEFORE]) < tol and not split:
                    after, status = LAST, status | CONVERGED
                elif record[COUNT] >= max_iter:
                    after, status = LAST, status | MAX_ITER
                record[IS_NEW] = 1
                record[BEFORE] = -math.inf if split else bound  # the next may be lower, and says nothing
    record[STEP], record[STATUS] = after, status
    return after
