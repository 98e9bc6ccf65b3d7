"""docs/models.md is what the tests before this one saw (models_table.py)."""
import os

import models_table


def test_the_table_is_what_the_tests_saw():
    text = models_table.render(models_table.committed() | models_table.noted)
    if os.environ.get("EW_WRITE_MODELS"):
        models_table.PATH.write_text(text, encoding="utf-8")
    assert models_table.PATH.read_text(encoding="utf-8") == text
