"""POST /v1/models/hot-adrenal/classify through HTTP: every format, several files, and every refusal."""

from __future__ import annotations

import gzip
import io
import shutil
import threading
from pathlib import Path
from typing import Any

import httpx
import nibabel as nib
import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import orjson
import pytest

from app.errors import UnusableInput
from app.manifest import Manifest
from app.settings import Settings
from app.tasks.attention import attention_outputs
from app.tasks.classification import prepare
from models.config import ClassifierConfig
from tests.conftest import speaking_to
from tests.explained import EXPLAINED, reference, write_explained
from tests.manifests import rewrite_manifest
from tests.readers import dicom_files as made

pytestmark = pytest.mark.asyncio(loop_scope="session")

URL = "/v1/models/hot-adrenal/classify"


def mask(seed: int = 0, size: int = 64) -> npt.NDArray[np.uint8]:
    """A few random balls."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), axis=-1)
    filled = np.zeros((size,) * 3, np.bool_)
    for centre, radius in zip(rng.uniform(0.3, 0.7, (4, 3)) * size, rng.uniform(0.05, 0.2, 4) * size, strict=True):
        filled |= ((grid - centre) ** 2).sum(axis=-1) < radius**2
    return filled.astype(np.uint8)


def npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def npz(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, volume=array)
    return stream.getvalue()


def nifti(array: npt.NDArray[Any], affine: npt.NDArray[np.float64] | None = None) -> bytes:
    data: bytes = nib.Nifti1Image(array, np.eye(4) if affine is None else affine).to_bytes()
    return data


async def classify(client: httpx.AsyncClient, body: bytes, **headers: str) -> dict[str, Any]:
    response = await client.post(URL, content=body, headers=headers)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    assert len(answer["predictions"]) == 1
    return answer


async def test_the_answer_is_what_the_graph_says_of_the_reduced_mask(
    client: httpx.AsyncClient, repository: Path
) -> None:
    session = ort.InferenceSession(repository / "hot-adrenal" / "1" / "model.onnx", providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0]
    size = entry.shape[-1]
    factor = 64 // size
    reduced = mask().reshape(size, factor, size, factor, size, factor).mean(axis=(1, 3, 5)).astype(np.float32)
    (logits,) = session.run(None, {entry.name: reduced[np.newaxis, np.newaxis]})
    manifest = orjson.loads((repository / "hot-adrenal" / "1" / "manifest.json").read_bytes())
    truth = np.exp(logits[0].astype(np.float64) / manifest["task"].get("temperature", 1.0))
    truth /= truth.sum()

    answer = await classify(client, npy(mask()))
    assert (answer["model"], answer["version"], answer["notice"]) == ("hot-adrenal", "1", "research use only")
    (prediction,) = answer["predictions"]
    assert prediction["index"] == int(truth.argmax())
    assert prediction["label"] == list(prediction["probabilities"])[prediction["index"]]
    assert prediction["probability"] == prediction["probabilities"][prediction["label"]]
    assert list(prediction["probabilities"].values()) == pytest.approx(truth.tolist(), abs=1e-5)
    assert sum(prediction["probabilities"].values()) == pytest.approx(1, abs=1e-12)
    assert prediction["input"] == {"format": "npy", "shape": [64, 64, 64], "spacing": None}
    assert [step["op"] for step in prediction["preprocessing"]] == ["reorient", "binarise", "resize"]


async def test_every_format_gives_the_same_prediction(client: httpx.AsyncClient) -> None:
    array = mask()
    truth = (await classify(client, npy(array)))["predictions"][0]
    bodies = {
        "npy": npy(np.asfortranarray(array.astype(np.float64) * 7)),
        "npz": npz(array),
        "nifti": nifti(array),
        "nifti.gz": gzip.compress(nifti(array)),
    }
    for name, body in bodies.items():
        (prediction,) = (await classify(client, body))["predictions"]
        assert prediction["probabilities"] == pytest.approx(truth["probabilities"], abs=1e-6)
        assert prediction["input"]["format"] == name.partition(".")[0]
    document = orjson.dumps({"volume": array.tolist()})
    (prediction,) = (await classify(client, document, **{"content-type": "application/json"}))["predictions"]
    assert prediction["probabilities"] == pytest.approx(truth["probabilities"], abs=1e-6)
    packed = await classify(client, gzip.compress(npy(array)), **{"content-encoding": "gzip"})
    assert packed["predictions"][0]["input"]["format"] == "npy"


async def test_the_affine_decides_not_the_order_of_storage(client: httpx.AsyncClient) -> None:
    array = mask()
    truth = (await classify(client, nifti(array)))["predictions"][0]
    # The same mask stored as left-posterior-superior, its axes exchanged, 2 mm voxels.
    stored = array[::-1, ::-1].transpose(1, 0, 2)
    affine = np.array([[0.0, -2, 0, 126], [-2, 0, 0, 126], [0, 0, 2, 0], [0, 0, 0, 1]])
    (prediction,) = (await classify(client, nifti(np.ascontiguousarray(stored), affine)))["predictions"]
    assert prediction["probabilities"] == pytest.approx(truth["probabilities"], abs=1e-6)
    assert prediction["preprocessing"][0] == {"op": "reorient", "from": "PLS", "to": "RAS"}
    assert prediction["input"]["spacing"] == [2.0, 2.0, 2.0]


async def test_several_files_are_answered_in_their_order(client: httpx.AsyncClient) -> None:
    arrays = [mask(seed) for seed in range(6)]
    single = [(await classify(client, npy(array)))["predictions"][0] for array in arrays]
    files = [("file", (f"{seed}", gzip.compress(nifti(array)))) for seed, array in enumerate(arrays)]
    answer = (await client.post(URL, files=files)).json()
    assert len({round(prediction["probability"], 6) for prediction in single}) > 1
    for prediction, alone in zip(answer["predictions"], single, strict=True):
        assert prediction["probabilities"] == pytest.approx(alone["probabilities"], abs=1e-5)
    versioned = await client.post("/v1/models/hot-adrenal/versions/1/classify", files=files)
    for prediction, same in zip(versioned.json()["predictions"], answer["predictions"], strict=True):
        assert prediction["label"] == same["label"]
        assert prediction["probabilities"] == pytest.approx(same["probabilities"], abs=1e-5)


async def test_dicom_slices_of_a_form_are_one_volume_and_nothing_of_the_patient_comes_back(
    client: httpx.AsyncClient,
) -> None:
    slices = made.series(8, RescaleSlope=1, RescaleIntercept=0)
    files = [("file", (f"{made.PATIENT} {number}.dcm", data)) for number, data in enumerate(slices)]
    files.insert(3, ("file", ("mask.npy", npy(mask()))))
    response = await client.post(URL, files=files)
    assert response.status_code == 200, response.text
    series, array = response.json()["predictions"]
    assert series["input"] == {"format": "dicom", "shape": [9, 7, 8], "spacing": pytest.approx([1.3, 0.7, 2.5])}
    assert series["preprocessing"][0]["to"] == "RAS"
    assert array["input"]["format"] == "npy"
    packed = (await classify(client, made.zipped(slices)))["predictions"][0]
    assert packed["probabilities"] == pytest.approx(series["probabilities"], abs=1e-6)
    for text in (response.text, (await client.post(URL, files=files[:1])).text):
        assert "Doe" not in text
        assert made.SERIES not in text


async def test_one_time_of_a_file_with_four_axes(client: httpx.AsyncClient) -> None:
    series = np.stack([mask(1), mask(2)], axis=-1)
    refused = await client.post(URL, content=nifti(series))
    assert (refused.status_code, refused.json()["field"]) == (422, "t")
    (truth,) = (await classify(client, nifti(mask(2))))["predictions"]
    headers = {"content-type": "application/json"}
    document = orjson.dumps({"volume": series.tolist()})
    for body, media_type in ((nifti(series), {}), (document, headers)):
        response = await client.post(URL, content=body, params={"t": 1}, headers=media_type)
        assert response.json()["predictions"][0]["probabilities"] == pytest.approx(truth["probabilities"], abs=1e-6)
    for body, media_type in ((npy(mask(1)), {}), (orjson.dumps({"volume": mask(1).tolist()}), headers)):
        refused = await client.post(URL, content=body, params={"t": 5}, headers=media_type)
        assert (refused.status_code, refused.json()["field"]) == (422, "t")
        assert refused.json()["error"] == "t is 5; the volume has time 0 only"


async def test_attention_explains_on_request(tmp_path: Path, service_settings: Settings) -> None:
    bundle = write_explained(tmp_path, "classifier")
    config = EXPLAINED["classifier"]
    assert isinstance(config, ClassifierConfig)
    volume = np.random.default_rng(5).random(config.volume).astype(np.float32)
    settings = service_settings.model_copy(update={"repository": tmp_path / "repository"})
    url = "/v1/models/classifier/classify"
    async with speaking_to(settings) as client:
        response = await client.post(url, content=npy(volume), params={"explain": "attention"})
        assert response.status_code == 200, response.text
        (prediction,) = response.json()["predictions"]
        plain = await client.post(url, content=npy(volume))
        assert "explanation" not in plain.json()["predictions"][0]
        assert prediction["probabilities"] == pytest.approx(plain.json()["predictions"][0]["probabilities"], abs=1e-5)
    truth = reference(bundle, "classifier", volume[np.newaxis, np.newaxis])
    found = prediction["explanation"]["attention"]
    received: dict[str, list[npt.NDArray[Any]]] = {}
    for name, matrices in truth.items():
        _, block, mode = name.split(".")
        axis = ("depth", "height", "width")[int(mode)]
        np.testing.assert_allclose(found[block][axis], matrices[0], atol=2e-6)
        received.setdefault(axis, []).append(matrices[0].mean(axis=(0, 1)) * matrices.shape[-1])
    for axis, size in zip(("depth", "height", "width"), config.volume, strict=True):
        slices = np.array(prediction["explanation"]["saliency"][axis])
        assert slices.shape == (size,)
        np.testing.assert_allclose(
            slices.reshape(-1, config.patch),
            np.mean(received[axis], axis=0)[:, None].repeat(config.patch, 1),
            atol=1e-5,
        )
        assert slices.mean() == pytest.approx(1, abs=1e-5)


async def test_the_shipped_classifier_explains_itself(client: httpx.AsyncClient, repository: Path) -> None:
    response = await client.post(URL, content=npy(mask()), params={"explain": "attention"})
    assert response.status_code == 200, response.text
    (prediction,) = response.json()["predictions"]
    plain = (await client.post(URL, content=npy(mask()))).json()["predictions"][0]
    assert prediction["probabilities"] == pytest.approx(plain["probabilities"], abs=1e-5)
    session = ort.InferenceSession(
        repository / "hot-adrenal" / "1" / "explain.onnx", providers=["CPUExecutionProvider"]
    )
    # 64 to 32 by the area of eight voxels, as the manifest says.
    volume = mask().astype(np.float32).reshape(32, 2, 32, 2, 32, 2).mean(axis=(1, 3, 5))
    names = [output.name for output in session.get_outputs()][1:]
    truth = dict(zip(names, session.run(names, {"volume": volume[np.newaxis, np.newaxis]}), strict=True))
    assert len(names) == 4 * 3
    for name, matrices in truth.items():
        _, block, mode = name.split(".")
        found = prediction["explanation"]["attention"][block][("depth", "height", "width")[int(mode)]]
        np.testing.assert_allclose(found, matrices[0], atol=1e-5)
        np.testing.assert_allclose(np.sum(found, axis=-1), 1, atol=1e-5)
    assert {len(slices) for slices in prediction["explanation"]["saliency"].values()} == {32}


async def test_bundles_that_cannot_explain_themselves_say_why(client: httpx.AsyncClient, repository: Path) -> None:
    url = "/v1/models/kan-adrenal/classify"
    response = await client.post(url, content=npy(mask()), params={"explain": "attention"})
    assert (response.status_code, response.json()["field"]) == (422, "explain")
    assert "no attention matrix of each mode" in response.json()["error"]
    manifest = Manifest.model_validate_json((repository / "hot-adrenal" / "1" / "manifest.json").read_bytes())
    without = manifest.model_copy(update={"outputs": manifest.outputs[:1]})
    with pytest.raises(UnusableInput, match=r"export FOLDER/hot-adrenal/1 --name hot-adrenal .*--explain makes"):
        attention_outputs(without)


async def test_the_limit_of_decoded_bytes_holds_for_all_files_together(client: httpx.AsyncClient) -> None:
    volume = gzip.compress(nifti(mask(size=128)))  # 2 MiB of the 8 that the settings allow
    files = [("file", (str(number), volume)) for number in range(5)]
    assert (await client.post(URL, files=files[:4])).status_code == 200
    response = await client.post(URL, files=files)
    assert (response.status_code, response.json()["field"]) == (413, "file[4]")
    assert "the files before it took 8388608" in response.json()["error"]


async def test_the_timeout_holds_for_all_files_together(service_settings: Settings) -> None:
    hurried = service_settings.model_copy(update={"request_timeout": 1e-6})
    async with speaking_to(hurried) as client:
        response = await client.post(URL, files=[("file", ("a", npy(mask()))), ("file", ("b", npy(mask())))])
    assert response.status_code == 504, response.text
    assert "of 2 volumes" in response.json()["error"]


async def test_volumes_of_one_form_do_not_keep_each_other_out(service_settings: Settings) -> None:
    """The queue's budget is less than one of them takes, and they are admitted together."""
    small = service_settings.model_copy(update={"queue_budget": 1e-3, "executors": 1, "max_batch": 1})
    async with speaking_to(small) as client:
        response = await client.post(URL, files=[("file", ("a", npy(mask()))) for _ in range(8)])
    assert response.status_code == 200, response.text
    assert len(response.json()["predictions"]) == 8


