"""What commands run: extraction, training, evaluation, checkpoints."""
