"""From features to pseudo-labels: neighbours, Jaccard distance, clustering."""
