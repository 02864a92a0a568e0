"""Train hiera-nano-digits, the checkpoint that this repository carries.

A Hiera of 0.67 M parameters for 64 px learns to tell 1,200 handwritten digits
apart; its encoder is kept and its classifier thrown away. The other 597 digits
are only looked at once, at the end. Takes a minute on two CPU cores:

    python examples/train_nano_digits.py

It prints the number of parameters and the sha256 for the table in checkpoints.py.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.neighbors import KNeighborsClassifier
from transformers import HieraConfig, HieraForImageClassification

from digits import write_digits
from fiftyone_hiera.hiera.encoder import Normalization
from fiftyone_hiera.images.preprocessing import for_image_size

_OUTPUT = Path(__file__).parents[1] / "assets" / "hiera-nano-digits.safetensors"
_IMAGE_SIZE = (64, 64)
_EPOCHS = 20
_BATCH_SIZE = 32
_LEARNING_RATE = 1e-3


def main() -> None:
    """Train, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=51)
    parser.add_argument("--output", type=Path, default=_OUTPUT)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    preprocessing = for_image_size(_IMAGE_SIZE)
    with tempfile.TemporaryDirectory() as folder:
        digits = write_digits(Path(folder))
        pixels = torch.stack([preprocessing(Image.open(digit.path)) for digit in digits])

    labels = torch.tensor([digit.label for digit in digits])
    is_train = torch.tensor([digit.split == "train" for digit in digits])

    config = HieraConfig(
        image_size=_IMAGE_SIZE,
        embed_dim=24,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
    )
    config.num_labels = 10
    model = HieraForImageClassification(config)
    inputs = Normalization(preprocessing, torch.device("cpu"))(pixels)
    _train(model, inputs[is_train], labels[is_train])

    model.eval()
    with torch.inference_mode():
        vectors = model.hiera(inputs).last_hidden_state.mean(dim=1).numpy()

    knn = KNeighborsClassifier(5).fit(vectors[is_train], labels[is_train])
    accuracy = knn.score(vectors[~is_train], labels[~is_train])
    tensors = {name: t.contiguous() for name, t in model.hiera.state_dict().items()}
    save_file(tensors, args.output, metadata={"format": "pt"})

    print(f"5-NN accuracy on {np.sum(~is_train.numpy())} unseen digits: {accuracy:.1%}")
    print(f"parameters: {sum(t.numel() for t in tensors.values())}")
    print(f"sha256: {hashlib.sha256(args.output.read_bytes()).hexdigest()}")


def _train(model: torch.nn.Module, inputs: torch.Tensor, labels: torch.Tensor) -> None:
    steps = _EPOCHS * (len(inputs) // _BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, steps)

    model.train()
    for _ in range(_EPOCHS):
        order = torch.randperm(len(inputs))[: len(inputs) // _BATCH_SIZE * _BATCH_SIZE]
        for batch in order.split(_BATCH_SIZE):
            loss = model(pixel_values=_shift(inputs[batch]), labels=labels[batch]).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


def _shift(inputs: torch.Tensor) -> torch.Tensor:
    """Move each image by up to 4 px in both directions, repeating its border."""
    padded = torch.nn.functional.pad(inputs, (4, 4, 4, 4), mode="replicate")
    size = inputs.shape[-1]
    top, left = torch.randint(0, 9, (2, len(inputs))).tolist()
    return torch.stack(
        [
            image[:, y : y + size, x : x + size]
            for image, y, x in zip(padded, top, left, strict=True)
        ]
    )


if __name__ == "__main__":
    main()
