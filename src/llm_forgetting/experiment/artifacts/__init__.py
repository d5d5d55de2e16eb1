"""What a run writes: its folder, logs, items and provenance."""
