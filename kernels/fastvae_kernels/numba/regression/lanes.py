"""Eight problems at a time, one in each lane: which they are, their sums and results gathered and scattered.

In lanes, number k of each problem is [k, 8] in scratch; elsewhere each problem's numbers are adjacent.
"""

from ..language.double import load_number, store_number, words
from ..language.jit import loop_jit, outlined
from ..language.memory import F64, I64, array_at, read, vector, write
from ..language.transpose import lanes_to_rows, rows_to_lanes
from .fields import SEPARATE

# Of the eight problems in the lanes, in scratch: which of the batch, which of all, addresses, rows, sums of log w.
UNITS, NUMBERS, ADDRESSES, ROW_COUNTS, LOG_WEIGHTS, LANE_NUMBERS = range(0, 48, 8)


@loop_jit
def load_group(lanes, batch, problems, group):
    """Which problems are in the lanes of a group, and what is known of each. Spare lanes repeat the last problem."""
    outlined()
    units, numbers = array_at(lanes + 8 * UNITS, 8, I64), array_at(lanes + 8 * NUMBERS, 8, I64)
    row_counts, log_weights = array_at(lanes + 8 * ROW_COUNTS, 8, F64), array_at(lanes + 8 * LOG_WEIGHTS, 8, F64)
    last = min(8, batch.count - 8 * group) - 1
    for lane in range(8):
        units[lane] = 8 * group + min(lane, last)
        b = array_at(batch.active + 8 * units[lane], 1, I64)[0]
        numbers[lane] = b
        row_counts[lane] = array_at(problems.row_counts + 8 * b, 1, F64)[0] if problems.row_counts else problems.N * 1.0
        log_weights[lane] = array_at(problems.log_weights + 8 * b, 1, F64)[0] if problems.log_weights else 0.0


@loop_jit
def find_rows(lanes, start, size, numbers):
    """In each lane the address of a row of ``size`` float64, of those from the address ``start`` on; their numbers lie
    at the address ``numbers``.
    """
    addresses, numbers = array_at(lanes + 8 * ADDRESSES, 8, I64), array_at(numbers, 8, I64)
    for lane in range(8):
        addresses[lane] = start + 8 * size * numbers[lane]


@loop_jit
def scatter_record(results, record, lanes, first, last):
    """Write the record at an address to the results of its problems: all separate fields, and of the state those
    between the offsets ``first`` and ``last``.
    """
    outlined()
    begins, numbers = array_at(results.at.header, SEPARATE + 1, I64), array_at(lanes + 8 * NUMBERS, 8, I64)
    consecutive = numbers[6] - numbers[0] == 6 and numbers[7] - numbers[6] == 1  # for they ascend
    for k in range(SEPARATE):
        begin, size = begins[k], begins[k + 1] - begins[k]
        if size == 1 and consecutive:
            field = array_at(results.out + 8 * (begin * results.B + numbers[0]), 8, F64)
            write(field, 0, read(array_at(record + 64 * begin, 8, F64), 0, vector(F64)))
        else:
            find_rows(lanes, results.out + 8 * begin * results.B, size, lanes + 8 * NUMBERS)
            lanes_to_rows(lanes + 8 * ADDRESSES, record + 64 * begin, size)
    state, size = results.at.weight, results.at.end - results.at.weight
    find_rows(lanes, results.out + 8 * (state * results.B + first - state), size, lanes + 8 * NUMBERS)
    lanes_to_rows(lanes + 8 * ADDRESSES, record + 64 * first, last - first)


@loop_jit
def gather_record(record, results, lanes):
    """Coefficients, intercepts, condition, rank and state of the problems, to the record at an address."""
    outlined()
    at = results.at
    for begin, end in (
        (at.coef, at.intercept), (at.intercept, at.coef_error), (at.condition, at.rank), (at.rank, at.flags),
        (at.weight, at.end),
    ):  # fmt: skip
        find_rows(lanes, results.out + 8 * begin * results.B, end - begin, lanes + 8 * NUMBERS)
        rows_to_lanes(record + 64 * begin, lanes + 8 * ADDRESSES, end - begin)


@loop_jit
def gather_sums(to, slot, lanes, sums, slots, F, x):
    """The sums of the problems, those of their slots added in index order; ``slot`` is room for those of one. All but
    numbers are addresses.
    """
    outlined()
    size = F * words(x)
    total, other = array_at(to, size, F64), array_at(slot, size, F64)
    for s in range(slots):
        find_rows(lanes, sums + s * size, slots * size // 8, lanes + 8 * UNITS)
        rows_to_lanes(slot if s else to, lanes + 8 * ADDRESSES, size // 8)
        if s:
            for k in range(F):
                store_number(total, k, load_number(total, k, x) + load_number(other, k, x))
