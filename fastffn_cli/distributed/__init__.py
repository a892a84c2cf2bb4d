"""Many cards: who computes what, planned on paper and read from what a cluster says of itself."""
