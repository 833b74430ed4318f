"""A user's script: published code, the stock collator, plain Trainer; a folder saved for elsewhere.

FOLDER SAVED BATCH_SIZE MODE, where the mode is plain, checkpointing or lora; prints losses and predictions as JSON.
"""

import json
import sys

import refuse
from transformers import (
    AutoFeatureExtractor,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

SMILES = ["CCO", "c1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "CCN", "CC(C)O", "C1CCOC1", "CC#N", "OCC(O)CO"]

folder, saved, batch_size, mode = sys.argv[1:]
extractor = AutoFeatureExtractor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSequenceClassification.from_pretrained(folder, trust_remote_code=True)
rows = [
    {**next(iter(molecule.model_inputs())), "labels": [float(index % 2)] * model.config.num_labels}
    for index, molecule in enumerate(extractor.featurize(SMILES))
]
if mode == "lora":
    set_seed(1)  # new adapters are random
    from peft import LoraConfig, get_peft_model

    adapter = LoraConfig(r=4, target_modules="all-linear", modules_to_save=["classifier"])
    model = get_peft_model(model, adapter)
arguments = TrainingArguments(
    saved, per_device_train_batch_size=int(batch_size), max_steps=3, logging_steps=1, learning_rate=1e-2, optim="sgd",
    gradient_checkpointing=mode == "checkpointing", remove_unused_columns=False, report_to="none", use_cpu=True,
    save_strategy="no", seed=1,
)  # fmt: skip
trainer = Trainer(
    model, arguments, DataCollatorWithPadding(extractor, pad_to_multiple_of=8), rows, processing_class=extractor
)
trainer.train()
if mode == "lora":
    trainer.model = model.merge_and_unload()
trainer.save_model(saved)
if trainer.is_world_process_zero():
    predictions = trainer.predict(rows).predictions.tolist() if trainer.args.world_size == 1 else None
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    print(json.dumps({"losses": losses, "predictions": predictions}))
if trainer.args.world_size > 1:
    trainer.accelerator.wait_for_everyone()
    refuse.end()
