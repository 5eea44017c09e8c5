"""Two tasks on two maps: who sees what, losses, laziness, edge cases."""

import math

import pytest
import torch
from torch import nn

from detectron2.structures import ImageList
from detectron2.utils.events import EventStorage

R50, VGG = "coco/R_50_grcn", "coco/vgg16_grcn"
OBJECTS = [([4, 6, 40, 50], 0), ([30, 10, 90, 60], 2)]
BOXES = [[4, 6, 40, 50], [30, 10, 90, 60], [0, 0, 20, 20], [50, 30, 96, 64]]
EASY_SCORES = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0, "MODEL.ROI_HEADS.NMS_THRESH_TEST": 1.0}
EAGER = {"CLSLOC.LAZY_LOCALISATION": False}
STRUCTURES = [
    ("coco/vgg16_baseline", {}),
    ("coco/vgg16_detect_f", {}),
    ("coco/vgg16_detect_rf", {}),
    ("coco/vgg16_detect_s", {}),
    ("coco/vgg16_context_cls", {}),
    ("coco/vgg16_context_loc", {}),
    ("coco/vgg16_nopool_cls", {}),
    ("coco/vgg16_conv_loc", {}),
    ("coco/vgg16_pool_s1_loc", {}),
    (VGG, {}),
    ("coco/R_50_baseline", {}),
    (R50, {}),
    (R50, {"HEAD": "separate"}),
    ("coco/R_50_baseline", {"HEAD": "double"}),
    ("coco/R_50_baseline", {"HEAD": "separate"}),
    (R50, {"CONTEXT__LOC": True, "CONTEXT__NUM_HEADS": 2, "CONTEXT__VALUE_PROJ": True}),
    ("coco/R_50_det", {}),
    ("coco/R_50_det", {"RES_DET_HEAD": "conv2"}),
    ("coco/R_50_det", {"RES_DET_HEAD": "res5"}),
    ("coco/R_50_FPN_baseline", {}),
    ("coco/R_50_FPN_grcn", {}),
]


def random_maps(model, num_images=1, size=(64, 96), seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(
            num_images, s.channels, size[0] // s.stride, size[1] // s.stride, generator=generator
        )
        for name, s in model.backbone.output_shape().items()
    }


def predictions_of(model, maps, proposals):
    """Class logits and deltas of all proposals, as they reach the post-processing."""
    heads = model.eval().roi_heads
    with torch.no_grad():
        pooled = heads._pool("cls", maps, proposals)
        scores = heads.box_predictor.cls_score(heads._task_vector("cls", pooled, maps, proposals))
        return scores, heads._localise(maps, proposals, pooled)


