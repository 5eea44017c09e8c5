"""Losses, refinement and gradients, with values by hand."""

import math

import pytest
import torch
import torch.nn.functional as F

from detectron2.structures import Boxes, pairwise_iou

SIZE = (300, 300)
GT = [0.0, 0, 100, 100]
POSITIVE = [10.0, 10, 110, 110]  # IoU .6807; from here to GT the shift is a tenth of the size
BACKGROUND = [200.0, 200, 250, 250]
TARGET = [(GT, 1)]
STAGE_LOSSES = [0.5 * 1 * 2 / 512, 0.5 * 0.5 * 4 / 512, 0.5 * 0.25 * 6 / 512]  # of one positive


def zero_regressors(heads, biases=()):
    """Deltas that do not depend on the features: zeros, or the biases of the first stages."""
    for predictor in heads.reg_predictors:
        torch.nn.init.zeros_(predictor.bbox_pred.weight)
        torch.nn.init.zeros_(predictor.bbox_pred.bias)
    for predictor, bias in zip(heads.reg_predictors, biases, strict=False):
        predictor.bbox_pred.bias.data.copy_(torch.tensor(bias))


def of_class_1(*deltas):
    """Deltas of three classes, those of the others would throw a box out of the image."""
    return [9.0, 9.0, 9.0, 9.0, *deltas, 9.0, 9.0, 9.0, 9.0]


@pytest.fixture
def make_heads(build_tiny):
    def make(biases=(), **keys):
        heads = build_tiny({"MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": False}, **keys).roi_heads.train()
        zero_regressors(heads, biases)
        return heads

    return make


@pytest.fixture
def run(make_proposals, make_target, random_features, storage):
    """Losses of heads for images, each with a list of positives and 600 proposals in all."""

    def run(heads, *images, num=600):
        proposals, targets = [], []
        for boxes, objects in images:
            padding = [BACKGROUND] * (num - len(boxes))
            proposals.append(make_proposals([*boxes, *padding], SIZE))
            targets.append(make_target(objects, SIZE))
        features = random_features(len(images), size=SIZE)
        return heads(None, features, proposals, targets)[1]

    return run


def box_losses(losses):
    return [loss.item() for name, loss in sorted(losses.items()) if "box_reg" in name]


def test_loss_by_hand(make_heads, run):
    losses = run(make_heads(), ([POSITIVE] * 3, TARGET))
    assert set(losses) == {"loss_cls", *(f"loss_box_reg_stage{k}" for k in range(3))}
    assert box_losses(losses) == pytest.approx([0.005859375, 0.005859375, 0.00439453125])
    assert box_losses(losses) == pytest.approx([3 * loss for loss in STAGE_LOSSES])


def test_each_stage_has_its_own_threshold(make_heads, run):
    losses = run(make_heads(REG_IOUS=(0.5, 0.7, 0.7)), ([POSITIVE], TARGET))
    # Zero deltas leave the box at an IoU of 0.68, which is a positive of the first stage alone.
    assert box_losses(losses) == pytest.approx([STAGE_LOSSES[0], 0, 0])
    losses = run(make_heads(REG_IOUS=(0.5, 0.6, 0.7)), ([POSITIVE], TARGET))
    assert box_losses(losses) == pytest.approx([*STAGE_LOSSES[:2], 0])


def test_targets_by_hand(make_heads):
    box, gt = torch.tensor([POSITIVE]), torch.tensor([GT])
    assert pairwise_iou(Boxes(box), Boxes(gt)).item() == pytest.approx(0.6807, abs=1e-4)
    for stage, predictor in enumerate(make_heads().reg_predictors, start=1):
        target = predictor.transform.get_deltas(box, gt)
        torch.testing.assert_close(target, torch.tensor([[-1.0 * stage, -1.0 * stage, 0, 0]]))


