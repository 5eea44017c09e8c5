"""Copies of pretrained layers are filled from their sources, and from nothing else."""

import logging

import torch
from torch import nn

from clsloc.checkpoint import Checkpointer
from clsloc.checkpoint.copies import fill_copies
from detectron2.layers import FrozenBatchNorm2d


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.res = nn.Sequential(nn.Conv2d(2, 2, 1), FrozenBatchNorm2d(2))
        self.res_loc = nn.Sequential(nn.Conv2d(2, 2, 1), FrozenBatchNorm2d(2))
        fill_copies(self, {"res_loc": "res"})


def state(net, *prefixes):
    return {
        name: torch.rand_like(tensor)
        for name, tensor in net.state_dict().items()
        if name.startswith(prefixes)
    }


def test_a_copy_that_the_state_lacks_gets_its_source_buffers_included(caplog):
    model = nn.Sequential(Net())
    weights = state(model, "0.res.")
    with caplog.at_level(logging.INFO):
        result = model.load_state_dict(weights, strict=False)
    assert result.missing_keys == result.unexpected_keys == []
    loaded = model.state_dict()
    assert len(weights) == 6
    for name, tensor in weights.items():
        assert torch.equal(loaded[name], tensor)
        assert torch.equal(loaded[name.replace("res", "res_loc")], tensor)
    assert "6 of 6 tensors of 0.res_loc" in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO"]


def test_source_and_copy_do_not_share_memory():
    net = Net()
    net.load_state_dict(state(net, "res."), strict=False)
    before = net.res[0].weight.clone()
    with torch.no_grad():
        net.res_loc[0].weight += 1
    assert torch.equal(net.res[0].weight, before)


def test_a_state_with_the_copies_is_loaded_as_it_is(caplog):
    net = Net()
    weights = state(net, "res")
    with caplog.at_level(logging.INFO):
        net.load_state_dict(weights)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in net.state_dict().items())
    assert caplog.records == []


def test_a_copy_in_part_is_a_warning_and_what_nobody_has_is_missing(caplog):
    net = Net()
    weights = state(net, "res")
    del weights["res_loc.0.bias"], weights["res_loc.0.weight"], weights["res.0.weight"]
    result = net.load_state_dict(weights, strict=False)
    assert sorted(result.missing_keys) == ["res.0.weight", "res_loc.0.weight"]
    assert torch.equal(net.res_loc[0].bias, weights["res.0.bias"])
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "1 of 6 tensors of res_loc" in caplog.text


def test_a_source_of_another_shape_is_left_out():
    net = Net()
    net.res = nn.Conv2d(2, 3, 1)
    net.res_loc = nn.Conv2d(2, 2, 1)
    result = net.load_state_dict(state(net, "res."), strict=False)
    assert sorted(result.missing_keys) == ["res_loc.bias", "res_loc.weight"]


def test_matching_by_the_ends_of_names_fills_copies(tmp_path):
    model = nn.ModuleDict({"backbone": Net()})
    arrays = {name: t.numpy() for name, t in state(Net(), "res.").items()}
    path = str(tmp_path / "weights.pth")
    content = {name: torch.from_numpy(array) for name, array in arrays.items()}
    torch.save({"model": content, "matching_heuristics": True}, path)
    Checkpointer(model).load(path)
    assert torch.equal(model["backbone"].res_loc[0].weight, content["res.0.weight"])