@pytest.mark.parametrize("config, keys", STRUCTURES)
def test_every_parameter_is_trained_by_finite_losses(config, keys, build_tiny, make_batch, storage):
    model = build_tiny(config, **keys).train()
    losses = model(make_batch(OBJECTS, [([8, 8, 30, 30], 1)]))
    assert set(losses) == {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("config, keys", STRUCTURES)
def test_no_objects_and_no_proposals(config, keys, build_tiny, make_batch, storage):
    model = build_tiny(config, **keys)
    model.train()
    losses = model(make_batch([], []))
    assert losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    batch, targets = make_batch([], []), [item["instances"] for item in make_batch([], [])]
    images = model.preprocess_image(batch)
    maps = model.backbone(images.tensor)
    for instances in targets:
        instances.proposal_boxes = instances.gt_boxes
        instances.objectness_logits = torch.zeros(0)
    fields = ("proposal_boxes", "objectness_logits")
    empty = [type(t)(t.image_size, **{f: t.get(f) for f in fields}) for t in targets]
    _, losses = model.roi_heads(images, maps, empty, make_targets(batch))
    assert losses["loss_cls"] == losses["loss_box_reg"] == 0
    sum(losses.values()).backward()
    with torch.no_grad():
        found, _ = model.eval().roi_heads(images, maps, empty)
    assert [len(f) for f in found] == [0, 0]


def make_targets(batch):
    return [item["instances"] for item in batch]


@pytest.mark.parametrize("classes", [1, 2, 80])
def test_any_number_of_classes_and_degenerate_boxes(classes, build_tiny, make_batch, storage):
    model = build_tiny(R50, {"MODEL.ROI_HEADS.NUM_CLASSES": classes}).train()
    last = classes - 1
    objects = [([4, 6, 40, 50], last)] * 3 + [([5, 5, 6, 6], 0), ([9, 9, 9, 20], 0)]
    losses = model(make_batch(objects, []))
    assert all(loss.isfinite() for loss in losses.values())
    with torch.no_grad():
        outputs = model.eval()(make_batch([], [], sizes=[(64, 96), (50, 70)]))
    assert all(output["instances"].pred_boxes.tensor.isfinite().all() for output in outputs)


def test_sizes_of_the_parts(build_on_meta):
    def count(module):
        return sum(p.numel() for p in module.parameters())

    vgg, r50 = build_on_meta(VGG), build_on_meta(R50)
    assert count(vgg.roi_heads.box_head) == 119_545_856
    assert count(vgg.roi_heads.box_predictor) == 1_642_897
    assert count(vgg.proposal_generator) == 2_398_283
    assert count(vgg.roi_heads.context) == 524_288
    assert count(build_on_meta("coco/vgg16_conv_loc").backbone.down_loc) == 1_049_088
    assert count(r50.roi_heads.box_head) == 14_942_208
    assert count(r50.roi_heads.context) == 2_097_152
    assert count(r50.roi_heads.box_predictor) == 821_649
    assert count(r50.proposal_generator) == 4_757_579
    assert count(r50.backbone) == 8_512_704 + 2_228_224
    assert [count(block) for block in r50.backbone.res4[:2]] == [1_507_328, 1_114_112]
    assert count(r50.backbone.res4[:4]) == 4_849_664
    r101 = build_on_meta("coco/R_101_grcn").backbone
    assert count(r101.res4) == 26_017_792 and count(r101.res4[:17]) == 19_333_120
    assert count(r101.res4_loc) == 6_684_672
    det = build_on_meta("voc/R_50_det")
    assert count(det.roi_heads.box_head) == 102_761_472 + 1_049_600
    assert count(det.proposal_generator) == 9_460_781


@pytest.mark.parametrize("config", [R50, VGG])
def test_losses_reach_only_the_layers_of_their_task(config, build_tiny, make_batch, storage):
    model = build_tiny(config, EAGER, VGG_DROPOUT=0.0) if config == VGG else build_tiny(config)
    model.train()
    marks = {"cls": ("conv5.", "res4.4", "res4.5", "context"), "loc": ("_loc.",)}

    def reached(*names):
        model.zero_grad()
        torch.manual_seed(0)
        losses = model(make_batch(OBJECTS))
        sum(losses[name] for name in names).backward()
        return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}

    of_cls, of_loc = reached("loss_cls"), reached("loss_box_reg")
    of_rpn = reached("loss_rpn_cls", "loss_rpn_loc")
    heads = {name for name in of_cls if "box_head" in name}
    assert heads and heads <= of_loc
    assert not any(mark in name for name in of_cls | of_rpn for mark in marks["loc"])
    assert not any(mark in name for name in of_loc for mark in marks["cls"])
    assert any(mark in name for name in of_loc for mark in marks["loc"])
    assert any("context" in name for name in of_cls)
    assert not any("roi_heads" in name for name in of_rpn)


@pytest.mark.parametrize("config", [R50, VGG, "coco/R_50_FPN_grcn"])
def test_scores_come_from_one_map_and_boxes_from_the_other(config, build_tiny, make_proposals):
    model = build_tiny(config)
    maps, proposals = random_maps(model), make_proposals(BOXES)
    scores, deltas = predictions_of(model, maps, proposals)
    for task in ("cls", "loc"):
        changed = {n: m + 1 if n.startswith(task) else m for n, m in maps.items()}
        new_scores, new_deltas = predictions_of(model, changed, proposals)
        assert torch.equal(new_scores, scores) == (task == "loc")
        assert torch.equal(new_deltas, deltas) == (task == "cls")