@pytest.mark.parametrize(
    ("keys", "factors"),
    [
        ({"LOSS_LAMBDA": 1.0}, (2, 2, 2)),
        ({"STAGE_LOSS_WEIGHTS": (1.0, 1.0, 1.0)}, (1, 2, 4)),
        ({"REG_BATCH_SIZE_PER_IMAGE": 256}, (2, 2, 2)),
        ({"REG_LOSS_NORM": "positives"}, (512 / 3,) * 3),
        ({"BBOX_REG_WEIGHTS": ((5.0, 5.0, 5.0, 5.0),) * 3}, (1 / 2, 1 / 4, 1 / 6)),
    ],
)
def test_keys_that_scale_the_loss(keys, factors, make_heads, run):
    losses = run(make_heads(**keys), ([POSITIVE] * 3, TARGET))
    expected = [3 * loss * factor for loss, factor in zip(STAGE_LOSSES, factors, strict=True)]
    assert box_losses(losses) == pytest.approx(expected)


def test_the_mini_batch_normalises_and_not_the_positives(make_heads, run):
    heads = make_heads()
    three = box_losses(run(heads, ([POSITIVE] * 3, TARGET)))
    six = box_losses(run(heads, ([POSITIVE] * 6, TARGET)))
    assert six == pytest.approx([2 * loss for loss in three])
    beside_an_empty_image = box_losses(run(heads, ([POSITIVE] * 3, TARGET), ([], [])))
    assert beside_an_empty_image == pytest.approx([loss / 2 for loss in three])


def test_few_proposals_make_a_small_divisor(make_heads, run):
    losses = run(make_heads(), ([POSITIVE] * 3, TARGET), num=64)
    assert box_losses(losses) == pytest.approx([3 * loss * 512 / 64 for loss in STAGE_LOSSES])


@pytest.mark.parametrize("sampler", ["random", "shared"])
def test_samplers_divide_by_their_own_mini_batch(sampler, make_heads, run):
    losses = run(make_heads(REG_SAMPLER=sampler), ([POSITIVE] * 3, TARGET))
    # 16 samples of the classifier, of which at most 4 are positives.
    size = {"random": 512, "shared": 16}[sampler]
    assert box_losses(losses) == pytest.approx([3 * loss * 512 / size for loss in STAGE_LOSSES])
    losses = run(make_heads(REG_SAMPLER=sampler), ([POSITIVE] * 200, TARGET))
    drawn = {"random": 128, "shared": 4}[sampler]
    assert box_losses(losses) == pytest.approx([drawn * loss * 512 / size for loss in STAGE_LOSSES])


def test_refinement_by_hand(make_heads, run):
    heads = make_heads([of_class_1(-0.5, -0.5, 0.0, 0.0)])
    boxes, deltas = [Boxes(torch.tensor([POSITIVE]))], heads.reg_predictors[0].bbox_pred.bias[None]
    (refined,) = heads._refine(0, deltas, boxes, [SIZE], torch.tensor([1]))
    torch.testing.assert_close(refined.tensor, torch.tensor([[5.0, 5.0, 105.0, 105.0]]))
    assert not refined.tensor.requires_grad
    iou = pairwise_iou(refined, Boxes(torch.tensor([GT])))
    assert iou.item() == pytest.approx(0.8223, abs=1e-4)

    losses = run(heads, ([POSITIVE], TARGET))
    # Stage 1 is half way to its target; stages 2 and 3 are a twentieth of the size away.
    expected = [STAGE_LOSSES[0] / 2, STAGE_LOSSES[1] / 2, STAGE_LOSSES[2] / 2]
    assert box_losses(losses) == pytest.approx(expected)


def test_refined_boxes_are_clipped(make_heads):
    heads = make_heads([of_class_1(-5.0, 0.0, 0.0, 0.0)])
    boxes, deltas = [Boxes(torch.tensor([POSITIVE]))], heads.reg_predictors[0].bbox_pred.bias[None]
    (refined,) = heads._refine(0, deltas, boxes, [SIZE], torch.tensor([1]))
    torch.testing.assert_close(refined.tensor, torch.tensor([[0.0, 10.0, 60.0, 110.0]]))


