"""The module that an exported folder carries, so that transformers generates with it: one file for each kind of model.

Its text is that of the parts in custom_code/, which are modules here so that they are checked like all others.
"""

import ast
import sys
from functools import cache
from pathlib import Path
from typing import Final

from shared.model_settings import AnyModelSettings, EntropyModelSettings

CUSTOM_CODE = Path(__file__).parent / "custom_code"
_PACKAGE = "shared.interop.custom_code"
PARTS: Final = {
    "blt": ("layers", "ngrams", "entropies", "rules", "pooling", "patches", "causal_lm", "boundaries", "blt"),
    "flat": ("layers", "ngrams", "causal_lm", "flat"),
    "hnet": ("layers", "ngrams", "patches", "causal_lm", "hnet"),
    "megabyte": ("layers", "ngrams", "patches", "causal_lm", "megabyte"),
    "spacebyte": (
        "layers",
        "ngrams",
        "entropies",
        "rules",
        "patches",
        "causal_lm",
        "boundaries",
        "spacebyte",
    ),
}
"""By kind of model, the later ones use the earlier."""
_HEAD = '''\
# Copyright The Patchwork authors. Licensed under the Apache License, Version 2.0 (the "License");
# http://www.apache.org/licenses/LICENSE-2.0
"""{about}

    model = AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True)

gives `{opened}`, which stands last. Patchwork's export-hf wrote this module beside the weights; it
needs torch, numpy and transformers. It is the same for every model of this kind: what yours does not use is here,
too.
"""
'''


def module_kind(settings: AnyModelSettings) -> str:
    """The kind whose module a model opens with: an entropy model is a flat transformer."""
    return "flat" if isinstance(settings, EntropyModelSettings) else settings.kind


def file_name(kind: str) -> str:
    """Of the module in an exported folder."""
    return f"modeling_patchwork_{kind}.py"


def class_name(kind: str) -> str:
    """Of the model in it."""
    return f"Patchwork{kind.capitalize()}ForCausalLM"


def custom_model_type(kind: str) -> str:
    """Of a folder that no class of transformers' own can open."""
    return f"patchwork_{kind}"


def auto_map(kind: str) -> dict[str, str]:
    """What config.json says of the classes that the module has."""
    module = file_name(kind).removesuffix(".py")
    config = class_name(kind).replace("ForCausalLM", "Config")
    return {"AutoConfig": f"{module}.{config}", "AutoModelForCausalLM": f"{module}.{class_name(kind)}"}


@cache
def module_text(kind: str, model_type: str) -> str:
    """The whole module for a kind of model, whose configuration has this type."""
    imports: dict[str, set[str]] = {}
    bodies, told = [], []
    for part in PARTS[kind]:
        source = (CUSTOM_CODE / f"{part}.py").read_text()
        about, imported, body = _taken_apart(source)
        for name, names in imported.items():
            imports.setdefault(name, set()).update(names)
        told.append(about)
        bodies.append(body)
    own = bodies[-1].replace(f'model_type = "{kind}"', f'model_type = "{model_type}"')
    parts = [_comment(what) + body for what, body in zip(told[:-1], bodies)]
    parts.append(f"\n# ---- {class_name(kind)} and what it is made of.\n\n\n{own}")
    head = _HEAD.format(about=told[-1], opened=class_name(kind))
    return "\n".join([head, _import_lines(imports), *parts]).rstrip("\n") + "\n"


def _taken_apart(source: str) -> tuple[str, dict[str, set[str]], str]:
    """The docstring of a module, what it imports from elsewhere (names by module; itself: ""), and the rest."""
    tree, imports, end = ast.parse(source), dict[str, set[str]](), 0
    for node in tree.body[1:]:
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            if not node.module.startswith(_PACKAGE):
                imports.setdefault(node.module, set()).update(_as_written(alias) for alias in node.names)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                imports.setdefault(_as_written(alias), set()).add("")
        else:
            break
        end = node.end_lineno or end
    return ast.get_docstring(tree) or "", imports, "\n".join(source.splitlines()[end:]).strip("\n") + "\n"


def _as_written(alias: ast.alias) -> str:
    return alias.name if alias.asname is None else f"{alias.name} as {alias.asname}"


def _comment(about: str) -> str:
    first, *others = about.splitlines()
    return "\n".join([f"\n# ---- {first}", *(f"# {line}".rstrip() for line in others)]) + "\n\n\n"


def _import_lines(imports: dict[str, set[str]]) -> str:
    """Of the standard library first."""
    groups: tuple[list[str], list[str]] = [], []
    for plain in (True, False):  # "import x" before "from x import y"
        for name in sorted(imports):
            group = groups[name.partition(".")[0] not in sys.stdlib_module_names]
            named = ", ".join(sorted(imports[name] - {""}))
            if plain and "" in imports[name]:
                group.append(f"import {name}")
            elif not plain and named:
                group.append(f"from {name} import {named}")
    return "\n\n".join("\n".join(group) for group in groups if group)
