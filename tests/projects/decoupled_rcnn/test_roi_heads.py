"""The whole detector, small: edge cases, inference, laziness, stages to test with."""

import pytest
import torch

from clsloc.errors import UserError
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference
from detectron2.structures import Boxes

TWO_OBJECTS = [([10, 10, 50, 40], 0), ([30, 5, 80, 60], 2)]
TINY_OBJECT = [([20, 20, 21, 21], 1)]
TROUBLE = [*TWO_OBJECTS, TWO_OBJECTS[0], ([30, 30, 30, 50], 1), ([70, 70, 70, 70], 0)]

FOUR_STAGES = {
    "NUM_REG_STAGES": 4,
    "REG_IOUS": (0.5,) * 4,
    "CLS_AGNOSTIC": (False, True, True, True),
    "BBOX_REG_WEIGHTS": tuple((10.0 * k, 10.0 * k, 5.0 * k, 5.0 * k) for k in range(1, 5)),
    "STAGE_LOSS_WEIGHTS": (1.0, 0.5, 0.25, 0.125),
}
CASCADE_CLS = {
    "CASCADE_CLS": True,
    "CLS_AGNOSTIC": (True, True, True),
    "REG_IOUS": (0.5, 0.6, 0.7),
}
CONV = {"REG_HEAD": "DoubleConvRegHead", "REG_ROI_SCALE": 1.3}
VARIANTS = {
    "one_stage": {"NUM_REG_STAGES": 1},
    "two_stages": {"NUM_REG_STAGES": 2},
    "three_stages": {},
    "four_stages": FOUR_STAGES,
    "random": {"REG_SAMPLER": "random", "REG_APPEND_GT": True, "NUM_REG_STAGES": 1},
    "shared_samples": {"REG_SAMPLER": "shared", "NUM_REG_STAGES": 1},
    "shared_fc": {"SHARED_FC": True, "NUM_REG_STAGES": 1},
    "cascade_cls": CASCADE_CLS,
    "conv": {**CONV, "NUM_REG_STAGES": 1},
    "conv_cascade": CONV,
    "class_specific": {"CLS_AGNOSTIC": (False, False, False)},
}
BATCHES = {
    "objects": (TWO_OBJECTS, TINY_OBJECT),
    "an_image_without": (TWO_OBJECTS, []),
    "a_batch_without": ([], []),
    "duplicates_and_degenerate_boxes": (TROUBLE,),
}


def randomize_predictors(model, std=0.5):
    """Predictions that differ from row to row, as if the model were trained."""
    heads = model.roi_heads
    for p in (*heads.cls_predictors.parameters(), *heads.reg_predictors.parameters()):
        torch.nn.init.normal_(p, std=std)
    return model


def count_rows(modules):
    """A list that grows by (number of the module, rows that it gets) with each call."""
    calls = []
    for number, module in enumerate(modules):
        module.register_forward_hook(
            lambda _, args, __, number=number: calls.append((number, len(args[0])))
        )
    return calls


# --- training ---


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("batch", BATCHES)
def test_every_parameter_gets_a_finite_gradient(variant, batch, build_tiny, make_batch, storage):
    # With the objects among the proposals, as if the RPN were trained.
    append_gt = variant != "shared_samples"  # which have those of the classifier
    model = build_tiny(**{"REG_APPEND_GT": append_gt, **VARIANTS[variant]}).train()
    losses = model(make_batch(*BATCHES[batch]))
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name
    if batch == "a_batch_without":
        assert all(loss == 0 for name, loss in losses.items() if "box_reg" in name)
    elif variant != "shared_samples" or batch == "objects":
        assert losses["loss_box_reg_stage0"] > 0


def test_losses_have_their_names(build_tiny, make_batch, storage):
    rpn = {"loss_rpn_cls", "loss_rpn_loc"}
    boxes = {f"loss_box_reg_stage{k}" for k in range(4)}
    batch = make_batch(TWO_OBJECTS)
    assert set(build_tiny(**FOUR_STAGES).train()(batch)) == {"loss_cls"} | boxes | rpn
    found = set(build_tiny(**CASCADE_CLS).train()(batch))
    scores = {f"loss_cls_stage{k}" for k in range(3)}
    assert found == scores | (boxes - {"loss_box_reg_stage3"}) | rpn


