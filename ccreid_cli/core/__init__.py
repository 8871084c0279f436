"""What every room stands on: words, errors, settings, files. No torch, and nothing of the other rooms."""
