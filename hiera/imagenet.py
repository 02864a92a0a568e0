"""The names of the classes of ImageNet-1K."""

from __future__ import annotations


def imagenet_classes() -> list[str]:
    """Return the names in the order of their WordNet IDs, that of all classifiers.

    torchvision's table: unlike that of FiftyOne's own classifiers it has no name twice
    ("crane bird" and "crane", "maillot" and "maillot tank suit"); the other 998 are the
    same.
    """
    from torchvision.models import ResNet50_Weights

    names: list[str] = ResNet50_Weights.DEFAULT.meta["categories"]
    return names