def test_what_is_logged(build_tiny, make_batch, storage):
    build_tiny(REG_APPEND_GT=True).train()(make_batch(TWO_OBJECTS, TINY_OBJECT))
    logged = {name: value for name, (value, _) in storage.latest().items()}
    assert logged["decoupled/num_proposals_cls"] <= 50 < logged["decoupled/num_proposals_reg"]
    assert logged["roi_head/num_fg_samples"] + logged["roi_head/num_bg_samples"] == 16
    shares = 16 * logged["fast_rcnn/cls_accuracy"]
    assert 0 <= shares <= 16 and shares == round(shares)
    positives = [logged[f"decoupled/num_reg_pos_stage{k}"] for k in range(3)]
    assert positives[0] >= positives[1] >= positives[2] > 0
    assert all(0.5 <= logged[f"decoupled/mean_iou_in_stage{k}"] <= 1 for k in range(3))


@pytest.mark.parametrize("variant", ["three_stages", "conv", "random"])
def test_each_branch_sees_its_own_samples_only(variant, build_tiny, make_batch, storage):
    model = build_tiny(**{"REG_APPEND_GT": True, **VARIANTS[variant]}).train()
    heads = model.roi_heads
    cls_calls, reg_calls = count_rows(heads.cls_heads), count_rows(heads.reg_heads)
    model(make_batch(TWO_OBJECTS, []))
    logged = {name: value for name, (value, _) in storage.latest().items()}
    assert cls_calls == [(0, 32)]
    stages = len(heads.reg_heads)
    rows = [round(2 * logged[f"decoupled/num_reg_pos_stage{k}"]) for k in range(stages)]
    assert reg_calls == list(enumerate(rows))
    assert 2 <= rows[0] <= 64


def test_objects_are_samples_of_the_classifier_only(
    build_tiny, make_proposals, make_target, random_features, storage
):
    heads = build_tiny().roi_heads.train()
    seen = []
    heads.box_pooler.register_forward_hook(lambda _, args, __: seen.append(args[1][0].tensor))
    gt, near = [10.0, 10, 50, 50], [12.0, 10, 52, 50]
    heads(None, random_features(1), [make_proposals([near])], [make_target([(gt, 1)])])
    assert sorted(seen[0].tolist()) == [gt, near]
    assert seen[1].tolist() == [near]


