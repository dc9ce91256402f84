"""A token model in a folder of transformers as a teacher, read into our own blocks: transformers is not needed.

The families are those of `token_models.py`. A text follows bos_token_id, where the model has one, and else
eos_token_id: in its training documents followed the end of another. So the first token has a target like all others. A
window that begins inside a document begins with the same id. After its text a document has eos_token_id, whose
probability is that of the document ending.
"""

from pathlib import Path

import torch
from torch import Tensor

from shared.bpe.encoder import SubwordEncoder
from shared.bpe.folder import load_making
from shared.bpe.imported import read_tokenizer, write_imported
from shared.distillation.targets_folder import TeacherIdentity
from shared.distillation.teacher import CONTEXT, FlatTeacher, Frame, Teacher, TokenTeacher
from shared.errors import IdentityError
from shared.interop.described import Foreign, is_ours, read_json
from shared.interop.names import InteropError
from shared.interop.token_models import CONFIG_FILE, Count, TokenModelBlocks
from shared.io.files.digests import digest, file_sha256
from shared.io.files.path_kinds import model_folder_at
from shared.io.files.scratch import scratch
from shared.layers.blocks import DTYPES, Precision
from shared.model_folder.identity import model_sha256
from shared.model_folder.tensor_header import check_shapes
from shared.model_folder.tensors import TensorFolder
from shared.model_settings import FlatSettings
from shared.models.initialise import without_values
from shared.models.transformer import FlatTransformer
from shared.settings import refused_as
from shared.stack_settings import StackSettings

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"


class _Config(Foreign):
    """What config.json says of ids; of everything else `token_models` reads it."""

    vocab_size: int
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    max_position_embeddings: Count | None = None
    tie_word_embeddings: bool | None = None

    @property
    def ends(self) -> list[int]:
        """Ids that end a document; the first one does here."""
        found = self.eos_token_id
        return [] if found is None else found if isinstance(found, list) else [found]


class TransformersTeacher(TokenTeacher):
    """A causal language model from its folder."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Path | None = None,
        context: int | None = None,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        """Args:
            tokenizer: a folder that `tokenizer --from` has made of that of the model; None: it is made now.
            context: C; None: CONTEXT, or what the model was made for where that is less.
            device: "cpu" or "cuda".
            precision: of its weights and products.

        Raises InteropError with the reason when our blocks cannot compute the same, ModelFileError naming a tensor
        that does not fit, DatasetError for a tokenizer that cannot be taken over, IdentityError for another model's.
        """
        path = folder / CONFIG_FILE
        with refused_as(InteropError, f"{path}: "):
            config = _Config.model_validate(read_json(path))
        encoder, sha256 = _tokenizer_of(folder, tokenizer)
        frame = _frame(config, encoder, path)
        reach = config.max_position_embeddings or CONTEXT
        if context is not None and context > reach:
            raise InteropError(f"{path}: max_position_embeddings is {reach}, so that no window has {context} tokens")
        model = _load(folder, config, DTYPES[precision])
        identity = TeacherIdentity(
            sha256=teacher_sha256(folder),
            vocabulary=config.vocab_size,
            tokenizer=sha256,
            context=context or min(reach, CONTEXT),
        )
        super().__init__(model.to(torch.device(device)), encoder, frame, identity, precision)


def _tokenizer_of(folder: Path, tokenizer: Path | None) -> tuple[SubwordEncoder, str]:
    """The encoder of a model's tokens, and the sha256 of its tokenizer.json as one of ours."""
    path, content = read_tokenizer(folder)
    with scratch("teacher") as made:
        making = write_imported(path, content, made)
        encoder = SubwordEncoder(made)
    if tokenizer is not None and (given := load_making(tokenizer)).identity != making.identity:
        raise IdentityError(
            f"{tokenizer} holds another tokenizer ({given.vocabulary} ids, {given.sha256[:12]}) than that of {folder} "
            f"({making.vocabulary} ids, {making.sha256[:12]}); make that with: pipeline tokenizer --from {folder}"
        )
    return encoder, making.sha256


