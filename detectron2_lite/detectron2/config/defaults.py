"""The default config: every key that a Detectron2 config can have, with its default.

Keys of parts that the embedded runtime leaves out (masks, keypoints, panoptic segmentation,
rotated anchors) stand here too, so that any config file merges and a dump can be read by either.
"""

from __future__ import annotations

from detectron2.config.config import CfgNode

_BACKBONES = {
    "BACKBONE": {
        "NAME": "build_resnet_backbone",
        "FREEZE_AT": 2,  # leading stages kept fixed; 1 is the stem, 0 freezes nothing
    },
    "RESNETS": {
        "DEPTH": 50,
        "OUT_FEATURES": ["res4"],
        "NORM": "FrozenBN",
        # ResNeXt: number of groups and channels of each; 1 x 64 is a plain ResNet.
        "NUM_GROUPS": 1,
        "WIDTH_PER_GROUP": 64,
        "STEM_OUT_CHANNELS": 64,
        "RES2_OUT_CHANNELS": 256,
        "STRIDE_IN_1X1": True,  # MSRA weights; torchvision and ResNeXt stride in the 3x3
        "RES5_DILATION": 1,
        # Deformable convolutions, per stage from res2 to res5.
        "DEFORM_ON_PER_STAGE": [False, False, False, False],
        "DEFORM_MODULATED": False,
        "DEFORM_NUM_GROUPS": 1,
    },
    "FPN": {
        "IN_FEATURES": [],
        "OUT_CHANNELS": 256,
        "NORM": "",
        "FUSE_TYPE": "sum",  # or "avg"
    },
}

_PROPOSALS = {
    "PROPOSAL_GENERATOR": {
        "NAME": "RPN",  # or "PrecomputedProposals"
        "MIN_SIZE": 0,  # shorter sides than this, in pixels of the network's input, are dropped
    },
    "ANCHOR_GENERATOR": {
        "NAME": "DefaultAnchorGenerator",
        # One list per feature level, or a single list for all of them. Sizes are square roots of
        # areas in pixels; ratios are height / width; angles are degrees, for rotated anchors.
        "SIZES": [[32, 64, 128, 256, 512]],
        "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        "ANGLES": [[-90, 0, 90]],
        "OFFSET": 0.0,  # of the first anchor's centre, as a fraction of the stride
    },
    "RPN": {
        "HEAD_NAME": "StandardRPNHead",
        "IN_FEATURES": ["res4"],
        "CONV_DIMS": [-1],  # -1: as many channels as the input has
        "BOUNDARY_THRESH": -1,  # anchors further outside than this are ignored; -1: keep all
        # IoU below the first is background, from the second on foreground; between: ignored.
        "IOU_THRESHOLDS": [0.3, 0.7],
        "IOU_LABELS": [0, -1, 1],
        "BATCH_SIZE_PER_IMAGE": 256,
        "POSITIVE_FRACTION": 0.5,
        "BBOX_REG_LOSS_TYPE": "smooth_l1",  # or "giou", "diou", "ciou"
        "BBOX_REG_LOSS_WEIGHT": 1.0,
        "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),  # of dx, dy, dw, dh
        "SMOOTH_L1_BETA": 0.0,  # 0: L1
        "LOSS_WEIGHT": 1.0,  # of both losses
        # Proposals before NMS, per level; after NMS, per image.
        "PRE_NMS_TOPK_TRAIN": 12000,
        "PRE_NMS_TOPK_TEST": 6000,
        "POST_NMS_TOPK_TRAIN": 2000,
        "POST_NMS_TOPK_TEST": 1000,
        "NMS_THRESH": 0.7,
    },
}

