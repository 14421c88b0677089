import sys

import numpy as np
import pytest
import torch

from modelopt_nb import clip_score, lpips, psnr, ssim

IMAGE = np.random.default_rng(0).integers(0, 256, (64, 48, 3), np.uint8)


def test_equal_images():
    assert psnr(IMAGE, IMAGE) == float("inf")
    assert ssim(IMAGE, IMAGE) == pytest.approx(1)


def test_known_distance():
    darker = np.where(IMAGE > 127, IMAGE - 10, IMAGE + 10).astype(np.uint8)
    assert psnr(darker, IMAGE) == pytest.approx(20 * np.log10(255 / 10), abs=1e-6)
    assert 0 < ssim(darker, IMAGE) < 1


def test_videos_are_means_over_frames():
    video = np.stack([IMAGE, IMAGE])
    other = np.stack([IMAGE, 255 - IMAGE])
    assert ssim(other, video) == pytest.approx((1 + ssim(255 - IMAGE, IMAGE)) / 2)


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_wrong_images(measure):
    with pytest.raises(ValueError, match="image is float64"):
        measure(IMAGE / 255, IMAGE)
    with pytest.raises(ValueError, match="equal shapes"):
        measure(IMAGE[1:], IMAGE)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP with random weights, like one from ``hf download``."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

    folder = tmp_path_factory.mktemp("clip")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghijklmnopqrstuvwxyz", *(f"{c}</w>" for c in "abcdefghijklmnopqrstuvwxyz")]  # fmt: skip
    tokenizer = CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[])
    size = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size=size, crop_size=size)
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=small | {"vocab_size": len(words), "eos_token_id": 1, "bos_token_id": 0},
        vision_config=small | {"image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    torch.manual_seed(0)
    CLIPModel(config).save_pretrained(folder)
    CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_clip_score_is_the_cosine_of_the_embeddings(clip):
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    model, processor = CLIPModel.from_pretrained(clip).eval(), CLIPProcessor.from_pretrained(clip)
    inputs = processor(text=["a fox"], images=[Image.fromarray(IMAGE)], return_tensors="pt")
    with torch.no_grad():
        image = model.get_image_features(pixel_values=inputs["pixel_values"])
        text = model.get_text_features(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])
    image, text = (getattr(x, "pooler_output", x)[0] for x in (image, text))
    expected = 100 * (image @ text / image.norm() / text.norm()).item()
    measure = clip_score(clip)
    assert measure(IMAGE, None, "a fox") == pytest.approx(expected, abs=1e-3)
    video = np.stack([IMAGE, 255 - IMAGE])
    mean = (measure(video[0], None, "a fox") + measure(video[1], None, "a fox")) / 2
    assert measure(video, None, "a fox") == pytest.approx(mean, abs=1e-3)


def test_nothing_is_downloaded(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="'no/such-clip' is not on this machine"):
        clip_score("no/such-clip")
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(ModuleNotFoundError, match="pip install lpips"):
        lpips()
    monkeypatch.setitem(sys.modules, "lpips", object())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(FileNotFoundError, match="alexnet"):
        lpips()
    with pytest.raises(ValueError, match="net='resnet'"):
        lpips("resnet")
