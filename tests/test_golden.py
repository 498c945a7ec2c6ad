"""Four updates of every preset on csm-tiny give the losses that they gave when `tests/golden/losses.json` was made."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from csm.presets import PRESETS

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("preset", PRESETS)
def test_losses_are_the_stored_ones(make: ModuleType, preset: str, tmp_path: Path) -> None:
    stored = json.loads((GOLDEN / "losses.json").read_text())[preset]
    with make.one_thread():
        found = make.losses(preset, tmp_path)
    assert [record["step"] for record in stored] == list(range(make.STEPS + 1))
    for one, two in zip(stored, found, strict=True):
        assert one.keys() == two.keys()
        assert two == pytest.approx(one, rel=1e-4, abs=1e-4)