_ROI_HEADS = {
    "ROI_HEADS": {
        "NAME": "Res5ROIHeads",
        "NUM_CLASSES": 80,  # without background
        "IN_FEATURES": ["res4"],
        "IOU_THRESHOLDS": [0.5],
        "IOU_LABELS": [0, 1],
        "BATCH_SIZE_PER_IMAGE": 512,
        "POSITIVE_FRACTION": 0.25,
        "PROPOSAL_APPEND_GT": True,
        "SCORE_THRESH_TEST": 0.05,
        "NMS_THRESH_TEST": 0.5,
    },
    "ROI_BOX_HEAD": {
        "NAME": "",
        "POOLER_TYPE": "ROIAlignV2",
        "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0,  # 0: adapts to the size of the RoI
        "NUM_CONV": 0,
        "CONV_DIM": 256,
        "NUM_FC": 0,
        "FC_DIM": 1024,
        "NORM": "",
        "BBOX_REG_LOSS_TYPE": "smooth_l1",
        "BBOX_REG_LOSS_WEIGHT": 1.0,
        "BBOX_REG_WEIGHTS": (10.0, 10.0, 5.0, 5.0),
        "SMOOTH_L1_BETA": 0.0,
        "CLS_AGNOSTIC_BBOX_REG": False,
        "TRAIN_ON_PRED_BOXES": False,  # later branches are trained on the predicted boxes
        "USE_SIGMOID_CE": False,
        # Federated loss (https://arxiv.org/abs/2103.07461); needs USE_SIGMOID_CE.
        "USE_FED_LOSS": False,
        "FED_LOSS_FREQ_WEIGHT_POWER": 0.5,
        "FED_LOSS_NUM_CLASSES": 50,
    },
    "ROI_BOX_CASCADE_HEAD": {
        # One entry per stage, which also sets the number of stages.
        "BBOX_REG_WEIGHTS": (
            (10.0, 10.0, 5.0, 5.0),
            (20.0, 20.0, 10.0, 10.0),
            (30.0, 30.0, 15.0, 15.0),
        ),
        "IOUS": (0.5, 0.6, 0.7),
    },
    "ROI_MASK_HEAD": {
        "NAME": "MaskRCNNConvUpsampleHead",
        "POOLER_TYPE": "ROIAlignV2",
        "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0,
        "NUM_CONV": 0,
        "CONV_DIM": 256,
        "NORM": "",
        "CLS_AGNOSTIC_MASK": False,
    },
    "ROI_KEYPOINT_HEAD": {
        "NAME": "KRCNNConvDeconvUpsampleHead",
        "POOLER_TYPE": "ROIAlignV2",
        "POOLER_RESOLUTION": 14,
        "POOLER_SAMPLING_RATIO": 0,
        "CONV_DIMS": (512,) * 8,
        "NUM_KEYPOINTS": 17,
        "MIN_KEYPOINTS_PER_IMAGE": 1,
        "NORMALIZE_LOSS_BY_VISIBLE_KEYPOINTS": True,
        "LOSS_WEIGHT": 1.0,
    },
}

_DENSE_HEADS = {
    "RETINANET": {
        "NUM_CLASSES": 80,
        "IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
        "NUM_CONVS": 4,
        "NORM": "",
        "IOU_THRESHOLDS": [0.4, 0.5],
        "IOU_LABELS": [0, -1, 1],
        "PRIOR_PROB": 0.01,  # foreground probability at the start of training
        "FOCAL_LOSS_GAMMA": 2.0,
        "FOCAL_LOSS_ALPHA": 0.25,
        "BBOX_REG_LOSS_TYPE": "smooth_l1",
        "BBOX_REG_WEIGHTS": (1.0, 1.0, 1.0, 1.0),
        "SMOOTH_L1_LOSS_BETA": 0.1,
        "SCORE_THRESH_TEST": 0.05,
        "TOPK_CANDIDATES_TEST": 1000,  # per level, before NMS
        "NMS_THRESH_TEST": 0.5,
    },
    "SEM_SEG_HEAD": {
        "NAME": "SemSegFPNHead",
        "IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "NUM_CLASSES": 54,
        "IGNORE_VALUE": 255,
        "CONVS_DIM": 128,
        "COMMON_STRIDE": 4,
        "NORM": "GN",
        "LOSS_WEIGHT": 1.0,
    },
    "PANOPTIC_FPN": {
        "INSTANCE_LOSS_WEIGHT": 1.0,
        "COMBINE": {
            "ENABLED": True,
            "OVERLAP_THRESH": 0.5,
            "STUFF_AREA_LIMIT": 4096,
            "INSTANCES_CONFIDENCE_THRESH": 0.5,
        },
    },
}

_MODEL = {
    "META_ARCHITECTURE": "GeneralizedRCNN",
    "DEVICE": "cuda",
    "WEIGHTS": "",  # path or URL of a checkpoint; detectron2:// names the model zoo
    "LOAD_PROPOSALS": False,
    "MASK_ON": False,
    "KEYPOINT_ON": False,
    # Per channel, in the order of INPUT.FORMAT, on values from 0 to 255. The deviations are 1
    # because the MSRA weights were trained without dividing.
    "PIXEL_MEAN": [103.53, 116.28, 123.675],
    "PIXEL_STD": [1.0, 1.0, 1.0],
    **_BACKBONES,
    **_PROPOSALS,
    **_ROI_HEADS,
    **_DENSE_HEADS,
}

