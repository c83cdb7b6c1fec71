"""The end of a pass over a problem: merge the sums of its slots, compute parameters or centers, choose the next step.

`finish_problem` runs after the last slot of a problem. For large full covariances and many slots, the merge and the
update are a separate launch.
Work unit of that launch: a component.
Specification: fastvae/reference/gmm/formulas.py
"""

from functools import cache

from ..language.jit import Kernel, kernel, math_jit
from ..language.layout import Layout
from ..language.memory import F64, I64, array_at, row_at
from ..language.threads import finished, is_last, take, worker
from .data import ROWS
from .families import update_component
from .kmeans import move_centers
from .modes import CENTERS, FULL, PARAMETERS
from .statistics import width
from .steps import DONE, FIT, PARAMETERS_OF, next_step, parameters_of
from .update import finish_parameters, merge

# Sums [P, slots, F]; number of finished slots of each problem; flags [P, K]; results [P, 3]: the log-likelihood, then
# the flags of all components and whether one was split, or the squared distance that centers moved and how many of
# them have no rows.
SUMS = Layout("statistics F slots arrived flags result")
# The options that all launches of a plan share: tiles of T rows; metric [P, D]; ids [B] and seed of random
# responsibilities.
PLAN = Layout("K T tied metric ids seed room_size reg_covar:float")
UPDATE = Layout("active rescue room", rows=ROWS, plan=PLAN, parameters=PARAMETERS_OF, sums=SUMS, fit=FIT)


@math_jit
def problem_of(f, i):
    """Return the index of the i-th active problem."""
    return row_at(f.active, i, 1, I64)[0]


@math_jit
def finish_problem(f, p, then, metric, u):
    """Merge the slots of a problem, compute what ``then`` asks for, and return the next step. ``u`` is scratch."""
    g, D, K = f.sums, f.rows.D, f.plan.K
    sums, result = row_at(g.statistics, p, g.slots * g.F, F64), row_at(g.result, p, 3, F64)
    merge(sums, 0, g.F, g.F, g.slots)
    result[0] = sums[g.F - 1]
    _, new, centers = parameters_of(f.parameters, f.fit, p)
    theta, means = array_at(new, f.parameters.size, F64), array_at(centers + 16 * K, K * D, F64)
    if then == PARAMETERS:
        flags = row_at(g.flags, p, K, I64)
        for k in range(K):
            flags[k] = update_component(f.family, k, sums, theta, means, u, D, K, f.plan.tied, f.plan.reg_covar)
        result[1], result[2] = finish_parameters(theta, flags, D, K, f.plan.tied, f.family, f.rescue)
    elif then == CENTERS:
        result[1], result[2] = move_centers(sums, theta, means, metric, D, K)
    return next_step_of(f, p, result)


@math_jit
def next_step_of(f, p, result):
    """Return the next step of a problem according to its record, or DONE if there are no records."""
    if f.fit.records:
        return next_step(f.parameters, f.fit, p, result[0], result[1], result[2])
    return DONE


@math_jit
def update_one(f, p, k, u):
    """Merge the sums of a component and update it; the thread that does the last component finishes the problem."""
    g, D, K, W = f.sums, f.rows.D, f.plan.K, width(f.rows.D)
    sums = row_at(g.statistics, p, g.slots * g.F, F64)
    merge(sums, k * (D + 1), D + 1, g.F, g.slots)
    merge(sums, K * (D + 1) + k * W * W, W * W, g.F, g.slots)
    _, new, centers = parameters_of(f.parameters, f.fit, p)
    theta, means = array_at(new, f.parameters.size, F64), array_at(centers + 16 * K, K * D, F64)
    flags = row_at(g.flags, p, K, I64)
    flags[k] = update_component(f.family, k, sums, theta, means, u, D, K, False, f.plan.reg_covar)
    if is_last(g.arrived + 8 * p, K):
        merge(sums, g.F - 1, 1, g.F, g.slots)
        result = row_at(g.result, p, 3, F64)
        result[0] = sums[g.F - 1]
        result[1], result[2] = finish_parameters(theta, flags, D, K, False, FULL, f.rescue)
        next_step_of(f, p, result)


@cache
def make_update() -> Kernel:
    """Return the kernel that merges the slots of full mixtures and updates their parameters, one component per unit."""

    @kernel(UPDATE, family=FULL)
    def mixture_update(f):
        me = worker(f.header)
        u = array_at(f.room + 8 * f.plan.room_size * me, f.rows.D * f.rows.D, F64)
        start, stop = take(f.header, me)
        while start < stop:
            for unit in range(start, stop):
                update_one(f, problem_of(f, unit // f.plan.K), unit % f.plan.K, u)
            finished(f.header, stop - start)
            start, stop = take(f.header, me)

    return mixture_update
