"""Loading runs no code and reports; writing is whole or not at all."""

import errno
import os
import pickle
import random
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from clsloc.checkpoint import Checkpointer, load_file
from clsloc.engine import setup_cfg
from clsloc.errors import UserError
from clsloc.prediction import Predictor
from detectron2.layers import FrozenBatchNorm2d


class Evil:
    """Unpickling this makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def model(classes: int = 3) -> nn.Module:
    return nn.Sequential(OrderedDict(body=nn.Linear(2, 4), predictor=nn.Linear(4, classes)))


def saved(tmp_path, net: nn.Module, **extra) -> str:
    path = str(tmp_path / "weights.pth")
    torch.save({"model": net.state_dict(), **extra}, path)
    return path


@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_no_code_of_a_weight_file_is_run(tmp_path, ending):
    path, proof = tmp_path / f"weights.{ending}", tmp_path / "proof"
    content = {"model": {"body.weight": Evil(proof)}}
    if ending == "pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UserError, match="holds more than tensors"):
        Checkpointer(model()).load(str(path))
    assert not proof.exists()


def test_arrays_in_a_pickle_are_read_whatever_the_protocol_and_numpy_module(tmp_path):
    content = {"blobs": {"w": np.arange(6.0).reshape(2, 3), "scale": np.float32(0.5), "n": 3}}
    for protocol in (0, 2, 4):
        for old in (False, True):
            data = pickle.dumps(content, protocol)
            if old and protocol == 0:  # the text protocol alone keeps lengths out of the way
                data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
            (tmp_path / "w.pkl").write_bytes(data)
            blobs = load_file(str(tmp_path / "w.pkl"))["blobs"]
            assert np.array_equal(blobs["w"], content["blobs"]["w"])
            assert blobs["scale"] == np.float32(0.5) and blobs["n"] == 3


def test_numpy_scalars_in_a_torch_file_are_read(tmp_path):
    torch.save({"iteration": np.int64(7), "best": np.float64(0.25)}, tmp_path / "w.pth")
    content = load_file(str(tmp_path / "w.pth"))
    assert content["iteration"] == 7 and content["best"] == 0.25


@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_a_truncated_file_is_a_sentence(tmp_path, ending):
    whole, path = tmp_path / "whole", tmp_path / f"weights.{ending}"
    arrays = {"body.weight": np.zeros((40, 2))}
    if ending == "pkl":
        whole.write_bytes(pickle.dumps(arrays))
    else:
        torch.save({"body.weight": torch.zeros(40, 2)}, whole)
    path.write_bytes(whole.read_bytes()[:200])
    with pytest.raises(UserError, match=f"weights.{ending}.*damaged"):
        Checkpointer(model()).load(str(path))


@pytest.mark.parametrize(
    "content, error",
    [
        (b"cnumpy\nndarray\n(tR.", TypeError),
        (b"I1\n(I1\nI2\ndb.", AttributeError),
        (b"c_codecs\nencode\n(Va\nVno_such_code\ntR.", LookupError),
        (b"cnumpy\nndarray\n((L%dL\nttR." % 2**55, MemoryError),
        (b"", EOFError),
    ],
)
def test_whatever_a_damaged_file_raises_is_a_sentence(tmp_path, content, error):
    (tmp_path / "weights.pkl").write_bytes(content)
    with pytest.raises(UserError, match=r"weights\.pkl' is damaged") as caught:
        load_file(str(tmp_path / "weights.pkl"))
    assert isinstance(caught.value.__cause__, error)


@pytest.mark.parametrize("name", ["weights.pkl", "zip.pth", "old.pth"])
def test_files_with_a_few_wrong_bytes_load_or_are_a_sentence(tmp_path, name):
    path, state = tmp_path / name, model().state_dict()
    if name == "weights.pkl":
        arrays = {key: value.numpy() for key, value in state.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "me"}))
    else:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=name == "zip.pth")
    whole, refused = path.read_bytes(), 0
    for seed in range(40):
        choose, damaged = random.Random(seed), bytearray(whole)
        for _ in range(10):
            damaged[choose.randrange(len(damaged))] = choose.randrange(256)
        path.write_bytes(damaged)
        try:
            Checkpointer(model()).load(str(path))
        except UserError as error:
            assert str(path) in str(error)
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    "content", [3, [torch.zeros(2)], {"model": {"body": {"weight": 1}}}, {"blobs": [1]}]
)
@pytest.mark.parametrize("ending", ["pkl", "pth"])
def test_a_file_without_tensors_by_name_is_a_sentence(tmp_path, content, ending):
    path = tmp_path / f"weights.{ending}"
    if ending == "pth":
        torch.save(content, path)
    else:
        plain = [np.zeros(2)] if isinstance(content, list) else content
        path.write_bytes(pickle.dumps(plain))
    with pytest.raises(UserError, match=f"weights.{ending}' holds no tensors by name"):
        Checkpointer(model()).load(str(path))


def test_without_weights_nothing_is_evaluated_or_predicted():
    assert Checkpointer(model()).load("") == {}  # training from scratch
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS is empty; name the file.*--resume"):
        Checkpointer(model(), complete=True).load("")
    cfg = setup_cfg(
        config_file="digits/faster_rcnn_R_18_FPN.yaml", overrides=["MODEL.DEVICE", "cpu"]
    )
    with pytest.raises(UserError, match=r"MODEL\.WEIGHTS is empty"):
        Predictor(cfg)


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match=r"nowhere\.pth.*MODEL\.WEIGHTS"):
        Checkpointer(model()).load(str(tmp_path / "nowhere.pth"))


def test_the_digest_counts_loaded_missing_mismatched_and_unused(tmp_path):
    state = model(5).state_dict() | {"fc1000.weight": torch.zeros(1)}
    del state["body.bias"]
    path = str(tmp_path / "w.pth")
    torch.save({"model": state}, path)
    checkpointer = Checkpointer(model(3))
    checkpointer.load(path)
    digest = checkpointer.digest
    assert (digest.total, digest.loaded, digest.complete) == (4, 1, False)
    assert digest.missing == ("body.bias",)
    assert digest.mismatched == (
        ("predictor.weight", (5, 4), (3, 4)),
        ("predictor.bias", (5,), (3,)),
    )
    assert digest.unused == ("fc1000.weight",)
    assert digest.lines()[0] == "1 of 4 tensors loaded"


def test_at_evaluation_a_predictor_of_another_class_count_is_an_error(tmp_path):
    path = saved(tmp_path, model(5))
    with pytest.raises(UserError, match=r"predictor.weight has shape \[5, 4\].*number of classes"):
        Checkpointer(model(3), complete=True).load(path)


def test_at_evaluation_a_missing_tensor_is_an_error(tmp_path):
    path = str(tmp_path / "w.pth")
    torch.save({"model": model().body.state_dict(prefix="body.")}, path)
    with pytest.raises(UserError, match=r"predictor.bias and 1 more"):
        Checkpointer(model(), complete=True).load(path)


def test_weights_of_which_nothing_fits_are_an_error(tmp_path):
    path = str(tmp_path / "w.pth")
    torch.save({"model": {"other.weight": torch.zeros(3)}}, path)
    with pytest.raises(UserError, match="No tensor"):
        Checkpointer(model()).load(path)


def test_statistics_that_a_norm_makes_up_do_not_count_as_loaded(tmp_path):
    path = str(tmp_path / "w.pth")
    torch.save({"model": {"backbone.bottom_up.norm.weight": torch.ones(3)}}, path)
    net = nn.Sequential(OrderedDict(norm=FrozenBatchNorm2d(3)))
    with pytest.raises(UserError, match=r"the file has backbone\.bottom_up.*the model norm\.bias"):
        Checkpointer(net).load(path)


def test_a_checkpoint_comes_back_with_its_extras(tmp_path):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    extra = {"thing_classes": ["a", "b", "c"]}
    Checkpointer(net, str(tmp_path), optimizer=optimizer, extra=extra).save("m", iteration=4)
    assert (tmp_path / "last_checkpoint").read_text() == "m.pth"

    other = model()
    other_optimizer = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    rest = Checkpointer(other, str(tmp_path), optimizer=other_optimizer).resume_or_load("")
    assert rest["iteration"] == 4 and rest["thing_classes"] == ["a", "b", "c"]
    assert torch.equal(other.body.weight, net.body.weight)
    assert torch.equal(
        other_optimizer.state_dict()["state"][0]["momentum_buffer"],
        optimizer.state_dict()["state"][0]["momentum_buffer"],
    )


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    checkpointer = Checkpointer(model(), str(tmp_path))
    checkpointer.save("m")
    before = (tmp_path / "m.pth").read_bytes()

    def full(handle):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left.*free some space"):
        checkpointer.save("m")
    assert (tmp_path / "m.pth").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "m.pth"]


def test_resuming_with_another_config_is_a_sentence(tmp_path):
    def checkpointer(net, **others):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        return Checkpointer(net, str(tmp_path), optimizer=optimizer, **others)

    class NeedsKey:
        def load_state_dict(self, state):
            state["grad_scaler"]

        def state_dict(self):
            return {}

    checkpointer(model(5), trainer=NeedsKey()).save("m")
    other = "m.pth' belongs to another config .{}.*; resume with .*, or choose another OUTPUT_DIR"
    cases = [
        (model(3), {}, r"predictor.weight has shape \[5, 4\] there and \[3, 4\] in the model"),
        (nn.Sequential(OrderedDict(body=nn.Linear(2, 4))), {}, "loaded state dict contains a"),
        (nn.Sequential(OrderedDict(head=nn.Linear(2, 4))), {}, "head.bias and 1 more tensors are"),
        (model(5), {"trainer": NeedsKey()}, "it has no 'grad_scaler'"),
    ]
    for net, others, reason in cases:
        with pytest.raises(UserError, match=other.format(reason)):
            checkpointer(net, **others).resume_or_load("")
    checkpointer(model(5)).resume_or_load("")
