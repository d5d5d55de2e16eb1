"""Loss landscapes of an adapted model, in coordinates that do not depend on how the adapter happens to be written."""
