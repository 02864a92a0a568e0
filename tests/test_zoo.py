"""The model zoo, with this checkout registered as an archive.

The user's processes cannot import this checkout: the archive is served from the
loopback interface, and so is the hub that its weights come from, with random weights
in the real layout of hiera-tiny. One interpreter does what needs no new process.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from operator_calls import COMPUTE
from zoo_user import NANO, TINY, ZooUser

from digits import Digit
from fiftyone_hiera.checkpoints import CHECKPOINTS

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("zoo")]


@pytest.fixture
def registered(zoo_user: ZooUser) -> ZooUser:
    """The user, who has registered the archive and done nothing else."""
    zoo_user.forget()
    zoo_user.python("result = foz.register_zoo_model_source(url)")
    return zoo_user


@pytest.fixture
def dataset(registered: ZooUser, digits: list[Digit]) -> str:
    """The name of a persistent dataset of 24 digits with two patches each."""
    paths = [str(digit.path) for digit in digits[:24]]
    return registered.python(
        f"""
dataset = fo.Dataset("digits", persistent=True, overwrite=True)
boxes = [[0, 0, 0.5, 1], [0.2, 0.2, 0.8, 0.8]]
for path in {paths!r}:
    patches = [fo.Detection(label="part", bounding_box=box) for box in boxes]
    dataset.add_sample(fo.Sample(filepath=path, patches=fo.Detections(detections=patches)))

result = dataset.name
"""
    )


def test_register(registered: ZooUser) -> None:
    result = registered.python(
        """
result = [
    foz.list_zoo_model_sources(),
    foz.list_zoo_models(source=url),
    foz.list_zoo_models(tags="embeddings", license="CC BY-NC 4.0", source=url),
    foz.is_zoo_model_downloaded(TINY),
    list(foz.list_downloaded_zoo_models()),
]
"""
    )
    sources, names, licensed, is_downloaded, downloaded = result
    assert sources == [registered.url]
    assert set(names) == set(CHECKPOINTS)
    assert set(licensed) == {name for name in CHECKPOINTS if name.startswith("facebook/")}
    assert not is_downloaded
    assert downloaded == []


def test_download_load_delete_and_register_again(registered: ZooUser) -> None:
    hub = registered.hub
    result = registered.python(
        """
import numpy as np
from PIL import Image

exact = dict(dtype="float32", engine="torch", cache=False)
image = Image.effect_noise((300, 250), 90).convert("RGB")
embeddings = {}
for pooling in ("mean", "cls", "pooler"):
    model = foz.load_zoo_model(TINY, pooling=pooling, **exact)
    embeddings[pooling] = model.embed(image)

by_name = foz.load_zoo_model(TINY + "-cls", **exact).embed(image)
result = {
    "paths": [foz.find_zoo_model(TINY), foz.find_zoo_model(TINY + "-cls")],
    "downloaded": sorted(set(foz.list_downloaded_zoo_models()) - {NANO}),
    "shape": by_name.shape,
    "cls": bool(np.array_equal(by_name, embeddings["cls"])),
    "distinct": not np.allclose(embeddings["mean"], embeddings["pooler"], atol=1e-3),
}
"""
    )
    assert result["downloaded"] == [TINY, TINY + "-cls"]
    assert result["shape"] == [768]
    assert result["cls"]
    assert result["distinct"]
    assert hub.downloads == 1, "the -cls entry downloaded the weights again"

    plain, cls = map(Path, result["paths"])
    assert plain == registered.source / "hiera-tiny-224-hf.safetensors"
    (blob,) = (registered.home / "hub").rglob("blobs/*")
    assert plain.samefile(blob)
    assert cls.samefile(blob)

    hub.requests.clear()
    result = registered.new_python(
        """
loaded = foz.load_zoo_model(TINY).embedding_dim
foz.delete_zoo_model(TINY)
after_delete = [foz.is_zoo_model_downloaded(name) for name in (TINY, TINY + "-cls")]
foz.register_zoo_model_source(url, overwrite=True)
after_register = [foz.is_zoo_model_downloaded(name) for name in (TINY, TINY + "-cls")]
loaded_again = foz.load_zoo_model(TINY, cache=False).embedding_dim
result = [loaded, after_delete, after_register, loaded_again]
"""
    )
    assert result == [768, [False, True], [False, False], 768]
    assert hub.requests == [], "what is in the cache touched the network"
    assert registered.printed.count("auto picked") == 1
    assert "licensed" not in registered.printed, "it is said where weights are downloaded"


def test_nano_is_restored_after_a_delete(registered: ZooUser) -> None:
    code = """
result = []
for _ in range(2):
    foz.load_zoo_model(NANO, cache=False)
    foz.delete_zoo_model(NANO)
    is_there = foz.is_zoo_model_downloaded(NANO)
    result.append([is_there, foz.load_zoo_model(NANO, cache=False).embedding_dim])
