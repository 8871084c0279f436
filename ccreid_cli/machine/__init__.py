"""Processors, processes, memory, signals, clocks. No images, no labels, no runs."""