@pytest.fixture
def loop_work(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each volume that is preprocessed, whether it is so in the event loop."""
    found: list[bool] = []

    def noted(*args: Any, **options: Any) -> Any:
        found.append(threading.current_thread() is threading.main_thread())
        return prepare(*args, **options)

    monkeypatch.setattr("app.api.classify.classification.prepare", noted)
    return found


async def test_what_takes_longer_than_its_bytes_tell_is_not_done_in_the_loop(
    client: httpx.AsyncClient, loop_work: list[bool]
) -> None:
    """Many small files, and voxels compressed within a file: together they may still hold up the others."""
    small = mask(size=16)
    assert (await client.post(URL, content=npy(small))).status_code == 200  # nibabel is there
    loop_work.clear()
    header = b"NRRD0004\ntype: uint8\ndimension: 3\nsizes: 64 64 64\nencoding: gzip\n\n"
    for data in (npy(small), nifti(small), header + gzip.compress(mask().tobytes())):
        assert (await client.post(URL, content=data)).status_code == 200
    assert loop_work == [True, True, False]
    loop_work.clear()
    files = [("file", (str(number), npy(small))) for number in range(64)]
    assert (await client.post(URL, files=files)).status_code == 200
    assert loop_work == [False] * 64


@pytest.mark.parametrize(
    ("step", "inline"),
    [
        ({"op": "resample", "spacing": [1, 1, 1], "method": "nearest"}, False),
        ({"op": "pad", "shape": [64, 64, 64]}, False),
        ({"op": "crop", "shape": [64, 64, 64]}, True),
    ],
)
async def test_a_small_file_whose_steps_make_a_large_volume_is_not_prepared_in_the_loop(
    tmp_path: Path,
    repository: Path,
    service_settings: Settings,
    loop_work: list[bool],
    step: dict[str, Any],
    inline: bool,
) -> None:
    """By what its header says of its voxels, a few thousand bytes may be resampled to millions."""
    bundle = tmp_path / "repository" / "hot-adrenal" / "1"
    shutil.copytree(repository / "hot-adrenal" / "1", bundle)
    task = orjson.loads((bundle / "manifest.json").read_bytes())["task"]
    task["preprocessing"].insert(-1, step)
    rewrite_manifest(bundle, task=task)
    body = nifti(mask(size=8), np.diag([4.0, 4, 4, 1]))
    async with speaking_to(service_settings.model_copy(update={"repository": tmp_path / "repository"})) as client:
        for _ in range(2):  # the first may be the one that imports nibabel
            await classify(client, body)
    assert loop_work[1] is inline


async def test_more_parts_than_a_request_may_have_are_400(client: httpx.AsyncClient) -> None:
    response = await client.post(URL, files=[("file", (str(number), b"x")) for number in range(1025)])
    assert response.status_code == 400
    assert "1024 parts" in response.json()["error"]
    response = await client.post(URL, files=[("file", (str(number), b"x")) for number in range(65)])
    assert response.status_code == 400
    assert "at most 64" in response.json()["error"]


async def test_a_bad_file_among_several_is_named(client: httpx.AsyncClient) -> None:
    files = [("file", ("a", npy(mask()))), ("file", ("b", npy(mask())[:-1])), ("file", ("c", npy(mask())))]
    response = await client.post(URL, files=files)
    assert (response.status_code, response.json()["field"]) == (400, "file[1]")


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


HUGE = np.int16([30000, 30000, 30000]).tobytes()
NAN = np.full((4, 4, 4), np.nan)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "empty"),
        (b"not a volume", 400, "first bytes"),
        (npy(mask())[:-1], 400, "claims"),
        (nifti(mask())[:-1], 400, "truncated"),
        (gzip.compress(nifti(mask()))[:-9], 400, "truncated"),
        (npz(mask())[:-9], 400, "zip"),
        (npy(np.zeros((4, 4))), 422, "three axes"),
        (npy(np.zeros((4, 4, 4, 2))), 422, "three axes"),
        (npy(np.zeros((4, 0, 4))), 422, "no voxels"),
        (npy(NAN), 422, "NaN"),
        (nifti(NAN), 422, "NaN"),
        (patched(nifti(mask()), 42, HUGE), 413, "header claims"),
        (gzip.compress(patched(nifti(mask()), 42, HUGE)), 413, "header claims"),
        (gzip.compress(nifti(mask()) + bytes(64 << 20)), 413, "expands"),
        (npz(np.zeros((256, 256, 256), np.uint8)), 413, "limit"),
        (bytes(5 << 20), 413, "limit"),
    ],
)
async def test_refusals(client: httpx.AsyncClient, body: bytes, status: int, message: str) -> None:
    response = await client.post(URL, content=body)
    assert response.status_code == status, response.text
    assert message in response.json()["error"]
    assert (await client.post(URL, content=npy(mask()))).status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b'{"volume": [[[1, 2], [3]]]}', 400, "volume[0][1]"),
        (b'{"volume": [[[1, null]]]}', 422, "volume[0][0][1] is null"),
        (b'{"volume": [[1]]}', 422, "three axes"),
        (b'{"image": [[[1]]]}', 400, "'volume' is missing"),
        (b"[", 400, "JSON"),
    ],
)
async def test_json_refusals(client: httpx.AsyncClient, body: bytes, status: int, message: str) -> None:
    response = await client.post(URL, content=body, headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    assert message in response.json()["error"]


async def test_unknown_models_and_other_tasks(client: httpx.AsyncClient) -> None:
    for url, status in (
        ("/v1/models/absent/classify", 404),
        ("/v1/models/hot-adrenal/versions/99/classify", 404),
        ("/v1/models/hot-etth1/classify", 422),
    ):
        response = await client.post(url, content=npy(mask()))
        assert response.status_code == status
        assert response.json()["error"]


async def test_the_document_describes_bodies_and_answers(client: httpx.AsyncClient) -> None:
    document = (await client.get("/openapi.json")).json()
    operation = document["paths"]["/v1/models/{model}/classify"]["post"]
    assert set(operation["requestBody"]["content"]) == {
        "application/octet-stream",
        "multipart/form-data",
        "application/json",
    }
    example = operation["responses"]["200"]["content"]["application/json"]["example"]
    answer = await classify(client, gzip.compress(nifti(mask())))
    assert set(example) == set(answer)
    assert set(example["predictions"][0]) == set(answer["predictions"][0])
