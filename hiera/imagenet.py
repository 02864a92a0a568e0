"""The names of the classes of ImageNet-1K."""

from __future__ import annotations


def imagenet_classes() -> list[str]:
    """Return the class names in the order of their WordNet IDs, as classifiers use it.

    The names are torchvision's. FiftyOne's own classifiers use "crane" and "maillot" for
    two classes each; here they are unique: "crane bird" and "maillot tank suit". The other
    998 names are equal.
    """
    from torchvision.models import ResNet50_Weights

    names: list[str] = ResNet50_Weights.DEFAULT.meta["categories"]
    return names
