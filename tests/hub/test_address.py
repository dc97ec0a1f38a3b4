from lorgnette.hub.address import is_source


def test_an_address_is_no_path() -> None:
    assert is_source("hf:x/y")
    assert not is_source("hf")
    assert not is_source("/data/hf:x.csv")
    assert not is_source("coco:captions.json")
