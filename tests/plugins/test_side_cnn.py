"""Side networks beside the stages of a convolutional network."""

import pytest
import torch
import torch.nn.functional as F
from pyext_plugins.side.batch_norm import TapsBatchNorm
from pyext_plugins.side.cnn import StageModel
from pyext_plugins.side.cnn_sides import UniptStages
from pyext_plugins.side.config import LadderConfig, SherlConfig, UniptConfig

from tests.plugins.side_models import transformers

STAGES = tuple(f"encoder.stages.{k}" for k in range(4))
LATE = ((*STAGES[:3], "encoder.stages.3.layers.1"), "encoder.stages.3.layers.2")


def resnet():
    torch.manual_seed(0)
    config = transformers.ResNetConfig(
        embedding_size=4, hidden_sizes=[4, 6, 8, 10], depths=[1, 1, 1, 3], layer_type="basic"
    )
    return transformers.ResNetModel(config)


def pictures(batch=3):
    # 32 x 64 pixels: the grids are 8 x 16, 4 x 8, 2 x 4 and 1 x 2.
    return torch.randn(batch, 3, 32, 64, generator=torch.Generator().manual_seed(0))


def make(config):
    if config.method == "unipt":
        return StageModel(resnet(), STAGES, config, (32, 64))
    return StageModel(resnet(), LATE[0], config, (32, 64), late=LATE[1])


@pytest.mark.parametrize("config", [UniptConfig(), SherlConfig()])
def test_stages_are_adapted_and_the_backbone_is_not(config):
    model = make(config).train()
    before = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
    plain = model.backbone(pictures())
    if config.method == "sherl":
        torch.nn.init.ones_(model.side.gate.bias)
    output = model(pictures())
    for name in ("last_hidden_state", "pooler_output"):
        assert output[name].shape == plain[name].shape
        assert not torch.equal(output[name], plain[name])
    output.last_hidden_state.square().sum().backward()
    assert all(parameter.grad is None for parameter in model.backbone.parameters())
    # A softmax sees no shift, BatchNorm no bias before it.
    blind = {"gate.bias", "proj.bias"} if config.method == "unipt" else {"up.bias"}
    for name, parameter in model.side.named_parameters():
        assert name in blind or name.startswith("down") or parameter.grad.any(), name
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_in_evaluation_a_picture_is_on_its_own():
    for config in (UniptConfig(), SherlConfig()):
        model = make(config)
        model(pictures())  # running statistics
        model.eval()
        whole = model(pictures()).last_hidden_state
        alone = model(pictures()[:1]).last_hidden_state
        torch.testing.assert_close(whole[:1], alone, rtol=1e-4, atol=1e-5)


def test_from_maps_of_before_it_is_the_same():
    model = make(UniptConfig()).eval()
    whole, again = model(pictures()), model(maps=model.maps(pictures()))
    assert torch.equal(whole.last_hidden_state, again.last_hidden_state)
    with pytest.raises(ValueError, match="pixel_values: expected pictures, got none"):
        model()
    with pytest.raises(ValueError, match="maps: expected None with a late block"):
        make(SherlConfig())(pictures(), maps=model.maps(pictures()))


def test_batch_norm_is_torch_s():
    h = torch.randn(3, 2, 5, 4)
    ours, theirs = TapsBatchNorm(2, 4), [torch.nn.BatchNorm1d(4) for _ in range(2)]
    for training in (True, False):
        ours.train(training)
        a, c = ours(h.sum((0, 2)), h.square().sum((0, 2)), 15)
        for k, norm in enumerate(theirs):
            norm.train(training)
            expected = norm(h[:, k].flatten(0, 1)).view(3, 5, 4)
            torch.testing.assert_close(h[:, k] * a[k] + c[k], expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(ours.running_var[k], norm.running_var)
            torch.testing.assert_close(ours.running_mean[k], norm.running_mean)
    with pytest.raises(ValueError, match="batch norm: expected more than 1 token in a batch"):
        ours.train()(h.sum((0, 2)), h.square().sum((0, 2)), 1)


def test_unipt_s_stages_by_the_equations():
    """Steps 1 to 5 of the paper, one after the other, for one picture in evaluation."""
    torch.manual_seed(0)
    side = UniptStages([3, 5], 4, 5).eval()
    low, last = torch.randn(1, 3, 4, 4), torch.randn(1, 5, 2, 2)
    query = F.relu(F.conv2d(last, side.query[0].weight[..., None, None], side.query[0].bias))
    score = F.relu((query.repeat_interleave(2, 2).repeat_interleave(2, 3) * low).sum(1))
    total = F.avg_pool2d(score[:, None], 2) * 4 + 1e-8
    share = score[:, None] / total.repeat_interleave(2, 2).repeat_interleave(2, 3) + 1 / 4
    pooled = F.avg_pool2d(share * low, 2) * 4

    def feature(image, k):
        return image.flatten(2).mT @ side.down[k].weight.T + side.down[k].bias

    scale = (1 + 1e-5) ** -0.5  # statistics that have seen nothing yet
    f, g = feature(pooled, 0) * scale, feature(last, 1) * scale
    weights = F.relu(g @ f.mT)
    mixed = weights / (weights.sum(-1, keepdim=True) + 1e-8) @ f + f  # one tap: alpha is 1
    o = g + (mixed @ side.proj.weight.T + side.proj.bias) * scale
    expected = F.relu(o) @ side.up.weight.T + side.up.bias
    torch.testing.assert_close(side([low, last]), expected, rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="stages: ResNetModel has no 'layer1'"):
        StageModel(resnet(), ("layer1",), UniptConfig(), (32, 32))
    with pytest.raises(ValueError, match="late: expected the name of the late block, got none"):
        StageModel(resnet(), STAGES, SherlConfig(), (32, 32))
    with pytest.raises(ValueError, match="config: expected unipt or sherl, got lst"):
        StageModel(resnet(), STAGES, LadderConfig(), (32, 32))
    message = r"stage 0 \(11x8\) is not an integer multiple of the guide grid 2x1"
    with pytest.raises(ValueError, match=message):
        make(UniptConfig())(torch.randn(2, 3, 43, 32))
