"""Measurements and tests on a CUDA GPU, by one command of at most ten minutes: `make gpu`.

    __main__.py      the stages, each a process with a time limit and a verdict; `publish` updates the docs
    machine.py       versions and tools
    elbo.py          the ELBO against eager torch, `torch.compile` and a device copy
    step.py          a training step captured in a CUDA graph
    tuning.py        warps, bytes of a tile and programs of the log-likelihood
    timing.py        events, graphs, races
    results.py       results.json and tables.md, written after every case
    record.py        a line for every test
    sanitizer.py     some of the tests under compute-sanitizer
    interpreter.py   a faster Triton interpreter, for dry runs

It needs only torch and triton (and pytest for the tests), so it runs with the system's Python from a bare checkout.
With ``--device cpu`` everything runs at tiny sizes in Triton's interpreter, as a dry run; its times are meaningless.
"""

# Exit codes of a stage: torch sees no GPU; start the stage again, in a new process; the tool it needs is not here.
NO_GPU, CONTEXT_LOST, SKIPPED = 3, 75, 77
