"""How models call tools, one file for each family; `detect` finds a model's by its chat template."""
