"""The teacher, the student's shape and extraction, and the wrapper that both are trained in."""

from transformers import DistilBertForMaskedLM

from helpers.files.checked_models import load_checked, quiet_transformers, read_config
from helpers.models.inside import ATTENTION_NAMES, Projection, recorded_qkv
from helpers.models.masked import ROWS_TO_A_MULTIPLE_OF, MaskedPositionLM
from helpers.models.student import (
    HEAD_PARTS,
    LAYER_NORM_EPSILON,
    LAYER_PARTS,
    check_layers,
    extract_student,
    spread_layers,
    student_config,
    student_state_dict,
)
from helpers.models.teacher import (
    head_is_untrained,
    load_teacher,
    weights_sha256,
)
