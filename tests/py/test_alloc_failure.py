"""Every allocation may fail: the program then says so in one sentence, and never crashes."""
import pytest
import support

COMMANDS = [
    ["version"],
    ["run", "-m", "demo", "-p", "Hello", "-n", "2", "--temp", "0"],
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_nth_allocation_fails(command):
    if "demo" in command:
        support.need("models/demo.gguf")
    reached, n = True, 1
    while reached:
        result = support.run(*command, env={"EW_ALLOC_FAIL_AT": str(n)})
        lines = result.stderr.decode().strip().splitlines()
        if result.returncode:
            assert result.returncode == 1 and lines and lines[-1].startswith("edgewise: ")
        # A failure may also be survived (a cache that is done without). Past the last allocation all runs succeed.
        reached = result.returncode != 0 or n < 50
        n += max(1, n // 10)  # the early ones one by one, the many alike of a vocabulary in growing steps
