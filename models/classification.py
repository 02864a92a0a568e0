"""The FiftyOne models that classify images, or regress, with a fine-tuned checkpoint."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from numbers import Real

import fiftyone.core.labels as fol
import fiftyone.core.models as fom
import numpy as np
import numpy.typing as npt
import torch

from ..embedding.embedder import Embedder
from ..errors import OptionError
from ..hiera.classification_head import load_classifier
from ..hiera.oom import Halving
from ..images.decoding import ImageLike
from .embedding import HieraEmbeddingModel

Logits = npt.NDArray[np.float32]

logger = logging.getLogger(__name__)


class HieraClassifierModel(fom.LogitsMixin, HieraEmbeddingModel):
    """FiftyOne model that classifies images with a fine-tuned Hiera, and embeds them.

    Args:
        embedder: what computes embeddings

    Attributes:
        classes: the names of the classes, in the order of the logits
    """

    has_logits = True
    """Whether this model can generate logits."""

    _confidence_thresh: float | None = None

    def __init__(self, embedder: Embedder) -> None:
        fom.LogitsMixin.__init__(self)
        HieraEmbeddingModel.__init__(self, embedder)
        encoder = embedder.encoder
        self.classes = encoder.config.class_names
        self.config = LabelFilter(self.classes, self._confidence_thresh)
        self._classifier = load_classifier(encoder)
        self._classify = Halving(self._forward_with_logits)

    def predict_all(self, args: Iterable[ImageLike]) -> list[fol.Label]:
        """Classify a batch of images and embed them in the same forward pass.

        :meth:`get_embeddings` then returns the embeddings.

        Args:
            args: as for :meth:`embed_all`

        Returns:
            a list of :class:`fiftyone.core.labels.Classification` instances. Those
            that :attr:`config` filters out have no label. Subclasses return other labels

        Raises:
            ValueError, MemoryError: as for :meth:`embed_all`
        """
        pixels = self._to_pixels(args)
        if not len(pixels):
            return []

        embeddings, logits = self._classify(pixels)
        self._check_finite(embeddings, logits)
        self._embeddings = embeddings
        return [self._to_label(row) for row in logits]

    def _to_label(self, logits: Logits) -> fol.Label:
        unnormalized = np.exp(logits - logits.max())
        index = int(np.argmax(logits))
        label = self.classes[index]
        confidence = float(unnormalized[index] / unnormalized.sum())
        if not self.config.keeps(label, confidence):
            return fol.Classification()

        stored = logits if self.store_logits else None
        return fol.Classification(label=label, confidence=confidence, logits=stored)

    def _forward_with_logits(self, pixels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        stages = sorted({self.settings.stage, self._encoder.config.num_stages})
        tokens = self._encoder(pixels, *stages)
        return self.embedder.pool(tokens[0]), self._classifier(tokens[-1])


class HieraMultiLabelModel(HieraClassifierModel):
    """FiftyOne model of a checkpoint whose images may have any number of its classes.

    :meth:`predict` returns :class:`fiftyone.core.labels.Classifications`: each class that
    passes the filter, by default with a confidence of 0.5 or more.
    """

    _confidence_thresh = 0.5

    def _to_label(self, logits: Logits) -> fol.Label:
        confidences = np.exp(-np.logaddexp(0, -logits))  # the sigmoid, without overflow
        labels = [
            fol.Classification(label=label, confidence=confidence)
            for label, confidence in zip(self.classes, confidences.tolist(), strict=True)
            if self.config.keeps(label, confidence)
        ]
        stored = logits if self.store_logits else None
        return fol.Classifications(classifications=labels, logits=stored)


class HieraRegressionModel(HieraClassifierModel):
    """FiftyOne model of a checkpoint whose outputs are values, not logits.

    :meth:`predict` returns a :class:`fiftyone.core.labels.Regression`, or a dict of them by
    name if there are several outputs.
    """

    has_logits = False

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(embedder)
        self.config = NoFilter()

    def _to_label(self, logits: Logits) -> fol.Label | dict[str, fol.Label]:
        values = [fol.Regression(value=value) for value in logits.tolist()]
        if len(values) == 1:
            return values[0]

        return dict(zip(self.classes, values, strict=True))


class NoFilter:
    """Filter of labels without a confidence, which refuses what ``apply_model`` sets."""

    confidence_thresh: float | None = None
    filter_classes: frozenset[str] | None = None

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse a filter.

        Raises:
            ValueError: if the value is not None
        """
        if value is not None:
            option = "classes" if name == "filter_classes" else name
            raise OptionError(
                option,
                f"Invalid {option}: {value!r}. This checkpoint is a regression, whose "
                "values have neither a confidence nor a class",
            )


class LabelFilter:
    """Filter of labels by confidence and class, which ``apply_model`` sets during a run.

    Args:
        classes: the names of all classes
        confidence_thresh (None): the minimum confidence of a label
    """

    def __init__(
        self, classes: Iterable[str], confidence_thresh: float | None = None
    ) -> None:
        self._classes = frozenset(classes)
        self._filter_classes: frozenset[str] | None = None
        self._confidence_thresh = confidence_thresh

    def keeps(self, label: str, confidence: float) -> bool:
        """Return whether a label passes the filter."""
        thresh, classes = self._confidence_thresh, self._filter_classes
        return (thresh is None or confidence >= thresh) and (
            classes is None or label in classes
        )

    @property
    def confidence_thresh(self) -> float | None:
        """The minimum confidence of a label, or None.

        Raises:
            ValueError: if it is set to anything but None or a number from 0 to 1
        """
        return self._confidence_thresh

    @confidence_thresh.setter
    def confidence_thresh(self, thresh: float | None) -> None:
        if thresh is not None and not (isinstance(thresh, Real) and 0 <= thresh <= 1):
            raise OptionError(
                "confidence_thresh",
                f"Invalid confidence_thresh: {thresh!r}. Valid are 0 to 1",
            )

        self._confidence_thresh = thresh

    @property
    def filter_classes(self) -> frozenset[str] | None:
        """The classes to keep, or None for all.

        Raises:
            ValueError: if it is set to unknown names only, or to a string
        """
        return self._filter_classes

    @filter_classes.setter
    def filter_classes(self, names: Iterable[str] | None) -> None:
        if isinstance(names, str):
            raise OptionError(
                "classes", f"Invalid classes: {names!r}. Pass a list: [{names!r}]"
            )

        classes = frozenset(names or [])
        unknown = classes - self._classes
        if unknown:
            message = (
                f"Not among this checkpoint's classes: {sorted(unknown)}. Pass a list of "
                "names from model.classes"
            )
            # A string has become a set of letters before it gets here
            are_letters = all(len(name) == 1 for name in classes)
            if are_letters:
                message += ", not a string"

            if unknown == classes or are_letters:
                raise ValueError(message)

            logger.warning(message)

        self._filter_classes = None if names is None else classes
