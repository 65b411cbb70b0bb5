"""What images go through on their way from a source."""

import pytest
import torch

from compress_env.data.sources import Preprocessing


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float32])
@pytest.mark.parametrize("is_augmented", [False, True])
def test_images_are_normalised_exactly_and_left_as_they_are(
    dtype: torch.dtype, is_augmented: bool
) -> None:
    largest = 1 if dtype.is_floating_point else 255 if dtype == torch.uint8 else 65_535
    shape, drawn = (4, 3, 5, 5), torch.Generator().manual_seed(0)
    images = (torch.rand(shape, generator=drawn) * largest).to(dtype)
    before = images.clone()
    generator = torch.Generator() if is_augmented else None
    known = [torch.rand(shape, generator=drawn)]
    kept = known[0].clone()
    preprocess = Preprocessing(3, [0.4, 0.5, 0.6], [0.2, 0.3, 0.4], lambda *_: known[0])
    found = preprocess(images, generator)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.4, 0.5, 0.6], [0.2, 0.3, 0.4]))
    scaled = kept if is_augmented else before.float() / largest
    assert torch.equal(found, (scaled - mean) / std)
    assert torch.equal(images, before) and torch.equal(known[0], kept)
