"""Training steps of one kind of model in a process of its own: see training.py. Prints seconds and memory."""

import json
import sys

import torch
from harness import median, peak_memory_mib, random_batch, resident_mib, seconds_of
from oracle import naive

from unimol2_hf import UniMol2Config, UniMol2ForPropertyRegression
from unimol2_hf.batching import max_pairs_for
from unimol2_hf.training.micro_batches import label_shares, parts_of


def main(kind: str, scale: str, molecules: int, atoms: int, steps: int, threads: int) -> None:
    """AdamW steps; kind is own (a batch in parts, as `unimol2-hf finetune` runs it), whole, naive or checkpointing.

    The first two steps warm up.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = UniMol2ForPropertyRegression(UniMol2Config.from_scale(scale, num_labels=1)).train()
    if kind == "naive":
        model = naive(model)
    if kind == "checkpointing":
        model.gradient_checkpointing_enable()
    batch = {**random_batch(molecules, atoms), "labels": torch.randn(molecules, 1)}
    parts = parts_of(batch, max_pairs_for("cpu", model.config.pair_hidden_size)) if kind == "own" else [batch]
    shares = label_shares(parts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)

    def step() -> None:
        for part, share in zip(parts, shares, strict=True):
            (model(**part).loss * share).backward()
        optimizer.step()
        optimizer.zero_grad()

    before = resident_mib()
    seconds = [seconds_of(step) for _ in range(steps + 2)][2:]
    peak = peak_memory_mib()
    print(json.dumps({"seconds": median(seconds), "peak_mib": peak, "before_mib": before}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:7]))
