"""The README claims no command or folder that is not there."""
import re

import support


def test_readme_names_only_commands_that_exist():
    text = (support.ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## Commands")[1].split("##")[0]
    help_text = support.run_ok("help").decode()
    there = set(re.findall(r"^  ([a-z]+(?: [a-z]+)?)  ", help_text, re.M)) | {"help"}
    claimed = set()
    for cell in re.findall(r"^\| (`.*?) \|", table, re.M):
        claimed |= {match.strip() for match in re.findall(r"`([a-z]+(?: [a-z]+)?)", cell)}
    assert claimed and claimed <= there, claimed - there


def test_documents_link_only_to_files_that_exist():
    for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"):
        for target in re.findall(r"\]\(([^)#:]+)\)", (support.ROOT / name).read_text(encoding="utf-8")):
            assert (support.ROOT / target).exists(), f"{name} links to {target}"
