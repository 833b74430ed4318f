#!/usr/bin/env python3
"""unimol2-nano's pretraining as a background job: started, gone on with, handed over.

    python recipes/nano/background.py start --home HOME --handover recipes/nano/handover
    python recipes/nano/background.py status --home HOME
    python recipes/nano/background.py hand-over --home HOME --data DIR

`continue.sh` calls `start` with the training's own environment. HOME holds its clone, its library and, for each
hand-over that it began with, a run `run-STEP` with checkpoints, `nano.log` and `hours.csv`. After DECAY_FROM samples
`decayed-STEP` goes on from its checkpoint with a rate that falls to 0 in a straight line.
"""

import csv
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    from unimol2_hf import UniMol2Model

HERE = Path(__file__).parent
HANDOVER, PROGRESS = HERE / "handover", HERE / "progress.csv"
WEIGHTS, ABOUT = "model.safetensors", "handover.json"
LARGEST_HANDOVER = 10_000_000  # bytes
WARMUP_AFTER_HANDOVER = 300  # steps in which Adam finds its moments again
LOWEST_PRIORITY = 19
POLL_SECONDS = 60
HOURS = "hours.csv"
DECAY_FROM = 1_000_000  # samples
DECAY = 5  # the last such part of all steps
CONSTANT_RUN, DECAYED_RUN = "run-", "decayed-"
NANO_YAML = Path("recipes") / "nano" / "nano.yaml"
BEGUN_FROM = "handover"  # a run's copy of it
FINISHED = Path("train") / "log_history.json"  # written last
SETTINGS, RECORDED = "run.yaml", Path("train") / "settings.json"  # what a run is started with, what it keeps of that
PRETRAIN = ("-m", "unimol2_hf.cli", "pretrain", "--config")
PAIRS_ON_GPU = 131_072  # a step in one batch
app = typer.Typer(no_args_is_help=True)

Home = Annotated[Path, typer.Option(help="folder of the training on this machine")]
Handover = Annotated[Path, typer.Option(help="folder with what another machine handed over")]


def last_checkpoint(run: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    found = [path.parent for path in run.glob("train/checkpoints/checkpoint-*/complete.json")]
    return max(found, key=_own_step, default=None)


def _own_step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def start_step(run: Path) -> int:
    """The step of the sampling plan with which a run begins."""
    return int(run.name.rpartition("-")[2])


def reached(run: Path) -> int:
    """The step of the sampling plan from which a run goes on."""
    checkpoint = last_checkpoint(run)
    return start_step(run) + (0 if checkpoint is None else _own_step(checkpoint))


def handed_over(folder: Path) -> int:
    """The step of the sampling plan at which a hand-over was made; 0 without one."""
    path = folder / ABOUT
    return int(json.loads(path.read_text())["step"]) if path.exists() else 0


def furthest_run(home: Path, handover: Path) -> Path:
    """The run that has come furthest: one of this machine, or a new one from the hand-over; once it decays, that."""
    if decayed := next(home.glob(f"{DECAYED_RUN}*"), None):
        return decayed
    here = max(home.glob(f"{CONSTANT_RUN}*"), key=reached, default=None)
    step = handed_over(handover)
    return here if here is not None and reached(here) >= step else home / f"{CONSTANT_RUN}{step}"


def decays(run: Path) -> bool:
    """Whether a run's rate falls already."""
    return run.name.startswith(DECAYED_RUN)


def is_due(run: Path) -> bool:
    """Whether a run at a constant rate has come to where the rate begins to fall."""
    path, checkpoint = run / SETTINGS, last_checkpoint(run)
    if decays(run) or checkpoint is None or not path.exists():
        return False
    settings = yaml.safe_load(path.read_text())
    # A run from a hand-over first finds Adam's moments again.
    is_warm = _own_step(checkpoint) >= settings["warmup_steps"]
    return is_warm and reached(run) * settings["samples_per_step"] >= DECAY_FROM


def begin_decay(run: Path) -> Path:
    """A run that goes on from another's newest checkpoint with a rate that falls to 0 over the last fifth of all."""
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        raise SystemExit(f"{run} has no checkpoint")
    decayed = run.with_name(f"{DECAYED_RUN}{start_step(run)}")
    draft = run.with_name("draft")
    shutil.rmtree(draft, ignore_errors=True)
    own = Path("train") / "checkpoints" / checkpoint.name
    shutil.copytree(checkpoint, draft / own)
    falling = reached(run) // (DECAY - 1)
    changes: dict[str, Any] = {
        "output_dir": str(decayed / "train"),
        "max_steps": _own_step(checkpoint) + falling,
        "trainer": {
            "lr_scheduler_type": "warmup_stable_decay",
            "lr_scheduler_kwargs": {"num_decay_steps": falling, "decay_type": "linear"},
        },
    }
    settings = yaml.safe_load((run / SETTINGS).read_text())
    if (run / BEGUN_FROM).exists():
        shutil.copytree(run / BEGUN_FROM, draft / BEGUN_FROM)
    if settings.get("start_from") is not None:
        changes["start_from"] = str(decayed / BEGUN_FROM)
    recorded = json.loads((run / RECORDED).read_text())
    (draft / RECORDED).write_text(json.dumps(recorded | changes, indent=1) + "\n")
    (draft / SETTINGS).write_text(yaml.safe_dump(settings | changes, sort_keys=False))
    if (run / HOURS).exists():
        shutil.copy(run / HOURS, draft)
    draft.rename(decayed)
    return decayed


def write_settings(run: Path, home: Path, recipe: Path, handover: Path, **changes: int) -> Path:
    """The run's YAML file: the recipe's, its folders, and where it begins; one that decays has its own."""
    if decays(run):
        return run / SETTINGS
    settings: dict[str, Any] = yaml.safe_load(recipe.read_text()) | changes
    settings |= {"data": str(home / "library"), "output_dir": str(run / "train")}
    if start_step(run):
        copy = run / BEGUN_FROM
        if not copy.exists():
            shutil.copytree(handover, copy)
        # Shape and scale of the targets are the hand-over's; the dropout rates are in its config too.
        settings |= {"start_from": str(copy), "model": {}, "start_step": start_step(run)}
        settings["warmup_steps"] = WARMUP_AFTER_HANDOVER
    path = run / SETTINGS
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
    return path


def step_aside() -> None:
    """Run only when nobody else wants the processor, as a session of its own."""
    os.setsid()
    os.nice(LOWEST_PRIORITY)
    lower_session_of(os.getpid())


def lower_session_of(process: int) -> None:
    """The kernel shares by session before it looks at nice, and a new session begins in the middle."""
    with suppress(OSError):
        Path(f"/proc/{process}/autogroup").write_text(str(LOWEST_PRIORITY))


@app.command()
def start(home: Home, handover: Handover = HANDOVER, processes: int = 2) -> None:
    """Go on in the background, unless it runs already."""
    lock = FileLock(home / ".running")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"it runs already; see {home}")
        return
    lock.release()
    log = furthest_run(home, handover) / "nano.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "supervise", "--home", str(home), "--handover", str(handover)]
    with log.open("a") as output:
        subprocess.Popen(
            [*command, "--processes", str(processes)],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            preexec_fn=step_aside,  # noqa: PLW1509 - this process has no threads
            cwd=home,
        )
    print(f"running; log: {log}")


