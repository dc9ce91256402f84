"""What every section of a recipe has in common: it says which of its keys affect the result."""

from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, ConfigDict, Field, field_validator

from shared.io.stores.locations import path_of
from shared.settings import Settings, Unit


def _named(path: Any) -> Any:
    if isinstance(path, str) and (not path.strip() or "\0" in path):
        raise ValueError("an empty text names no folder" if not path.strip() else "a path has no NUL character")
    return path_of(path) if isinstance(path, str) else path


Folder = Annotated[Path, BeforeValidator(_named)]
"""A path of this machine that is not empty: that would be the current folder."""
Count = Annotated[int, Field(gt=0, lt=2**53)]
"""Of what a long run may have many of: steps, bytes."""
Steps = Annotated[Count, Unit("steps")]
"""Of the optimizer."""


class Section(Settings):
    """A table of a recipe. What affects the result identifies a run; all else may change as it goes on."""

    model_config = ConfigDict(allow_inf_nan=False)  # they are nothing that a step could use, nor JSON

    affects_result: ClassVar[bool] = True
    """Whether any key of it affects the result."""
    excluded_from_identity: ClassVar[tuple[str, ...]] = ()
    """Keys that do not."""

    @field_validator("*", mode="before")
    @classmethod
    def _unicode(cls, value: Any) -> Any:
        """What is recorded is JSON, and safetensors files can be in no folder whose path is not UTF-8."""
        for text in value.values() if isinstance(value, dict) else (value,):
            if isinstance(text, str | Path) and any("\ud800" <= character <= "\udfff" for character in str(text)):
                raise ValueError(f"{str(text)!r} is not UTF-8")
        return value

    def identity_dict(self) -> dict[str, Any]:
        """The keys that affect the result, as plain JSON; a section inside another answers for itself."""
        values = self.model_dump(mode="json", by_alias=True, exclude=set(self.excluded_from_identity))
        for name in type(self).model_fields:
            section = getattr(self, name)
            if isinstance(section, Section) and name in values:
                values[name] = section.identity_dict()
        return values if self.affects_result else {}
