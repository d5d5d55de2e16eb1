"""Second derivatives of the loss of an adapted language model, and what they forecast."""