"""
    assert registered.python(code) == [[False, 192]] * 2


def test_choices_and_license_are_said_once(registered: ZooUser) -> None:
    # That the license is not said without a download, the test of downloads checks
    dtype, engine = registered.new_python(
        """
for _ in range(3):
    model = foz.load_zoo_model(TINY, device="cpu", cache=False)

result = [model.settings.dtype, model.settings.engine]
"""
    )
    choices = f"{TINY} on cpu: auto picked dtype {dtype!r} and engine {engine!r}"
    assert registered.printed.count(choices) == 1
    assert registered.printed.count("auto picked") == 1
    license_line = f"The weights of {TINY} are licensed CC BY-NC 4.0"
    assert registered.printed.count(license_line) == 1


def test_workers(registered: ZooUser, dataset: str) -> None:
    result = registered.new_python(
        f"""
import numpy as np, torch.multiprocessing
dataset = fo.load_dataset({dataset!r})
exact = dict(dtype="float32", engine="torch")
model = foz.load_zoo_model(NANO, **exact)
image = dataset.compute_embeddings(model, batch_size=8, num_workers=0)
patch = dataset.compute_patch_embeddings(model, "patches", batch_size=8, num_workers=0)
drawing = foz.load_zoo_model(NANO, output="heatmap", **exact)
drawing.fit_heatmap(dataset)

result = dict(file=sys.modules["fiftyone_hiera"].__file__)
options = dict(batch_size=8, skip_failures=False)
for method in ("fork", "spawn", "forkserver"):
    torch.multiprocessing.set_start_method(method, force=True)
    num_workers = 2 if method == "fork" else 1  # others take seconds to start
    images = dataset.compute_embeddings(model, num_workers=num_workers, **options)
    patches = dataset.compute_patch_embeddings(model, "patches", num_workers=1, **options)
    if method != "forkserver":  # to workers it is as "spawn"
        dataset.apply_model(drawing, "heat_" + method, num_workers=1, **options)

    result[method] = [
        float(np.abs(images - image).max()),
        max(float(np.abs(patches[key] - patch[key]).max()) for key in patch),
    ]

result["drawn"] = [dataset.count("heat_fork"), dataset.count("heat_spawn")]
"""
    )
    assert Path(result.pop("file")).is_relative_to(registered.source)
    assert result.pop("drawn") == [24, 24]
    assert list(result) == ["fork", "spawn", "forkserver"]
    for method, differences in result.items():
        assert max(differences) < 1e-4, method


def test_brain_by_name(registered: ZooUser, dataset: str) -> None:
    result = registered.python(
        f"""
import numpy as np
from PIL import Image
dataset = fo.load_dataset({dataset!r})
options = dict(pooling="cls", normalize=True, dtype="float32", engine="torch")
fob.compute_similarity(dataset, model=NANO, model_kwargs=options, brain_key="sim")
fob.compute_visualization(dataset, model=NANO, brain_key="map", method="pca")
fob.compute_similarity(dataset, model=NANO, patches_field="patches", brain_key="patches")

query = dataset.first()
embedding = dataset.load_brain_results("sim").get_model().embed(Image.open(query.filepath))
index = dataset.load_brain_results("sim")
stored, ids, _ = index.get_embeddings(sample_ids=[query.id])
nearest = dataset.sort_by_similarity(query.id, k=3, brain_key="sim")
result = [
    nearest.first().id == query.id,
    list(ids) == [query.id] and bool(np.allclose(stored, [embedding], atol=1e-4)),
    float(np.linalg.norm(embedding)),
    dataset.load_brain_results("map").points.shape,
    dataset.load_brain_results("patches").total_index_size,
]
"""
    )
    assert result[:2] == [True, True]
    assert result[2] == pytest.approx(1)
    assert result[3:] == [[24, 2], 48]


def test_command_line(registered: ZooUser) -> None:
    # The commands that the README does not show
    downloaded = registered.new_cli("zoo", "models", "download", TINY + "-cls")
    assert f"The weights of {TINY}-cls are licensed CC BY-NC 4.0" in downloaded
    path = registered.cli("zoo", "models", "find", TINY + "-cls").strip().splitlines()[-1]
    assert Path(path) == registered.source / "hiera-tiny-224-hf-cls.safetensors"
    registered.cli("zoo", "models", "delete", TINY + "-cls")
    assert not Path(path).exists()


def test_failed_download_is_one_error(registered: ZooUser) -> None:
    calls = (
        "foz.load_zoo_model('facebook/hiera-base-224-hf')",
        "main()",
    )
    for call in calls:
        raised = registered.python(
            f"""
import traceback
from fiftyone.core.cli import main
from huggingface_hub import constants

sys.argv = ["fiftyone", "zoo", "models", "download", "facebook/hiera-base-224-hf"]
constants.HF_HUB_OFFLINE = True
try:
    {call}
