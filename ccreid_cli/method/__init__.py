"""What a training step learns from: Cluster Contrast and what is added to it. No run folder, no command line."""
