"""Models that are moved, scored and differentiated."""
