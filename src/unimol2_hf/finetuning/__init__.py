"""Fine-tuning on a chemist's table: prepare, train, evaluate."""
