"""Tables of results, for terminal and Markdown."""
