#!/usr/bin/env python3
"""The endpoint under load: 32 clients, 2,000 good and hostile requests to unimol2-nano, served without the package.

    python benchmarks/speed/endpoint.py [--requests 2000] [--clients 32]

The server is a process of its own (`tests/endpoint_server.py`, a folder exported with its code, real HTTP). Of ten
requests six have good molecules, two good and bad ones, two are bad as a whole (the rows of `hostile_cases/endpoint.py`
and what is no JSON). Every good molecule's embedding is compared with that of the molecule alone, by the pipeline in
this process. Memory is the server's, while no request runs: its heap in use must not grow. Writes endpoint.json and
endpoint.md.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pandas as pd
import psutil
import typer
from harness import HERE, machine
from numpy.typing import NDArray
from transformers import pipeline

from unimol2_hf import NANO, UniMol2FeatureExtractor, UniMol2ForPreTraining, export_with_code
from unimol2_hf.hub.repository import handler

sys.path.insert(0, str(HERE.parents[1] / "tests"))

from endpoint_server import ask, ask_for_memory
from hostile_cases.endpoint import RAW_BODIES, REFUSED_BODIES

ROOT = HERE.parents[1]
POOL = 200  # molecules that good requests draw from
MOST_OF_A_REQUEST = 2
BAD_MOLECULES = {"C1CC": "smiles", "*C": "unsupported_atom", "C" * 300: "too_large", "": "empty"}
PARTS = 4  # after each of which the server's memory is read
TOLERANCE = 1e-5
Request = dict[str, Any]
Result = dict[str, Any]
Vectors = dict[str, NDArray[np.float32]]


def published(folder: Path) -> Path:
    """unimol2-nano as a repository has it."""
    extractor = UniMol2FeatureExtractor.from_pretrained(NANO)
    export_with_code(UniMol2ForPreTraining.from_pretrained(NANO), folder, extractor)
    shutil.copyfile(handler.__file__, folder / "handler.py")
    return folder


@contextmanager
def server_of(folder: Path) -> Iterator[tuple[psutil.Process, int]]:
    """The server's process and port. It does not find this package: what it runs is the folder's code."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_MODULES_CACHE": str(folder.parent / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "tests" / "endpoint_server.py"), str(folder)]
    process = psutil.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    try:
        yield process, int(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()


def requests_of(pool: list[str], count: int) -> list[Request]:
    """Bodies, each with its molecules, or with the code of the error that it must get (None: any)."""
    chance = random.Random(0)
    hostile: list[tuple[bytes, str | None]] = [(json.dumps(body).encode(), code) for _, body, code, _ in REFUSED_BODIES]
    hostile += [(body, None) for _, body in RAW_BODIES]
    made: list[Request] = []
    for _ in range(count):
        kind = chance.choices(("good", "mixed", "bad"), (6, 2, 2))[0]
        if kind == "bad":
            body, code = chance.choice(hostile)
            made.append({"kind": kind, "body": body, "code": code})
            continue
        smiles = chance.choices(pool, k=chance.randint(1, MOST_OF_A_REQUEST))
        if kind == "mixed":
            smiles += chance.choices(list(BAD_MOLECULES), k=chance.randint(1, MOST_OF_A_REQUEST))
            chance.shuffle(smiles)
        made.append({"kind": kind, "body": json.dumps({"inputs": smiles}).encode(), "smiles": smiles})
    return made


def timed(port: int, request: Request) -> Result:
    start = time.perf_counter()
    status, answer = ask(port, request["body"])
    return {"seconds": time.perf_counter() - start, "status": status, "answer": answer}


def faults_of(request: Request, result: Result, alone: Vectors) -> tuple[list[str], float]:
    """What is wrong with an answer, and the largest relative difference of its vectors."""
    status, answer = result["status"], result["answer"]
    if request["kind"] == "bad":
        return _faults_of_refusal(status, answer, request["code"]), 0.0
    if status != 200 or len(answer) != len(request["smiles"]):
        return [f"status {status}: {str(answer)[:200]}"], 0.0
    faults, largest = [], 0.0
    for smiles, own in zip(request["smiles"], answer, strict=True):
        if own.get("error_code") != BAD_MOLECULES.get(smiles):
            faults.append(f"{smiles}: {str(own)[:200]}")
        elif "embedding" in own:
            largest = max(largest, _relative_difference(np.array(own["embedding"]), alone[smiles]))
    return faults + [f"differs by {largest:.1e}"] * (largest > TOLERANCE), largest


def _faults_of_refusal(status: int, answer: Any, code: str | None) -> list[str]:
    """A bad request is told by its status, a bad molecule alone in its place."""
    error = answer if isinstance(answer, dict) else answer[0]
    expected = 400 if isinstance(answer, dict) else 200
    found = error.get("error_code")
    is_right = status == expected and error.get("error") and found != "internal" and code in (None, found)
    return [] if is_right else [f"status {status}: {str(answer)[:200]}"]


def _relative_difference(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def measure(count: int, clients: int) -> Result:
    pool = pd.read_csv(ROOT / "examples" / "drugs.csv")["smiles"].head(POOL).tolist()
    pipe = pipeline("molecule-embedding", NANO, device="cpu")
    alone: Vectors = {smiles: pipe(smiles)["embedding"] for smiles in pool}
    requests = requests_of(pool, count)
    results: list[Result] = []
    resident: dict[str, float] = {}
    in_use: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name, server_of(published(Path(name) / "nano")) as (process, port):
        timed(port, {"body": b'{"inputs": "C"}'})
        start = time.perf_counter()
        for part in np.array_split(np.arange(count), PARTS):
            with ThreadPoolExecutor(clients) as threads:
                results += threads.map(lambda index: timed(port, requests[index]), part)
            done = str(len(results))
            resident[done], in_use[done] = process.memory_info().rss / 2**20, ask_for_memory(port)
            print(done, f"{resident[done]:.0f} MB, {in_use[done]:.1f} in use", flush=True)
        seconds = time.perf_counter() - start
    found = [faults_of(request, result, alone) for request, result in zip(requests, results, strict=True)]
    statuses = {
        kind: dict(Counter(str(r["status"]) for q, r in zip(requests, results, strict=True) if q["kind"] == kind))
        for kind in ("good", "mixed", "bad")
    }
    vectors = sum("embedding" in own for r in results if isinstance(r["answer"], list) for own in r["answer"])
    milliseconds = [result["seconds"] * 1000 for result in results]
    return {
        "requests": count,
        "clients": clients,
        "statuses": statuses,
        "faults": [fault for faults, _ in found for fault in faults],
        "vectors": vectors,
        "largest_relative_difference": max(largest for _, largest in found),
        "seconds": seconds,
        "vectors_a_second": vectors / seconds,
        "latency_ms": {"median": np.percentile(milliseconds, 50), "99th": np.percentile(milliseconds, 99)},
        "resident_mb_after": resident,
        "in_use_mb_after": in_use,
    }


def as_markdown(result: Result) -> str:
    statuses = result["statuses"]
    told = "; ".join(
        f"{kind}: {', '.join(f'{count:,} times {status}' for status, count in statuses[kind].items())}"
        for kind in statuses
    )
    resident, in_use = (
        ", ".join(f"{value:.{digits}f} after {int(count):,}" for count, value in result[f"{kind}_mb_after"].items())
        for kind, digits in (("resident", 0), ("in_use", 1))
    )
    latency = result["latency_ms"]
    return f"""`python benchmarks/speed/endpoint.py`, {result["machine"]}.

unimol2-nano served over HTTP by the repository's own code, {result["requests"]:,} requests of {result["clients"]}
concurrent clients, answered in {result["seconds"]:.0f} s.

| figure | measured |
|---|---|
| status by kind of request (a bad molecule alone is a good request: 200, its error in its place) | {told} |
| answers that were wrong | {len(result["faults"])} |
| embeddings a second, each with its conformer | {result["vectors_a_second"]:.1f} ({result["vectors"]:,} in all) |
| largest difference from the molecule alone, relative | {result["largest_relative_difference"]:.1e} (bound 1e-05) |
| latency, median and 99th percentile | {latency["median"]:.0f} and {latency["99th"]:.0f} ms |
| server's heap in use between requests, MB | {in_use} |
| its memory, with freed pieces that glibc keeps, MB | {resident} |
"""


def main(
    requests: Annotated[int, typer.Option(help="in all")] = 2000,
    clients: Annotated[int, typer.Option(help="that wait for answers at the same time")] = 32,
) -> None:
    result = {"machine": machine(os.cpu_count() or 1)["cpu"], **measure(requests, clients)}
    (HERE / "endpoint.json").write_text(json.dumps(result, indent=1) + "\n")
    text = as_markdown(result)
    (HERE / "endpoint.md").write_text(text)
    print(text, *result["faults"][:20], sep="\n")
    if result["faults"]:
        raise SystemExit(f"{len(result['faults'])} answers were wrong")


if __name__ == "__main__":
    typer.run(main)