_INPUT = {
    # Shorter side: one of the sizes ("choice") or any between two of them ("range"). The longer
    # side is limited by MAX_SIZE_*.
    "MIN_SIZE_TRAIN": (800,),
    "MIN_SIZE_TRAIN_SAMPLING": "choice",
    "MAX_SIZE_TRAIN": 1333,
    "MIN_SIZE_TEST": 800,  # 0: images keep their size
    "MAX_SIZE_TEST": 1333,
    "RANDOM_FLIP": "horizontal",  # or "vertical", "none"
    "CROP": {
        "ENABLED": False,
        # "relative" and "relative_range" take fractions of the image, "absolute" and
        # "absolute_range" pixels, each as [height, width].
        "TYPE": "relative_range",
        "SIZE": [0.9, 0.9],
    },
    "FORMAT": "BGR",  # a mode of PIL, or "BGR"
    "MASK_FORMAT": "polygon",
}

_DATASETS = {
    # Names registered in DatasetCatalog.
    "TRAIN": (),
    "TEST": (),
    # Used with MODEL.LOAD_PROPOSALS: one file per dataset, and how many boxes of each image.
    "PROPOSAL_FILES_TRAIN": (),
    "PRECOMPUTED_PROPOSAL_TOPK_TRAIN": 2000,
    "PROPOSAL_FILES_TEST": (),
    "PRECOMPUTED_PROPOSAL_TOPK_TEST": 1000,
}

_DATALOADER = {
    "NUM_WORKERS": 4,
    "ASPECT_RATIO_GROUPING": True,  # landscape and portrait images never share a batch
    "FILTER_EMPTY_ANNOTATIONS": True,
    "SAMPLER_TRAIN": "TrainingSampler",
    # For RepeatFactorTrainingSampler (LVIS): categories in a smaller fraction of images repeat.
    "REPEAT_THRESHOLD": 0.0,
    "REPEAT_SQRT": True,
}

_SOLVER = {
    "IMS_PER_BATCH": 16,  # over all processes
    "REFERENCE_WORLD_SIZE": 0,  # above 0: batch and schedule are rescaled to the world size
    "MAX_ITER": 40000,
    "BASE_LR": 0.001,
    "BASE_LR_END": 0.0,  # for the cosine schedule
    "BIAS_LR_FACTOR": 1.0,
    "MOMENTUM": 0.9,
    "NESTEROV": False,
    "WEIGHT_DECAY": 0.0001,
    "WEIGHT_DECAY_NORM": 0.0,
    "WEIGHT_DECAY_BIAS": None,  # None: as other parameters
    "LR_SCHEDULER_NAME": "WarmupMultiStepLR",
    "GAMMA": 0.1,
    "STEPS": (30000,),
    "NUM_DECAYS": 3,  # for WarmupStepWithFixedGammaLR
    "WARMUP_FACTOR": 0.001,
    "WARMUP_ITERS": 1000,
    "WARMUP_METHOD": "linear",
    "RESCALE_INTERVAL": False,
    "CHECKPOINT_PERIOD": 5000,
    "CLIP_GRADIENTS": {
        "ENABLED": False,
        "CLIP_TYPE": "value",  # of each gradient entry; "norm": of each parameter
        "CLIP_VALUE": 1.0,
        "NORM_TYPE": 2.0,
    },
    "AMP": {"ENABLED": False},
}

_TEST = {
    # [dataset, task, metric, value, tolerance] each, checked after training.
    "EXPECTED_RESULTS": [],
    "EVAL_PERIOD": 0,  # iterations; 0: only at the end
    "DETECTIONS_PER_IMAGE": 100,
    "KEYPOINT_OKS_SIGMAS": [],
    "AUG": {
        "ENABLED": False,
        "MIN_SIZES": (400, 500, 600, 700, 800, 900, 1000, 1100, 1200),
        "MAX_SIZE": 4000,
        "FLIP": True,
    },
    # BatchNorm statistics are estimated anew before each evaluation.
    "PRECISE_BN": {"ENABLED": False, "NUM_ITER": 200},
}

_C = CfgNode(
    {
        "VERSION": 2,  # of the format of config files
        "MODEL": _MODEL,
        "INPUT": _INPUT,
        "DATASETS": _DATASETS,
        "DATALOADER": _DATALOADER,
        "SOLVER": _SOLVER,
        "TEST": _TEST,
        "OUTPUT_DIR": "./output",
        "SEED": -1,  # negative: random
        "CUDNN_BENCHMARK": False,
        "FLOAT32_PRECISION": "",  # of torch.set_float32_matmul_precision; "": unchanged
        "VIS_PERIOD": 0,  # iterations between pictures in the event storage; 0: none
        "GLOBAL": {"HACK": 1.0},  # for quick experiments
    }
)
