"""Matrices in bfloat16 and int8: the products that their formats define, row by row, and nothing else changed."""

import pytest
import torch
from helpers.model_examples import any_model, blt, hnet_settings
from torch import Tensor, nn

from shared.errors import ConfigError
from shared.incremental import DecodingState
from shared.layers.blocks import Linear
from shared.layers.weight_formats import BFLOAT16, INT8, WeightFormat, cache_dtype, convert_weights
from shared.models.blt import Blt
from shared.patching import PatchingSettings
from shared.vocabulary import BOS

NEEDED = {"bfloat16": BFLOAT16, "int8": INT8}
FORMATS: tuple[WeightFormat, ...] = ("bfloat16", "int8")


def needs(weight_format: WeightFormat) -> None:
    known = torch.cpu.get_capabilities()
    if not any(known.get(feature) for feature in NEEDED[weight_format]):
        pytest.skip(f"needs a processor with one of {', '.join(NEEDED[weight_format])}")


def converted(layer: Linear, weight_format: WeightFormat) -> nn.Module:
    needs(weight_format)
    return convert_weights(nn.Sequential(layer), weight_format, smallest=0)[0]


def layer(inputs: int = 96, outputs: int = 40, bias: bool = False) -> Linear:
    torch.manual_seed(1)
    made = Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        made.weight[3] *= 100  # outputs have scales of their own
    return made


def some_rows(count: int, inputs: int = 96) -> Tensor:
    torch.manual_seed(2)
    return torch.randn(count, inputs) * torch.logspace(-3, 3, count)[:, None]


@torch.inference_mode()
def test_a_bfloat16_product_is_that_of_rounded_factors() -> None:
    plain = layer()
    weight, x = plain.weight.bfloat16().double(), some_rows(5)
    found = converted(plain, "bfloat16")(x)
    wanted = x.bfloat16().double() @ weight.t()
    assert found.dtype == torch.float32
    # The result is rounded once more; what cancels is bounded by the sum of sizes.
    bound = 2**-8 * wanted.abs() + 2**-20 * (x.abs().double() @ weight.abs().t())
    assert ((found - wanted).abs() <= bound).all()


@torch.inference_mode()
@pytest.mark.parametrize("inputs", [96, 128, 256, 704])  # for some of them signed integers have no fast product
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_an_int8_product_is_that_of_integers_with_a_scale_for_each_row_and_output(rows: int, inputs: int) -> None:
    plain, x = layer(inputs), some_rows(rows, inputs)
    of_x, of_weight = (values.abs().amax(1) / 127 for values in (x, plain.weight))
    integers = (x / of_x[:, None]).round().double() @ (plain.weight / of_weight[:, None]).round().double().t()
    found = converted(plain, "int8")(x)
    torch.testing.assert_close(found.double(), integers * of_x[:, None] * of_weight, rtol=1e-6, atol=0)


@torch.inference_mode()
@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_bias_is_added_as_it_is(weight_format: WeightFormat) -> None:
    plain, x = layer(bias=True), some_rows(3)
    assert plain.bias.abs().min() > 0
    product, without = converted(plain, weight_format), converted(layer(), weight_format)
    torch.testing.assert_close(product(x) - plain.bias, without(x), rtol=1e-5, atol=1e-5)
    base = some_rows(3, 40)
    torch.testing.assert_close(product.onto(base, x, times=2), 2 * base + product(x))


@torch.inference_mode()
@pytest.mark.parametrize("weight_format", FORMATS)
def test_rows_do_not_depend_on_each_other(weight_format: WeightFormat) -> None:
    product, x = converted(layer(), weight_format), some_rows(9)
    alone = torch.cat([product(row[None]) for row in x])
    together = product(x)
    if weight_format == "int8":
        assert torch.equal(alone, together)
    else:
        assert ((alone - together).abs() <= 2**-7 * together.abs().amax(1, keepdim=True)).all()
    base = some_rows(9, 40)
    torch.testing.assert_close(product.onto(base, x, times=2), 2 * base + together)
    torch.testing.assert_close(product(x.view(3, 3, -1)).flatten(0, 1), together)


@torch.inference_mode()
@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_row_of_zeros_gives_zeros(weight_format: WeightFormat) -> None:
    assert not converted(layer(), weight_format)(torch.zeros(2, 96)).any()


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_converted_model_keeps_its_head_and_writes_nearly_the_same(weight_format: WeightFormat) -> None:
    needs(weight_format)
    rule, ids = PatchingSettings(rule="static", stride=4), torch.randint(4, 260, (1, 60))
    ids[0, 0] = BOS
    plain, small = blt().eval(), convert_weights(blt().eval(), weight_format, smallest=0)
    assert isinstance(small, Blt)
    assert isinstance(small.decoder.head, Linear)
    assert not isinstance(small.global_.blocks[0].qkv, Linear)
    first, second = (DecodingState(model, rule).advance(ids).logits for model in (plain, small))
    assert 0 < (first - second).abs().max() < 0.05 * first.abs().max()
    if cache_dtype(small, torch.float32) == torch.bfloat16:
        assert cache_dtype(plain, torch.float32) == torch.float32


def test_the_router_of_a_model_that_finds_its_patches_stays_exact() -> None:
    needs("int8")
    model = convert_weights(any_model(hnet_settings()).eval(), "int8", smallest=0)
    assert {type(module) for name, module in model.named_modules() if name in ("router.query", "router.key")} == {
        Linear
    }


@pytest.mark.parametrize("weight_format", FORMATS)
def test_a_processor_without_such_products_is_told(
    weight_format: WeightFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", dict)
    with pytest.raises(ConfigError, match=weight_format):
        convert_weights(blt(), weight_format)


def test_small_matrices_stay_as_they_are() -> None:
    needs("int8")
    both = nn.Sequential(layer(512, 256), layer(512, 255))
    assert [type(one) is Linear for one in convert_weights(both, "int8")] == [False, True]


def test_fp32_changes_nothing() -> None:
    model = blt()
    assert convert_weights(model, "float32") is model
    assert isinstance(model.global_.blocks[0].qkv, Linear)
