"""What a network costs, by its own ops: MACs as torch counts them, and a price or a name for whatever takes time."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

import latency
from halpiee.selection.cost import LatencyCost
from halpiee.selection.limits import resource
from halpiee.structure import Structure, macs, shrink, trace
from halpiee.structure.assemble import assemble
from halpiee.structure.forward import Subject
from halpiee.structure.trace import recorded
from latency.backends.torch.modules import copy_of

from . import nets


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # builders announce other initialisations
        warnings.simplefilter("ignore", UserWarning)
        yield


def counted(model: nn.Module, inputs: tuple[Tensor, ...], *, batched: bool = False) -> int:
    """MACs of convolutions and of products with a matrix, by torch's own counter, two operations each.

    The counter does not see into the fused attention of torch's own layers, which is switched off meanwhile. Batched
    products are those of attention, which are no layers, unless an einsum has written a layer so.
    """
    kinds = {"aten.convolution", "aten.mm", "aten.addmm"} | ({"aten.bmm"} if batched else set())
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(*inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    found = counter.get_flop_counts()["Global"]
    return int(sum(n for op, n in found.items() if str(op) in kinds) // 2)


class Einsums(TorchFunctionMode):
    """Counts MACs of einsums, the product of the sizes of all letters, and of products of three dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.macs = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.einsum:
            sizes: dict[str, int] = {}
            formula = args[0].replace(" ", "")
            for letters, operand in zip(formula.split("->")[0].split(","), args[1:], strict=True):
                sizes |= dict(zip(letters, operand.shape, strict=True))
            self.macs += math.prod(sizes.values())
        if func is torch.matmul and args[0].dim() == 3:
            self.macs += args[0].numel() * args[1].shape[-1]
        return func(*args, **(kwargs or {}))


class Maxout(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, c // 2, 2, h, w).amax(2)


class Gate(nn.Module):
    """A circular gate over channels, by einsum."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.randn(32, 32))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,cd->ndhw", x, self.mix.softmax(0))


class Deformable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        ops = pytest.importorskip("torchvision.ops")
        self.offset, self.conv = nn.Conv2d(32, 18, 3, padding=1), ops.DeformConv2d(32, 32, 3, padding=1)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x, self.offset(x))


class Mixing(nn.Module):
    """Linear layers over the positions of every channel."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, x: Tensor) -> Any:
        return x + self.b(torch.relu(self.a(x.flatten(2)))).view_as(x)


class Computed(nn.Module):
    """A convolution whose weight the input decides."""

    def __init__(self) -> None:
        super().__init__()
        self.make = nn.Linear(32, 32 * 32)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.make(x.mean((0, 2, 3))).view(32, 32, 1, 1))


