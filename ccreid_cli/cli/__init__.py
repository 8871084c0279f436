"""The command line: parse, call, show. No torch, numpy, faiss, scikit-learn or Pillow at module level."""
