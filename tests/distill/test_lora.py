"""A low-rank delta becomes the weights it stands for, on the file it was trained on and on no other."""

import json
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from distill import load_teacher
from distill.engine import LabelPlan, _LabelRun
from distill.errors import CheckpointError, PlanError
from distill.teachers.checkpoints import inspect_checkpoint
from distill.teachers.lora import resize_base
from distill.teachers.opening import bundled_path

Tensors = dict[str, torch.Tensor]


small_sam = SimpleNamespace(**runpy.run_path(str(Path(__file__).with_name("small_sam.py"))))  # tests are no package
QKV = "image_encoder.blocks.1.attn.qkv.weight"
RANK, WIDTH = 2, 32


def saved(folder: Path, tensors: object, name: str) -> Path:
    torch.save(tensors, folder / name)
    return folder / name


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return saved(tmp_path, small_sam.weights(), "base.pth")


def samed(width: int = WIDTH, blocks: int = 3, tokens: int = 6) -> Tensors:
    torch.manual_seed(3)
    factors = {f"w_a_{n:03d}": torch.randn(RANK, width) for n in range(2 * blocks)}
    factors |= {f"w_b_{n:03d}": torch.randn(width, RANK) for n in range(2 * blocks)}
    return factors | {key: value for key, value in small_sam.weights(tokens=tokens).items() if not key.startswith("image_encoder.")}


def weight_of(path: Path, base: Path | None = None, **options: str) -> torch.Tensor:
    return load_teacher(path, base=base, device="cpu", **options).sam.state_dict()[QKV]


def test_a_samed_delta_changes_queries_and_values_of_each_block_in_order(tmp_path: Path, base: Path) -> None:
    delta = samed()
    expected = small_sam.weights()[QKV]
    expected[:WIDTH] += delta["w_b_002"] @ delta["w_a_002"]
    expected[2 * WIDTH :] += delta["w_b_003"] @ delta["w_a_003"]
    assert torch.allclose(weight_of(saved(tmp_path, delta, "lora.pth"), base), expected, atol=1e-5)


def test_a_samed_delta_brings_its_own_decoder_and_answers_all_its_classes(tmp_path: Path, base: Path) -> None:
    teacher = load_teacher(saved(tmp_path, samed(tokens=6), "lora.pth"), base=base, device="cpu")
    assert (teacher.profile.name, teacher.profile.prompts) == ("samed", ())
    assert teacher.predict(torch.rand(50, 40).numpy()).logits.shape == (1, 6, 50, 40)


def test_labelling_refuses_a_teacher_that_takes_no_prompts_before_any_case(tmp_path: Path, base: Path) -> None:
    plan = LabelPlan(classes=(), teacher=str(saved(tmp_path, samed(), "lora.pth")), base=str(base))
    with pytest.raises(PlanError, match=r"lora\.pth \(samed\) segments without prompts.*Use a promptable teacher"):
        _LabelRun(None, plan)._teacher("cpu")  # type: ignore[arg-type]


def test_a_delta_without_its_base_says_what_it_needs(tmp_path: Path) -> None:
    path = saved(tmp_path, samed(), "lora.pth")
    info = inspect_checkpoint(path)
    assert (info.family, info.profile, info.image_size) == ("samed", "samed", 0)
    assert info.details["needs"] == "base: the file it was trained on, a ViT of width 32 with 3 blocks"
    assert info.details["trained prompts"] == "none: it segments without"
    with pytest.raises(CheckpointError, match=r"needs base: the file it was trained on, a ViT of width 32 with 3 blocks\. Name it as base"):
        load_teacher(path)


@pytest.mark.parametrize(("width", "blocks"), [(48, 3), (32, 5)], ids=["too wide", "too deep"])
def test_a_delta_of_another_size_than_its_base_is_refused(tmp_path: Path, base: Path, width: int, blocks: int) -> None:
    path = saved(tmp_path, samed(width, blocks), "lora.pth")
    with pytest.raises(
        CheckpointError, match=rf"fits a ViT of width {width} with {blocks} blocks, but base base.pth has width 32 and 3 blocks"
    ) as caught:
        load_teacher(path, base=base)
    assert "\n" not in str(caught.value)