class Frames(nn.Module):
    """Convolutions over the frames of a film, then over time."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3)
        self.t, self.h = nn.Conv1d(16, 32, 3), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Any:
        n, t = x.shape[:2]
        y = (
            torch.relu(self.b(torch.relu(self.a(x.flatten(0, 1)))))
            .mean((2, 3))
            .view(n, t, -1)
            .transpose(1, 2)
        )
        return self.h(torch.relu(self.t(y)).mean(2))


class Bag(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.EmbeddingBag(20, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.table(x.long().remainder(20)))


def around(block: nn.Module, *, channels: int = 32, stem: int = 32) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, stem, 4, 4),
        block,
        nn.Conv2d(channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


IMAGE = (2, 3, 32, 32)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "maxout": (lambda: around(Maxout(), stem=64), IMAGE),
    "einsum": (lambda: around(Gate()), IMAGE),
    "deformable": (lambda: around(Deformable()), IMAGE),
    "mixing": (lambda: around(Mixing(64)), IMAGE),
    "circular": (lambda: around(nn.Conv2d(32, 32, 3, padding=1, padding_mode="circular")), IMAGE),
    "frames": (Frames, (2, 8, 3, 12, 12)),
    "3d": (
        lambda: nn.Sequential(
            nn.Conv3d(3, 8, 3),
            nn.BatchNorm3d(8),
            nn.ReLU(),
            nn.MaxPool3d(2),
            nn.Conv3d(8, 6, (1, 3, 3), groups=2),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Linear(6, 4),
        ),
        (2, 3, 8, 12, 12),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_macs_of_a_network_are_those_that_torch_counts(case: str) -> None:
    make, shape = CASES[case]
    torch.manual_seed(0)
    model, x = make().eval(), torch.randn(shape)
    structure = trace(model, (x,))
    assert sum(macs(structure).values()) * shape[0] == counted(model, (x,), batched=True)
    assert resource(structure, "macs").dense == sum(macs(structure).values())


class Spectral(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.fft.ifft2(torch.fft.fft2(x)).real
        return found


class Table:
    """1 µs a channel of input and 1,000 a channel of output."""

    def lookup(self, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        return np.asarray(c_in, float) + 1000.0 * np.asarray(c_out, float)

    def measured(self, c_in: np.ndarray, c_out: np.ndarray) -> np.ndarray:
        return np.ones(np.broadcast_shapes(np.shape(c_in), np.shape(c_out)), dtype=bool)


class Tables:
    def table(self, op: latency.Op) -> Table:
        return Table()


@pytest.mark.parametrize("case", CASES)
def test_every_op_has_its_full_cost_at_its_fixed_width(case: str) -> None:
    make, shape = CASES[case]
    structure = trace(make().eval(), (torch.randn(shape),))
    cost = LatencyCost(structure, Tables())
    assert cost.dense_us == sum(t.op.c_in + 1000.0 * t.op.c_out for t in structure.ops)
    assert cost.covered == tuple(f"{t.layer} ({t.op.kind})" for t in structure.ops)
    for timed in structure.ops:
        alone = LatencyCost(replace(structure, ops=(timed,)), Tables())
        assert alone.dense_us == timed.op.c_in + 1000.0 * timed.op.c_out
        if not timed.in_groups:  # its input stays as wide whatever is chosen
            least = {g.name: 1 for g in structure.prunable}
            assert alone.total_us(least) % 1000 == timed.op.c_in


@pytest.mark.parametrize(
    ("make", "shape", "name"),
    [
        (lambda: around(Deformable()), IMAGE, "1.conv (deform_conv2d)"),
        (lambda: around(Computed()), IMAGE, "1 (convolution)"),
        (Bag, (2, 3), "table (embedding_bag_forward_only)"),
        (lambda: around(nn.Softmax2d()), IMAGE, "1 (softmax)"),
        (lambda: around(Spectral()), IMAGE, "1 (fft_c2c)"),
    ],
)
def test_what_takes_time_and_has_no_price_is_named(
    make: Callable[[], nn.Module], shape: tuple[int, ...], name: str
) -> None:
    structure = trace(make().eval(), (torch.rand(shape) * 20,))
    assert name in LatencyCost(structure, Tables()).not_covered
    assert name.split("(")[1][:-1] in structure.details["untimed"]


class Recurrent(nn.Module):
    """Convolutions, then a recurrent layer over the columns of the image."""

    def __init__(self, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.conv, self.rnn, self.head = nn.Conv2d(3, 16, 4, 4), kind(16, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Any:
        columns = torch.relu(self.conv(x)).mean(2).permute(2, 0, 1)
        return self.head(self.rnn(columns)[0])


def test_an_lstm_is_named_as_not_covered_and_the_rest_is_priced() -> None:
    structure = trace(Recurrent(nn.LSTM).eval(), (torch.rand(IMAGE),))
    cost = LatencyCost(structure, Tables())
    assert [name.split(" ")[0] for name in cost.not_covered] == ["rnn"]
    assert cost.covered == ("conv (conv)", "head (linear)")


@pytest.mark.parametrize(("kind", "gates"), [(nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_that_run_as_products_are_priced_at_every_step(
    kind: Callable[..., nn.Module], gates: int
) -> None:
    structure = trace(Recurrent(kind).eval(), (torch.rand(IMAGE),))
    cost = LatencyCost(structure, Tables())
    assert any(name.startswith("rnn") for name in (*cost.covered, *cost.not_covered))
    of_rnn = {n: k for n, k in macs(structure).items() if n.startswith("rnn")}
    assert sum(of_rnn.values()) == 8 * gates * 12 * (16 + 12)  # 8 columns


def test_a_network_of_convs_norms_and_pools_leaves_nothing_out() -> None:
    model = around(nn.Sequential(nn.Conv2d(32, 32, 1), nn.BatchNorm2d(32), nn.ReLU6())).eval()
    cost = LatencyCost(trace(model, (torch.randn(IMAGE),)), Tables())
    assert cost.not_covered == ()
    assert cost.covered == ("0 (conv)", "1.0 (conv)", "2 (conv)", "4 (global_avg_pool)", "6 (linear)")


@pytest.mark.slow
@pytest.mark.timing
def test_a_film_is_priced_from_measured_tables() -> None:
    make, _ = CASES["3d"]
    structure = trace(make().eval(), (torch.randn(1, 3, 8, 12, 12),))
    profile = latency.sweep([t.op for t in structure.ops])
    cost = LatencyCost(structure, profile)
    assert cost.not_covered == ()
    assert cost.dense_us == pytest.approx(
        sum(float(profile.table(t.op).lookup(t.op.c_in, t.op.c_out)) for t in structure.ops)
    )
    narrow = {g.name: 1 for g in structure.prunable}
    assert 0 < cost.total_us(narrow) < cost.dense_us


TORCHVISION = pytest.importorskip("torchvision").models
HUGE = ("vit_h_14", "vit_l_16", "vit_l_32", "regnet_y_128gf")
FILMS = (
    "mc3_18", "r2plus1d_18", "r3d_18", "s3d", "swin3d_t", "swin3d_s", "swin3d_b", "mvit_v1_b", "mvit_v2_s",
)  # fmt: skip
SIZES = {"vit": 224, "maxvit": 224, "inception": 96, "s3d": 224, "mvit": 224}


def names() -> list[str]:
    modules = (TORCHVISION, TORCHVISION.segmentation, TORCHVISION.video)
    found = [n for m in modules for n in TORCHVISION.list_models(m)]
    return [n for n in found if not n.startswith("quantized") and n not in HUGE]


def family(name: str) -> str:
    """The module whose code builds a network; segmentation and video have modules of their own."""
    return str(TORCHVISION.get_model_builder(name).__module__)


def representatives() -> set[str]:
    """The tiny or the first network of every family: its trace runs whole, with its trials at other widths."""
    known = sorted(reversed(names()), key=lambda name: name.endswith(("_t", "_tiny")))
    return {*{family(name): name for name in known}.values()}


@pytest.fixture
def uninitialised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters of any value: their number counts, and drawing them takes longer than a forward."""
    for name, function in vars(nn.init).items():
        if name.endswith("_") and callable(function):
            monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


