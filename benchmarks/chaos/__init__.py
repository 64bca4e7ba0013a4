"""Ingest, train and query at once, over files that come, grow, change names and go; with kills, or without."""
