"""Training programs under faults."""
