"""What the notebooks share. Read the modules in the order that data flows:

data, models, losses, callbacks, engine, runner, checkpoints, experiment, evaluation, plots.
"""
