"""What every layer stands on: errors, configuration, files."""
