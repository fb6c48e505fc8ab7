"""The constants of processors, as the manifest's reader and the writer of its schema see them."""

from __future__ import annotations

import msgspec
import pytest

from foveate.engines import BundleError
from foveate.engines.format.processors import CONSTANTS, constants_type, read_constants
from foveate.exporter.families import FAMILIES
from foveate.runtime.processors import PROCESSORS


def test_a_family_has_constants_an_exporter_and_a_processor() -> None:
    assert set(CONSTANTS) == set(FAMILIES) == set(PROCESSORS)


@pytest.mark.parametrize("family", CONSTANTS)
def test_a_schema_refuses_what_is_not_in_the_struct(family: str) -> None:
    kind = constants_type(family)
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]
    assert schema["additionalProperties"] is False
    assert {"image_mean", "patch_size", "image_token_id"} <= set(schema["required"]) < set(schema["properties"])


def test_an_unknown_family_is_named() -> None:
    with pytest.raises(BundleError, match=r"family 'phi3_v', this foveate runs llava, .*Update foveate"):
        read_constants("phi3_v", {})
