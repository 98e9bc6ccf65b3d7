"""What documents claim of this repository: commands, files, the size of a family."""
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


def test_a_family_costs_less_than_150_lines():
    code = (support.ROOT / "src/model/family.c").read_text(encoding="utf-8")
    hooks = {name: body.count("\n") + 2 for name, body in re.findall(r"^static void (\w+)\(struct ew_shape \*shape\)\n(.*?)^}$", code, re.M | re.S)}
    sizes = {}
    for path in (support.ROOT / "data/families").glob("*.yaml"):
        for table in re.split(r"^(?=(?:- )?family:)", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
            name, hook = (re.search(rf"{key}: (\S+)", table) for key in ("family", "hook"))
            sizes[name.group(1)] = table.count("\n") + (hooks[hook.group(1)] if hook else 0)
    assert len(sizes) >= 49 and max(sizes.values()) < 150, sizes
    text = (support.ROOT / "docs/families.md").read_text(encoding="utf-8")
    largest = sorted(sizes.values())[-2:]
    assert f"with {largest[1]} lines" in text and f"with {largest[0]}, half" in text and f"the {len(sizes)} tables" in text