except RuntimeError:
    result = traceback.format_exc()
finally:
    constants.HF_HUB_OFFLINE = False
"""
        )
        assert raised.count("Traceback") == 1, raised
        assert "offline mode is enabled" in raised
        assert raised.rstrip().endswith("To try without a network: hiera-nano-photos")


def test_options(registered: ZooUser) -> None:
    # The form is that of the zoo's own operators in the App
    result = registered.python(
        """
from fiftyone.operators.executor import ExecutionContext
result = {}
for name, remote in (
    (NANO, {}),
    (TINY + "-cls", {}),
    (NANO, {"pooling": "cls", "device": "", "checkpoint": None, "normalize": True}),
    (NANO, {"device": "tpu"}),
    (NANO, {"checkpoint": "nowhere"}),
):
    ctx = ExecutionContext({"params": {"remote_params": remote}})
    model = foz.get_zoo_model(name)
    form = model.resolve_input(ctx)
    form.to_json()
    shown = form.type.properties
    wrong = {key: prop.error_message for key, prop in shown.items() if prop.invalid}
    try:
        model.parse_parameters(ctx, remote)
    except ValueError as error:
        remote = str(error)
    else:
        foz.load_zoo_model(name, **remote) if name == NANO else None

    result[len(result)] = [list(shown), shown["pooling"].type.values, wrong, remote]

result["refused"] = []
for options in (dict(poling="cls"), dict(pooling="max"), dict(dtype="int4")):
    try:
        foz.load_zoo_model(NANO, **options)
    except ValueError as error:
        result["refused"].append(str(error))
"""
    )
    options = ["pooling", "normalize", "dtype", "engine", "device", "fast_decoding"]
    options += ["stage", "image_size", "squash", "output", "heatmap_basis", "checkpoint"]
    poolings = ["mean", "cls", "pooler"]
    assert result["0"] == [options, poolings, {}, {}]
    assert result["1"] == [options, ["cls"], {}, {}]
    assert result["2"] == [options, poolings, {}, {"pooling": "cls", "normalize": True}]
    for number, option in (("3", "device"), ("4", "checkpoint")):
        _, _, wrong, refusal = result[number]
        assert list(wrong) == [option]
        assert wrong[option] == refusal
        assert f"Invalid {option}" in refusal

    unknown, pooling, dtype = result["refused"]
    assert "poling" in unknown
    assert "'mean'" in pooling
    assert "'float32'" in dtype


def test_index_has_a_model_name_only_if_its_default_pooling_fits(
    registered: ZooUser,
) -> None:
    registered.cli("plugins", "download", registered.url)
    named = registered.python(
        f"""
import fiftyone.operators as foo
from PIL import Image

dataset = fo.Dataset("named", overwrite=True)
for grey in range(5):
    path = f"{{grey}}.png"
    Image.new("L", (9, 9), 50 * grey).save(path)
    dataset.add_sample(fo.Sample(filepath=path))

result = []
compute = foo.get_operator({COMPUTE!r})
for name, pooling in ((TINY, "mean"), (TINY, "cls"), (TINY, "pooler"), (NANO, "mean")):
    key = f"{{pooling}}{{len(result)}}"
    compute(dataset, name, key, pooling, similarity_brain_key=f"key_{{key}}")
    result.append(dataset.get_brain_info(f"key_{{key}}").config.model)

"""
    )
    assert named == [TINY, TINY + "-cls", None, NANO]


def test_index_from_python_works_in_the_search_of_fiftyone(registered: ZooUser) -> None:
    found = registered.python(
        """
import asyncio
import base64
import numpy as np
from pathlib import Path

from fiftyone.operators.executor import execute_or_delegate_operator
from fiftyone.operators.store import ExecutionStore
from PIL import Image

dataset = fo.Dataset("searched", overwrite=True)
for seed in range(8):
    pixels = np.random.default_rng(seed).integers(0, 255, (64, 64, 3), np.uint8)
    Image.fromarray(pixels).save(f"noise{seed}.png")
    dataset.add_sample(fo.Sample(filepath=f"noise{seed}.png"))

model = foz.load_zoo_model(NANO)
model.embed_samples(dataset, "hiera", brain_key="key", progress=False)
content = base64.b64encode(Path("noise5.png").read_bytes()).decode()
panel = "@voxel51/panels/similarity_search"
image = {"name": "noise5.png", "content": content}
params = dict(brain_key="key", query_type="upload", query_image=image, k=3)
request = dict(dataset_name=dataset.name, view=[], operator_uri=panel, params=params)
answer = asyncio.run(execute_or_delegate_operator(panel, request))
run = ExecutionStore.create("similarity_search_panel", dataset._doc.id).get(
    "run:" + answer.result["run_id"]
)
result = dataset[run["result_ids"][0]].filename
"""
    )
    assert found == "noise5.png"
