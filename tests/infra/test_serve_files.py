"""Settings of the Ray Serve application, by options and by the files in infra/, which are what Ray and KubeRay read."""

import argparse
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.ray_serve import options, settings_of
from infra.serving.settings import ClusterSettings, read_settings
from shared.errors import ConfigError
from trainer.commands.serve import add_arguments

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
IMAGE = "${PATCHWORK_IMAGE}"
MODEL = "blt=/data/run/model"


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "kuberay-rayservice.yaml").read_text())


def configs() -> list[dict[str, Any]]:
    text = (INFRA / "kuberay-rayservice.yaml").read_text().replace("${PATCHWORK_MODEL}", MODEL)
    return [
        yaml.safe_load((INFRA / "ray-serve.yaml").read_text()),
        yaml.safe_load(yaml.safe_load(text)["spec"]["serveConfigV2"]),
    ]


@pytest.mark.parametrize("config", configs(), ids=["file", "manifest"])
def test_a_config_fits_the_schema_of_serve_and_its_args_the_settings(config: dict[str, Any]) -> None:
    from ray.serve.schema import ServeDeploySchema

    from infra.serving import application

    (found,) = ServeDeploySchema.model_validate(config).applications
    module, _, name = found.import_path.partition(":")
    assert module == application.__name__
    assert callable(getattr(application, name))
    assert list(read_settings(found.args).paths) == ["blt"]


def test_options_and_a_file_make_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    by_options = settings_of(options().parse_args(["blt=run/model", "--replicas", "2", "--memory", "4"]))
    values = {"models": [f"blt={tmp_path}/run/model"], "min_replicas": 2, "max_replicas": 2, "memory": 4}
    assert by_options == read_settings(values)
    assert {name for name in ClusterSettings.model_fields if name not in vars(options().parse_args(["m"]))} == {
        "min_replicas",
        "created",
    }


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("min_replicas", {"min_replicas": 3, "max_replicas": 2}),
        ("target_ongoing", {"target_ongoing": 65}),
        ("replicas", {"replicas": 2}),
        ("memory", {"memory": 0}),
        ("models", {"models": []}),
        ("blt", {"models": ["blt=run/model"]}),
        ("twice", {"models": ["twice=/a", "twice=/b"]}),
    ],
)
def test_what_is_wrong_in_settings_is_named(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=key):
        read_settings({"models": [MODEL]} | values)


def test_engines_get_every_option_of_the_single_server() -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    given = vars(read_settings({"models": [MODEL]}).engine_options)
    assert vars(parser.parse_args(["m"])).keys() - given.keys() == {"host", "port"}


def test_a_replica_sets_aside_what_it_takes() -> None:
    assert read_settings({"models": [MODEL], "memory": 2, "threads": 4}).actor_options == {
        "num_cpus": 4,
        "memory": 2 << 30,
    }
    assert read_settings({"models": [MODEL], "device": "cuda"}).actor_options == {"num_cpus": 1, "num_gpus": 1}


def test_every_pod_of_the_service_has_image_data_key_and_ports(service: dict[str, Any]) -> None:
    assert (service["apiVersion"], service["kind"]) == ("ray.io/v1", "RayService")
    spec = service["spec"]["rayClusterConfig"]
    assert spec["authOptions"] == {"mode": "token"}
    constraints = (ROOT / "constraints.txt").read_text()
    assert f"\nray=={spec['rayVersion']}\n" in constraints
    (config,) = (config for config in configs() if config["http_options"]["host"] == "0.0.0.0")
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        (container,) = group["template"]["spec"]["containers"]
        (mount,), (volume,) = container["volumeMounts"], group["template"]["spec"]["volumes"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert container["image"] == IMAGE
        assert mount["name"] == volume["name"]
        assert container["resources"]["requests"] == container["resources"]["limits"]
        assert [variable["name"] for variable in container["env"]] == ["PATCHWORK_API_KEY"]
        assert ports["serve"] == config["http_options"]["port"]
        assert group["rayStartParams"]["metrics-export-port"] == str(ports["metrics"])


def test_the_service_has_pods_for_all_its_replicas(service: dict[str, Any]) -> None:
    settings = read_settings(configs()[1]["applications"][0]["args"])
    (workers,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert (workers["minReplicas"], workers["maxReplicas"]) == (settings.min_replicas, settings.max_replicas)
    assert settings.actor_options["num_cpus"] <= int(container["resources"]["limits"]["cpu"])
    assert settings.actor_options["num_cpus"] * 2 > int(container["resources"]["limits"]["cpu"]), "one to a pod"


def test_the_page_lists_every_key_with_its_default() -> None:
    page = (ROOT / "docs" / "serving-cluster.md").read_text()
    for name, field in ClusterSettings.model_fields.items():
        if name != "created":
            row = re.search(rf"^\| `{name}` \|([^|]*)\|", page, re.MULTILINE)
            assert row, name
            if isinstance(field.default, int | float):
                assert float(row[1].strip()) == field.default
