"""A tile of rows and a component, for few features: code generated for each D up to FEW, with a whole row in registers.

    e = x - center    log densities c - |P e|^2 / 2    sums of r, r e, and r e e', r e_d^2 or r |e|^2

`densities.py` and `statistics.py` compute the same with loops over D, which read rows and parameters repeatedly. For so
few features, loop overhead and cache accesses would take longer than the arithmetic. Sums of full covariances are split
into blocks that fit the registers; `add_square` is a block for any D. Each function contains the code for every D and
jumps to that of the actual D.
Specification: fastvae/reference/gmm/formulas.py
"""

from collections.abc import Callable
from functools import reduce
from itertools import pairwise
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from ..language.blocks import SIDE
from ..language.emit import VECTOR, WIDE, Registers, add_totals, broadcast, fma, load, loop, pointer, vector_at
from ..language.vector import LANES_REGISTER, llvm_type, splat
from .modes import DIAG, FULL, MEANS_ALONE, SPHERICAL

FEW = 8
ROW_VECTORS = 2 if WIDE else 1  # vectors of rows processed together, for which a component's parameters are read once
INDEX = ir.IntType(64)


def _switch_on_features(builder: Any, D: Any, emit: Callable[[int], None]) -> None:
    """Generate the code for each number of features, and a jump to that for D."""
    after = builder.append_basic_block("after")
    switch = builder.switch(D, after)
    for n in range(1, FEW + 1):
        block = builder.append_basic_block(f"features{n}")
        switch.add_case(D.type(n), block)
        builder.position_at_end(block)
        emit(n)
        builder.branch(after)
    builder.position_at_end(after)


def _squares(builder: Any, family: int, P: Any, e: list[Any]) -> list[Any]:
    """Generate |P e|^2 for several vectors of rows; e[d] holds the vectors of feature d."""
    n, indices = len(e), range(len(e[0]))
    zero = ir.Constant(llvm_type(VECTOR), None)
    q = [zero for _ in indices]
    if family == SPHERICAL:
        for d in range(n):
            q = [fma(builder, e[d][k], e[d][k], q[k]) for k in indices]
        p = broadcast(builder, P, INDEX(0))
        return [builder.fmul(q[k], builder.fmul(p, p)) for k in indices]
    for i in range(n):
        a = [zero for _ in indices]
        for j in range(i + 1) if family == FULL else [i]:
            p = broadcast(builder, P, INDEX(i * n + j if family == FULL else i))
            a = [fma(builder, p, e[j][k], a[k]) for k in indices]
        q = [fma(builder, a[k], a[k], q[k]) for k in indices]
    return q


@intrinsic(prefer_literal=True)
def logits_few(typingctx, logit, xt, center, P, c, T, D, S, family):
    """Compute the log joint densities of T rows, a multiple of 16; ``family`` is a constant."""
    kind = family.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        logit_, xt_, center_, P_ = (pointer(context, builder, signature.args[k], args[k]) for k in range(4))
        c_, (T_, D_, S_) = splat(builder, args[4], VECTOR), args[5:8]
        half = splat(builder, ir.Constant(ir.DoubleType(), -0.5), VECTOR)

        def emit(n: int) -> None:
            with loop(builder, T_, ROW_VECTORS * LANES_REGISTER) as (t, _):
                rows = [builder.add(t, t.type(k * LANES_REGISTER)) for k in range(ROW_VECTORS)]
                e = []
                for d in range(n):
                    m, first = broadcast(builder, center_, INDEX(d)), builder.mul(S_, S_.type(d))
                    e.append([builder.fsub(load(builder, xt_, builder.add(first, row)), m) for row in rows])
                for row, q in zip(rows, _squares(builder, kind, P_, e), strict=True):
                    builder.store(fma(builder, half, q, c_), vector_at(builder, logit_, row), align=8)

        _switch_on_features(builder, D_, emit)
        return context.get_dummy_value()

    i = types.intp
    return types.void(logit, xt, center, P, types.float64, i, i, i, family), codegen


