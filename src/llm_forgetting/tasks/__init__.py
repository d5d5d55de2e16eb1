"""Multiple-choice tasks: where their items come from, how they are split, and how they are put to a model."""
