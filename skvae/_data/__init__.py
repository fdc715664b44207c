"""Rows: from what a user has to batches."""
