"""Fine-tuned checkpoints: labels, logits and embeddings, by FiftyOne's own methods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fiftyone as fo
import fiftyone.utils.torch as fout
import numpy as np
import pytest
import torch
from PIL import Image
from random_hiera import make_classifier, make_config, save_checkpoint
from transformers import HieraForImageClassification

import fiftyone_hiera
from digits import Digit
from fiftyone_hiera.hiera.encoder import Normalization
from fiftyone_hiera.hiera.imagenet import imagenet_classes
from fiftyone_hiera.images.preprocessing import for_image_size
from fiftyone_hiera.models.classification import HieraClassifierModel, LabelFilter

pytestmark = pytest.mark.samples(21)

_NAMES = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu"]


@pytest.fixture(scope="module")
@torch.inference_mode()
def reference(digits: list[Digit]) -> HieraForImageClassification:
    """A classifier with random weights that predicts each class for some images."""
    classifier = make_classifier(make_config())
    classifier.config.id2label = dict(enumerate(_NAMES))
    preprocessing = for_image_size((64, 64))
    images = [preprocessing(Image.open(digit.path)) for digit in digits[:21]]
    normalize = Normalization(preprocessing, torch.device("cpu"))
    logits = classifier(normalize(torch.stack(images))).logits
    classifier.classifier.bias -= logits.mean(dim=0)
    scale = 2 / (logits - logits.mean(dim=0)).std()
    classifier.classifier.weight *= scale
    classifier.classifier.bias *= scale
    return classifier


@pytest.fixture(scope="module")
def checkpoint(
    reference: HieraForImageClassification, tmp_path_factory: pytest.TempPathFactory
) -> str:
    return str(save_checkpoint(tmp_path_factory.mktemp("classifier"), reference))


def _load(checkpoint: str, **options: Any) -> HieraClassifierModel:
    options = {"dtype": "float32", "engine": "torch", **options}
    model = fiftyone_hiera.load_model("hiera-nano-digits", checkpoint=checkpoint, **options)
    assert isinstance(model, HieraClassifierModel)
    return model


@pytest.fixture(scope="module")
def classifier(checkpoint: str) -> HieraClassifierModel:
    return _load(checkpoint, pooling="pooler")


@torch.inference_mode()
def _expect(
    reference: HieraForImageClassification, model: HieraClassifierModel, paths: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Return transformers' logits and pooler outputs."""
    pixels = torch.stack([model.transforms(Image.open(path)) for path in paths])
    encoder = model._encoder
    inputs = encoder.normalize(pixels)
    pooled = reference.hiera(inputs).pooler_output
    return reference(inputs).logits.numpy(), pooled.numpy()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_labels_equal_transformers(
    samples: fo.Dataset,
    classifier: HieraClassifierModel,
    reference: HieraForImageClassification,
    num_workers: int,
) -> None:
    samples.apply_model(
        classifier,
        label_field="predicted",
        store_logits=True,
        batch_size=8,
        num_workers=num_workers,
    )
    logits, _ = _expect(reference, classifier, samples.values("filepath"))
    labels = samples.values("predicted")
    stored = np.stack([label.logits for label in labels])
    assert np.abs(stored - logits).max() < 1e-4
    assert [label.label for label in labels] == [_NAMES[i] for i in logits.argmax(axis=1)]
    expected = torch.tensor(logits).softmax(dim=1).numpy().max(axis=1)
    confidences = np.array([label.confidence for label in labels])
    assert np.abs(confidences - expected).max() < 1e-5
    assert len({label.label for label in labels}) > 1


def test_logits_are_stored_only_if_asked_for(
    samples: fo.Dataset, classifier: HieraClassifierModel
) -> None:
    samples.apply_model(classifier, label_field="predicted")
    assert set(samples.values("predicted.logits")) == {None}


