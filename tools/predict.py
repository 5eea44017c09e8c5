#!/usr/bin/env python
"""Detect objects in images, videos, folders of images, or in a registered dataset.

Writes a picture with the boxes, class names and scores for each image, and all detections as one
COCO-format JSON file. An image that cannot be read is reported; the others are still processed.
The JSON file is also written when the run ends early, with what was done until then. The exit
status is 2 if anything failed or nothing was written.
"""

import argparse
import glob
import os
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from clsloc import cli
from clsloc.data.images import IMAGE_ERRORS
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from clsloc.files import make_folder, save_picture
from clsloc.prediction import Predictor, batches_of_one_size, coco_annotations
from clsloc.video import VideoReader, VideoWriter, is_video
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Instances
from detectron2.utils.video_visualizer import VideoVisualizer
from detectron2.utils.visualizer import Visualizer

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
SMALLEST_PICTURE = 480  # of the longer side: labels on a smaller picture cannot be read
HEADER = 16

Record = dict[str, Any]  # as in a dataset: file_name, image_id and, where known, annotations


def parser() -> argparse.ArgumentParser:
    result = cli.make_parser(__doc__, json_help="write the detections there (default: in DIR)")
    result.add_argument("--weights", metavar="FILE", required=True, help="the trained weights")
    source = result.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="images, videos, folders of images, patterns in quotes",
    )
    source.add_argument("--dataset", metavar="NAME", help="a registered dataset, e.g. digits_val")
    result.add_argument("--output", metavar="DIR", required=True, help="folder for what is written")
    result.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="T",
        help="leave out detections with a lower score (default: %(default)s); "
        "the config has a test threshold of its own",
    )
    result.add_argument(
        "--batch-size",
        type=int,
        default=4,
        metavar="N",
        help="images of one size that the model takes at once (default: %(default)s)",
    )
    result.add_argument("--max-images", type=int, metavar="N", help="stop after so many images")
    result.add_argument(
        "--compare-gt", action="store_true", help="with --dataset: draw the ground truth beside"
    )
    return result


def main(args: argparse.Namespace) -> int:
    """Predict, draw and write; returns the exit status."""
    if args.batch_size < 1:
        raise UserError(f"--batch-size {args.batch_size} is too few; give at least 1.")
    if args.max_images is not None and args.max_images < 1:
        raise UserError(f"--max-images {args.max_images} is too few; leave it out for all images.")
    if not 0 <= args.threshold <= 1:
        raise UserError(f"--threshold {args.threshold} is no score; give a number from 0 to 1.")
    if args.compare_gt and not args.dataset:
        raise UserError("--compare-gt needs ground truth; name a dataset with --dataset.")
    cfg = setup_cfg(args, overrides=["MODEL.WEIGHTS", args.weights])
    records, failures = _dataset(args.dataset) if args.dataset else _find_images(args.input)
    records = records[: args.max_images]
    output = make_folder(args.output)
    _check_apart(output, records)
    json_file = args.json or output / "predictions.json"
    cli.check_json(json_file)
    predictor = Predictor(cfg)
    metadata = Metadata(thing_classes=[category["name"] for category in predictor.categories])

    content: dict[str, Any] = {"images": [], "annotations": [], "categories": predictor.categories}
    pictures = zip(records, _picture_paths(records, output))
    own_metadata = MetadataCatalog.get(args.dataset) if args.dataset else metadata
    work = Work(predictor, metadata, own_metadata, args, content, failures)
    try:
        for batch in batches_of_one_size(work.open_images(pictures), args.batch_size):
            work.predict_images(batch)
    finally:  # also what was done until Ctrl-C or an error
        for failure in failures:
            print(f"predict.py: {failure}", file=sys.stderr)
        cli.write_json(content, json_file)
    return UserError.EXIT_STATUS if failures or not content["images"] else 0


@dataclass
class Work:
    """What all images share, and what grows with them."""

    predictor: Predictor
    metadata: Metadata  # of the model
    own_metadata: Metadata  # of the dataset, if there is one
    args: argparse.Namespace
    content: dict[str, Any]
    failures: list[str]

    def open_images(
        self, pictures: Iterable[tuple[Record, Path]]
    ) -> Iterator[tuple[tuple[Record, Path], np.ndarray]]:
        """The images one by one; a video among them is processed on the way."""
        for record, picture in pictures:
            try:
                if is_video(record["file_name"]):
                    self.predict_video(record, picture)
                else:
                    image = _read(record["file_name"])
                    self.predictor.check_size(image, record["file_name"])
                    yield (record, picture), image
            except UserError as error:
                self.failures.append(str(error))

    def predict_images(self, batch: list[tuple[tuple[Record, Path], np.ndarray]]) -> None:
        """Predict, draw and add one batch."""
        for ((record, picture), image), instances in zip(batch, self._detect(batch)):
            self._add(record, image, instances)
            ground_truth = record if self.args.compare_gt else None
            drawn = _draw(image, instances, self.metadata, ground_truth, self.own_metadata)
            save_picture(drawn, picture, quality=92)
            print(f"{record['file_name']}: {len(instances)} detections, drawn in {picture}")

    def predict_video(self, record: Record, picture: Path) -> None:
        """Write the video with boxes beside the other pictures, and an image for each frame."""
        reader = VideoReader(record["file_name"])
        drawer = VideoVisualizer(self.metadata)
        target = picture.with_suffix(".mp4")
        found = 0
        with VideoWriter(target, reader.fps) as writer:
            for batch in batches_of_one_size(enumerate(reader), self.args.batch_size):
                self.predictor.check_size(batch[0][1], record["file_name"])
                for (number, frame), instances in zip(batch, self._detect(batch)):
                    image_id = f"{record['image_id']}/{number}"
                    self._add(record | {"image_id": image_id, "frame": number}, frame, instances)
                    rgb = np.ascontiguousarray(frame[:, :, ::-1])
                    writer.write(drawer.draw_instance_predictions(rgb, instances).get_image())
                    found += len(instances)
        print(f"{record['file_name']}: {found} detections, drawn in {target}")

    def _detect(self, batch: list[tuple[Any, np.ndarray]]) -> list[Instances]:
        outputs = self.predictor.predict([image for _, image in batch])
        instances = [output["instances"].to("cpu") for output in outputs]
        return [found[found.scores >= self.args.threshold] for found in instances]

    def _add(self, record: Record, image: np.ndarray, instances: Instances) -> None:
        annotations = coco_annotations(instances, self.predictor.categories)
        _add(self.content, record, image, annotations)


