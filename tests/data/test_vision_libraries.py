"""Networks of timm, torchvision and open_clip, weights from local files, against what the libraries say themselves.

These libraries need a torchvision that matches torch; where there is none the tests are skipped and say so.
"""

import numpy as np
import pytest
import torch

from diva_ray.config import EncoderConfig
from diva_ray.data.encoders.build import width_of
from diva_ray.errors import InputError
from tests.data import raw_sets
from tests.data.test_encoders import installed, made

SIDE = 64


def normalized(pictures, mean, std):
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).double() / 255
    return ((x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)).float()


@installed("torchvision")
@pytest.mark.parametrize("name,width", [("resnet18", 512), ("convnext_tiny", 768)])
def test_torchvision_gives_what_the_last_linear_layer_sees(name, width, tmp_path):
    import torchvision

    torch.manual_seed(1)
    model = torchvision.models.get_model(name, weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "own.pt")
    pictures = raw_sets.pictures(3, (SIDE, SIDE))
    encoder = made("torchvision", model=name, weights=str(tmp_path / "own.pt"), size=SIDE)
    head = model.fc if name == "resnet18" else model.classifier[-1]
    seen = []
    head.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.no_grad():
        model(normalized(pictures, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    torch.testing.assert_close(encoder.run(pictures), seen[0], rtol=1e-4, atol=1e-5)
    assert width_of(encoder, EncoderConfig()) == width
    other = made("torchvision", model=name, weights="none", size=SIDE)
    assert other.mark != encoder.mark
    assert seen[0].std() > 1e-2 and (other.run(pictures) - seen[0]).std() > 1e-2


@installed("torchvision")
@pytest.mark.parametrize("name,size,before", [("resnet50", 224, 232), ("efficientnet_b1", 240, 255)])
def test_pictures_are_cut_as_torchvisions_own_weights_were_trained(name, size, before, monkeypatch):
    import torchvision

    state = torchvision.models.get_model(name, weights=None).state_dict()
    monkeypatch.setattr("torchvision.models.WeightsEnum.get_state_dict", lambda *_, **__: state)
    form = made("torchvision", model=name).form
    assert (form.size, form.crop) == (size, size / before)
    assert made("torchvision", model=name, weights="IMAGENET1K_V1").form.crop == (0.875 if size == 224 else 240 / 256)
    assert made("torchvision", model=name, size=32, crop=1.0).form.size == 32


@installed("torchvision")
def test_a_model_that_torchvision_does_not_have_or_cannot_fetch_is_one_line():
    with pytest.raises(InputError, match="encoder.model: resnet999 with weights=none must load by torchvision"):
        made("torchvision", model="resnet999", weights="none")
    with pytest.raises(InputError, match="encoder.weights: a local weights file must be there"):
        made("torchvision", model="resnet18", weights="/nowhere/own.pt")


@installed("timm", "safetensors")
@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224"])
def test_timm_gives_its_pooled_features_prepared_as_the_model_was_trained(name, tmp_path):
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(2)
    size = {"img_size": SIDE} if name.startswith("vit") else {}
    model = timm.create_model(name, pretrained=False, **size).eval()
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    pictures = raw_sets.pictures(3, (SIDE, SIDE))
    encoder = made("timm", model=name, weights=str(tmp_path / "own.safetensors"), size=SIDE, crop=1.0)
    known = timm.data.resolve_model_data_config(model)
    with torch.no_grad():
        x = normalized(pictures, known["mean"], known["std"])
        expected = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(encoder.run(pictures), expected, rtol=1e-4, atol=1e-5)
    whole = made("timm", model=name, weights="none")
    assert whole.form.size == known["input_size"][-1] or name.startswith("vit")
    assert whole.form.crop == pytest.approx(known["crop_pct"])


@installed("timm")
def test_whole_pictures_are_squashed_for_a_model_of_timm_that_was_trained_so():
    name = "convnext_tiny.in12k_ft_in1k_384"
    assert made("timm", model=name, weights="none").form.fit == "squash"
    assert made("timm", model=name, weights="none", fit="pad").form.fit == "pad"
    assert made("timm", model="resnet18", weights="none").form.fit == "crop"


@installed("timm")
def test_a_name_near_one_of_timms_is_proposed():
    with pytest.raises(InputError, match=r"must be a model of timm, got resnet19. .* resnet1?8"):
        made("timm", model="resnet19", weights="none")


@installed("open_clip", "safetensors")
def test_both_towers_of_open_clip_are_one_space(tmp_path):
    import open_clip
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = open_clip.create_model("ViT-B-32", pretrained=None).eval()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, tmp_path / "own.safetensors")
    given = {"model": "ViT-B-32", "weights": str(tmp_path / "own.safetensors")}
    images, texts = made("clip_image", **given), made("clip_text", **given)
    pictures, words = raw_sets.pictures(2, (224, 224)), ["a photo of a dog", "two cats on a very long sofa"]
    with torch.no_grad():
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        image = model.encode_image(normalized(pictures, mean, std))
        text = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(words))
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(unit(images.run(pictures), dim=1), unit(image, dim=1), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(unit(texts.run(words), dim=1), unit(text, dim=1), rtol=1e-3, atol=1e-4)
    assert images.form.size == 224 and image.shape[1] == text.shape[1] == 512
    with pytest.raises(InputError, match="a tag or a file must be named for open_clip, got auto"):
        made("clip_image", model="ViT-B-32", weights="auto")
