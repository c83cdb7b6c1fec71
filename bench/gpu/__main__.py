"""`make gpu`: run the stages one after another, each in its own process, with a time limit and a verdict.

    make gpu [DEVICE=cpu] [OUT=folder] [ARGS="--stages tests bench"]
    python -m bench.gpu publish OUT    # its tables into kernels/README.md, its results into bench/history/gpu.json

The output of a stage goes to the terminal and, line by line, to OUT/log.txt. If the run ends early, nothing is lost:
results.json and tables.md are written after every case, tests.jsonl after every test, stages.json after every verdict.
After a failure, run only what failed, without overlap: ``--stages tests --only "capture or prior" --blocking``.
"""

import argparse
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from . import CONTEXT_LOST, NO_GPU, SKIPPED

ROOT = Path(__file__).parents[2]
README, HISTORY = ROOT / "kernels" / "README.md", ROOT / "bench" / "history" / "gpu.json"
BEGIN, END = "<!-- bench/gpu begins -->", "<!-- bench/gpu ends -->"
VERDICTS = {
    0: "passed",
    NO_GPU: "failed: torch sees no CUDA GPU",
    5: "failed: no test was found",  # pytest's
    CONTEXT_LOST: "failed: the GPU stopped answering",
    SKIPPED: "skipped",
}
GRACE = 5  # seconds to write results after an interrupt
TESTS = "tests/elbo/test_triton.py", "tests/kernels/test_triton_math.py"
FEW = "(values and (plain or (free and many))) or layouts"  # tests for the sanitizer
WHOLE = 560  # seconds for all stages together, if a command may take 600


class Stage(NamedTuple):
    """A command and its time limit."""

    limit: float
    command: list[str]
    environment: dict[str, str] = {}  # noqa: RUF012 (default of a NamedTuple)


def stages(options: argparse.Namespace) -> dict[str, Stage]:
    """All stages, in the order in which they run."""
    python, cpu = [sys.executable, "-u"], options.device == "cpu"
    only = options.only or ("(values and plain) or sine" if cpu else "")
    many = ["-n", "8"] if importlib.util.find_spec("xdist") and not cpu else []
    # a pool of compilers in each of eight processes would be too many
    settings = {"TORCHINDUCTOR_COMPILE_THREADS": "1", **({"CUDA_LAUNCH_BLOCKING": "1"} if options.blocking else {})}

    def module(name: str) -> list[str]:
        return [*python, "-m", f"bench.gpu.{name}"]

    capture = pytest("tests/elbo/test_capture.py", only=options.only, report="capture.xml")
    return {
        "machine": Stage(30, module("machine")),
        "tests": Stage(130, [*pytest(*TESTS, only=only, report="tests.xml"), *many], settings),
        # in its own process: a failed capture breaks everything that runs after it in the same process
        "capture": Stage(30, [*capture, *many]),
        "step": Stage(70, module("step")),
        "bench": Stage(190, [*module("elbo"), *(["--cases", str(options.cases)] if options.cases else [])]),
        "tuning": Stage(75, module("tuning")),
        "sanitizer": Stage(40, [*module("sanitizer"), *pytest(*TESTS, only=FEW)]),
    }


def pytest(*files: str, only: str | None, report: str = "") -> list[str]:
    """Run tests as from a bare checkout, without the settings of the project and its conftest."""
    return [
        *(sys.executable, "-u", "-m", "pytest", "--noconftest", "-c", os.devnull, "--rootdir", "."),
        *("-p", "no:cacheprovider", "-p", "bench.gpu.record", "--continue-on-collection-errors", "--tb=short", "-v"),
        *([f"--junitxml={Path(os.environ['FASTVAE_GPU_OUT']) / report}"] if report else []),
        *(["-k", only] if only else []),
        *files,
    ]


