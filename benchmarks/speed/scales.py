#!/usr/bin/env python3
"""Each official scale from a checkpoint to a checked repository: memory, time, the same outputs without the package.

    python benchmarks/speed/scales.py --data DIR [--scales 84m,...]

DIR has `biogen_adme.csv`. A checkpoint as the official ones are laid out is written with random weights; then, each in
a process of its own: `unimol2-hf publish` converts, verifies and checks it (its peak memory is what it tells itself, in
published.json); `check_unimol2.py` of the repository loads it by its own code, where the package cannot be imported,
and recomputes the reference outputs; the package embeds molecules. Writes scales.json and scales.md, and the figures
that the cards tell to src/unimol2_hf/hub/measured.json. The largest one takes 15 GB of disk.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from harness import machine

from unimol2_hf.hub.cards import MEASURED, OFFICIAL_SCALES

HERE = Path(__file__).parent
MOLECULES = 16
Result = dict[str, Any]

MAKE = """
import sys, torch
from unimol2_hf import UniMol2Config
from unimol2_hf.hub.convert import GAUSSIAN_BUFFER, key_plan
scale, path = sys.argv[1:]
torch.manual_seed(0)
config = UniMol2Config.from_scale(scale)
weights = {}
for name, shape in key_plan(config.num_hidden_layers).shapes(config).items():
    is_norm_weight = "norm" in name and len(shape) == 1 and name.endswith("weight")
    weights[name] = torch.randn(shape) * 0.02 + (1.0 if is_norm_weight else 0.0)
weights[GAUSSIAN_BUFFER] = torch.linspace(0, 9, config.num_gaussians)
torch.save({"model": weights}, path)
"""
WITHOUT_PACKAGE = """
import runpy, sys
sys.modules["unimol2_hf"] = None
runpy.run_path(sys.argv[1], run_name="__main__")
"""
EMBED = """
import json, resource, sys, time
import pandas as pd
from unimol2_hf import UniMol2FeatureExtractor, keep_freed_memory
from unimol2_hf.modeling_unimol2 import UniMol2Model
from unimol2_hf.models.loading import load_model
from unimol2_hf.pipeline_unimol2 import MoleculeEmbeddingPipeline
folder, data, count = sys.argv[1:]
keep_freed_memory()
extractor = UniMol2FeatureExtractor()
smiles = pd.read_csv(data + "/biogen_adme.csv")["smiles"][: int(count)]
ready = list(extractor.featurize(list(smiles)))
pipe = MoleculeEmbeddingPipeline(model=load_model(UniMol2Model, folder).eval(), feature_extractor=extractor)
list(pipe.run_featurized(ready[:2], 2))
start = time.monotonic()
done = list(pipe.run_featurized(ready, 16))
rate = len(done) / (time.monotonic() - start)
print(json.dumps([rate, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20]))
"""


def run(*command: object, **environment: str) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, env={**os.environ, **environment}, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)[:200]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def measure(scale: str, data: Path, work_dir: Path) -> Result:
    checkpoint = work_dir / "official" / "modelzoo" / scale.upper() / "checkpoint.pt"
    shutil.rmtree(work_dir, ignore_errors=True)
    checkpoint.parent.mkdir(parents=True)
    run(sys.executable, "-c", MAKE, scale, checkpoint)
    program = Path(sys.executable).with_name("unimol2-hf")
    start = time.monotonic()
    command = ("publish", "--scale", scale, "--checkpoint", work_dir / "official", "--output-dir", work_dir / "out")
    run(program, *command)
    seconds = time.monotonic() - start
    folder = work_dir / "out" / f"unimol2-{scale}"
    told = json.loads((work_dir / "out" / "published.json").read_text())[folder.name]
    publication = json.loads((folder / "publication.json").read_text())
    start = time.monotonic()
    script = folder / "check_unimol2.py"
    alone = run(sys.executable, "-c", WITHOUT_PACKAGE, script, HF_MODULES_CACHE=str(work_dir / "modules"))
    without = time.monotonic() - start
    rate, memory = json.loads(run(sys.executable, "-c", EMBED, folder, data, MOLECULES))
    weights = sum(path.stat().st_size for path in folder.glob("model*.safetensors"))
    found = {
        "weights_gib": weights / 2**30,
        "publish_gib": told["peak_memory_gib"],
        "publish_seconds": seconds,
        "largest_difference": max(publication["verification"]["differences"].values()),
        "check_without_package": alone.strip().rpartition("/")[2],
        "check_without_package_seconds": without,
        "embed_gib": memory,
        "molecules_per_second": rate,
    }
    shutil.rmtree(work_dir)
    return found


def as_markdown(results: Result) -> str:
    lines = [
        f"`python benchmarks/speed/scales.py --data DIR`, {results['machine']}, float32, random weights.",
        "",
        "| scale | weights, GiB | publish: GiB | seconds | largest difference to the plain formulas | checked without "
        f"the package, seconds | embed {MOLECULES} molecules: GiB | molecules a second |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for scale, own in results["scales"].items():
        lines.append(
            f"| {scale} | {own['weights_gib']:.2f} | {own['publish_gib']:.2f} | {own['publish_seconds']:.0f} | "
            f"{own['largest_difference']:.1e} | {own['check_without_package_seconds']:.0f} | {own['embed_gib']:.2f} | "
            f"{own['molecules_per_second']:.2f} |"
        )
    return "\n".join(lines) + "\n"


def main(
    data: Annotated[Path, typer.Option(help="folder with the data files")],
    scales: Annotated[str, typer.Option(help="comma-separated")] = ",".join(OFFICIAL_SCALES),
    work_dir: Annotated[Path, typer.Option()] = Path("runs/publishing"),
) -> None:
    """Measure scales one by one; what others showed before stays."""
    path = HERE / "scales.json"
    results: Result = json.loads(path.read_text()) if path.exists() else {"scales": {}}
    for scale in scales.split(","):
        found = measure(scale, data, work_dir.resolve())
        print(scale, found, flush=True)
        results["machine"] = machine(os.cpu_count() or 1)["cpu"]
        known = {**results["scales"], scale: found}
        results["scales"] = {name: known[name] for name in OFFICIAL_SCALES if name in known}
        path.write_text(json.dumps(results, indent=1) + "\n")
        path.with_suffix(".md").write_text(as_markdown(results))
    names = ("weights_gib", "publish_gib", "embed_gib", "molecules_per_second")
    rows = [{"scale": scale, **{name: own[name] for name in names}} for scale, own in results["scales"].items()]
    MEASURED.write_text(json.dumps({"cpu": results["machine"], "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
