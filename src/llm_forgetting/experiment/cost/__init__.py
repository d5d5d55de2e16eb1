"""What a run costs, before it is started: memory, operations and time of every phase."""