def test_what_is_no_positive_any_more_leaves_the_cascade(make_heads, run):
    # IoU .55 with GT: shifted by 29.03 of 100. A step of .09 more makes it .45.
    leaves = [29.0, 0.0, 129.0, 100.0]
    stays = [-5.0 + 5, 0.0, 95.0, 100.0]
    heads = make_heads([of_class_1(0.9, 0.0, 0.0, 0.0)])
    rows = []
    for head in heads.reg_heads:
        head.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))
    losses = run(heads, ([leaves, stays], TARGET))
    assert rows == [2, 1, 1]
    # `stays` is (0, 0, 95, 100), then 8.55 further right: only this one counts, over 512 still.
    dx, dw = (50 - (47.5 + 8.55)) / 95, math.log(100 / 95)
    expected = [
        0.5 * 0.5 * (20 * abs(dx) + 10 * dw) / 512,
        0.5 * 0.25 * (30 * abs(dx) + 15 * dw) / 512,
    ]
    assert box_losses(losses)[1:] == pytest.approx(expected, rel=1e-4)


def test_a_box_may_change_its_object(make_heads, run):
    # The second object has another class and lies where the first stage moves the box.
    other = [40.0, 0.0, 140.0, 100.0]
    heads = make_heads([of_class_1(3.0, 0.0, 0.0, 0.0)])
    start = [10.0, 0.0, 110.0, 100.0]
    losses = run(heads, ([start], [(GT, 1), (other, 2)]))
    assert box_losses(losses)[1:] == pytest.approx([0.0, 0.0], abs=1e-7)
    assert box_losses(losses)[0] == pytest.approx(0.5 * 4.0 / 512)


def test_negatives_of_no_weight_change_nothing(
    build_tiny, make_proposals, make_target, storage, random_features
):
    """The authors' code carries untouched negatives through all stages, with zero weight."""
    heads = build_tiny().roi_heads.train()
    for predictor in heads.reg_predictors:
        torch.nn.init.normal_(predictor.bbox_pred.weight, std=0.05)
    features = random_features(1, size=SIZE)
    maps = [features[name] for name in heads.box_in_features]
    noise = torch.randn(40, 4, generator=torch.Generator().manual_seed(0)) * 8
    near = (torch.tensor([60.0, 60, 160, 160]) + noise).clamp(0, 300)
    boxes = torch.cat([near, torch.tensor([BACKGROUND]).expand(560, 4)])
    target = make_target([([60.0, 60, 160, 160], 1)], SIZE)
    losses = heads(None, features, [make_proposals(boxes, SIZE)], [target])[1]

    gt = target.gt_boxes
    boxes = boxes[:512]
    for stage, predictor in enumerate(heads.reg_predictors):
        positive = pairwise_iou(gt, Boxes(boxes))[0] >= 0.5
        assert 20 < positive.sum() < 512
        deltas = predictor(heads.reg_heads[stage](heads.box_pooler(maps, [Boxes(boxes)])))
        deltas = deltas[:, 4:8] if stage == 0 else deltas
        targets = predictor.transform.get_deltas(boxes, gt.tensor.expand_as(boxes))
        per_box = (deltas - targets).abs().sum(dim=1) * positive
        expected = 0.5 * (1, 0.5, 0.25)[stage] * per_box.sum() / 512
        torch.testing.assert_close(losses[f"loss_box_reg_stage{stage}"], expected)
        refined = Boxes(predictor.decode(deltas.detach(), boxes))
        refined.clip(SIZE)
        boxes = torch.where(positive[:, None], refined.tensor, boxes)


def test_classification_loss_is_the_mean_over_its_samples(make_heads, run):
    heads = make_heads()
    scorer = heads.cls_predictors[0]
    torch.nn.init.zeros_(scorer.weight)
    logits = torch.tensor([0.5, 2.0, -1.0, 1.0])
    scorer.bias.data.copy_(logits)
    losses = run(heads, ([POSITIVE] * 9, TARGET))
    log_probs = F.log_softmax(logits, dim=0)
    # A quarter of 16 samples is foreground.
    expected = -(4 * log_probs[1] + 12 * log_probs[3]) / 16
    torch.testing.assert_close(losses["loss_cls"], expected)


