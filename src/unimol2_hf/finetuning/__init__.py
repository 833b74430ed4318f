"""Fine-tuning on a chemist's table, and prediction for another: what `unimol2-hf finetune` and `predict` run."""
