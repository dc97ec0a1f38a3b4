"""The images that are taught: which files count, in which order, under which names, and what is wrong with them."""

import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest

from lorgnette.demo.scenes import draw_scene, sample_scene
from lorgnette.errors import LorgnetteError, UsageError
from lorgnette.report.manifest import hash_image
from lorgnette.teaching.images import ImageList, natural_key, read_images

Draw = Callable[[str], Path]
PROMPT = "What is it?"


@pytest.fixture
def draw(tmp_path: Path) -> Draw:
    """Write another drawn scene to a path below `photos`."""
    rng = random.Random(0)

    def write(name: str) -> Path:
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        scene = draw_scene(sample_scene(rng))
        scene.convert("P" if path.suffix == ".gif" else "RGB").save(path)
        return path

    return write


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return tmp_path / "photos"


def read(source: Path) -> ImageList:
    return read_images(source, PROMPT)


def test_images_in_folders_below_have_names_and_the_order_of_people(draw: Draw, photos: Path) -> None:
    names = ["b10.jpg", "b9.png", "A1.webp", "x/2.tiff", "x/10.bmp", "x/y/1.gif", "é.avif", "UPPER.JPG"]
    paths = {name: draw(name) for name in names}
    for hidden in (".hidden.jpg", ".trash/1.jpg"):
        draw(hidden)
    (photos / "notes.md").write_text("no image")
    images = read(photos)
    assert list(images.names) == [
        "A1.webp", "b9.png", "b10.jpg", "UPPER.JPG", "x/2.tiff", "x/10.bmp", "x/y/1.gif", "é.avif",
    ]  # fmt: skip
    assert list(images.paths) == [paths[name] for name in images.names]
    assert (images.folder, images.prompt, images.broken, images.copies, images.remarks) == (photos, PROMPT, {}, {}, [])
    assert (len(images), images.numbers["x/2.tiff"]) == (8, 4)
    assert (
        images.hash_image(1)
        == hash_image(paths["b9.png"])
        == hashlib.sha256((photos / "b9.png").read_bytes()).hexdigest()[:16]
    )


def test_the_order_depends_on_names_alone() -> None:
    names = ["a", "A", "a1b2", "a1b10", "a01b2", "10", "9", "²", "٣", "x/1", "x-1"]
    expected = sorted(names, key=natural_key)
    for seed in range(5):
        assert sorted(random.Random(seed).sample(names, len(names)), key=natural_key) == expected
    assert [name for name in expected if name in ("9", "10", "a1b2", "a1b10")] == ["9", "10", "a1b2", "a1b10"]


def test_a_heic_image_counts(photos: Path) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    photos.mkdir()
    PIL.Image.new("RGB", (64, 64), "red").save(photos / "phone.heic")
    assert list(read(photos).names) == ["phone.heic"]


def test_a_run_inside_the_folder_is_not_taught(draw: Draw, photos: Path) -> None:
    draw("1.png")
    draw("runs/old/images/2.png")
    for name in ("config.yaml", "log.jsonl"):
        (photos / "runs" / "old" / name).touch()
    assert list(read(photos).names) == ["1.png"]


def test_images_of_one_content_are_one(draw: Draw, photos: Path) -> None:
    content = draw("a/1.png").read_bytes()
    draw("b.png")
    for name in ("a/2.png", "c/0.png"):
        (photos / name).parent.mkdir(exist_ok=True)
        (photos / name).write_bytes(content)
    images = read(photos)
    assert list(images.names) == ["a/1.png", "b.png"]
    assert images.copies == {"a/2.png": 0, "c/0.png": 0}
    assert images.remarks == ["2 files are copies of another, asked about once: a/2.png is a/1.png, c/0.png is a/1.png"]
    assert [images.find_number(photos / name) for name in ("c/0.png", "b.png", "d.png")] == [0, 1, None]
    assert images.find_number(photos / "a" / ".." / "b.png") == 1


def test_broken_images_stay_with_words(draw: Draw, photos: Path) -> None:
    draw("1.png")
    cut = draw("2.png")
    cut.write_bytes(cut.read_bytes()[:-200])
    (photos / "3.jpg").write_text("<html>not found</html>")
    (photos / "4.jpg").touch()
    images = read(photos)
    assert list(images.names) == ["1.png", "2.png", "3.jpg", "4.jpg"]
    assert images.broken.keys() == {1, 2, 3}
    assert "cannot be decoded" in images.broken[1]
    assert images.broken[2] == "a web page (HTML or XML), not an image"
    assert all(images.broken.values())


def test_a_pipe_and_a_link_to_nothing_are_broken(draw: Draw, photos: Path) -> None:
    """And nothing waits for the pipe, which would be for ever."""
    draw("a.png")
    os.mkfifo(photos / "pipe.png")
    (photos / "dead.png").symlink_to(photos / "gone.png")
    images = read_images(photos, "What?")
    problems = {"dead.png": "image is a link to a file that is missing", "pipe.png": "not an ordinary file"}
    assert {images.names[number]: problem for number, problem in images.broken.items()} == problems
    assert [bool(images.hash_image(number)) for number in range(3)] == [True, False, False]