@pytest.mark.parametrize("num_classes", [20, 80])
def test_classification_loss_at_the_start(num_classes, build_tiny, run):
    heads = build_tiny({"MODEL.ROI_HEADS.NUM_CLASSES": num_classes}).roi_heads.train()
    losses = run(heads, ([POSITIVE] * 3, TARGET))
    assert losses["loss_cls"].item() == pytest.approx(math.log(num_classes + 1), abs=0.15)


# --- gradients ---


def gradients(heads, loss):
    heads.zero_grad()
    loss.backward(retain_graph=True)
    parts = ("cls_heads", "cls_predictors", "reg_heads", "reg_predictors")
    return {
        part: any(p.grad is not None and p.grad.any() for p in getattr(heads, part).parameters())
        for part in parts
    }


def test_each_task_trains_its_own_layers(build_tiny, run, random_features):
    heads = build_tiny().roi_heads.train()
    losses = run(heads, ([POSITIVE] * 3, TARGET))
    found = gradients(heads, losses["loss_cls"])
    assert found == {
        "cls_heads": True,
        "cls_predictors": True,
        "reg_heads": False,
        "reg_predictors": False,
    }
    box_loss = sum(loss for name, loss in losses.items() if "box_reg" in name)
    assert gradients(heads, box_loss) == {name: not trained for name, trained in found.items()}


def test_a_stage_trains_itself_alone(build_tiny, run):
    heads = build_tiny().roi_heads.train()
    losses = run(heads, ([POSITIVE] * 3, TARGET))
    for stage in range(3):
        heads.zero_grad()
        losses[f"loss_box_reg_stage{stage}"].backward(retain_graph=True)
        trained = [p.bbox_pred.weight.grad is not None for p in heads.reg_predictors]
        assert trained == [k == stage for k in range(3)]


def test_full_gradients_reach_the_maps(
    build_tiny, make_proposals, make_target, random_features, storage
):
    heads = build_tiny().roi_heads.train()
    features = random_features(1, size=SIZE)
    maps = [features[name].requires_grad_() for name in heads.box_in_features]
    boxes = torch.tensor([POSITIVE, [5.0, 0, 95, 110], BACKGROUND])
    target = make_target(TARGET, SIZE)
    losses = heads(None, features, [make_proposals(boxes, SIZE)], [target])[1]
    assert all(map_.grad is None for map_ in maps)
    found = [torch.autograd.grad(loss, maps, retain_graph=True, allow_unused=True)
             for name, loss in sorted(losses.items()) if "box_reg" in name]  # fmt: skip
    (cls_gradient,) = (g for g in torch.autograd.grad(
        losses["loss_cls"], maps, allow_unused=True) if g is not None and g.any())  # fmt: skip
    assert cls_gradient.isfinite().all()

    boxes = boxes[:2]
    for stage, predictor in enumerate(heads.reg_predictors):
        pooled = heads.box_pooler(maps, [Boxes(boxes)])
        deltas = predictor(heads.reg_heads[stage](pooled))
        deltas = deltas[:, 4:8] if stage == 0 else deltas
        targets = predictor.transform.get_deltas(boxes, torch.tensor([GT]).expand(2, 4))
        loss = 0.5 * (1, 0.5, 0.25)[stage] * (deltas - targets).abs().sum() / 3
        expected = torch.autograd.grad(loss, maps, allow_unused=True)
        for a, b in zip(found[stage], expected, strict=True):
            if b is not None:
                torch.testing.assert_close(a, b)
        assert any(g is not None and g.any() for g in expected)
        with torch.no_grad():
            refined = Boxes(predictor.decode(deltas, boxes))
            refined.clip(SIZE)
            boxes = refined.tensor