def environment(home: Path) -> dict[str, str]:
    """Of a training process."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        # The compiler does not ask for which processor the code in its cache is.
        "TORCHINDUCTOR_CACHE_DIR": str(home / "compiled" / _instructions()),
        # In bfloat16 oneDNN makes code for every new shape; by default it forgets all but 1,024 of them.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "100000",
    }


@app.command()
def part(
    home: Home,
    output: Annotated[Path, typer.Option(help="folder for what is to be handed over")],
    handover: Handover = HANDOVER,
    seconds: Annotated[int, typer.Option(help="after which the training is stopped")] = 540,
) -> None:
    """Train in the foreground for so long, on the GPU where there is one; the next part goes on from the checkpoint.

    HOME holds `library`; the code is that of this repository. On another machine it goes on from OUTPUT, put in the
    place of the hand-over.
    """
    from handover import write_handover  # noqa: PLC0415

    run = furthest_run(home, handover)
    require_constant(run)
    run.mkdir(parents=True, exist_ok=True)
    settings = write_settings(run, home, HERE / "nano.yaml", handover, max_pairs=PAIRS_ON_GPU, save_steps=500)
    with suppress(subprocess.TimeoutExpired):
        command = [sys.executable, *PRETRAIN, str(settings)]
        subprocess.run(command, env=environment(home), timeout=seconds, check=True)
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        raise SystemExit(f"no checkpoint in {seconds} s; give it more")
    print(write_handover(checkpoint, output, about_handover(run, checkpoint)), "bytes in", output)
    status(home, handover)


@app.command(hidden=True)
def supervise(home: Home, handover: Handover, processes: int = 2) -> None:
    """Train until killed or decayed to the end; once a minute note how much processor time it has had."""
    with FileLock(home / ".running", timeout=0):
        run = furthest_run(home, handover)
        if is_finished(run):
            print(f"{run} has come to its end; package it")
            return
        run.mkdir(exist_ok=True)
        settings = write_settings(run, home, home / "clone" / NANO_YAML, handover)
        code = 0 if is_due(run) else train(run, settings, home, processes)
        if is_due(run):
            run = begin_decay(run)
            code = train(run, run / SETTINGS, home, processes)
    raise SystemExit(code)


def is_finished(run: Path) -> bool:
    """Whether the rate has fallen to 0 and the averaged weights are written."""
    return decays(run) and (run / FINISHED).exists()


def train(run: Path, settings: Path, home: Path, processes: int) -> int:
    """Train to the end, or to where the rate is to fall; returns the exit status."""
    distributed = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    training = subprocess.Popen(
        [sys.executable, "-m", *distributed, *PRETRAIN, str(settings)], env=environment(home), cwd=home
    )
    began = f"{time.time():.0f}"
    while training.poll() is None:
        time.sleep(POLL_SECONDS)
        # torchrun gives every worker a session of its own.
        for process in _below(training.pid):
            lower_session_of(process)
        seconds = _processor_seconds(training.pid)
        # What has just ended has no children any more, and their time is not to be told.
        if training.poll() is None:
            with (run / HOURS).open("a") as file:
                file.write(f"{began},{time.time():.0f},{seconds:.0f},{reached(run)}\n")
        if is_due(run):
            training.terminate()
    return training.returncode


def _processor_seconds(root: int) -> float:
    """Processor time of a process and all below it."""
    return sum(_own_seconds(process) for process in (root, *_below(root)))


def _below(process: int) -> Iterator[int]:
    with suppress(OSError):
        for child in Path(f"/proc/{process}/task/{process}/children").read_text().split():
            yield int(child)
            yield from _below(int(child))


def _own_seconds(process: int) -> float:
    with suppress(OSError):
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def _instructions() -> str:
    """A name for what this machine's processor can do."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("flags"):
                return hashlib.blake2b(line.encode(), digest_size=6).hexdigest()
    return platform.machine()


