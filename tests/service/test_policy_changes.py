"""What an update of a category sets, by its mask."""

from google.protobuf.field_mask_pb2 import FieldMask
from nearhit.v1 import resources_pb2 as pb

from service.convert_policy import to_policy_update


def test_update_of_the_whole_policy_leaves_consent_that_it_does_not_name() -> None:
    changed = to_policy_update(pb.Category(threshold=0.3, max_entries=5), FieldMask(), cache="faq").changed
    assert (changed["threshold"], changed["max_entries"]) == (0.3, 5)
    assert "min_probability" not in changed


def test_consent_is_asked_for_and_withdrawn_by_name() -> None:
    asked = to_policy_update(pb.Category(min_probability=0.8), FieldMask(), cache="faq").changed
    assert asked["min_probability"] == 0.8
    named = FieldMask(paths=["min_probability"])
    assert to_policy_update(pb.Category(), named, cache="faq").changed == {"min_probability": None}