def untried(model: nn.Module, x: Tensor) -> Structure:
    """The structure of a trace without its trials at other widths: they decide which groups stay, not which ops run."""
    return assemble(recorded(Subject.of(model, (x,))))


def shortened(model: nn.Module) -> nn.Module:
    """Leaves two of blocks that stand behind one another and differ in nothing but their weights."""
    for module in [*model.modules()]:
        if isinstance(module, nn.Sequential | nn.ModuleList):
            kinds = [re.sub(r"StochasticDepth\(.*?\)", "", repr(child)) for child in module]
            for place in range(len(kinds) - 1, 1, -1):
                if kinds[place] == kinds[place - 1] == kinds[place - 2]:
                    del module[place]
    return model


@pytest.mark.slow
@pytest.mark.usefixtures("uninitialised")
@pytest.mark.parametrize("name", names())
def test_macs_of_every_torchvision_network_are_those_that_torch_counts(name: str) -> None:
    backbone = {"weights_backbone": None} if name in TORCHVISION.list_models(TORCHVISION.segmentation) else {}
    model = TORCHVISION.get_model(name, weights=None, **backbone).eval()
    size = next((n for start, n in SIZES.items() if name.startswith(start)), 64)
    x = torch.zeros(1, 3, 16, size, size) if name in FILMS else torch.zeros(1, 3, size, size)
    whole = name in representatives()
    found = macs(trace(model, (x,)) if whole else untried(shortened(model), x))
    of_positions = sum(n for layer, n in found.items() if ".rel_pos_" in layer)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:  # torch counts by shapes alone
        copied = copy_of(model, {id(t): fake.from_tensor(t) for t in [*model.parameters(), *model.buffers()]})
        image = fake.from_tensor(x)
        assert sum(found.values()) - of_positions == counted(copied, (image,))
        if of_positions:  # products with tables of positions, which torch counts as batched
            with Einsums() as einsums, torch.no_grad():
                copied(image)
            assert of_positions == einsums.macs


TIMM = (
    "resnet18d", "skresnet18", "mobilenetv3_small_050", "efficientnet_lite0", "convnext_atto", "mixer_s32_224",
    "deit_tiny_patch16_224", "ghostnet_050", "dpn48b", "hrnet_w18_small", "res2net50_14w_8s", "resmlp_12_224",
    "levit_128s", "edgenext_xx_small",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_macs_of_timms_families_are_those_that_torch_counts(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    size = model.default_cfg["input_size"][-1] if model.default_cfg.get("fixed_input_size") else 64
    x = torch.randn(1, 3, size, size)
    structure = trace(model, (x,))
    assert sum(macs(structure).values()) == counted(model, (x,))


class Mixer(nn.Module):
    """Tolstikhin et al. 2021, equation 1: layers over tokens of each channel, then over channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.tokens = nn.Sequential(nn.Linear(tokens, 10), nn.GELU(), nn.Linear(10, tokens))
        self.channels = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))

    def forward(self, x: Tensor) -> Any:
        x = x + self.tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norms[1](x))


class ByConvolution(nn.Module):
    """Tokens mixed by a convolution of one position, whose channels are the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mix, self.b = nn.Linear(3, 8), nn.Conv1d(6, 6, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.relu(self.mix(torch.sigmoid(self.a(x)))))


CUT = {**nets.PRUNED, "tokens by convolution": (ByConvolution, (2, 6, 3))}
CUT["mixer"] = (
    lambda: nn.Sequential(nn.Linear(3, 8), Mixer(6, 8), Mixer(6, 8), nn.Linear(8, 5)),
    (2, 6, 3),
)


@pytest.mark.parametrize("name", CUT)
def test_macs_at_any_counts_equal_those_that_torch_counts_in_the_cut_network(name: str) -> None:
    builder, shape = CUT[name]
    model, x = builder().eval(), (torch.zeros(shape),)
    structure = trace(model, x)
    for seed in range(3):
        keep = nets.random_keep(structure, seed)
        counts = {group: int(mask.sum()) for group, mask in keep.items()}
        found = counted(shrink(model, structure, keep), x, batched=name == "mixer")
        assert sum(macs(structure, counts).values()) * shape[0] == found
