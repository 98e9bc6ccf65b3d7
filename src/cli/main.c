#include "cli/cli.h"

int main(int argc, char **argv)
{
    (void)argc, (void)argv;
    fputs("edgewise: no command\n", stderr);
    return 2;
}
