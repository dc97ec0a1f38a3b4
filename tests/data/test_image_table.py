"""Images in flat buffers equal those that were added, in every field."""

import pickle
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lorgnette.data.image_table import ImageTable
from lorgnette.types import Image

PATHS = ["a/1.jpg", "a/2.jpg", "a/b/1.jpg", "/1.jpg", "1.jpg", "/", ".", "é/日.png", "a/\udcff.jpg", "//x/y"]
IMAGES = st.lists(
    st.builds(
        Image,
        st.sampled_from(PATHS).map(Path),
        st.sampled_from(["", "x/1.jpg"]),
        st.sampled_from([None, (2, 3), (3, 2)]),
    ),
    max_size=12,
)


def describe(image: Image) -> tuple[Path, str, tuple[int, int] | None]:
    """All fields, also those that equality leaves out."""
    return image.path, image.written, image.size


@given(IMAGES, IMAGES)
def test_images_come_back_as_they_were(first: list[Image], second: list[Image]) -> None:
    table, other, numbers = ImageTable(), ImageTable(), dict[tuple[object, ...], int]()
    expected = [numbers.setdefault(describe(image), len(numbers)) for image in [*first, *second]]
    found = [table.add(image) for image in first]
    of_other = [other.add(image) for image in second]
    table.drop_lookup()
    moved = table.extend(pickle.loads(pickle.dumps(other)))
    assert [*found, *(moved[number] for number in of_other)] == expected
    assert list(map(describe, table)) == list(map(describe, table[:])) == list(numbers)
    assert list(map(table.get_path, range(len(table)))) == [str(image.path) for image in table]
    first_of_path = dict[Path, int]()
    for number, image in enumerate(table):
        assert table.get_path_number(number) == first_of_path.setdefault(image.path, number)
    assert [table.add(image) for image in [*first, *second]] == expected  # none is added twice


@given(IMAGES)
def test_built_images_are_one_object_each(images: list[Image]) -> None:
    table = ImageTable()
    for image in images:
        table.add(image)
    plain = list(map(describe, table))
    built = table.build_all()
    assert list(map(describe, built)) == plain
    assert all(table[number] is image for number, image in enumerate(built))
    assert list(map(describe, pickle.loads(pickle.dumps(table)))) == plain
    table.add(Image(Path("new.jpg")))
    assert list(map(describe, table)) == [*plain, (Path("new.jpg"), "", None)]


def test_a_changed_field_makes_another_image() -> None:
    table = ImageTable()
    images = [Image(Path("a.jpg")), Image(Path("a.jpg"), "b"), Image(Path("a.jpg"), size=(1, 2)), Image(Path("b.jpg"))]
    assert list(map(table.add, images)) == [0, 1, 2, 3]
    assert [table.get_path_number(number) for number in range(4)] == [0, 0, 0, 3]
