"""Small data for the tests of the core."""

import json

import pytest
from PIL import Image

VOC_OBJECT = """<object>
<name>{name}</name><pose>Frontal</pose><truncated>0</truncated><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
</object>"""


@pytest.fixture(scope="session")
def digits_root(tmp_path_factory):
    """A value for DETECTRON2_DATASETS, with a digits dataset of a few images."""
    from clsloc.data import make_digits

    root = tmp_path_factory.mktemp("datasets")
    make_digits(root / "digits", num_train=6, num_val=3)
    return root


@pytest.fixture
def tiny_digits(digits_root, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(digits_root))
    return digits_root


@pytest.fixture
def coco_folder(tmp_path):
    """Writes a COCO dataset with gaps in its category ids: boxes are (category id, XYWH)."""

    def write(*images, categories=((3, "cat"), (7, "dog"))):
        names = [f"{number}.png" for number, _ in enumerate(images)]
        for name in names:
            Image.new("RGB", (200, 150)).save(tmp_path / name)
        boxes = [(image_id, *box) for image_id, boxes in enumerate(images) for box in boxes]
        content = {
            "images": [
                {"id": image_id, "file_name": name, "width": 200, "height": 150}
                for image_id, name in enumerate(names)
            ],
            "annotations": [
                {
                    "id": number,
                    "image_id": image_id,
                    "category_id": category,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
                for number, (image_id, category, box) in enumerate(boxes, start=1)
            ],
            "categories": [{"id": number, "name": name} for number, name in categories],
        }
        json_file = tmp_path / "instances.json"
        json_file.write_text(json.dumps(content))
        return str(json_file), str(tmp_path)

    return write


@pytest.fixture
def voc_folder(tmp_path):
    """Writes a VOC folder: objects are (class, corners, difficult) by the name of the image."""

    def write(splits, objects):
        for part in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (tmp_path / "voc" / part).mkdir(parents=True)
        for name, items in objects.items():
            Image.new("RGB", (200, 150)).save(tmp_path / "voc" / "JPEGImages" / f"{name}.jpg")
            text = "".join(
                VOC_OBJECT.format(name=kind, box=box, difficult=difficult)
                for kind, box, difficult in items
            )
            size = "<size><width>200</width><height>150</height></size>"
            (tmp_path / "voc" / "Annotations" / f"{name}.xml").write_text(
                f"<annotation><filename>{name}.jpg</filename>{size}{text}</annotation>"
            )
        for split, names in splits.items():
            (tmp_path / "voc/ImageSets/Main" / f"{split}.txt").write_text("\n".join(names) + "\n")
        return str(tmp_path / "voc")

    return write
