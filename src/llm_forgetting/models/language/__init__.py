"""Language models that answer multiple-choice items."""