def test_later_classifiers_train_on_refined_boxes(
    build_tiny, make_proposals, make_target, random_features, storage
):
    keys = {"MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False}
    heads = build_tiny(keys, **CASCADE_CLS).roi_heads.train()
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    for scorer, predictor in zip(heads.cls_predictors, heads.reg_predictors, strict=True):
        torch.nn.init.zeros_(scorer.weight)
        scorer.bias.data.copy_(logits)
        torch.nn.init.zeros_(predictor.bbox_pred.weight)
    # The first regressor (weight 10) moves boxes of 40 pixels to the right by 4.4.
    heads.reg_predictors[0].bbox_pred.bias.data[0] = 1.1
    seen = []
    heads.box_pooler.register_forward_hook(lambda _, args, __: seen.append(args[1][0].tensor))
    target = make_target([([24.0, 10, 64, 50], 1)])
    box = [10.0, 10, 50, 50]  # IoU 26 / 54 with the object, then 30.4 / 49.6
    losses = heads(None, random_features(1), [make_proposals([box])], [target])[1]
    moved = torch.tensor([[14.4, 10.0, 54.4, 50.0]])
    for boxes, expected in zip(seen, (torch.tensor([box]), moved, moved), strict=False):
        torch.testing.assert_close(boxes, expected)
    # Background at 0.5 first, the object at 0.6, background again at 0.7.
    log_probs = logits.log_softmax(dim=0)
    for stage, (label, weight) in enumerate([(3, 1.0), (1, 0.5), (3, 0.25)]):
        torch.testing.assert_close(losses[f"loss_cls_stage{stage}"], -weight * log_probs[label])


@pytest.mark.parametrize("variant", VARIANTS)
def test_no_proposal_at_all(
    variant, build_tiny, make_proposals, make_target, random_features, storage
):
    keys = {"MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False}
    heads = build_tiny(keys, **VARIANTS[variant]).roi_heads.train()
    nothing, features = [make_proposals([]), make_proposals([])], random_features()
    losses = heads(None, features, nothing, [make_target([]), make_target([])])[1]
    sum(losses.values()).backward()
    assert all(loss == 0 for loss in losses.values())
    assert all(p.grad is not None and not p.grad.any() for p in heads.parameters())
    heads.eval()
    for heads.lazy_localisation in (True, False):
        assert [len(found) for found in heads(None, features, nothing)[0]] == [0, 0]


def test_no_proposal_in_one_of_two_images(
    build_tiny, make_proposals, make_target, random_proposals, random_features, storage
):
    heads = build_tiny({"MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False}).roi_heads.train()
    proposals = [make_proposals([]), random_proposals(9)]
    proposals[1].proposal_boxes.tensor[0] = torch.tensor(TWO_OBJECTS[0][0], dtype=torch.float32)
    targets = [make_target(TINY_OBJECT), make_target(TWO_OBJECTS)]
    losses = heads(None, random_features(), proposals, targets)[1]
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert all(p.grad.isfinite().all() for p in heads.parameters())
    heads.eval()
    with torch.no_grad():
        few, many = heads(None, random_features(), proposals)[0]
    assert len(few) == 0 < len(many)


@pytest.mark.parametrize("num_classes", [1, 2, 4, 80])
def test_any_number_of_classes(num_classes, build_tiny, make_batch, storage, detect):
    model = build_tiny({"MODEL.ROI_HEADS.NUM_CLASSES": num_classes}).train()
    objects = [(box, label % num_classes) for box, label in TWO_OBJECTS]
    sum(model(make_batch(objects)).values()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.requires_grad)
    found = detect(randomize_predictors(model), make_batch([]))[0]
    assert len(found) > 0
    assert found.pred_classes.max() < num_classes


def test_many_objects(build_tiny, make_batch, random_proposals, storage):
    boxes = random_proposals(1000).proposal_boxes.tensor.tolist()
    model = build_tiny(REG_APPEND_GT=True).train()
    losses = model(make_batch([(box, i % 3) for i, box in enumerate(boxes)]))
    assert all(loss.isfinite() for loss in losses.values())
    assert storage.latest()["decoupled/num_reg_pos_stage0"][0] == 512


def test_precomputed_proposals_serve_both_tasks(build_tiny, make_batch, random_proposals, storage):
    model = build_tiny({"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"}).train()
    batch = make_batch(TWO_OBJECTS)
    batch[0]["proposals"] = random_proposals(30)
    losses = model(batch)
    sum(losses.values()).backward()
    assert set(losses) == {"loss_cls", *(f"loss_box_reg_stage{k}" for k in range(3))}


# --- inference ---


@pytest.mark.parametrize("variant", ["one_stage", "three_stages", "four_stages", "conv_cascade"])
def test_without_regression_boxes_are_the_proposals(
    variant, build_tiny, random_proposals, random_features, assert_equal_detections
):
    heads = build_tiny(**VARIANTS[variant]).roi_heads.eval()
    torch.nn.init.normal_(heads.cls_predictors[0].weight, std=0.3)
    for p in heads.reg_predictors.parameters():
        torch.nn.init.zeros_(p)
    proposals, features = [random_proposals(12)], random_features(1)
    pooler_calls, scorer_calls = count_rows([heads.box_pooler]), count_rows(heads.cls_predictors)
    with torch.no_grad():
        (found,), _ = heads(None, features, proposals)
        pooled = heads._pool(
            [features[f"p{i}"] for i in range(2, 6)], [proposals[0].proposal_boxes]
        )
        probs = heads._score(0, pooled).softmax(dim=1)
    assert scorer_calls == [(0, 12), (0, 12)]
    # One RoIAlign for each stage, and one more where the regressors look further around.
    assert len(pooler_calls) - 1 == len(heads.reg_heads) + (heads.reg_roi_scale != 1)
    boxes = proposals[0].proposal_boxes.tensor
    expected = fast_rcnn_inference([boxes], [probs], [(64, 96)], 0.05, 0.5, 100)[0]
    assert_equal_detections([found], expected, tolerance=1e-5)
    assert len(found) > 0


def test_a_class_goes_on_with_its_own_box(build_tiny, random_proposals, random_features):
    """The best foreground class chooses the box of the first stage, also below the background."""
    heads = build_tiny(NUM_REG_STAGES=2).roi_heads.eval()
    for p in (*heads.reg_predictors.parameters(), *heads.cls_predictors.parameters()):
        torch.nn.init.zeros_(p)
    heads.cls_predictors[0].bias.data.copy_(torch.tensor([0.0, -1.0, 0.5, 3.0]))
    heads.reg_predictors[0].bbox_pred.bias.data[8:12] = torch.tensor([1.0, 0.0, 0.0, 0.0])
    box = torch.tensor([[20.0, 20.0, 40.0, 40.0]])
    proposals = random_proposals(1)
    proposals.proposal_boxes.tensor = box
    with torch.no_grad():
        (found,), _ = heads(None, random_features(1), [proposals])
    assert found.pred_classes.tolist() == [2]
    torch.testing.assert_close(found.pred_boxes.tensor, box + torch.tensor([2.0, 0, 2, 0]))


@pytest.mark.parametrize(
    "variant",
    [
        "one_stage",
        "two_stages",
        "three_stages",
        "four_stages",
        "conv",
        "conv_cascade",
        "class_specific",
        "shared_fc",
        "cascade_cls",
    ],
)
def test_lazy_localisation_does_not_change_the_detections(
    variant, build_tiny, make_batch, detect, assert_equal_detections
):
    model = randomize_predictors(build_tiny(**VARIANTS[variant]), std=0.02)
    heads, batch = model.roi_heads, make_batch([], [])
    best, select = [], heads._select
    heads._select = lambda boxes, probs, sizes: best.append(probs) or select(boxes, probs, sizes)
    calls = count_rows(heads.reg_predictors)

    detect(model, batch)
    assert len(torch.cat(best[0])) == 80
    # Now half of the rows survive.
    heads.test_score_thresh = torch.cat(best[0])[:, :-1].amax(dim=1).median().item()
    calls.clear()
    lazy = detect(model, batch)
    stages = len(heads.reg_heads)
    if variant == "cascade_cls":  # whose scores need all regressors but the last
        assert calls == [(0, 80), (1, 80), (2, 40)]
    else:
        assert calls == [(stage, 40) for stage in range(stages)]
    heads.lazy_localisation = False
    full = detect(model, batch)
    assert calls[stages:] == [(stage, 80) for stage in range(stages)]
    assert_equal_detections(lazy, full)
    assert sum(map(len, full)) > 0


def test_nothing_survives(build_tiny, make_batch, detect):
    model = build_tiny({"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0})
    assert [len(found) for found in detect(model, make_batch([], []))] == [0, 0]


def test_one_image_alone_and_in_a_batch(build_tiny, make_batch, detect, assert_equal_detections):
    model = randomize_predictors(build_tiny(), std=0.1)
    one, two = make_batch([], seed=0), make_batch([], seed=1)
    assert_equal_detections(
        detect(model, one + two), detect(model, one) + detect(model, two), tolerance=1e-3
    )


PAIRS = [(i, (j,)) for i in range(3) for j in range(3)] + [(2, (0, 1, 2)), (-1, ())]


@pytest.mark.parametrize("kind", ["decoupled_cascadecls", "cascade_rcnn"])
def test_any_pair_of_stages(
    kind, build_tiny, random_proposals, random_features, assert_equal_detections
):
    """Boxes of regressor i, scores of classifier j on the boxes it trained on (Table X)."""
    config = f"{kind}_R_101_FPN_1x"
    heads = build_tiny(config=config).roi_heads.eval()
    for name, p in heads.named_parameters():
        if "predictor" in name:
            torch.nn.init.normal_(p, std=0.05)
    proposals, features = [random_proposals(20), random_proposals(7, 1)], random_features()
    maps, sizes = [features[f"p{i}"] for i in range(2, 6)], [(64, 96)] * 2
    with torch.no_grad():
        boxes, probs = stages_by_hand(heads, kind, maps, [p.proposal_boxes for p in proposals])
        for reg, cls in PAIRS:
            keys = {"TEST_REG_STAGE": reg, "TEST_CLS_STAGES": cls}
            other = build_tiny(config=config, **keys).roi_heads.eval()
            other.load_state_dict(heads.state_dict())
            found, _ = other(None, features, proposals)
            scores = torch.stack([probs[j] for j in cls or (0, 1, 2)]).mean(dim=0)
            expected = fast_rcnn_inference(
                boxes[reg].split([20, 7]), scores.split([20, 7]), sizes, 0.05, 0.5, 100
            )[0]
            assert_equal_detections(found, expected)
    assert not torch.allclose(boxes[0], boxes[2])


def stages_by_hand(heads, kind, maps, boxes):
    """Boxes (R, 4) and probabilities (R, K+1) of three stages."""
    found, probs = [], []
    for stage in range(3):
        pooled = heads.box_pooler(maps, boxes)
        flat = torch.cat([b.tensor for b in boxes])
        if kind == "cascade_rcnn":
            predictor = heads.box_predictor[stage]
            logits, deltas = predictor(heads.box_head[stage](pooled))
            refined = predictor.box2box_transform.apply_deltas(deltas, flat)
        else:
            logits = heads.cls_predictors[stage](heads.cls_heads[stage](pooled))
            predictor = heads.reg_predictors[stage]
            refined = predictor.decode(predictor(heads.reg_heads[stage](pooled)), flat)
        probs.append(logits.softmax(dim=1))
        boxes = [Boxes(b) for b in refined.split([len(b) for b in boxes])]
        for image_boxes in boxes:
            image_boxes.clip((64, 96))
        found.append(torch.cat([b.tensor for b in boxes]))
    return found, probs


def test_scores_of_one_classifier_need_no_later_regressor(build_tiny, make_batch, detect):
    model = build_tiny(**CASCADE_CLS, TEST_REG_STAGE=0, TEST_CLS_STAGES=(0,))
    cls_calls = count_rows(model.roi_heads.cls_heads)
    reg_calls = count_rows(model.roi_heads.reg_heads)
    detect(model, make_batch([]))
    assert [number for number, _ in cls_calls] == [0]
    assert [number for number, _ in reg_calls] == [0]


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_soft_nms(method, build_tiny, make_batch, detect):
    keys = {"SOFT_NMS_METHOD": method, "SOFT_NMS_MIN_SCORE": 0.01}
    more = {"TEST.DETECTIONS_PER_IMAGE": 200}
    hard = randomize_predictors(build_tiny(more), std=0.02)
    soft = build_tiny(more, SOFT_NMS=True, **keys)
    soft.load_state_dict(hard.state_dict())
    (few,), (many,) = detect(hard, make_batch([])), detect(soft, make_batch([]))
    assert len(many) > len(few) > 0
    # The best detection of all is the same, and scores fall.
    assert many.scores[0] == few.scores[0]
    assert (many.scores[:-1] >= many.scores[1:]).all()
    assert many.scores.min() >= 0.01


def test_save_and_load(build_tiny, make_batch, tmp_path, detect, assert_equal_detections):
    for keys in ({}, VARIANTS["shared_fc"]):
        model = randomize_predictors(build_tiny(**keys, seed=0)).train()
        torch.save(model.state_dict(), tmp_path / "model.pth")
        other = build_tiny(**keys, seed=1)
        other.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True))
        batch = make_batch([])
        assert_equal_detections(detect(other, batch), detect(model, batch), tolerance=0)


def test_test_time_augmentation(build_tiny, make_cfg, check_views):
    check_views(randomize_predictors(build_tiny()), make_cfg)


@pytest.mark.parametrize("variant", ["three_stages", "cascade_cls"])
def test_mixed_precision_stays_close(
    variant, build_tiny, make_target, random_proposals, random_features, storage
):
    heads = randomize_predictors(build_tiny(**VARIANTS[variant]), std=0.01).roi_heads.train()
    features, proposals = random_features(), [random_proposals(40), random_proposals(30, seed=1)]
    targets = [make_target(TWO_OBJECTS), make_target(TINY_OBJECT)]

    def losses(enabled):
        torch.manual_seed(0)
        heads.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            losses = heads(None, features, proposals, targets)[1]
        sum(losses.values()).backward()
        assert all(p.grad.isfinite().all() for p in heads.parameters())
        return losses

    exact, mixed = losses(False), losses(True)
    for name, loss in mixed.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.03, atol=1e-5)


# --- what is refused ---


@pytest.mark.parametrize(
    ("overrides", "word"),
    [
        ({"MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": True}, "TRAIN_ON_PRED_BOXES"),
        ({"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "giou"}, "'giou'"),
        ({"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": 2.0}, "BBOX_REG_LOSS_WEIGHT 2.0"),
        ({"MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": True}, "USE_SIGMOID_CE"),
        ({"MODEL.ROI_BOX_HEAD.USE_FED_LOSS": True}, "USE_FED_LOSS"),
        ({"MODEL.DECOUPLED.NUM_REG_STAGES": 4}, "CLS_AGNOSTIC needs"),
        ({"MODEL.DECOUPLED.NUM_REG_STAGES": 0}, "NUM_REG_STAGES must be"),
        ({"MODEL.DECOUPLED.SHARED_FC": True}, "NUM_REG_STAGES is 3"),
        ({"MODEL.DECOUPLED.REG_SAMPLER": "best"}, "'best'"),
        (
            {"MODEL.DECOUPLED.REG_SAMPLER": "shared", "MODEL.DECOUPLED.REG_APPEND_GT": True},
            "REG_APPEND_GT appends nothing",
        ),
        ({"MODEL.DECOUPLED.REG_LOSS_NORM": "none"}, "'none'"),
        ({"MODEL.DECOUPLED.SOFT_NMS_METHOD": "cubic"}, "'cubic'"),
        ({"MODEL.DECOUPLED.REG_ROI_SCALE": 0.0}, "REG_ROI_SCALE"),
        ({"MODEL.DECOUPLED.TEST_REG_STAGE": 3}, "TEST_REG_STAGE"),
        ({"MODEL.DECOUPLED.TEST_CLS_STAGES": (1,)}, "TEST_CLS_STAGES"),
        ({"MODEL.DECOUPLED.CASCADE_CLS": True}, "CLS_AGNOSTIC to True"),
        ({"MODEL.DECOUPLED.BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0)}, "four numbers"),
        (
            {
                "MODEL.DECOUPLED.SHARED_FC": True,
                "MODEL.DECOUPLED.NUM_REG_STAGES": 1,
                "MODEL.DECOUPLED.REG_HEAD": "DoubleConvRegHead",
            },
            "equal heads",
        ),
        (
            {
                "MODEL.DECOUPLED.CASCADE_CLS": True,
                "MODEL.DECOUPLED.CLS_AGNOSTIC": (True, True, True),
                "MODEL.DECOUPLED.CLS_IOUS": (0.6, 0.6, 0.7),
            },
            "CLS_IOUS",
        ),
    ],
)
def test_a_config_that_describes_no_detector(overrides, word, build_tiny):
    with pytest.raises(UserError, match=word):
        build_tiny(overrides)


@pytest.mark.parametrize("scale", [1.0, 1.3])
def test_a_regressor_with_larger_regions_pools_its_own(scale, build_tiny, random_features):
    heads = randomize_predictors(build_tiny(**CASCADE_CLS, REG_ROI_SCALE=scale)).roi_heads.eval()
    features = random_features(1, size=(200, 300))
    maps = [features[name] for name in heads.box_in_features]
    boxes = [Boxes(torch.tensor([[10.0, 10, 110, 110], [150.0, 40, 260, 150]]))]
    with torch.no_grad():
        own, shared = heads._regress(0, maps, boxes), heads._pool(maps, boxes)
        assert torch.equal(heads._regress(0, maps, boxes, shared), own)
        assert torch.equal(shared, heads._pool(maps, boxes, scale)) == (scale == 1)