def test_a_delta_that_lacks_a_factor_is_refused(tmp_path: Path, base: Path) -> None:
    delta = samed()
    del delta["w_b_003"]
    with pytest.raises(CheckpointError, match="w_a_003 and w_b_003 are missing or do not belong together"):
        load_teacher(saved(tmp_path, delta, "lora.pth"), base=base)


def test_a_delta_on_a_base_of_another_family_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, samed(), "lora.pth")
    with pytest.raises(CheckpointError, match=r"base teacher\.safetensors is samdistill's own teacher; deltas are put on a SAM ViT"):
        load_teacher(path, base=bundled_path())


def test_the_fingerprint_covers_the_base(tmp_path: Path, base: Path) -> None:
    path = saved(tmp_path, samed(), "lora.pth")
    changed = small_sam.weights()
    changed["image_encoder.neck.1.bias"] += 1
    prints = {inspect_checkpoint(path, base=b).fingerprint for b in (None, base, saved(tmp_path, changed, "other.pth"))}
    assert len(prints) == 3
    assert load_teacher(path, base=base, device="cpu").fingerprint == inspect_checkpoint(path, base=base).fingerprint


def test_metas_base_of_1024_px_is_brought_to_samed_s_512_and_others_are_left() -> None:
    large, small = small_sam.weights(image_size=1024, window=14), small_sam.weights(image_size=512, window=14)
    resized = resize_base(large)
    assert {key: value.shape for key, value in resized.items()} == {key: value.shape for key, value in small.items()}
    middle = large["image_encoder.blocks.1.attn.rel_pos_h"].reshape(127, -1)
    assert torch.equal(resized["image_encoder.blocks.0.attn.rel_pos_h"], large["image_encoder.blocks.0.attn.rel_pos_h"])
    expected = torch.nn.functional.interpolate(middle.T[None], size=63, mode="linear")[0].T
    assert torch.allclose(resized["image_encoder.blocks.1.attn.rel_pos_h"], expected, atol=1e-6)
    assert resize_base(small) is small


def peft(module: str, rows: int, prefix: str = "base_model.model.", adapter: str = "") -> Tensors:
    torch.manual_seed(4)
    return {
        f"{prefix}{module}.lora_A{adapter}.weight": torch.randn(RANK, WIDTH),
        f"{prefix}{module}.lora_B{adapter}.weight": torch.randn(rows, RANK),
    }


@pytest.mark.parametrize("adapter", ["", ".default"], ids=["saved by peft", "saved with the adapter's name"])
def test_pefts_delta_on_qkv_is_merged_with_the_strength_its_configuration_says(tmp_path: Path, base: Path, adapter: str) -> None:
    delta = peft("image_encoder.blocks.1.attn.qkv", 3 * WIDTH, adapter=adapter)
    save_file(delta, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 8, "use_dora": False, "rank_pattern": {}}))
    a, b = delta.values()
    expected = small_sam.weights()[QKV] + 4 * (b @ a)
    assert torch.allclose(weight_of(tmp_path / "adapter_model.safetensors", base, profile="medsam"), expected, atol=1e-4)


@pytest.mark.parametrize(("module", "start"), [("q", 0), ("k", 32), ("v_proj", 64)])
def test_a_delta_on_one_of_query_key_value_changes_its_third(tmp_path: Path, base: Path, module: str, start: int) -> None:
    delta = peft(f"image_encoder.blocks.1.attn.{module}", WIDTH)
    save_file(delta, tmp_path / "delta.safetensors", metadata={"r": "2", "lora_alpha": "2"})
    a, b = delta.values()
    expected = small_sam.weights()[QKV]
    expected[start : start + WIDTH] += b @ a
    assert torch.allclose(weight_of(tmp_path / "delta.safetensors", base, profile="sam"), expected, atol=1e-5)


