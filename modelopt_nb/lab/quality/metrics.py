"""Distances between an image and its dense twin."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

#: What :func:`modelopt_nb.compare` takes as ``extra``: picture, its dense twin (None for dense itself), prompt -> a number.
Measure = Callable[[np.ndarray, "np.ndarray | None", str], float]


def _same_shape(picture: np.ndarray, reference: np.ndarray) -> None:
    for name, array in (("picture", picture), ("reference", reference)):
        if array.dtype != np.uint8 or array.ndim not in (3, 4):
            raise ValueError(
                f"{name} is {array.dtype} of shape {array.shape}. Allowed: uint8 (height, width, 3), or frames of it"
            )
    if picture.shape != reference.shape:
        raise ValueError(f"picture has shape {picture.shape} and reference {reference.shape}. Allowed: equal shapes")


def psnr(picture: np.ndarray, reference: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB, ``inf`` for equal pictures; uint8 (height, width, 3) or frames of it.

    Source: ``skimage.metrics.peak_signal_noise_ratio``.
    """
    from skimage.metrics import peak_signal_noise_ratio

    _same_shape(picture, reference)
    if np.array_equal(picture, reference):
        return float("inf")
    return float(peak_signal_noise_ratio(reference, picture, data_range=255))


def ssim(picture: np.ndarray, reference: np.ndarray) -> float:
    """Structural similarity, 1 for equal pictures; uint8 (height, width, 3), or the mean over frames of it.

    Source: Wang et al. 2004, ``skimage.metrics.structural_similarity``.
    """
    from skimage.metrics import structural_similarity

    _same_shape(picture, reference)
    if picture.ndim == 4:
        return float(np.mean([ssim(p, r) for p, r in zip(picture, reference, strict=True)]))
    # float32 halves the time of the float64 that uint8 would become, and agrees to seven digits
    return float(
        structural_similarity(*(x.astype(np.float32) for x in (reference, picture)), channel_axis=-1, data_range=255)
    )


@functools.cache
def _import_all() -> None:
    """Use every measure once: scikit-image imports lazily, which can deadlock in threads."""
    black, white = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    psnr(black, white), ssim(black, white)


def psnr_and_ssim(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[list[float], list[float]]:
    """:func:`psnr` and :func:`ssim` of every pair, several at a time."""
    _import_all()
    with ThreadPoolExecutor() as threads:
        both = list(threads.map(lambda pair: (psnr(*pair), ssim(*pair)), pairs))
    return [x for x, _ in both], [x for _, x in both]


def lpips(net: str = "alex") -> Measure:
    """Learned perceptual distance of a picture to its dense twin, 0 for equal pictures, as a measure for ``compare``.

    Needs the package ``lpips`` and the weights of ``net`` in torch's hub folder; nothing is ever downloaded.

    Raises:
        ModuleNotFoundError, FileNotFoundError: Where they are not there, with where to get them.

    Source: Zhang et al. 2018 (arXiv 1801.03924), package ``lpips``.
    """
    import torch

    files = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
    if net not in files:
        raise ValueError(f"net={net!r} is not known. Allowed: {', '.join(files)}")
    try:
        import lpips as package
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("LPIPS needs the package lpips: pip install lpips") from error
    weights = Path(torch.hub.get_dir()) / "checkpoints" / files[net]
    if not weights.is_file():
        raise FileNotFoundError(
            f"net={net!r} needs {weights}; get it from https://download.pytorch.org/models/{weights.name}"
        )
    model = package.LPIPS(net=net, verbose=False).eval()

    def measure(picture: np.ndarray, reference: np.ndarray | None, prompt: str) -> float:
        if reference is None:
            return float("nan")
        _same_shape(picture, reference)
        pair = [torch.from_numpy(x).movedim(-1, -3).float().div(127.5).sub(1).reshape(-1, 3, *x.shape[-3:-1]) for x in (picture, reference)]  # fmt: skip
        with torch.inference_mode():
            return model(*pair).mean().item()

    return measure


def clip_score(name_or_path: str | Path = "openai/clip-vit-base-patch32") -> Measure:
    """How well a picture fits its prompt: 100 times the cosine of CLIP's embeddings, as a measure for ``compare``.

    Made for real models; CLIP is too coarse for the embedded pipeline's pictures. Takes a model that is on this machine;
    nothing is ever downloaded.

    Raises:
        FileNotFoundError: Where it is not, with where to get it.

    Source: Hessel et al. 2021 (arXiv 2104.08718), ``transformers.CLIPModel``.
    """
    import torch
    from transformers import CLIPModel, CLIPProcessor

    try:
        model = CLIPModel.from_pretrained(name_or_path, local_files_only=True).eval()
        processor = CLIPProcessor.from_pretrained(name_or_path, local_files_only=True)
    except OSError as error:
        raise FileNotFoundError(
            f"name_or_path={str(name_or_path)!r} is not on this machine; get it with: hf download {name_or_path}"
        ) from error

    def measure(picture: np.ndarray, reference: np.ndarray | None, prompt: str) -> float:
        frames = [picture] if picture.ndim == 3 else list(picture)
        inputs = processor(text=[prompt], images=frames, return_tensors="pt", truncation=True)
        with torch.inference_mode():
            output = model(**inputs)
        cosines = torch.nn.functional.cosine_similarity(output.image_embeds, output.text_embeds)
        return 100 * cosines.mean().item()

    return measure
