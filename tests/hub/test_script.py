import pytest

from lorgnette.errors import LorgnetteError
from lorgnette.hub.script import find_data_urls

URL = "http://host/coco/2014"


@pytest.mark.parametrize(
    "text",
    [
        f'_URLS = {{"train": "{URL}/train.csv.zip", "valid": "{URL}/val.csv.zip"}}',
        f'B = "{URL}/"\nclass A:\n    def f(self):\n        '
        'return {"train": B + "train.csv.zip", "valid": B + "val.csv.zip"}',
        f'B = "{URL}"\nU = dict()\nU = {{"train": f"{{B}}/train.csv.zip", "valid": [f"{{B}}/val.csv.zip"]}}',
    ],
)
def test_addresses_are_read_as_scripts_write_them(text: str) -> None:
    assert find_data_urls(text, where="x.py") == {"train": [f"{URL}/train.csv.zip"], "valid": [f"{URL}/val.csv.zip"]}


def test_addresses_without_a_name() -> None:
    text = (
        f'"""See {URL}/paper.csv"""\nHOME = "http://cocodataset.org/#home"\nT = "{URL}/train.csv"\nV = "{URL}/v.jsonl"'
    )
    assert find_data_urls(text, where="x.py") == {"": [f"{URL}/train.csv", f"{URL}/v.jsonl"]}


def test_nothing_is_executed() -> None:
    text = f'raise SystemExit\nopen("/tmp/bomb", "w")\nU = {{"train": "{URL}/t.csv", "x": __import__("os").getcwd()}}'
    assert find_data_urls(text, where="x.py") == {"train": [f"{URL}/t.csv"]}


@pytest.mark.parametrize(
    "text", ["", "x = 1", "def (", "\0", "(" * 5000, "U = " + "-" * 100_000 + "1", "a" * 10 + "=" * 3]
)
def test_what_cannot_be_read_is_said(text: str) -> None:
    with pytest.raises(LorgnetteError) as raised:
        find_data_urls(text, where="set.py")
    assert "\n" not in str(raised.value)
