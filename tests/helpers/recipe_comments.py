"""What --plan prints, as a comment at the head of a recipe. Run to write the comments of all recipes anew:

python tests/helpers/recipe_comments.py
"""

from pathlib import Path

from trainer.planning.plan import load_plan
from trainer.planning.report import report

RECIPES = sorted((Path(__file__).parents[2] / "trainer" / "recipes").glob("*.toml"))


def comment(recipe: Path) -> list[str]:
    """The command and its output, line by line."""
    printed = report(load_plan(recipe, [])).splitlines()
    return [f"# torchrun trainer/main.py trainer/recipes/{recipe.name} --plan", *(f"#   {line}" for line in printed)]


def with_comment(recipe: Path) -> str:
    """The recipe's text with that comment after its opening words, in the place of an older one."""
    lines = recipe.read_text().splitlines()
    head = [line for line in lines[: lines.index("[run]")] if not line.startswith(("#   ", "# torchrun "))]
    while head[-1] == "#":
        head.pop()
    return "\n".join([*head, "#", *comment(recipe), *lines[lines.index("[run]") :]]) + "\n"


if __name__ == "__main__":
    for recipe in RECIPES:
        recipe.write_text(with_comment(recipe))