def _frame(config: _Config, encoder: SubwordEncoder, path: Path) -> Frame:
    """Raises InteropError where ids do not fit the model or the tokenizer."""
    tokens = encoder.subwords.tokens
    if len(more := tokens[config.vocab_size :]) > more.count(None):
        raise InteropError(f"{path}: vocab_size is {config.vocab_size}, but the tokenizer has {len(tokens)} ids")
    if not config.ends:
        raise InteropError(f"{path}: eos_token_id is missing: nothing says how a document ends")
    end = config.ends[0]
    begin = end if config.bos_token_id is None else config.bos_token_id
    for key, number in (("eos_token_id", end), ("bos_token_id", begin)):
        if not 0 <= number < config.vocab_size:
            raise InteropError(f"{path}: {key} is {number}, ids are 0 to {config.vocab_size - 1}")
    if end < len(tokens) and tokens[end] is not None:
        raise InteropError(f"{path}: eos_token_id is {end}, which the tokenizer has for the text {tokens[end]!r}")
    return Frame(begin, begin, end)


def _load(folder: Path, config: _Config, dtype: torch.dtype) -> FlatTransformer:
    """The model in our own module, each tensor in ``dtype`` as soon as it is read.

    Raises InteropError, ModelFileError.
    """
    blocks, tensors = TokenModelBlocks(folder), TensorFolder(folder)
    stack = {name: getattr(blocks.stack, name) for name in StackSettings.model_fields}
    with refused_as(InteropError, f"{folder / CONFIG_FILE}: vocab_size, as "):
        settings = FlatSettings(**stack, vocabulary=config.vocab_size)
    head = EMBEDDING if config.tie_word_embeddings or HEAD not in tensors.names() else HEAD
    ours = {"embedding.weight": EMBEDDING, "norm.weight": NORM, "head.weight": head}
    with without_values():
        model = FlatTransformer(settings)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    names = set(tensors.names())
    held = {theirs: tensors.shape(theirs) for theirs in ours.values() if theirs in names}
    check_shapes(held, {theirs: shapes[name] for name, theirs in ours.items()}, InteropError, f"{folder}: ")

    def rounded(name: str, read: Tensor) -> Tensor:
        if not torch.isfinite(read).all():
            raise InteropError(f"{folder}: {name} has values that are not finite numbers")
        if not torch.isfinite(found := read.to(dtype)).all():
            raise InteropError(f"{folder}: {name} has values that are too large for {dtype}; use --precision float32")
        return found

    read = {theirs: rounded(theirs, tensors.read(theirs)) for theirs in set(ours.values())}
    found = {
        name: read[ours[name]] if name in ours else rounded(name, torch.cat(list(blocks.read(name)))) for name in shapes
    }
    model.load_state_dict(found, strict=True, assign=True)
    if head == EMBEDDING:
        model.head.weight = model.embedding.weight  # one of them, on every device
    return model.eval()


def teacher_sha256(folder: Path) -> str:
    """Of what is read of a token model: of one of ours that of its folder, of others its configuration and the files of
    its tensors. Raises InteropError or ModelFileError.
    """
    if is_ours(read_json(folder / CONFIG_FILE)):
        return model_sha256(folder)
    files = [folder / CONFIG_FILE, *TensorFolder(folder).files()]
    return digest({path.name: file_sha256(path) for path in files})


def open_teacher(
    model: Path,
    tokenizer: Path | None = None,
    context: int | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
) -> Teacher:
    """The teacher in a folder: of transformers, or a model folder or finished run of ours.

    Arguments and errors are those of `TransformersTeacher` and `FlatTeacher`.
    """
    folder = model_folder_at(model)
    ours = is_ours(read_json(folder / CONFIG_FILE))
    return (FlatTeacher if ours else TransformersTeacher)(folder, tokenizer, context, device, precision)