class Log:
    """Write to the terminal and to log.txt."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, line: str) -> None:
        print(line, flush=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")


def run(stage: Stage, log: Log) -> str:
    """Run a stage, and again if the GPU stopped responding, while there is time; returns the verdict."""
    stop = time.monotonic() + stage.limit
    while True:
        began = time.monotonic()
        code = watch(stage, stop, log)
        if code != CONTEXT_LOST or stop - time.monotonic() < stage.limit / 4:
            break
    if code is None:
        return f"stopped at its limit of {stage.limit:.0f} s"
    return f"{VERDICTS.get(code, f'failed, exit code {code}')}, {time.monotonic() - began:.0f} s"


def watch(stage: Stage, stop: float, log: Log) -> int | None:
    """Log the output of a stage's process until it ends; returns its exit code, or None if it was terminated."""
    log("$ " + shlex.join(stage.command))
    environment = {**os.environ, **stage.environment, "FASTVAE_GPU_STOP": str(time.time() + stop - time.monotonic())}
    process = subprocess.Popen(
        stage.command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", cwd=ROOT,
        env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    reader = threading.Thread(target=log_lines, args=(process.stdout, log), daemon=True)
    reader.start()
    try:
        return process.wait(max(0.1, stop - time.monotonic()))
    except subprocess.TimeoutExpired:
        return None
    finally:  # after any error or interrupt, leave no process of the stage behind
        end(process)
        reader.join(GRACE)
        if not reader.is_alive():  # otherwise another process still holds the other end, and closing would wait for it
            process.stdout.close()


def log_lines(lines: Any, log: Log) -> None:
    """Log the output of a process, line by line."""
    for line in lines:
        log(line.rstrip())


def end(process: Any) -> None:
    """Interrupt a process and all its children, as Ctrl-C does; kill them after a grace period."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def named_tests(folder: Path) -> list[str]:
    """The names of failed tests, as recorded by `record`, without repetition."""
    path = folder / "tests.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return list(dict.fromkeys(test["test"] for test in map(json.loads, lines) if test["outcome"] == "failed"))


def run_all(options: argparse.Namespace) -> int:
    """Run the requested stages; returns an exit code."""
    options.out.mkdir(parents=True, exist_ok=True)
    if any(options.out.iterdir()):  # results of an earlier run are kept, since a second run may repeat only what failed
        earlier = options.out.with_name(f"{options.out.name}.{time.strftime('%Y%m%d-%H%M%S')}")
        options.out.rename(earlier)
        options.out.mkdir()
        print(f"an earlier run is now in {earlier}")
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH")]))
    os.environ |= {
        "FASTVAE_GPU_DEVICE": options.device, "FASTVAE_GPU_OUT": str(options.out.resolve()),
        "PYTHONPATH": path, "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    if options.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"
    else:
        os.environ.pop("TRITON_INTERPRET", None)
    os.environ.pop("PYTEST_XDIST_WORKER", None)  # set if a test runs this
    log, verdicts, began = Log(options.out / "log.txt"), {}, time.monotonic()
    known = stages(options)
    for name in options.stages or known:
        stage = known[name]._replace(limit=min(known[name].limit, max(1.0, began + WHOLE - time.monotonic())))
        os.environ["FASTVAE_GPU_STAGE"] = name
        verdicts[name] = "ended from outside"

        def keep() -> None:
            (options.out / "stages.json").write_text(json.dumps(verdicts, indent=1), encoding="utf-8")

        keep()
        log(f"\n=== {name}, at most {stage.limit:.0f} s")
        verdicts[name] = run(stage, log)
        keep()
        log(f"=== {name}: {verdicts[name]}")
        if verdicts[name].startswith(VERDICTS[NO_GPU]):
            log("no CUDA GPU here, nothing else is run; DEVICE=cpu tries all of it at tiny sizes")
            return 1
    log("\n" + "\n".join(f"{name:<10} {verdict}" for name, verdict in verdicts.items()))
    if failed := named_tests(options.out):
        log("failed tests:\n  " + "\n  ".join(failed))
    return int(any(not verdict.startswith(("passed", "skipped")) for verdict in verdicts.values()))


def publish(folder: Path, readme: Path = README, history: Path = HISTORY) -> None:
    """Write the tables of a run into kernels/README.md, and its results into the history."""
    from . import results

    found = results.read(folder / "results.json")
    before, begins, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
    _, ends, after = rest.partition(END)
    if found and (found["about"]["device"].startswith("CPU") or not {"bench", "step"} & set(found)):
        raise SystemExit(f"{folder} holds no timings of a GPU: nothing is published")
    if not found or not begins or not ends:
        raise SystemExit(f"{folder} has no results.json, or {readme} no place for a table: {BEGIN} ... {END}")
    text = results.tables(found, ("bench", "step"))
    results.write(readme, f"{before}{BEGIN}\n\n{text}\n{END}{after}")
    results.write(history, json.dumps(found, indent=1) + "\n")
    print(f"{readme} and {history} written")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", nargs="?", choices=["run", "publish"], default="run")
    parser.add_argument("folder", nargs="?", type=Path, help="of a run that is to be published")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: tiny sizes, interpreted")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu", help="the folder for all results")
    parser.add_argument("--stages", nargs="+", help="by default all: machine tests capture step bench tuning sanitizer")
    parser.add_argument("--only", help="tests by name, as pytest's -k")
    parser.add_argument("--cases", type=int, help="only the first so many sizes of the bench")
    parser.add_argument(
        "--blocking", action="store_true", help="each launch waits: an error is raised where it is made"
    )
    options = parser.parse_args(arguments)
    if options.command == "publish":
        if options.folder is None:
            parser.error("publish needs the folder of a run")
        publish(options.folder)
        return 0
    os.environ["FASTVAE_GPU_OUT"] = str(options.out.resolve())
    unknown = set(options.stages or ()) - set(stages(options))
    if unknown:
        parser.error(f"--stages must be among {', '.join(stages(options))}, got {', '.join(sorted(unknown))}")
    if missing := [name for name in ("torch", "triton", "pytest") if not importlib.util.find_spec(name)]:
        parser.error(f"{sys.executable} has no {', '.join(missing)}: make gpu PYTHON=... takes another Python")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    return run_all(options)


if __name__ == "__main__":
    raise SystemExit(main())
