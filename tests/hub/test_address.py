from lorgnette.hub.address import is_hub_address


def test_an_address_is_no_path() -> None:
    assert is_hub_address("hf:x/y")
    assert not is_hub_address("hf")
    assert not is_hub_address("/data/hf:x.csv")
    assert not is_hub_address("coco:captions.json")
