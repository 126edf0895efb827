"""The Triton kernels: in Triton's interpreter against their twins, and compiled for GPUs that are not here."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch

from torch_utils import ops, triton_ops
from training.networks.discriminator import Discriminator, DiscriminatorConfig

triton = pytest.importorskip("triton")

KERNELS = Path(triton_ops.__file__).with_name("triton_kernels.py")
# Relative to the largest value. The interpreter rounds bfloat16 wrongly, so float16 stands for the low types here.
TOLERANCE = {torch.float64: 1e-14, torch.float16: 2e-3}
CASES = [(torch.float64, torch.channels_last), (torch.float16, torch.contiguous_format)]


def load_kernels(monkeypatch, interpret):
    """Returns a fresh copy of the kernels' module: Triton asks for the interpreter when a kernel is defined."""
    monkeypatch.setenv("TRITON_INTERPRET", "1" if interpret else "0")
    spec = importlib.util.spec_from_file_location("kernels_under_test", KERNELS)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def interpreted(monkeypatch):
    """Sends the operations of CPU tensors through the kernels."""
    kernels = load_kernels(monkeypatch, interpret=True)
    monkeypatch.setattr(triton_ops, "_kernels", lambda: kernels)
    monkeypatch.setattr(triton_ops, "usable", lambda x: True)
    monkeypatch.setattr(kernels, "FIR_ROWS", 2)  # the interpreter takes 0.1 ms for every operation of a program
    return kernels


def image(*shape, dtype=torch.float64, layout=torch.contiguous_format):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x.to(dtype, memory_format=layout).requires_grad_()


def twins(monkeypatch, run):
    """Returns what `run` computes without the kernels."""
    with monkeypatch.context() as patch:
        patch.setattr(triton_ops, "usable", lambda x: False)
        return run()


def compare(monkeypatch, operation, x, dtype):
    """Compares value, gradient, and the gradient of a function of the gradient."""

    def run():
        y = operation(x)
        (first,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first * first).sum(), x)
        return y.detach(), first.detach(), second

    for fast, slow in zip(run(), twins(monkeypatch, run), strict=True):
        assert fast.dtype == dtype and fast.stride() == slow.stride()
        torch.testing.assert_close(fast, slow, rtol=0, atol=TOLERANCE[dtype] * float(slow.abs().max()))


@pytest.mark.parametrize(("dtype", "layout"), CASES)
@pytest.mark.parametrize("operation", [ops.downsample, lambda x: ops.blur(x, 2)], ids=["downsample", "blur"])
def test_filters(interpreted, monkeypatch, operation, dtype, layout):
    """With several programs along every axis, and parts of a program that lie outside."""
    monkeypatch.setattr(interpreted, "FIR_TILE", 8)
    monkeypatch.setattr(interpreted, "FIR_CHANNELS", 2)
    compare(monkeypatch, operation, image(1, 3, 4, 6, dtype=dtype, layout=layout), dtype)


@pytest.mark.parametrize(("dtype", "layout"), CASES)
@pytest.mark.parametrize("clamp", [None, 0.7071])
@pytest.mark.parametrize("bias", [None, (0.3, -0.1, 0.0)])
def test_activation(interpreted, monkeypatch, clamp, bias, dtype, layout):
    """With a clamp that the low type does not hold: what it is rounded to still marks what was clamped."""
    monkeypatch.setattr(interpreted, "FLAT_BLOCK", 64)
    added = None if bias is None else torch.tensor(bias, dtype=dtype)
    x = image(2, 3, 5, 6, dtype=dtype, layout=layout)
    compare(monkeypatch, lambda x: ops.lrelu_clamp_(x * 1.0, clamp, added), x, dtype)


def test_activation_writes_over_its_input_and_passes_nan(interpreted):
    x = torch.tensor([[[[1.0, float("nan"), -5.0, 0.0]]]])
    y = ops.lrelu_clamp_(x, 0.5)
    assert y.data_ptr() == x.data_ptr() and y[0, 0, 0].tolist()[2:] == [-0.5, 0.0]
    assert y[0, 0, 0, 0] == 0.5 and y[0, 0, 0, 1].isnan()


def test_bias_learns(interpreted, monkeypatch):
    def run():
        bias = image(3)
        y = ops.lrelu_clamp_(image(2, 3, 4, 4).detach() * 1.0, 0.7, bias)
        return torch.autograd.grad(y.cos().sum(), bias)[0]

    torch.testing.assert_close(run(), twins(monkeypatch, run))