def hours_of(run: Path) -> tuple[float, float]:
    """Hours of a training and of one core that it has had: those of its hand-over, and of each start the last note."""
    about = run / BEGUN_FROM / ABOUT
    before = json.loads(about.read_text()) if about.exists() else {}
    had = float(before.get("hours", 0)), float(before.get("processor_hours", 0))
    path = run / HOURS
    if not path.exists():
        return had
    last = {began: (float(now) - float(began), float(seconds)) for began, now, seconds, _ in csv.reader(path.open())}
    walls, seconds = (sum(each) / 3600 for each in zip(*last.values(), strict=True))
    return had[0] + walls, had[1] + seconds


def about_handover(run: Path, checkpoint: Path) -> dict[str, Any]:
    """Where in the plan a checkpoint is, and whose it is."""
    settings = yaml.safe_load((run / SETTINGS).read_text())
    step = start_step(run) + _own_step(checkpoint)
    hours, processor_hours = hours_of(run)
    return {
        "hours": round(hours, 2),
        "processor_hours": round(processor_hours, 2),
        "step": step,
        "samples": step * settings["samples_per_step"],
        "commit": (HERE / "COMMIT").read_text().strip(),
    }


@app.command()
def status(home: Home, handover: Handover = HANDOVER) -> None:
    """Print how far it is and its last losses."""
    run = furthest_run(home, handover)
    hours, processor_hours = hours_of(run)
    print(f"step {reached(run)} after {hours:.2f} hours, {processor_hours:.2f} of a processor, in {run}")
    state = last_checkpoint(run)
    if state is not None:
        history = json.loads((state / "trainer_state.json").read_text())["log_history"]
        for kind in ("loss", "eval_loss"):
            entries = [entry for entry in history if kind in entry]
            print({name: round(value, 4) for name, value in entries[-1].items()} if entries else "")


def require_constant(run: Path) -> None:
    """Stop where a run's rate falls already."""
    if decays(run):
        raise SystemExit(f"{run} decays: no other machine can go on with it; package it when it has come to its end")


@app.command()
def hand_over(
    home: Home,
    data: Annotated[Path, typer.Option(help="folder with the public tables")],
    handover: Handover = HANDOVER,
    progress: Annotated[Path, typer.Option(help="table to add a row to")] = PROGRESS,
) -> None:
    """Write the raw weights in half precision for another machine, and a row of progress.csv."""
    # Here, not above: `start` and its supervisor need neither torch nor the data.
    from handover import averaged_model, write_handover  # noqa: PLC0415

    run = furthest_run(home, handover)
    require_constant(run)
    checkpoint = last_checkpoint(run)
    if checkpoint is None:
        raise SystemExit(f"{run} has no checkpoint yet")
    # Read first: a checkpoint of a run that goes on is soon replaced.
    average, about = averaged_model(checkpoint), about_handover(run, checkpoint)
    size = write_handover(checkpoint, handover, about)
    if size > LARGEST_HANDOVER:
        raise SystemExit(f"the hand-over has {size:,} bytes; at most {LARGEST_HANDOVER:,} may be committed")
    add_progress(progress, about, average, data, home / "probe")


def add_progress(progress: Path, about: dict[str, Any], model: "UniMol2Model", data: Path, cache: Path) -> None:
    """Judge a model's frozen vectors, and add a row to a table of progress."""
    from frozen_probe import probe  # noqa: PLC0415

    errors = probe(model, data, cache)
    row = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": about["commit"][:12],
        "samples": about["samples"],
        "hours": f"{about['hours']:.2f}",
        "processor_hours": f"{about['processor_hours']:.2f}",
        "processor": processor_name(),
    }
    for pooling in ("cls", "cls_mean"):
        row |= {f"{task}_{pooling}": f"{error:.3f}" for task, error in errors[pooling].items()}
    new = not progress.exists()
    with progress.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
    print(row)


def processor_name() -> str:
    """As the kernel names it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()}, {os.cpu_count()} cores"
    return platform.machine()


if __name__ == "__main__":
    app()
