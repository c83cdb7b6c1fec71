"""The processor that Numba compiles for: this machine, or the one given by NUMBA_CPU_NAME and NUMBA_CPU_FEATURES.

The summation order of a kernel depends on how many float64 numbers a register holds. This is determined by the target,
not by the host, so that kernels for another processor can be compiled and tested on this one.
"""

from llvmlite import binding
from numba import config

PROBE = """
define <8 x double> @probe(<8 x double> %a, <8 x double> %b) {
  %c = fadd <8 x double> %a, %b
  ret <8 x double> %c
}
"""


def has_wide_registers() -> bool:
    """Whether the target has registers of 512 bits, as AVX-512 does."""
    name, features, host = config.CPU_NAME, config.CPU_FEATURES, binding.get_host_cpu_features()
    if name is None and features is None:
        return bool(config.ENABLE_AVX and host.get("avx512f"))
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    machine = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name() if name is None else name,
        features=host.flatten() if features is None else features,  # as Numba does, even where a name is given
    )
    return "zmm" in machine.emit_assembly(binding.parse_assembly(PROBE))


LANES_REGISTER = 8 if has_wide_registers() else 4  # float64 numbers in a register
