"""The steps of a fit: what a pass over the rows of a problem computes, and which step follows from its results.

    LLOYD         k-means, from seeds
    LLOYD_DONE    k-means has converged, or a center has no rows
    EM            EM, until the bound converges
    AGAIN         EM's sums about the new means, see FAR
    LAST          the log-likelihood of the final parameters
    DONE

The record of a problem holds its step. The thread that finishes a pass calls `next_step`, in the kernel. If there are
many rows, a launch is one step of all unfinished problems. If there are few, all steps of a problem are one work unit:
the rows stay in a cache, and Python is not involved between the steps.
Specification: fastvae/reference/gmm/engine.py
"""

import math

from ..language.jit import loop_jit, math_jit, outlined
from ..language.layout import Layout
from ..language.memory import F64, array_at, row_at
from .modes import CENTERS, LINEAR, MERGE, NEAREST, NOTHING, PARAMETERS, POSTERIOR, PRODUCTS
from .update import FAR, SINGULAR

LLOYD, LLOYD_DONE, EM, AGAIN, LAST, DONE = range(6)
CONVERGED, MAX_ITER, RESCUED, DEGENERATE = 1, 2, 4, 8  # the values of fastvae.Status
# Most iterations of k-means, and its tolerance: the total squared distance that centers move, relative to the mean
# variance of the features. EM continues from there.
LLOYD_STEPS, LLOYD_TOL = 300, 1e-3
MOST_RESCUES = 10  # of a problem, before it is marked as degenerate

# The record of a problem: its step; which of its two parameter blocks is evaluated; iterations of Lloyd, then of EM;
# the status of the fit; the number of steps that replaced a component; the bound, and the previous one; total weight;
# the squared distance that centers may move in the last Lloyd iteration; the log-likelihood.
STEP, TURN, COUNT, STATUS, RESCUES, BOUND, BEFORE, TOTAL, LIMIT, LIKELIHOOD, RECORD = range(11)

# Parameter blocks [P, size]: the ones to evaluate, the ones to write, and those whose means are the centers of the
# sums. Where there are records, the first two are swapped from step to step.
PARAMETERS_OF = Layout("old new centers size")
# Records [P, RECORD], or 0 if a launch is a single pass; lower bounds [P, most_bounds]; the final parameter blocks.
FIT = Layout("records bounds most_bounds found max_iter tol:float")


@math_jit
def pass_of(step):
    """Return the mode of the pass of a step: responsibilities, statistics and what follows, see `modes.py`."""
    if step == LLOYD:
        return NEAREST, LINEAR, CENTERS
    if step == LAST:
        return POSTERIOR, NOTHING, MERGE
    return POSTERIOR, PRODUCTS, PARAMETERS


@math_jit
def parameters_of(f, fit, p):
    """Return the addresses of a problem's blocks: to evaluate, to write, and with the centers of the sums."""
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
    """Return the step that follows a pass with the log-likelihood ``value``, and save the final parameters at the end.

    ``first`` and ``second`` are the flags and whether a component was split, or the squared distance that centers moved
    and how many have no rows.
    """
    outlined()
    record = row_at(fit.records, p, RECORD, F64)
    old, new, _ = parameters_of(f, fit, p)
    step = int(record[STEP])
    if step == LLOYD:
        step = after_lloyd(record, first, second)
        if step == LLOYD_DONE:
            save_parameters(f, fit, p, new)
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
            save_parameters(f, fit, p, old if int(record[STATUS]) & DEGENERATE else new)
    if step in (LLOYD, EM):
        record[TURN] = 1 - record[TURN]
    record[STEP] = step
    return step


@math_jit
def after_lloyd(record, moved, empty):
    """Return LLOYD to continue k-means, or LLOYD_DONE."""
    record[COUNT] += 1
    return LLOYD if moved > record[LIMIT] and empty == 0 and record[COUNT] < LLOYD_STEPS else LLOYD_DONE


@math_jit
def after_em(fit, record, p, singular, split):
    """Return EM to continue, or LAST, and set the status that gives the reason."""
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
        record[BEFORE] = -math.inf if split else bound  # the next bound may be lower, without meaning
        if abs(bound - before) < fit.tol and not split:
            status |= CONVERGED
        elif record[COUNT] >= fit.max_iter:
            status |= MAX_ITER
        else:
            step = EM
    record[STATUS] = status
    return step


@math_jit
def save_parameters(f, fit, p, block):
    """Save a problem's parameters as its final ones."""
    found, block = row_at(fit.found, p, f.size, F64), array_at(block, f.size, F64)
    for j in range(f.size):
        found[j] = block[j]