def _dataset(name: str) -> tuple[list[Record], list[str]]:
    if name not in DatasetCatalog.list():
        raise UserError(f"There is no dataset {name!r}; register it with --coco or --voc.")
    return DatasetCatalog.get(name), []


def _find_images(paths: list[str]) -> tuple[list[Record], list[str]]:
    """The images behind files, folders and patterns, each once; and what could not be found."""
    files: list[str] = []
    failures: list[str] = []
    for path in paths:
        found = _expand(path)
        files += found
        if not found:
            kinds = ", ".join(IMAGE_SUFFIXES)
            failures.append(f"{path!r} is no image, and no folder or pattern of images ({kinds}).")
    unique = enumerate(dict.fromkeys(files), start=1)
    return [{"image_id": number, "file_name": file} for number, file in unique], failures


def _expand(path: str) -> list[str]:
    if os.path.isfile(path):
        return [path]
    pattern = os.path.join(glob.escape(path), "*") if os.path.isdir(path) else path
    return sorted(
        file
        for file in glob.glob(pattern, recursive=True)
        if os.path.isfile(file) and file.lower().endswith(IMAGE_SUFFIXES)
    )


def _check_apart(folder: Path, records: list[Record]) -> None:
    if folder.resolve() in {Path(record["file_name"]).resolve().parent for record in records}:
        raise UserError(
            f"The images lie in {str(folder)!r} too; choose another folder for --output."
        )


def _picture_paths(records: list[Record], folder: Path) -> list[Path]:
    """A name for each picture: that of the image, with its id where two have the same."""
    stems = [Path(record["file_name"]).stem for record in records]
    times = Counter(stems)
    taken = {stem for stem in stems if times[stem] == 1}
    paths = []
    for stem, record in zip(stems, records):
        name = stem
        if times[stem] > 1:
            name = f"{stem}_{record['image_id']}"
            while name in taken:  # another image is called so
                name += f"_{record['image_id']}"
            taken.add(name)
        paths.append(folder / f"{name}.jpg")
    return paths


def _read(file_name: str) -> np.ndarray:
    """A BGR image (H, W, 3), upright."""
    try:
        return read_image(file_name, format="BGR")
    except IMAGE_ERRORS as error:
        raise UserError(f"{file_name!r} cannot be read as an image ({error}).") from error


def _add(
    content: dict[str, Any], record: Record, image: np.ndarray, annotations: list[dict[str, Any]]
) -> None:
    height, width = image.shape[:2]
    image_id = record["image_id"]
    content["images"].append(
        {"id": image_id, "file_name": record["file_name"], "height": height, "width": width}
        | {key: record[key] for key in ("frame",) if key in record}
    )
    for number, annotation in enumerate(annotations, start=len(content["annotations"]) + 1):
        content["annotations"].append({"id": number, "image_id": image_id} | annotation)


def _draw(
    image: np.ndarray,
    instances: Instances,
    metadata: Metadata,
    ground_truth: Record | None,
    own_metadata: Metadata,
) -> Image.Image:
    """The predictions on the image and, where asked for, the ground truth to their right.

    Args:
        metadata, own_metadata: the class names of the predictions, and of the ground truth.
    """
    panels = {"predictions": _visualizer(image, metadata).draw_instance_predictions(instances)}
    if ground_truth is None:
        return Image.fromarray(panels["predictions"].get_image())
    panels["ground truth"] = _visualizer(image, own_metadata).draw_dataset_dict(ground_truth)

    height, width = panels["predictions"].get_image().shape[:2]
    picture = Image.new("RGB", (2 * width, height + HEADER), "white")
    for column, (title, panel) in enumerate(panels.items()):
        picture.paste(Image.fromarray(panel.get_image()), (column * width, HEADER))
        ImageDraw.Draw(picture).text((column * width + 4, 2), title, fill="black")
    return picture


def _visualizer(image: np.ndarray, metadata: Metadata) -> Visualizer:
    scale = max(1.0, SMALLEST_PICTURE / max(image.shape[:2]))
    return Visualizer(np.ascontiguousarray(image[:, :, ::-1]), metadata, scale=scale)


if __name__ == "__main__":
    sys.exit(cli.run(main, parser()))
