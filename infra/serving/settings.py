"""What a Ray Serve application serves, with how many replicas, and how much each takes. Free of Ray and torch."""

import argparse
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from shared.errors import ConfigError
from shared.settings import Settings, Unit, first_problem
from trainer.commands.serve import named_models

MIB, GIB = 1 << 20, 1 << 30


class ClusterSettings(Settings):
    """The ``args`` of an application in a Serve config."""

    models: tuple[str, ...] = Field(min_length=1, max_length=64)
    """MODEL or NAME=MODEL, as `python -m trainer serve` takes them: paths that are the same on every machine. Each
    replica holds all of them."""
    min_replicas: int = Field(default=1, ge=1, le=4096)
    max_replicas: int = Field(default=1, ge=1, le=4096)
    ingresses: int = Field(default=1, ge=1, le=256)
    """Processes that take requests and hand them to replicas."""
    target_ongoing: Annotated[float, Unit("requests")] = Field(default=16, gt=0, allow_inf_nan=False)
    """Of one replica, written and waiting: with more of them replicas are added, with fewer they are taken away."""
    max_ongoing: Annotated[int, Unit("requests")] = Field(default=64, ge=1)
    """Of one replica at most. The others wait in the ingress, where no replica's death reaches them."""
    queue: Annotated[int, Unit("requests")] = Field(default=128, ge=1)
    """That may wait in each ingress; what comes then is refused with 429."""
    memory: Annotated[float, Unit("GiB")] = Field(default=2.0, ge=0.001, allow_inf_nan=False)
    """Of each replica for requests and kept prefixes, beside the weights."""
    prefix_cache: Annotated[float | None, Unit("GiB")] = Field(default=None, ge=0, allow_inf_nan=False)
    """Of it, for prefixes; None: a quarter."""
    max_batch: Annotated[int, Unit("texts")] = Field(default=32, ge=1, le=4096)
    """Written at once by one replica for each model."""
    timeout: Annotated[float, Unit("seconds")] = Field(default=600.0, ge=0.001, allow_inf_nan=False)
    """For a request, from its arrival at the ingress."""
    max_body: Annotated[float, Unit("MiB")] = Field(default=8.0, ge=0.001, allow_inf_nan=False)
    grace: Annotated[float, Unit("seconds")] = Field(default=30.0, ge=0, allow_inf_nan=False)
    """In which a replica that is taken away may finish its requests."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto is as of `python -m trainer serve`; a replica is given a GPU for cuda alone."""
    threads: int | None = Field(default=None, ge=1)
    """Of each replica and model; None: those that the model was trained with. So many CPUs are asked for."""
    weights: Literal["float32", "bfloat16", "int8"] = "float32"
    """As --weights of `python -m trainer serve`."""
    api_key_file: str | None = None
    """On every machine with an ingress. Else the variable PATCHWORK_API_KEY of their environment."""
    created: Annotated[int, Unit("seconds since 1970")] = Field(default=0, ge=0)
    """What /v1/models says, alike in all replicas."""

    @model_validator(mode="after")
    def _agree(self) -> "ClusterSettings":
        if self.max_replicas < self.min_replicas:
            raise ValueError(f"max_replicas is {self.max_replicas}, less than min_replicas, {self.min_replicas}")
        if self.target_ongoing > self.max_ongoing:
            # A replica would never have so many, and none would ever be added.
            raise ValueError(f"target_ongoing is {self.target_ongoing:g}, more than max_ongoing, {self.max_ongoing}")
        return self

    @property
    def paths(self) -> dict[str, Path]:
        """The models by their names. Raises ConfigError."""
        return named_models(self.models)

    @property
    def engine_options(self) -> argparse.Namespace:
        """What `opened_engines` reads."""
        # An engine's own queue holds whatever Serve lets in, each with many prompts at most.
        queue = max(self.max_ongoing, 128)
        return argparse.Namespace(**self.model_dump() | {"queue": queue})

    @property
    def actor_options(self) -> dict[str, Any]:
        """What Ray sets aside for a replica, so that a machine gets no more of them than it has room for."""
        options: dict[str, Any] = {"num_cpus": (self.threads or 1) * len(self.models)}
        if self.device == "cuda":
            return options | {"num_gpus": 1}
        return options | {"memory": int(self.memory * GIB)}

    @property
    def autoscaling(self) -> dict[str, Any]:
        """How Serve chooses the number of replicas."""
        return {
            "min_replicas": self.min_replicas,
            "initial_replicas": self.min_replicas,
            "max_replicas": self.max_replicas,
            "target_ongoing_requests": self.target_ongoing,
        }


def read_settings(values: dict[str, Any]) -> ClusterSettings:
    """Settings from the ``args`` of a Serve config. Raises ConfigError that names the key."""
    try:
        settings = ClusterSettings.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_problem(error)) from None
    for name, path in settings.paths.items():
        if not os.path.isabs(path):
            raise ConfigError(f"models: {name}: {path} is not an absolute path, which all machines would read alike")
    return settings
