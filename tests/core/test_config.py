"""What is checked of a config in the same way by all projects."""

import pytest

from clsloc.config import check_box_head, check_choice
from clsloc.errors import UserError
from detectron2.config import get_cfg

WITHOUT_EFFECT = [
    ("TRAIN_ON_PRED_BOXES", True, "True has no effect in Some R-CNN: set it to False"),
    ("BBOX_REG_LOSS_TYPE", "giou", "'giou' has no effect in Some R-CNN: set it to 'smooth_l1'"),
    ("BBOX_REG_LOSS_WEIGHT", 2.0, "2.0 has no effect in Some R-CNN: set it to 1.0"),
    ("USE_SIGMOID_CE", True, "True has no effect in Some R-CNN: set it to False"),
    ("USE_FED_LOSS", True, "True has no effect in Some R-CNN: set it to False"),
]


@pytest.mark.parametrize("choices", [("a", "b"), {"a": 1, "b": 2}])
def test_a_choice_is_one_of_its_names(choices):
    check_choice("MODEL.KEY", "b", choices)
    with pytest.raises(UserError) as error:
        check_choice("MODEL.KEY", "c", choices)
    assert str(error.value) == "MODEL.KEY must be one of a, b, got 'c'."


def test_a_choice_may_be_a_number():
    check_choice("MODEL.KEY", 2, (1, 2))
    with pytest.raises(UserError, match=r"^MODEL.KEY must be one of 1, 2, got 3\.$"):
        check_choice("MODEL.KEY", 3, (1, 2))


@pytest.mark.parametrize("key, value, words", WITHOUT_EFFECT)
def test_what_a_head_does_not_read_is_refused(key, value, words):
    cfg = get_cfg()
    check_box_head(cfg, "Some R-CNN")
    cfg.MODEL.ROI_BOX_HEAD[key] = value
    with pytest.raises(UserError) as error:
        check_box_head(cfg, "Some R-CNN")
    assert str(error.value) == f"MODEL.ROI_BOX_HEAD.{key} {words}."


@pytest.mark.parametrize("key, value, words", WITHOUT_EFFECT)
def test_a_head_may_read_some_of_it(key, value, words):
    cfg = get_cfg()
    cfg.MODEL.ROI_BOX_HEAD[key] = value
    check_box_head(cfg, "Some R-CNN", [other for other, *_ in WITHOUT_EFFECT if other != key])
    with pytest.raises(UserError, match=key):
        check_box_head(cfg, "Some R-CNN", [key])
