"""Does the shape of the loss landscape decide how much a large language model forgets?

`llm_forgetting.experiment.run_experiment` is the whole chain; the command line is a thin shell over it.
"""
