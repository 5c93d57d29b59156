"""What the notebooks share. Read these, in this order; of this list, each imports only what stands before it:

- `data`: texts in, labelled or not; dict batches out, masks among them
- `models`: the teacher, the student and what is cut from it, the wrapper that runs the head at masked positions alone
- `losses`: each distillation loss as a function of tensors
- `callbacks`: those losses and the metrics as Catalyst callbacks
- `runner`: what a runner does with one batch
- `training`: the one training run; masked LM and distillation
- `classification`: classifiers, and the distillation of a task
- `evaluation`: scores, intervals, paired bootstrap
- `compression`: what makes a trained model small, and a file that answers without PyTorch: pruning, export, int8
- `plots`: the pictures

What a reader does not need at first is in `files` (of texts and models, and what can be wrong with them; `data` and
`models` use it), `catalyst_today` (engine, step, saving and resuming on today's stack; `training` and `classification`
use it) and `runs` (parameters, records, model cards, config files). Take those as given.
"""
