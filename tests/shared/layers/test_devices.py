"""Accelerators are found by the names that drivers and users give them."""

import pytest

from shared.layers.devices import DEVICES, GIB, find_device


@pytest.mark.parametrize(
    ("called", "name"),
    [
        ("NVIDIA H200", "H200"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100-PCIe"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX-4090"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA L4", "L4"),
        ("h200", "H200"),
    ],
)
def test_a_device_is_found_by_its_name(called, name):
    device = find_device(called)
    assert device is not None and device.name == name  # noqa: PT018


def test_every_device_is_found_by_its_own_name():
    assert all(find_device(device.name) is device for device in DEVICES)
    assert find_device("NVIDIA L40") is None
    assert find_device("cpu") is None


def test_units_are_bytes_and_flops_a_second():
    device = find_device("H200")
    assert device is not None
    assert device.memory == 139 * GIB
    assert device.peak("bfloat16") == 989e12 > device.peak("float32")
