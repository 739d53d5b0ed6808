"""A recipe in a file of its own: what `salt-sweep tune --recipe` writes and a study's `recipe:` names."""

from __future__ import annotations

from pathlib import Path

from salt.errors import UserError
from sweeps.document import decode, parse_yaml
from sweeps.recipe import Recipe, find_recipe


def recipe_of(name: str, folder: Path) -> Recipe:
    """A recipe by its name, or from a YAML file whose path is relative to `folder`.

    Raises:
        UserError: no such recipe or file, or the file is none: names the field.
    """
    if not name.endswith((".yaml", ".yml")):
        return find_recipe(name)
    path = folder / name
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"recipe: {path}: cannot be read: {error.strerror}") from error
    return decode(parse_yaml(data, path), Recipe, f"{path}: ")
