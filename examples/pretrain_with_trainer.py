#!/usr/bin/env python3
"""Pretrain on a library of conformers that is streamed from the Hub, under the plain Trainer of Transformers.

    python examples/pretrain_with_trainer.py ORG/NAME

A tiny model and 20 steps, to begin from. `unimol2-hf pretrain` has what a long run wants besides: draws balanced over
scaffolds, micro-batches of like length, validation, and a stream that goes on where a killed run was.
"""

import argparse

from datasets import load_dataset
from transformers import Trainer, TrainingArguments, set_seed

from unimol2_hf import DataCollatorForUniMol2Pretraining, UniMol2Config, UniMol2ForPreTraining


def main(data: str, output_dir: str) -> None:
    # A folder with the Parquet shards would do as well.
    rows = load_dataset(data, split="train", streaming=True).filter(lambda row: row["error"] is None)
    set_seed(0)
    model = UniMol2ForPreTraining(UniMol2Config.from_scale("micro", num_hidden_layers=2))
    arguments = TrainingArguments(
        output_dir,
        max_steps=20,
        per_device_train_batch_size=4,
        learning_rate=1e-3,
        logging_steps=1,
        remove_unused_columns=False,  # the collator reads them all
        accelerator_config={"dispatch_batches": False},  # batches differ in length
        report_to="none",
        save_strategy="no",
    )
    trainer = Trainer(model, arguments, data_collator=DataCollatorForUniMol2Pretraining(), train_dataset=rows)
    trainer.train()
    trainer.save_model()
    trainer.save_state()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="id of a data set that `unimol2-hf conformers push` made, or a folder of shards")
    parser.add_argument("--output-dir", default="runs/pretrain_with_trainer", help="for the model and its losses")
    given = parser.parse_args()
    main(given.data, given.output_dir)