def _parts(family: int, n: int) -> list[tuple[range, range]]:
    """Return the blocks, as rows and columns of products, each of which is summed in one loop over the tile."""
    if family != FULL or n <= SIDE:
        return [(range(n), range(n))]
    count = -(-n // SIDE)
    edges = [k * n // count for k in range(count + 1)]
    groups = [range(a, b) for a, b in pairwise(edges)]
    return [(rows, columns) for i, rows in enumerate(groups) for columns in groups[: i + 1]]


def _products(family: int, rows: range, columns: range) -> list[tuple[int, int]]:
    """Return the products of features that one loop sums."""
    if family == MEANS_ALONE:
        return []
    if family == FULL:
        return [(i, j) for i in rows for j in columns if j <= i]
    return [(d, d) for d in rows]


@intrinsic(prefer_literal=True)
def add_few(typingctx, square, linear, xt, center, r, T, D, S, family):
    """Add sum r e and sum r to ``linear``, and the products of the family to ``square``.

    These are sum r e e', with rows padded to a multiple of four, sum r e_d^2, sum r |e|^2, or none.
    """
    kind = family.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        square_, linear_, xt_, center_, r_ = (pointer(context, builder, signature.args[k], args[k]) for k in range(5))
        T_, D_, S_ = args[5:8]

        def emit(n: int) -> None:
            width = -(-n // 4) * 4
            for rows, columns in _parts(kind, n):
                own = rows == columns  # a diagonal block also sums r e of its features
                keys: list[Any] = _products(kind, rows, columns)
                places = {key: (square_, key[0] * width + key[1] if kind == FULL else key[0]) for key in keys}
                if kind == SPHERICAL:
                    places = dict.fromkeys(keys[:1], (square_, 0))
                if own:
                    places |= {d: (linear_, d) for d in rows}
                    if rows.start == 0:
                        places["all"] = (linear_, n)
                sums = Registers(builder, places)
                with loop(builder, T_) as (t, _):
                    weight, e = load(builder, r_, t), {}
                    for d in sorted({*rows, *columns}):
                        at = builder.add(builder.mul(S_, S_.type(d)), t)
                        e[d] = builder.fsub(load(builder, xt_, at), broadcast(builder, center_, INDEX(d)))
                    if "all" in places:
                        sums.add("all", weight)
                    re = {d: builder.fmul(weight, e[d]) for d in rows}
                    for d in rows if own else []:
                        sums.add(d, re[d])
                    for i, j in keys:
                        sums.add(keys[0] if kind == SPHERICAL else (i, j), re[i], e[j])
                add_totals(builder, [(sums.get(key), array, INDEX(at)) for key, (array, at) in places.items()])

        _switch_on_features(builder, D_, emit)
        return context.get_dummy_value()

    i = types.intp
    return types.void(square, linear, xt, center, r, i, i, i, family), codegen


@intrinsic(prefer_literal=True)
def add_square(typingctx, square, width, re, xt, center, i, first, j, T, S, triangle):
    """Add sum r e e' to rows i to i + 3 and columns j to j + 3 of ``square``.

    With ``triangle``, where i = j, only the lower triangle is added. ``re`` holds r e of features from ``first`` on.
    """
    below = bool(triangle.literal_value)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        square_, re_, xt_, center_ = (pointer(context, builder, signature.args[k], args[k]) for k in (0, 2, 3, 4))
        width_, i_, first_, j_, T_, S_ = args[1], args[5], args[6], args[7], args[8], args[9]
        keys = [(a, b) for a in range(4) for b in range(4) if b <= a or not below]
        rows = [builder.mul(builder.add(builder.sub(i_, first_), S_.type(a)), S_) for a in range(4)]
        columns = [builder.mul(builder.add(j_, S_.type(b)), S_) for b in range(4)]
        m = [broadcast(builder, center_, builder.add(j_, S_.type(b))) for b in range(4)]
        sums = Registers(builder, keys)
        with loop(builder, T_) as (t, _):
            left = [load(builder, re_, builder.add(row, t)) for row in rows]
            right = [builder.fsub(load(builder, xt_, builder.add(columns[b], t)), m[b]) for b in range(4)]
            for a, b in keys:
                sums.add((a, b), left[a], right[b])
        entries = []
        for a, b in keys:
            at = builder.add(builder.mul(builder.add(i_, S_.type(a)), width_), builder.add(j_, S_.type(b)))
            entries.append((sums.get((a, b)), square_, at))
        add_totals(builder, entries)
        return context.get_dummy_value()

    n = types.intp
    return types.void(square, n, re, xt, center, n, n, n, n, n, triangle), codegen


@intrinsic(prefer_literal=True)
def add_features(typingctx, square, linear, xt, centers, r, k, d, D, T, S, count, family):
    """Add sum r e_d of component k for ``count`` features from d on; ``count`` is a constant.

    Depending on ``family``, also add sum r e_d^2 for each feature, or their total, or nothing.
    """
    n, kind = count.literal_value, family.literal_value

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        square_, linear_, xt_, centers_, r_ = (pointer(context, builder, signature.args[i], args[i]) for i in range(5))
        k_, d_, D_, T_, S_ = args[5:10]
        features = [builder.add(d_, d_.type(i)) for i in range(n)]
        columns = [builder.mul(feature, S_) for feature in features]
        own = [builder.add(builder.mul(k_, D_), feature) for feature in features]  # offsets of component k
        m = [broadcast(builder, centers_, at) for at in own]
        means, squares = [("mean", i) for i in range(n)], [("square", i) for i in range(n)]
        sums = Registers(builder, means if kind == MEANS_ALONE else means + squares)
        with loop(builder, T_) as (t, _):
            weight = load(builder, r_, builder.add(builder.mul(k_, S_), t))
            for i in range(n):
                e = builder.fsub(load(builder, xt_, builder.add(columns[i], t)), m[i])
                re = builder.fmul(weight, e)
                sums.add(means[i], re)
                if kind != MEANS_ALONE:
                    sums.add(squares[i], re, e)
        entries = [(sums.get(key), linear_, builder.add(at, k_)) for key, at in zip(means, own, strict=True)]
        if kind == DIAG:
            entries += [(sums.get(key), square_, at) for key, at in zip(squares, own, strict=True)]
        elif kind == SPHERICAL:
            entries.append((reduce(builder.fadd, map(sums.get, squares)), square_, k_))
        add_totals(builder, entries)
        return context.get_dummy_value()

    i = types.intp
    return types.void(square, linear, xt, centers, r, i, i, i, i, i, count, family), codegen