def test_a_name_that_is_not_utf8_is_broken_and_can_be_written(draw: Draw, photos: Path) -> None:
    draw("1.png")
    name = b"caf\xe9.png"
    try:
        (photos / "1.png").rename(Path(str(photos)) / name.decode("utf-8", "surrogateescape"))
    except OSError:
        pytest.skip("the file system takes only UTF-8")
    draw("2.png")
    images = read(photos)
    assert list(images.names) == ["2.png", "caf\\udce9.png"]
    assert images.broken == {1: "the name of its file is not UTF-8"}


def test_an_image_that_is_too_narrow_is_broken_if_it_keeps_its_shape(draw: Draw, photos: Path) -> None:
    draw("1.png")
    PIL.Image.new("RGB", (900, 3)).save(photos / "2.png")
    assert read(photos).broken == {}
    assert read_images(photos, PROMPT, keeps_shape=True).broken.keys() == {1}


def test_look_alikes_are_those_of_check(draw: Draw, photos: Path) -> None:
    """A smaller copy and one in another format look like the first; another scene does not."""
    with PIL.Image.open(draw("1.png")) as image:
        image.resize((170, 170)).save(photos / "3.png")
        image.save(photos / "4.jpg", quality=80)
    draw("2.png")
    (photos / "5.png").write_text("broken")
    images = read(photos)
    images.find_look_alikes(lambda: True)
    assert images.alike == {}
    images.find_look_alikes()
    assert images.alike == {2: 0, 3: 0}


@pytest.mark.parametrize("name", ["empty", "texts"])
def test_a_folder_without_images(name: str, photos: Path) -> None:
    folder = photos / name
    folder.mkdir(parents=True)
    if name == "texts":
        (folder / "notes.txt").touch()
    with pytest.raises(LorgnetteError) as caught:
        read(folder)
    assert str(caught.value) == (
        f"No images in {folder}/. JPEG, PNG, WebP, HEIC, TIFF, GIF, BMP and AVIF are looked for, in folders below too."
    )
    assert caught.value.exit_status == 1


def test_a_folder_of_broken_images_alone(photos: Path) -> None:
    photos.mkdir()
    (photos / "1.png").write_text("broken")
    with pytest.raises(LorgnetteError, match="none of 1 images can be read"):
        read(photos)


def test_captions_beside_the_images_are_named(draw: Draw, photos: Path) -> None:
    draw("1.png")
    (photos / "1.txt").write_text("a caption")
    [remark] = read(photos).remarks
    assert remark == f"captions beside the images are not read; as answers given before: --captions {photos}"


def test_a_data_file_without_answers(draw: Draw, photos: Path) -> None:
    for name in ("x/1.png", "x/2.png", "y/3.png"):
        draw(name)
    (photos / "2.csv").write_text("image_path\nx/2.png\ny/3.png\n")
    images = read(photos / "2.csv")
    assert (list(images.names), images.folder, images.prompt) == (["x/2.png", "y/3.png"], photos, PROMPT)
    (photos / "3.csv").write_text("image_path,caption\nx/2.png,\ny/3.png,\n")
    assert list(read(photos / "3.csv").names) == ["x/2.png", "y/3.png"]
    (photos / "1.jsonl").write_text(
        '{"messages":[{"role":"user","content":"<image>How many?"}],"images":["x/1.png"]}\n'
    )
    images = read(photos / "1.jsonl")
    assert (list(images.names), images.prompt) == (["x/1.png"], "How many?")
    assert list(read(photos / "x" / "1.png").names) == ["1.png"]


ROW = '{{"messages":[{{"role":"user","content":"{}"}}{}],"images":[{}]}}\n'
ANSWER = ',{"role":"assistant","content":"a cat"}'


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (ROW.format("<image>?", ANSWER, '"1.png"'), "a row has an answer already", "--captions"),
        (ROW.format("<image><image>?", "", '"1.png","2.png"'), "a row has 2 images, not one", "a row of its own"),
        (
            ROW.format("<image>Who?", "", '"1.png"') + ROW.format("<image>Where?", "", '"2.png"'),
            "the rows have several questions",
            "as --prompt",
        ),
        (ROW.format("<image>?", "", '"missing.png"'), "missing.png", "fix or remove"),
        ("", "no row in this file", "a folder of images"),
    ],
)
def test_data_that_cannot_be_taught(text: str, message: str, hint: str, draw: Draw, photos: Path) -> None:
    draw("1.png")
    draw("2.png")
    (photos / "rows.jsonl").write_text(text)
    with pytest.raises(LorgnetteError) as caught:
        read(photos / "rows.jsonl")
    assert message in caught.value.message
    assert hint in str(caught.value.hint)


def test_a_damaged_image_of_a_row_stays_and_a_missing_source_is_an_error(draw: Draw, photos: Path) -> None:
    draw("1.png")
    (photos / "2.png").write_text("broken")
    (photos / "rows.csv").write_text("image_path\n2.png\n1.png\n")
    images = read(photos / "rows.csv")
    assert (list(images.names), list(images.broken)) == (["2.png", "1.png"], [0])
    with pytest.raises(LorgnetteError, match="does not exist"):
        read(photos / "missing.csv")


def test_other_folders_are_called_what_they_are(photos: Path) -> None:
    photos.mkdir()
    (photos / "model.safetensors").touch()
    with pytest.raises(UsageError, match="a model, not images"):
        read(photos)
