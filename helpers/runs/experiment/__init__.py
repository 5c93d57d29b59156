"""What the parameters of a notebook stand for: its texts, its models, and those that an earlier one has made."""

from helpers.runs.experiment.made import ensure_student, ensure_teacher
from helpers.runs.experiment.shape import chosen_layers, make_student, prepare_teacher, teacher_source
from helpers.runs.experiment.texts import VALIDATIONS, corpus_loaders, cut_at, labelled_corpus, read_corpus, split_steps
from helpers.runs.experiment.trained import HEAD, HeadRecipe, Trained
