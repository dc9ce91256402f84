"""A tokenizer's folder: the tokenizer itself, as the `tokenizers` library reads it, and what it was made of.

FOLDER/tokenizer.json  FOLDER/identity.json
"""

from hashlib import sha256
from operator import not_
from pathlib import Path

from pydantic import Field, model_validator

from shared.errors import DatasetError, IdentityError
from shared.io.files.atomic import write_atomic
from shared.io.files.json_reader import read_bounded
from shared.model_settings import MOST_IDS
from shared.patching.settings import LONGEST_PATCH, TokenizerIdentity
from shared.settings import Settings, refused_as

TOKENIZER_FILE, MADE_BY_FILE = "tokenizer.json", "identity.json"
MOST_BYTES = 64 << 20
"""Of tokenizer.json: about 40 bytes an id."""
INSTALL = "byte-pair tokens need the tokenizers library: pip install -e '.[bpe]'"


class TokenizerMaking(Settings):
    """What made a tokenizer (law 7)."""

    trained_on: str = Field(default="", exclude_if=not_)
    """Fingerprint of the training split whose bytes it has seen; it has seen no others."""
    imported_from: str = Field(default="", exclude_if=not_)
    """Of the tokenizer of another model: sha256 of its own tokenizer.json. Then it was not trained here."""
    left_out: tuple[str, ...] = Field(default=(), max_length=1024, exclude_if=not_)
    """What the other tokenizer does to texts and this one does not, in words."""
    vocabulary: int = Field(ge=256, le=MOST_IDS)
    """Ids: those of bytes and special ids, and one for each merge that gives a new token."""
    longest: int = Field(gt=0, le=LONGEST_PATCH)
    """Bytes of its longest token."""
    sha256: str
    """Of tokenizer.json."""
    library: str
    """Version of `tokenizers` that trained it, or checked what was imported."""

    @model_validator(mode="after")
    def _of_one_origin(self) -> "TokenizerMaking":
        if bool(self.trained_on) == bool(self.imported_from):
            raise ValueError("a tokenizer has either trained_on or imported_from")
        return self

    @property
    def identity(self) -> TokenizerIdentity:
        """What datasets record."""
        return TokenizerIdentity(sha256=self.sha256, vocabulary=self.vocabulary, imported=bool(self.imported_from))


def load_making(folder: Path) -> TokenizerMaking:
    """What a tokenizer's folder says about it, its file checked. Raises DatasetError."""
    path = folder / MADE_BY_FILE
    try:
        content, found = read_bounded(path), sha256(read_bounded(folder / TOKENIZER_FILE, MOST_BYTES)).hexdigest()
    except OSError as error:
        missing = Path(error.filename or path).name
        raise DatasetError(
            f"{folder} is not a tokenizer's folder: {missing} cannot be read; python -m pipeline tokenizer makes one, "
            "with --from MODEL of that of a model"
        ) from None
    with refused_as(DatasetError, f"{path}: "):
        making = TokenizerMaking.model_validate_json(content)
    if found != making.sha256:
        raise DatasetError(f"{folder / TOKENIZER_FILE} is damaged: sha256 {found}, {MADE_BY_FILE} says {making.sha256}")
    return making


def check_tokenizer(folder: Path, recorded: TokenizerIdentity) -> None:
    """Raise IdentityError unless the tokenizer in a folder is the recorded one, DatasetError when there is none."""
    if (found := load_making(folder).identity) != recorded:
        raise IdentityError(
            f"{folder} holds another tokenizer ({found.vocabulary} ids, {found.sha256[:12]}) than is recorded "
            f"({recorded.vocabulary} ids, {recorded.sha256[:12]})"
        )


def copy_tokenizer(source: Path, target: Path, recorded: TokenizerIdentity) -> None:
    """Copy a tokenizer's folder. Raises IdentityError unless it is the recorded one, DatasetError if there is none."""
    check_tokenizer(source, recorded)
    for name in (TOKENIZER_FILE, MADE_BY_FILE):
        write_atomic(target / name, (source / name).read_bytes())
