"""One HTML page of a run: gather, choose, draw. Nothing here trains or alters a run beyond that page."""