def test_gradients_of_the_activation_by_differences(interpreted):
    x, bias = image(1, 2, 2, 1), image(2)

    def operation(x, bias):
        return ops.lrelu_clamp_(x * 1.0, 0.7, bias)

    assert torch.autograd.gradcheck(operation, (x, bias)) and torch.autograd.gradgradcheck(operation, (x, bias))


def test_discriminator_with_its_penalty(interpreted, monkeypatch):
    """All kernels where they are used: logits, the weights' gradients, and those of R1."""
    torch.manual_seed(0)
    config = DiscriminatorConfig(8, (2, 3), 5, 1, minibatch_std_group=1, conv_clamp=0.5, published_keys=False)
    D = Discriminator(config).double()
    images, labels = image(1, 3, 8, 8).detach(), image(1, 25).detach()

    def run():
        seen = images.clone().requires_grad_()
        logits = D(seen, labels)
        (gradient,) = torch.autograd.grad(logits.sum(), seen, create_graph=True)
        loss = logits.square().sum() + gradient.square().sum()
        return logits, gradient, *torch.autograd.grad(loss, list(D.parameters()))

    for fast, slow in zip(run(), twins(monkeypatch, run), strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-10, atol=1e-12)


def test_the_twins_stay_where_asked(monkeypatch):
    monkeypatch.setenv("SPLATGAN_TRITON", "0")
    triton_ops.reason.cache_clear()
    assert triton_ops.reason() == "switched off (SPLATGAN_TRITON=0)"
    monkeypatch.undo()
    triton_ops.reason.cache_clear()
    assert triton_ops.reason() == "" and not triton_ops.usable(torch.zeros(1, 1, 1, 1))


# ---------------------------------------------------------------- for cards that are not here


def assembly(kernel, pointers, scalars, constants, capability):
    """Compiles a kernel as for dense bfloat16 tensors and sizes that are multiples of 16; returns its PTX."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    signature, places = {}, []
    for place, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            continue
        signature[name] = pointers.get(name) or scalars[name]
        annotated = kernel.params[place].annotation_type  # what a launch passes the argument as, whatever its value
        assert annotated in ("", signature[name]), f"{name} is launched as {annotated}"
        if name in pointers or name != "padding":
            places.append(place)
    source = ASTSource(
        kernel,
        signature,
        constexprs={(kernel.arg_names.index(name),): value for name, value in constants.items()},
        attrs={(place,): [["tt.divisibility", 16]] for place in places},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4})
    assert compiled.asm["cubin"]
    return compiled.asm["ptx"]


@pytest.mark.parametrize("capability", [90])
def test_kernels_compile_with_wide_loads(monkeypatch, tmp_path, capability):
    """16 bytes a thread at a time where channels are dense: narrower loads would leave bandwidth unused."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = load_kernels(monkeypatch, interpret=False)
    wide, low = triton.language.float32, "*bf16"
    flat = {"SLOPE": 0.2, "CLAMP": 181.0, "WIDE": wide, "BLOCK": kernels.FLAT_BLOCK}
    block = kernels.fir_block(512, 64) | {"WIDE": wide}
    sizes = dict.fromkeys(("height", "width", "channels", "rows", "columns", "padding"), "i32")
    cases = {
        "lrelu_clamp": (
            kernels.lrelu_clamp_kernel,
            {"x": low, "bias": low},
            {"n": "i64", "inner": "i32"},
            flat | {"CHANNELS": 64, "CHANNELS_LAST": True, "HAS_BIAS": True},
        ),
        "lrelu_clamp_grad": (
            kernels.lrelu_clamp_grad_kernel,
            dict.fromkeys(("grad", "y", "out"), low),
            {"n": "i64"},
            flat,
        ),
        "fir": (kernels.fir_kernel, {"x": low, "y": low}, sizes, block | {"STRIDE": 1}),
        "fir, stride 2": (kernels.fir_kernel, {"x": low, "y": low}, sizes, block | {"STRIDE": 2}),
        "fir_transpose": (kernels.fir_transpose_kernel, {"x": low, "y": low}, sizes, block),
    }
    for name, (kernel, pointers, scalars, constants) in cases.items():
        ptx = assembly(kernel, pointers, scalars, constants, capability)
        for access in ("ld", "st"):
            assert re.search(rf"{access}\.global[\w.:]*\.v4\.b32", ptx), f"{name}: no {access} of 16 bytes"
            assert not re.search(rf"{access}\.global[\w.:]*\.b16", ptx), f"{name}: {access} of 2 bytes"