def test_tensors_beside_the_factors_replace_those_of_the_base(tmp_path: Path, base: Path) -> None:
    delta = peft("image_encoder.blocks.1.attn.qkv", 3 * WIDTH)
    delta["base_model.model.mask_decoder.modules_to_save.default.iou_token.weight"] = torch.full((1, 32), 3.0)
    save_file(delta, tmp_path / "delta.safetensors", metadata={"r": "2", "lora_alpha": "2"})
    teacher = load_teacher(tmp_path / "delta.safetensors", base=base, profile="sam", device="cpu")
    assert (teacher.sam.mask_decoder.iou_token.weight == 3).all()


def test_a_delta_whose_strength_nothing_tells_is_refused(tmp_path: Path, base: Path) -> None:
    path = saved(tmp_path, peft("image_encoder.blocks.1.attn.qkv", 3 * WIDTH), "delta.pth")
    with pytest.raises(CheckpointError, match=r"does not say how strong its LoRA is\. Put the adapter_config\.json"):
        load_teacher(path, base=base, profile="sam")


def test_a_delta_for_another_width_is_refused(tmp_path: Path) -> None:
    save_file(peft("image_encoder.blocks.1.attn.qkv", 3 * WIDTH), tmp_path / "delta.safetensors", metadata={"r": "2", "lora_alpha": "2"})
    wide = saved(tmp_path, small_sam.weights(width=48, heads=3), "wide.pth")
    with pytest.raises(CheckpointError, match=r"fits a ViT of width 32 with at least 2 blocks, but base wide\.pth has width 48"):
        load_teacher(tmp_path / "delta.safetensors", base=wide, profile="sam")


def test_a_generic_delta_is_ambiguous_about_its_profile(tmp_path: Path, base: Path) -> None:
    save_file(peft("image_encoder.blocks.1.attn.qkv", 3 * WIDTH), tmp_path / "delta.safetensors", metadata={"r": "2", "lora_alpha": "2"})
    with pytest.raises(CheckpointError, match="say profile: sam"):
        load_teacher(tmp_path / "delta.safetensors", base=base)


@pytest.mark.parametrize("key", ["lora_magnitude_vector.weight", "lora_E", "lora_A"], ids=["DoRA", "AdaLoRA", "loralib"])
def test_kinds_of_lora_that_cannot_be_merged_are_refused(tmp_path: Path, base: Path, key: str) -> None:
    delta = peft("image_encoder.blocks.1.attn.qkv", 3 * WIDTH) | {f"image_encoder.blocks.1.attn.qkv.{key}": torch.ones(2, 2)}
    save_file(delta, tmp_path / "delta.safetensors", metadata={"r": "2", "lora_alpha": "2"})
    with pytest.raises(CheckpointError, match="a kind of LoRA that is not merged here"):
        load_teacher(tmp_path / "delta.safetensors", base=base, profile="sam")


def test_a_whole_model_with_samed_s_layers_inside_needs_no_base(tmp_path: Path) -> None:
    tensors = small_sam.weights()
    expected = tensors[QKV].clone()
    block = QKV.removesuffix(".weight")
    for part in ("weight", "bias"):
        tensors[f"{block}.qkv.{part}"] = tensors.pop(f"{block}.{part}")
    torch.manual_seed(5)
    for third, rows in (("q", slice(0, WIDTH)), ("v", slice(2 * WIDTH, None))):
        a, b = torch.randn(RANK, WIDTH), torch.randn(WIDTH, RANK)
        tensors |= {f"{block}.linear_a_{third}.weight": a, f"{block}.linear_b_{third}.weight": b}
        expected[rows] += b @ a
    path = saved(tmp_path, {f"sam.{key}": value for key, value in tensors.items()}, "whole.pth")
    assert inspect_checkpoint(path).family == "lora"
    assert torch.allclose(weight_of(path, profile="sam"), expected, atol=1e-5)


