"""The teacher, the student's shape and extraction, and the wrapper that both are trained in."""

from transformers import DistilBertForMaskedLM

from helpers.files.checked_models import load_checked, quiet_transformers, read_config
from helpers.models.families import FAMILIES
from helpers.models.feed_forward import check_width, narrow_feed_forward, neuron_importance
from helpers.models.inside import Projection, recorded_qkv
from helpers.models.masked import ROWS_TO_A_MULTIPLE_OF, LogitsAlone, MaskedPositionLM
from helpers.models.student import (
    HEAD_PARTS,
    KINDS,
    LAYER_NORM_EPSILON,
    LAYER_PARTS,
    check_layers,
    check_student,
    extract_student,
    spread_layers,
    student_config,
    student_state_dict,
)
from helpers.models.teacher import (
    check_vocabularies,
    head_is_untrained,
    load_student,
    load_teacher,
    start_head,
    weights_sha256,
)
from helpers.models.vocabulary import describe_trimming, keep_rows, least_rows, rows_to_cover, trim_vocabulary
