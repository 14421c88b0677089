"""Distances between an image and the dense model's image of the same prompt and seed."""

import functools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from transformers import CLIPModel, CLIPProcessor

#: A function for ``measures`` of :func:`modelopt_nb.compare`: image, dense image (None for dense), prompt -> a number.
Measure = Callable[[np.ndarray, "np.ndarray | None", str], float]


def _check_pair(image: np.ndarray, reference: np.ndarray) -> None:
    for name, array in (("image", image), ("reference", reference)):
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{name} is {array!r}. Allowed: uint8 (height, width, 3), or frames of it")
        if array.dtype != np.uint8 or array.ndim not in (3, 4):
            allowed = "uint8 (height, width, 3), or frames of it"
            raise ValueError(f"{name} is {array.dtype} of shape {array.shape}. Allowed: {allowed}")
    if image.shape != reference.shape:
        raise ValueError(f"image has shape {image.shape} and reference {reference.shape}. Allowed: equal shapes")


def psnr(image: np.ndarray, reference: np.ndarray) -> float:
    """Compute the peak signal-to-noise ratio in dB, ``inf`` for equal images; for videos the mean over unequal frames.

    Both are uint8 (height, width, 3), or (frames, height, width, 3), of equal shape; others raise ValueError.

    Source: ``skimage.metrics.peak_signal_noise_ratio``.
    """
    _check_pair(image, reference)
    if np.array_equal(image, reference):
        return float("inf")
    if image.ndim == 4:
        frames = zip(image, reference, strict=True)
        return float(np.mean([psnr(a, b) for a, b in frames if not np.array_equal(a, b)]))
    return float(peak_signal_noise_ratio(reference, image, data_range=255))


def ssim(image: np.ndarray, reference: np.ndarray) -> float:
    """Compute the structural similarity, 1 for equal images; for videos the mean over the frames.

    Both are uint8 (height, width, 3), or (frames, height, width, 3), of equal shape; others raise ValueError.

    Source: Wang et al. 2004, ``skimage.metrics.structural_similarity``.
    """
    _check_pair(image, reference)
    if image.ndim == 4:
        return float(np.mean([ssim(a, b) for a, b in zip(image, reference, strict=True)]))
    # scikit-image would convert uint8 to float64; float32 takes half the time and agrees to seven digits
    pair = reference.astype(np.float32), image.astype(np.float32)
    return float(structural_similarity(*pair, channel_axis=-1, data_range=255))


@functools.cache
def _import_all() -> None:
    """Run both metrics once: scikit-image imports lazily, which can deadlock in threads."""
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    psnr(black, white), ssim(black, white)


def psnr_and_ssim(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[list[float], list[float]]:
    """Compute :func:`psnr` and :func:`ssim` of each pair, in threads; NaN if both are equal and of one colour."""
    _import_all()

    def both_of(pair: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
        blank = np.array_equal(*pair) and pair[0].min() == pair[0].max()
        return (math.nan, math.nan) if blank else (psnr(*pair), ssim(*pair))

    with ThreadPoolExecutor() as threads:
        both = list(threads.map(both_of, pairs))
    return [x for x, _ in both], [x for _, x in both]


def lpips(net: str = "alex") -> Measure:
    """Return the learned perceptual distance to the dense image, 0 for equal images, for ``compare(measures=)``.

    Needs the package ``lpips`` and the weights of ``net`` in torch's hub folder; downloads nothing.

    Raises:
        ModuleNotFoundError, FileNotFoundError: One of them is missing; the message says where to get it.
        ValueError: An unknown ``net``.

    Source: Zhang et al. 2018 (arXiv 1801.03924), package ``lpips``.
    """
    files = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
    if net not in files:
        raise ValueError(f"net={net!r} is not known. Allowed: {', '.join(files)}")
    try:
        import lpips as package  # ty: ignore[import-not-found]  # optional
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("LPIPS needs the package lpips: pip install lpips") from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / files[net]
    if not weights.is_file():
        url = f"https://download.pytorch.org/models/{weights.name}"
        raise FileNotFoundError(f"net={net!r} needs {weights}; get it from {url}")
    model = package.LPIPS(net=net, verbose=False).eval()

    def as_input(image: np.ndarray) -> torch.Tensor:
        frames = torch.from_numpy(image).movedim(-1, -3).float() / 127.5 - 1
        return frames.reshape(-1, *frames.shape[-3:])

    def measure(image: np.ndarray, reference: np.ndarray | None, prompt: str) -> float:
        if reference is None:
            return float("nan")
        _check_pair(image, reference)
        with torch.inference_mode():
            return model(as_input(image), as_input(reference)).mean().item()

    return measure


def clip_score(name_or_path: str | Path = "openai/clip-vit-base-patch32") -> Measure:
    """Return how well an image fits its prompt, 100 times the cosine of CLIP's embeddings, for ``compare(measures=)``.

    CLIP is too coarse for the embedded pipeline's images. Uses a model in the local cache; downloads nothing.

    Raises:
        FileNotFoundError: The model is not on this machine; the message says how to get it.

    Source: Hessel et al. 2021 (arXiv 2104.08718), ``transformers.CLIPModel``.
    """
    try:
        model = CLIPModel.from_pretrained(name_or_path, local_files_only=True).eval()
        processor = CLIPProcessor.from_pretrained(name_or_path, local_files_only=True)
    except OSError as error:
        missing = f"name_or_path={str(name_or_path)!r} is not on this machine"
        raise FileNotFoundError(f"{missing}; get it with: hf download {name_or_path}") from error

    def measure(image: np.ndarray, reference: np.ndarray | None, prompt: str) -> float:
        frames = [image] if image.ndim == 3 else list(image)
        inputs = processor(text=[prompt], images=frames, return_tensors="pt", truncation=True)
        with torch.inference_mode():
            output = model(**inputs)
        return 100 * torch.cosine_similarity(output.image_embeds, output.text_embeds).mean().item()

    return measure
