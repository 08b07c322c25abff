"""The paper's ablations: variants of a recipe, trained from the first stage that differs."""
