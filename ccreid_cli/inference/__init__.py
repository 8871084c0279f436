"""A trained model in use: load, embed, evaluate, search, export, and its feature files. Nothing here trains."""
