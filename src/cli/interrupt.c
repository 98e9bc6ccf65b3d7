// Ctrl-C: the first asks the command to stop, the second ends the process.

#include <signal.h>
#include <stddef.h>

#include "cli/args.h"

static volatile sig_atomic_t g_interrupts, g_terminated;

static void on_interrupt(int signal_number)
{
    if (signal_number == SIGTERM)
        g_terminated = 1;
    if (++g_interrupts > 1) { // the command did not stop: the second one ends the process as the default action would
        signal(signal_number, SIG_DFL);
        raise(signal_number);
    }
}

bool ew_interrupted(void)
{
    return g_interrupts > 0;
}

bool ew_terminated(void)
{
    return g_terminated;
}

void ew_interrupt_reset(void)
{
    g_interrupts = 0;
}

void ew_interrupt_catch(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};

    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL); // no SA_RESTART: a blocked read returns so that the command can stop
    sigaction(SIGTERM, &action, NULL);
    signal(SIGPIPE, SIG_IGN); // a closed pipe is an error of write, not a death
}
