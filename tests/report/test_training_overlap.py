"""What a run was trained on is in its manifest; where that is not certain, it is said."""

import json
import shutil
from pathlib import Path

import pytest

from lorgnette.report.manifest import build_manifest, hash_image
from lorgnette.report.training_overlap import find_training_overlap


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in "abcd"]
    for path in paths:
        path.write_bytes(b"image " + path.name.encode())
    return paths


@pytest.fixture
def manifest(images: list[Path], tmp_path: Path) -> Path:
    """Trained on a and b, with c held out."""
    hashes = {str(path): hash_image(path) for path in images[:3]}
    content = build_manifest(seed=0, command=[], image_hashes=hashes, num_training_images=2)
    (tmp_path / "manifest.json").write_text(json.dumps(content))
    return tmp_path / "manifest.json"


def test_copies_of_training_images_are_found(images: list[Path], manifest: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copy(images[1], tmp_path / "elsewhere.png"))
    images[0].rename(tmp_path / "moved.png")
    overlap = find_training_overlap("run", manifest, [(tmp_path / "moved.png",), (images[2],), (images[3], copy)])
    assert (overlap.flags, overlap.summary) == ((True, False, True), "2 of 3 questions")
    [note] = overlap.notes
    assert note.startswith("run was trained on the images of 2 of 3 questions: on these its scores, intervals")
    new = find_training_overlap("run", manifest, [images[2:], images[3:]])
    assert (new.flags, new.summary, new.notes) == ((False, False), "0 of 2 questions", ())


def test_images_of_the_adapter_that_a_run_continues_count(images: list[Path], tmp_path: Path) -> None:
    """Trained on a; the adapter before it on b, or on unknown images."""
    hashes = {str(images[0]): hash_image(images[0])}
    path = tmp_path / "manifest.json"

    def write(earlier: list[str] | None) -> None:
        adapter = {"name": "runs/old", "images": earlier}
        content = build_manifest(seed=0, command=[], image_hashes=hashes, num_training_images=1, adapter=adapter)
        path.write_text(json.dumps(content))

    write([hash_image(images[1])])
    assert find_training_overlap("run", path, [[image] for image in images]).flags == (True, True, False, False)
    write(None)
    unknown = find_training_overlap("run", path, [[image] for image in images])
    assert (unknown.flags, unknown.summary) == (None, "unknown")


def test_questions_without_images_cannot_be_compared(images: list[Path], manifest: Path) -> None:
    overlap = find_training_overlap("run", manifest, [images[2:3], ()])
    assert overlap.flags == (False, False)
    assert overlap.notes == ("run may have been trained on 1 question without images: images alone are compared",)


@pytest.mark.parametrize(
    "content", [None, b"{", b"[]", b'{"images": {"a.png": "0"}}', b'{"images": [], "num_training_images": 1}']
)
def test_what_is_not_certain_is_said(content: bytes | None, images: list[Path], tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    if content is not None:
        path.write_bytes(content)
    overlap = find_training_overlap("run", path, [images])
    assert (overlap.flags, overlap.summary) == (None, "unknown")
    reason = "the manifest of its run does not say what it was trained on"
    assert overlap.notes == (f"run may have been trained on some of these questions: {reason}",)


def test_an_adapter_alone_and_a_missing_image_are_uncertain(manifest: Path, tmp_path: Path) -> None:
    [note] = find_training_overlap("run", None, []).notes
    assert note.endswith("the run that trained it is not here")
    overlap = find_training_overlap("run", manifest, [(tmp_path / "gone.png",)])
    assert overlap.flags is None
    assert "gone.png" in overlap.notes[0]