def test_both_poolers_look_at_the_same_place(build_tiny, make_proposals):
    """A map whose value is its own place in pixels gives the same on both strides."""
    model = build_tiny(R50)
    maps = {}
    for name, shape in model.backbone.output_shape().items():
        x = (torch.arange(256 // shape.stride) + 0.5) * shape.stride
        maps[name] = x.expand(1, 1, 256 // shape.stride, -1)
    proposals = make_proposals([[64, 64, 190, 180]], size=(256, 256))
    pooled = {task: model.roi_heads._pool(task, maps, proposals) for task in ("cls", "loc")}
    assert torch.allclose(pooled["cls"], pooled["loc"], atol=0.01)
    centers = 64 + (torch.arange(7) + 0.5) * 126 / 7
    assert torch.allclose(pooled["loc"][0, 0, 0], centers, atol=0.01)


@pytest.mark.parametrize("config", [R50, VGG])
def test_context_is_the_image_without_its_padding(config, build_tiny, make_proposals):
    model = build_tiny(config)
    maps = random_maps(model, 2, (128, 128))
    proposals = make_proposals(BOXES, size=(128, 128)) + make_proposals(BOXES[:2], size=(64, 64))
    scores, _ = predictions_of(model, maps, proposals)
    padding = {n: m.clone() for n, m in maps.items()}
    stride = model.backbone.output_shape()["cls"].stride
    padding["cls"][1, :, 64 // stride + 1 :] += 5  # up to the border cell
    padding["cls"][1, :, :, 64 // stride + 1 :] += 5
    inner = make_proposals([[4, 6, 40, 50]], [[2, 2, 40, 40]], size=(128, 128))
    inner[1]._image_size = (64, 64)
    assert torch.equal(
        predictions_of(model, padding, inner)[0], predictions_of(model, maps, inner)[0]
    )
    shifted = {n: m + (n == "cls") for n, m in maps.items()}
    assert not torch.allclose(predictions_of(model, shifted, proposals)[0], scores)


@pytest.mark.parametrize(
    "config, keys, times",
    [
        ("coco/R_50_baseline", {}, 1),
        ("coco/R_50_baseline", {"CONTEXT__CLS": True}, 2),
        ("coco/vgg16_detect_f", {}, 2),
        ("coco/vgg16_context_cls", {}, 2),
        ("coco/vgg16_detect_s", {}, 1),
    ],
)
def test_a_head_runs_once_where_nothing_tells_the_tasks_apart(
    config, keys, times, build_tiny, make_batch, storage
):
    model = build_tiny(config, {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0}, **keys)
    runs = []
    first = next(iter(model.roi_heads.box_head.values()))
    first.register_forward_hook(lambda *_: runs.append(1))
    model.train()(make_batch(OBJECTS))
    assert len(runs) == times
    with torch.no_grad():
        model.eval()(make_batch(OBJECTS))
    assert len(runs) == 2 * times


def test_heads_side_by_side_are_concatenated(build_tiny, make_proposals):
    model = build_tiny("coco/vgg16_detect_s").eval()
    heads = model.roi_heads
    maps, proposals = random_maps(model), make_proposals(BOXES)
    pooled = heads._pool("cls", maps, proposals)
    vector = heads._task_vector("cls", pooled, maps, proposals)
    names = list(heads.box_head)
    assert len(names) == 2 and vector.shape == (4, 64)
    assert torch.equal(vector[:, :32], heads.box_head[names[0]](pooled))
    assert heads.box_predictor.cls_score.in_features == 64


def test_vgg_head_drops_behind_both_layers(build_tiny):
    head = next(iter(build_tiny("coco/vgg16_baseline").roi_heads.box_head.values()))
    x = torch.rand(500, 16, 7, 7)
    with torch.no_grad():
        nn.init.ones_(head.fc6.weight)
        nn.init.eye_(head.fc7.weight)
        sums = x.flatten(1).sum(1, keepdim=True).expand(-1, 32)
        assert torch.allclose(head.eval()(x), sums, rtol=1e-4)
        found = head.train()(x)
    kept = found > 0
    # Kept twice with a chance of a half each, then scaled by 2 twice.
    assert kept.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.allclose(found[kept], (4 * sums)[kept], rtol=1e-4)


def test_res5_head_of_stride_1_keeps_the_grid(build_tiny):
    def grid(config, **keys):
        head = build_tiny(config, **keys).roi_heads.box_head["res5"]
        sizes = []
        head[0].register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[-2:])))
        head(torch.rand(1, 64, 7, 7))
        return sizes[0]

    assert grid(R50) == (7, 7)
    assert grid(R50, RES5_STRIDE=2) == (4, 4)


LAZY = [
    (R50, {}),
    (R50, {"HEAD": "separate", "CONTEXT__LOC": True}),
    ("coco/R_50_baseline", {"CONTEXT__CLS": True}),
    (VGG, {}),
    ("coco/vgg16_detect_rf", {}),
    ("coco/R_50_FPN_grcn", {}),
]


def many_boxes(number=30, seed=0):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, 2, generator=generator) * torch.tensor([86.0, 54.0])
    low, high = corners.amin(dim=1), corners.amax(dim=1) + 8
    return torch.cat([low, high], dim=1).tolist()


def images_of(maps):
    number = len(next(iter(maps.values())))
    return ImageList(torch.zeros(number, 3, 64, 96), [(64, 96)] * number)


@pytest.mark.parametrize("config, keys", LAZY)
def test_lazy_localisation_gives_the_same_detections(config, keys, build_tiny, make_proposals):
    # No near-ties in NMS.
    model = build_tiny(config, {"MODEL.ROI_HEADS.NMS_THRESH_TEST": 1.0}, **keys).eval()
    heads, predictor = model.roi_heads, model.roi_heads.box_predictor
    maps = random_maps(model, 2)
    proposals = make_proposals(many_boxes(), many_boxes(seed=1))
    with torch.no_grad():
        scores, deltas = predictions_of(model, maps, proposals)
        predictor.cls_score.weight.div_(scores.std())
        predictor.bbox_pred.weight.div_(deltas.std())
        scores, _ = predictions_of(model, maps, proposals)
        best = scores.softmax(dim=1)[:, :-1].amax(dim=1).sort().values
    # Between two rows far enough apart: half of them pass.
    predictor.test_score_thresh = (best[29] + best[30]).item() / 2
    seen = []
    predictor.bbox_pred.register_forward_hook(lambda _, __, out: seen.append(len(out)))
    outputs = []
    for heads.lazy_localisation in (True, False):
        with torch.no_grad():
            outputs.append(heads(images_of(maps), maps, proposals)[0])
    assert seen == [30, 60]
    assert all(len(found) > 0 for found in outputs[0])
    for lazy, eager in zip(*outputs, strict=True):
        assert torch.equal(lazy.pred_classes, eager.pred_classes)
        assert torch.allclose(lazy.scores, eager.scores, atol=1e-5)
        assert torch.allclose(lazy.pred_boxes.tensor, eager.pred_boxes.tensor, atol=1e-2)


@pytest.mark.parametrize(
    "config, keys", [(R50, {}), (VGG, {"VGG_DROPOUT": 0.0}), ("coco/R_50_FPN_grcn", {})]
)
def test_lazy_training_gives_the_same_losses_and_gradients(
    config, keys, build_tiny, make_batch, make_proposals, storage
):
    # RoI max pooling takes boxes of single precision, and so maps, too.
    dtype, rtol = (torch.float32, 1e-4) if config == VGG else (torch.float64, 1e-6)
    model = build_tiny(config, **keys).to(dtype).train()
    heads = model.roi_heads
    maps = {n: m.to(dtype).requires_grad_() for n, m in random_maps(model, 2).items()}
    targets = make_targets(make_batch(OBJECTS, []))
    rows, results = [], []
    heads.box_predictor.bbox_pred.register_forward_hook(lambda _, __, out: rows.append(len(out)))
    for heads.lazy_localisation in (True, False):
        torch.manual_seed(0)
        proposals = make_proposals(many_boxes(), many_boxes(seed=1))
        _, losses = heads(images_of(maps), maps, proposals, targets)
        leaves = dict(heads.named_parameters()) | maps
        gradients = torch.autograd.grad(
            sum(losses.values()), list(leaves.values()), allow_unused=True
        )
        results.append((losses, dict(zip(leaves, gradients, strict=True))))
    (lazy, lazy_gradients), (eager, eager_gradients) = results
    assert 0 < rows[0] <= 4 < rows[1]
    assert eager["loss_box_reg"] > 0
    for name in eager:
        assert torch.allclose(lazy[name], eager[name], rtol=rtol)
    for name, gradient in eager_gradients.items():
        if gradient is None:  # p6 of the pyramid
            assert lazy_gradients[name] is None
            continue
        difference = (lazy_gradients[name] - gradient).norm()
        assert difference <= rtol * gradient.norm() + 1e-12, name


def test_context_is_logged(build_tiny, make_batch):
    model = build_tiny(R50, CONTEXT__INIT_STD=0.0, CONTEXT__LOC=True).train()
    with EventStorage(19) as storage:
        model(make_batch(OBJECTS))
        logged = {name: value for name, (value, _) in storage.latest().items()}
    for suffix in ("", "_loc"):
        assert logged[f"grcn/context_entropy{suffix}"] == pytest.approx(math.log(196), abs=1e-3)
        assert logged[f"grcn/context_ratio{suffix}"] > 0.01


def test_context_is_logged_as_often_as_it_is_written(build_tiny, make_batch, monkeypatch):
    model, measured = build_tiny(R50).train(), []

    def entropy(weights):
        measured.append(storage.iter)
        return torch.tensor(0.0)

    monkeypatch.setattr("grcn.roi_heads.attention_entropy", entropy)
    with EventStorage(18) as storage:
        for _ in range(3):
            model(make_batch(OBJECTS))
            storage.step()
    assert measured == [19]
    assert storage.latest()["grcn/context_entropy"] == (0.0, 19)


def test_the_weight_of_the_box_loss_counts(build_tiny, make_batch, storage):
    losses = []
    for weight in (1.0, 3.0):
        model = build_tiny(R50, {"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": weight}).train()
        torch.manual_seed(0)
        losses.append(model(make_batch(OBJECTS)))
    assert losses[0]["loss_box_reg"] > 0
    torch.testing.assert_close(losses[1]["loss_box_reg"], 3 * losses[0]["loss_box_reg"])
    torch.testing.assert_close(losses[1]["loss_cls"], losses[0]["loss_cls"])


def test_saved_and_loaded_gives_the_same(build_tiny, make_proposals):
    models = [build_tiny(R50, EASY_SCORES, seed=seed).eval() for seed in (0, 1)]
    models[1].load_state_dict(models[0].state_dict())
    maps, proposals = random_maps(models[0]), make_proposals(BOXES)
    with torch.no_grad():
        first, second = (
            model.roi_heads(images_of(maps), maps, proposals)[0][0] for model in models
        )
        image = torch.rand(1, 3, 64, 96)
        of_image = [model.backbone(image)["loc"] for model in models]
    assert len(first) > 0
    assert torch.equal(first.pred_boxes.tensor, second.pred_boxes.tensor)
    assert torch.equal(*of_image)


def test_a_batch_of_two_equals_two_batches_of_one(build_tiny, make_proposals):
    model = build_tiny(R50, EASY_SCORES).eval()
    maps = random_maps(model, 2)
    proposals = make_proposals(BOXES, BOXES[1:3])
    images = images_of(maps)
    with torch.no_grad():
        both, _ = model.roi_heads(images, maps, proposals)
        assert all(len(found) > 0 for found in both)
        for i in range(2):
            one = {name: m[i : i + 1] for name, m in maps.items()}
            (alone,), _ = model.roi_heads(images, one, proposals[i : i + 1])
            assert torch.allclose(alone.scores, both[i].scores, atol=1e-6)


@pytest.mark.parametrize("config", [VGG, "coco/R_50_FPN_grcn"])
def test_test_time_augmentation(config, build_tiny, tiny_cfg, check_views):
    def make_cfg(overrides):
        return tiny_cfg(config, {**EASY_SCORES, **overrides})

    check_views(build_tiny(config, EASY_SCORES), make_cfg)
