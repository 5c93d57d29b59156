"""What the notebooks share. Read the modules in the order that data flows:

batches, csv_files, data, models, losses, callbacks, steps, history, engine, runner, checkpoints, training, records,
experiment, evaluation, plots.
"""
