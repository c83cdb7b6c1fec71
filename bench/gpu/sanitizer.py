"""Run some tests of the Triton kernels under compute-sanitizer, if it is installed and supports this GPU."""

import os
import shutil
import subprocess
import sys

from . import SKIPPED

OPTIONS = ("--error-exitcode", "1", "--report-api-errors", "no")  # torch makes CUDA calls that may fail


def main() -> int:
    tool = shutil.which("compute-sanitizer")
    if tool is None or os.environ["FASTVAE_GPU_DEVICE"] != "cuda":
        print("there is no compute-sanitizer here" if tool is None else "on a GPU only")
        return SKIPPED
    refused = False
    command, settings = [tool, *OPTIONS, *sys.argv[1:]], {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | settings
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            refused = refused or "Device not supported" in line
    return SKIPPED if refused else process.returncode


if __name__ == "__main__":
    raise SystemExit(main())
