"""What the notebooks share. Read the modules in the order that data flows:

batches, data, models, losses, callbacks, engine, runner, checkpoints, training, experiment, evaluation, plots.
"""