def with_factors(adapter: str = "") -> Tensors:
    """A whole model with peft's factors inside."""
    factors = peft("image_encoder.blocks.1.attn.qkv", 3 * WIDTH, prefix="", adapter=adapter)
    return small_sam.weights() | factors


def test_the_fingerprint_of_a_whole_model_with_factors_inside_covers_their_strength(tmp_path: Path) -> None:
    path = saved(tmp_path, with_factors(), "whole.pth")
    seen = set()
    for alpha in (2, 200):
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": alpha}))
        seen.add(inspect_checkpoint(path).fingerprint)
    assert len(seen) == 2


def test_a_stranger_s_configuration_does_not_scale_samed_s_layers_inside_a_model(tmp_path: Path) -> None:
    tensors = small_sam.weights()
    block, expected = QKV.removesuffix(".weight"), tensors[QKV].clone()
    a, b = torch.ones(RANK, WIDTH), torch.ones(WIDTH, RANK)
    for part in ("weight", "bias"):
        tensors[f"{block}.qkv.{part}"] = tensors.pop(f"{block}.{part}")
    tensors |= {f"{block}.linear_a_q.weight": a, f"{block}.linear_b_q.weight": b}
    path = saved(tmp_path, tensors, "whole.pth")
    alone = inspect_checkpoint(path).fingerprint
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 200}))
    expected[:WIDTH] += b @ a
    assert torch.allclose(weight_of(path, profile="sam"), expected, atol=1e-5)
    assert inspect_checkpoint(path).fingerprint == alone


def test_two_adapters_for_one_weight_are_refused(tmp_path: Path, base: Path) -> None:
    module = "image_encoder.blocks.1.attn.qkv"
    both = peft(module, 3 * WIDTH, adapter=".liver") | peft(module, 3 * WIDTH, adapter=".kidney")
    save_file(both, tmp_path / "delta.safetensors", metadata={"r": str(RANK), "lora_alpha": "2"})
    with pytest.raises(CheckpointError, match="holds more than one adapter for the same weight"):
        load_teacher(tmp_path / "delta.safetensors", base=base, profile="sam")


def test_a_configuration_of_another_rank_than_the_factors_is_refused(tmp_path: Path, base: Path) -> None:
    save_file(peft("image_encoder.blocks.1.attn.qkv", 3 * WIDTH), tmp_path / "d.safetensors", metadata={"r": "16", "lora_alpha": "16"})
    with pytest.raises(CheckpointError, match=r"have rank 2, but the configuration says r = 16"):
        load_teacher(tmp_path / "d.safetensors", base=base, profile="sam")


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        pytest.param("base_model.model.image_encoder.neck.0.lora_A.weight", (RANK, WIDTH, 3, 3), id="a convolution"),
        pytest.param("base_model.model.image_encoder.blocks.1.attn.qkv.lora_A.weight", (WIDTH,), id="one axis only"),
    ],
)
def test_factors_that_are_no_matrices_are_refused_in_words(key: str, shape: tuple[int, ...], tmp_path: Path, base: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": RANK, "lora_alpha": 4}))
    delta = peft("image_encoder.blocks.0.attn.qkv", 3 * WIDTH) | {key: torch.zeros(shape)}
    with pytest.raises(CheckpointError, match="only factors of linear layers are merged here"):
        weight_of(saved(tmp_path, delta, "lora.pth"), base)


def test_a_samed_factor_that_is_no_matrix_is_refused_in_words(tmp_path: Path, base: Path) -> None:
    with pytest.raises(CheckpointError, match="fits a ViT of width 0 with 3 blocks"):
        weight_of(saved(tmp_path, samed() | {"w_a_000": torch.zeros(WIDTH)}, "lora.pth"), base)
