"""What concerns the tests together."""


def pytest_collection_modifyitems(items):
    """The table of models comes after all that note something for it."""
    items.sort(key=lambda item: item.module.__name__ == "test_models_table")
