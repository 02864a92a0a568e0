"""The FiftyOne model of a fine-tuned checkpoint: classifications, logits, embeddings."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import fiftyone.core.labels as fol
import fiftyone.core.models as fom
import numpy as np
import numpy.typing as npt
import torch

from ..hiera.head import Classifier
from ..hiera.oom import Halving, Pixels
from ..images.decoding import ImageLike
from .embedding import HieraEmbeddingModel, stack

Logits = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)


class LabelFilter:
    """What ``apply_model`` sets for the time of its run.

    Args:
        classes: the names that there are
    """

    def __init__(self, classes: Iterable[str]) -> None:
        self._classes = frozenset(classes)
        self._wanted: frozenset[str] | None = None
        self._least: float | None = None

    @property
    def confidence_thresh(self) -> float | None:
        """The least confidence of a label, or None.

        Raises:
            ValueError: if it is set to what is no confidence
        """
        return self._least

    @confidence_thresh.setter
    def confidence_thresh(self, least: float | None) -> None:
        if least is not None and not (isinstance(least, Real) and 0 <= least <= 1):
            raise ValueError(f"Invalid confidence_thresh: {least!r}. Valid are 0 to 1")

        self._least = least

    @property
    def filter_classes(self) -> frozenset[str] | None:
        """The only classes to give, or None.

        Raises:
            ValueError: if it is set to names that are all unknown
        """
        return self._wanted

    @filter_classes.setter
    def filter_classes(self, names: Iterable[str] | None) -> None:
        wanted = frozenset(names or [])
        unknown = wanted - self._classes
        if unknown:
            message = (
                f"Not among this checkpoint's classes: {sorted(unknown)}. Give a list of "
                "names; model.classes has them all"
            )
            if unknown == wanted:
                raise ValueError(message)

            logger.warning(message)

        self._wanted = None if names is None else wanted


class HieraClassifierModel(fom.LogitsMixin, HieraEmbeddingModel):
    """A fine-tuned Hiera that classifies images, and embeds them.

    Args:
        classifier: the head
        classes: the names of the classes, in the order of the logits
        **kwargs: see :class:`fiftyone_hiera.models.embedding.HieraEmbeddingModel`
    """

    def __init__(
        self, classifier: Classifier, classes: Sequence[str], **kwargs: Any
    ) -> None:
        fom.LogitsMixin.__init__(self)
        HieraEmbeddingModel.__init__(self, **kwargs)
        self.config = LabelFilter(classes)
        self.classes = [*classes]
        self._classifier = classifier
        self._both = Halving(self._forward_both)

    @property
    def has_logits(self) -> bool:
        """Whether this model can generate logits."""
        return True

    def predict(self, arg: ImageLike) -> fol.Classification:
        """Classify an image.

        Args:
            arg: see :meth:`predict_all`

        Returns:
            a :class:`fiftyone.core.labels.Classification`
        """
        return self.predict_all([arg])[0]

    def predict_all(self, args: Iterable[ImageLike]) -> list[fol.Classification]:
        """Classify a batch of images, and embed them in the same forward pass.

        The embeddings are those that :meth:`get_embeddings` then returns.

        Args:
            args: as for :meth:`embed_all`

        Returns:
            a list of :class:`fiftyone.core.labels.Classification` instances. They
            are without a label where :attr:`config` asks for more confidence, or
            for other classes

        Raises:
            ValueError, MemoryError: as :meth:`embed_all`
        """
        pixels = self._batch(args)
        if not len(pixels):
            return []

        vectors, logits = self._both(pixels)
        self._check_finite(vectors)
        self._check_finite(logits)
        self._embeddings = vectors
        return [self._to_label(row) for row in logits]

    def _to_label(self, logits: Logits) -> fol.Classification:
        odds = np.exp(logits - logits.max())
        index = int(np.argmax(logits))
        label, confidence = self.classes[index], float(odds[index] / odds.sum())

        least, wanted = self.config.confidence_thresh, self.config.filter_classes
        if (least is not None and confidence < least) or (
            wanted is not None and label not in wanted
        ):
            return fol.Classification()

        stored = logits if self.store_logits else None
        return fol.Classification(label=label, confidence=confidence, logits=stored)

    @torch.inference_mode()
    def _forward_both(self, pixels: Pixels) -> tuple[npt.NDArray[np.float32], Logits]:
        stages = sorted({self.settings.stage, len(self._encoder.stages)})
        tokens = self._encoder(stack(pixels), *stages)
        vectors = self._pool(tokens[0])
        return vectors, self._classifier(tokens[-1]).cpu().numpy()