@pytest.mark.parametrize(
    "options",
    [
        {"confidence_thresh": 0.5},
        {"classes": ["ant", "cat", "fox"]},
        {"classes": ["bee"], "confidence_thresh": 0.3, "store_logits": True},
        {},
    ],
    ids=str,
)
def test_filters_equal_fiftyones_own_classifiers(
    samples: fo.Dataset,
    classifier: HieraClassifierModel,
    reference: HieraForImageClassification,
    options: dict[str, Any],
) -> None:
    logits, _ = _expect(reference, classifier, samples.values("filepath"))
    processor = fout.ClassifierOutputProcessor(
        _NAMES, store_logits=options.get("store_logits", False)
    )
    filters = {name: value for name, value in options.items() if name != "store_logits"}
    expected = processor(torch.tensor(logits), None, **filters)
    samples.apply_model(classifier, label_field="predicted", **options)
    found = samples.values("predicted")
    assert [label.label for label in found] == [label.label for label in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
        assert (one.logits is None) == (other.logits is None)

    assert classifier.config.confidence_thresh is None
    assert not classifier.store_logits


@pytest.mark.parametrize("classes", [["cow", "dgo"], "cat", []], ids=str)
def test_only_unknown_classes_are_refused(
    samples: fo.Dataset, classifier: HieraClassifierModel, classes: Any
) -> None:
    if not classes:  # as FiftyOne's own classifiers, without any label
        samples.apply_model(classifier, label_field="predicted", classes=classes)
        assert samples.distinct("predicted.label") == []
        return

    with pytest.raises(ValueError, match=r"this checkpoint's classes: \['\w+', '\w+'"):
        samples.apply_model(classifier, label_field="predicted", classes=classes)

    assert classifier.config.filter_classes is None
    assert not samples.has_sample_field("predicted")


@pytest.mark.parametrize("classes", ["c1", "ant"])
def test_a_string_is_not_taken_as_letters(
    monkeypatch: pytest.MonkeyPatch,
    samples: fo.Dataset,
    classifier: HieraClassifierModel,
    classes: str,
) -> None:
    # The letters may be names of classes, too
    names = LabelFilter([*_NAMES, "c1", "c", "a"])
    monkeypatch.setattr(classifier, "config", names)
    for apply in (
        lambda: samples.apply_model(classifier, label_field="predicted", classes=classes),
        lambda: setattr(names, "filter_classes", classes),
    ):
        with pytest.raises(ValueError, match=r"Pass a list: \['|, not a string"):
            apply()

    assert names.filter_classes is None
    assert not samples.has_sample_field("predicted")
    names.filter_classes = ["a", "c", "c1"]
    assert names.keeps("c1", 1)


@pytest.mark.parametrize("thresh", ["high", 90, -0.1], ids=str)
def test_invalid_confidences_are_refused(
    classifier: HieraClassifierModel, thresh: Any
) -> None:
    # What apply_model() does first
    with pytest.raises(ValueError, match=r"confidence_thresh: .* Valid are 0 to 1"):
        classifier.config.confidence_thresh = thresh

    assert classifier.config.confidence_thresh is None


def test_unknown_classes_beside_known_ones_are_logged(
    samples: fo.Dataset,
    classifier: HieraClassifierModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    samples.apply_model(classifier, label_field="predicted", classes=["bee", "cow"])
    assert samples.distinct("predicted.label") == ["bee"]
    assert "Not among this checkpoint's classes: ['cow']" in caplog.text


def test_embeddings_of_the_same_pass(
    monkeypatch: pytest.MonkeyPatch,
    samples: fo.Dataset,
    classifier: HieraClassifierModel,
    reference: HieraForImageClassification,
) -> None:
    paths = samples.values("filepath")
    images = [Image.open(path) for path in paths]
    embedded = classifier.embed_all(images)
    _, pooled = _expect(reference, classifier, paths)
    assert np.abs(embedded - pooled).max() < 1e-4

    passes: list[int] = []
    network: Any = classifier._encoder._network
    monkeypatch.setattr(
        classifier._encoder, "_network", lambda x: passes.append(len(x)) or network(x)
    )
    classifier.predict_all(images)
    assert np.array_equal(classifier.get_embeddings(), embedded)
    assert passes == [len(images)]


def test_embeddings_of_another_stage(
    samples: fo.Dataset, checkpoint: str, classifier: HieraClassifierModel
) -> None:
    images = [Image.open(path) for path in samples.values("filepath")]
    model = _load(checkpoint, stage=2)
    labels = model.predict_all(images)
    expected = classifier.predict_all(images)
    assert [label.label for label in labels] == [label.label for label in expected]
    assert model.get_embeddings().shape == (21, 32)
    assert np.allclose(model.get_embeddings(), model.embed_all(images), atol=1e-5)


def test_one_image(samples: fo.Dataset, classifier: HieraClassifierModel) -> None:
    images = [Image.open(path) for path in samples.values("filepath")]
    label = classifier.predict(images[3])
    assert label.label == classifier.predict_all(images)[3].label
    assert label.confidence == classifier.predict(images[3].filename).confidence
    assert classifier.predict_all([]) == []


def test_large_logits_give_a_confidence(classifier: HieraClassifierModel) -> None:
    label = classifier._to_label(np.array([0, 200, 199], np.float32))
    assert label.confidence == pytest.approx(1 / (1 + np.exp(-1)))


def test_nan_is_never_a_label(
    monkeypatch: pytest.MonkeyPatch,
    samples: fo.Dataset,
    classifier: HieraClassifierModel,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def break_one(tokens: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(tokens), len(_NAMES))
        logits[-1, 2] = torch.nan
        return logits

    monkeypatch.setattr(classifier, "_classifier", break_one)
    samples.add_sample_field(
        "predicted", fo.EmbeddedDocumentField, embedded_doc_type=fo.Classification
    )
    samples.apply_model(classifier, label_field="predicted", batch_size=16)
    assert samples.count("predicted") == 0
    assert "NaN or infinity for the images [15] of a batch of 16" in caplog.text


def test_video_frames(
    tmp_path: Path, dataset: fo.Dataset, classifier: HieraClassifierModel
) -> None:
    pytest.importorskip("shutil").which("ffmpeg") or pytest.skip("needs ffmpeg")
    import eta.core.video as etav

    path = str(tmp_path / "video.mp4")
    with etav.FFmpegVideoWriter(path, 5, (64, 64)) as writer:
        for shade in (10, 120, 230):
            writer.write(np.full((64, 64, 3), shade, np.uint8))

    dataset.add_sample(fo.Sample(filepath=path))
    dataset.apply_model(classifier, label_field="frames.predicted", batch_size=2)
    (labels,) = dataset.values("frames.predicted.label")
    assert len(labels) == 3
    assert set(labels) <= set(_NAMES)


def test_names_of_imagenet() -> None:
    """The order is that of WordNet's IDs, in timm's table and in FiftyOne's."""
    import eta.constants as etac
    from timm.data import ImageNetInfo

    names = imagenet_classes()
    assert len(set(names)) == 1000
    descriptions = ImageNetInfo("imagenet-1k").label_descriptions()
    agreeing = [
        name.lower() in description.lower()
        for name, description in zip(names, descriptions, strict=True)
    ]
    assert sum(agreeing) > 900
    table = Path(etac.RESOURCES_DIR) / "imagenet-labels-no-background.txt"
    theirs = [line.partition(":")[2] for line in table.read_text("utf-8").splitlines()]
    different = {
        (one, other) for one, other in zip(names, theirs, strict=True) if one != other
    }
    assert different == {("crane bird", "crane"), ("maillot tank suit", "maillot")}


def test_entries_know_their_classes(tmp_path: Path) -> None:
    from fiftyone_hiera.checkpoints import CHECKPOINTS

    config = CHECKPOINTS["facebook/hiera-tiny-224-in1k-hf"].config
    assert config.class_names == imagenet_classes()
    assert config.to_transformers().num_labels == 1000


def test_classifier_of_another_size_is_refused(checkpoint: str) -> None:
    with pytest.raises(ValueError, match="type HieraForImageClassification: "):
        _load(checkpoint, output="reconstruction_error")
