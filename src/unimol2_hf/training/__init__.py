"""What fine-tuning and a user's own Trainer share: samplers, micro-batches, the collator, the Trainer."""
