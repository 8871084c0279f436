"""The training loop: batches, step, trainer, run folder, checkpoints, scores. No loss, memory or teacher by name."""
