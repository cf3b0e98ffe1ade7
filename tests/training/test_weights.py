"""Weights of other files and names are fitted by name, and everything that is done to them is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from halpiee.errors import UsageError
from halpiee.training.checkpoint import save_weights
from halpiee.training.weights import fitted_to, read_weights
from halpiee.zoo import build


def net(classes: int = 10, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build("resnet20", width=0.25, num_classes=classes)


def fitted(model: nn.Module, given: dict[str, Tensor], **options: bool) -> tuple[str, ...]:
    found = fitted_to(model, given, name="w.pth", network="resnet20", **options)
    found.into(model)
    return found.notes


@pytest.mark.parametrize(
    "wrapped", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {"epoch": 3, "model": s}]
)
@pytest.mark.parametrize("prefix", ["", "module.", "model.", "_orig_mod.module."])
def test_a_state_dict_comes_back_out_of_wrappers_and_from_under_prefixes(
    wrapped: Any, prefix: str, tmp_path: Path
) -> None:
    given = net(seed=1).state_dict()
    torch.save(wrapped({prefix + key: value for key, value in given.items()}), tmp_path / "w.pth")
    model = net()
    notes = fitted(model, read_weights(str(tmp_path / "w.pth"), "resnet20"))
    assert all(torch.equal(value, given[key]) for key, value in model.state_dict().items())
    assert len(notes) == prefix.count(".")
    assert all(f"{part}.'" in note for part, note in zip(prefix.split("."), notes, strict=False))


def test_safetensors_are_read_as_before(tmp_path: Path) -> None:
    given = net(seed=1).state_dict()
    save_weights(tmp_path / "w.safetensors", given)
    found = read_weights(str(tmp_path / "w.safetensors"), "resnet20")
    assert all(torch.equal(found[key], value) for key, value in given.items())


def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"state_dict": Bomb()}, tmp_path / "w.pth")
    with pytest.raises(
        UsageError, match=r"cannot be read as a state dict .*it may hold code, which is not run"
    ):
        read_weights(str(tmp_path / "w.pth"), "resnet20")
    assert not (tmp_path / "exploded").exists()


def test_a_head_of_other_classes_is_drawn_anew_where_that_is_asked(tmp_path: Path) -> None:
    given, model = net(classes=7, seed=1).state_dict(), net()
    with pytest.raises(
        UsageError, match=r"in its head alone \(fc\.weight is \[7, 16\] there and \[10, 16\] here\)"
    ):
        fitted(model, given)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert fitted(model, given, reset_head=True) == ("the head fc is drawn anew: it was of another size",)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key.startswith("fc.") else given[key])


def test_other_layers_of_another_size_or_name_do_not_fit() -> None:
    wide = build("resnet20", width=0.5, num_classes=10).state_dict()
    for reset in (False, True):
        with pytest.raises(UsageError, match=r"does not fit resnet20 \(size mismatch for conv1\.weight"):
            fitted(net(), wide, reset_head=reset)
    lacking = {key: value for key, value in net().state_dict().items() if key != "conv1.weight"}
    with pytest.raises(UsageError, match=r"Missing key\(s\) in state_dict: 'conv1\.weight'"):
        fitted(net(), lacking)
    with pytest.raises(UsageError, match=r"Unexpected key\(s\) in state_dict: 'more'"):
        fitted(net(), {**net().state_dict(), "more": torch.zeros(1)})


def test_names_of_torchvision_are_read_from_its_cache_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(
        UsageError, match=r"no cache on this machine has them \(.*squeezenet1_1-.*\.pth\); fetch them"
    ):
        read_weights("IMAGENET1K_V1", "squeezenet1_1")
    (tmp_path / "checkpoints").mkdir()
    torch.manual_seed(1)
    given = build("squeezenet1_1").state_dict()
    torch.save(given, tmp_path / "checkpoints/squeezenet1_1-b8a52dc0.pth")
    found = read_weights("SqueezeNet1_1_Weights.IMAGENET1K_V1", "squeezenet1_1")
    assert torch.equal(found["classifier.1.weight"], given["classifier.1.weight"])
    model = build("squeezenet1_1", num_classes=3)
    notes = fitted_to(model, found, name="IMAGENET1K_V1", network="squeezenet1_1", reset_head=True).notes
    assert notes == ("the head classifier.1 is drawn anew: it was of another size",)


def test_timm_pretrained_is_what_timm_gives_a_network_and_is_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("timm")
    import huggingface_hub

    given = {"fc.weight": torch.arange(6.0).reshape(2, 3)}
    save_file(given, tmp_path / "model.safetensors")
    cache = {("timm/resnet18.a1_in1k", "model.safetensors"): str(tmp_path / "model.safetensors")}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *asked: cache.get(asked))
    found = read_weights("timm:pretrained", "timm/resnet18")
    assert torch.equal(found["fc.weight"], given["fc.weight"])
    with pytest.raises(
        UsageError, match=r"no cache on this machine has them \(model.safetensors of timm/resnet34\."
    ):
        read_weights("timm:pretrained", "timm/resnet34")


def test_a_name_that_is_none_is_a_missing_file() -> None:
    with pytest.raises(UsageError, match="weights NO_SUCH were asked for, and there is no such file"):
        read_weights("NO_SUCH", "squeezenet1_1")
