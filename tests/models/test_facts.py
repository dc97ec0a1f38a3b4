"""Every family's facts: the class exists, and no two families share a name."""

import transformers

from lorgnette.models.registry import FAMILIES


def test_the_classes_are_transformers() -> None:
    for model_type, family in FAMILIES.items():
        assert family.model_type == model_type
        config = getattr(transformers, family.class_name).config_class
        assert config.model_type == model_type


def test_no_hub_name_belongs_to_two_families() -> None:
    names = [name for family in FAMILIES.values() for name in family.hub_names]
    assert len(names) == len(set(names)) > 20
    assert all(name.count("/") == 1 for name in names)
