"""What the notebooks share. Read these, in this order; of this list, each imports only what stands before it:

- `data`: texts in, labelled or not; dict batches out, masks among them
- `models`: the teacher, the extraction of a student, the wrapper that runs the head at masked positions alone
- `losses`: each distillation loss as a function of tensors
- `callbacks`: those losses and the metrics as Catalyst callbacks
- `runner`: what a runner does with one batch
- `training`: the one training run; masked LM and distillation
- `classification`: classifiers, and the distillation of a task
- `evaluation`: scores, intervals, paired bootstrap
- `plots`: the pictures

What a reader does not need at first is in `files` (CSV in its forms; `data` uses it), `catalyst_today` (engine, step,
saving and resuming on today's stack; `training` and `classification` use it) and `runs` (parameters, records, model
cards, config files). Take those as given.
"""
