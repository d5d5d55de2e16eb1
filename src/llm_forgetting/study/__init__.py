"""Many experiments that answer one question: which cells a study has, who runs them, and what is kept of each."""
