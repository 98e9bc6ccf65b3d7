"""What concerns the tests together."""
import os


def pytest_collection_modifyitems(items):
    """The table of models comes after all that note something for it. EW_SHARD=I/N leaves the I-th of every N tests, and the table."""
    table = [item for item in items if item.module.__name__ == "test_models_table"]
    others = [item for item in items if item not in table]
    index, n = map(int, os.environ.get("EW_SHARD", "0/1").split("/"))
    items[:] = others[index::n] + table
