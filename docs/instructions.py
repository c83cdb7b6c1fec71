"""What vector instructions of AVX-512 cost, alone and each beside another: `python docs/instructions.py`.

Cycles of a pair, both independent of all others: 1 where two of a kind would take 2 says that they do not share a port.
A cycle is what an addition of whole numbers takes that waits for the one before. Loops of inline assembly, one thread.
"""

import ctypes
import itertools
import sys
import time

from llvmlite import binding

INSTRUCTIONS = {
    "fma": "vfmadd231ps %zmm30, %zmm31, %zmm{}",
    "add": "vaddps %zmm30, %zmm31, %zmm{}",
    "compare": "vcmpltps %zmm30, %zmm31, %k1",
    "min": "vminps %zmm30, %zmm31, %zmm{}",
    "convert": "vcvtdq2ps %zmm30, %zmm{}",
    "32 x 32 bits": "vpmuludq %zmm30, %zmm31, %zmm{}",
    "shift": "vpsrlq $$32, %zmm30, %zmm{}",
    "logic": "vpternlogd $$150, %zmm30, %zmm31, %zmm{}",
    "unpack": "vunpcklps %zmm30, %zmm31, %zmm{}",
    "permute": "vpermt2d %zmm30, %zmm31, %zmm{}",
    "load": "vmovaps ($0), %zmm{}",
    "broadcast float": "vbroadcastss ($0), %zmm{}",
    "broadcast int": "vpbroadcastd ($0), %zmm{}",
    "store": "vmovaps %zmm30, ($0)",
    "divide": "vdivps %zmm30, %zmm31, %zmm{}",
}
BESIDE = "fma", "add", "32 x 32 bits", "permute", "logic"
COPIES, ROUNDS = 12, 20_000

binding.initialize_native_target()
binding.initialize_native_asmprinter()
binding.initialize_native_asmparser()
room = ctypes.create_string_buffer(128)
at = (ctypes.addressof(room) + 63) // 64 * 64


def seconds(*lines: str) -> float:
    """Of the lines once, in a loop that holds them COPIES times with other registers each."""
    code = "\\0A".join(line.format(12 * i + k) for k in range(COPIES) for i, line in enumerate(lines))
    clobbered = ",".join([*(f"~{{zmm{i}}}" for i in range(24)), "~{k1}", "~{memory}"])
    module = binding.parse_assembly(f"""
        define void @f(i64 %at, i64 %n) {{
        entry: br label %loop
        loop: %i = phi i64 [0, %entry], [%next, %loop]
          call void asm sideeffect "{code}", "r,{clobbered}"(i64 %at)
          %next = add i64 %i, 1
          %more = icmp slt i64 %next, %n
          br i1 %more, label %loop, label %end
        end: ret void }}""")
    target = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten()
    )
    engine = binding.create_mcjit_compiler(module, target)
    function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64)(engine.get_function_address("f"))
    best = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        function(at, ROUNDS)
        best = min(best, time.perf_counter() - start)
    return best / (ROUNDS * COPIES)


if __name__ == "__main__":
    if not binding.get_host_cpu_features().get("avx512f"):
        sys.exit("this processor has no AVX-512")
    cycle = seconds("addq $$1, $0")
    rows = [("cycles", "alone", *(f"beside {name}" for name in BESIDE)), ("---",) * (2 + len(BESIDE))]
    for name, line in INSTRUCTIONS.items():
        pairs = itertools.chain([(line,)], ((line, INSTRUCTIONS[other]) for other in BESIDE))
        rows.append((name, *(f"{seconds(*pair) / cycle:.1f}" for pair in pairs)))
    print("\n".join(f"| {' | '.join(row)} |" for row in rows))
