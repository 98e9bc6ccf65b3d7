// The terminal's raw mode, and the ways out of it.

#include "cli/lineedit_raw.h"

#include <signal.h>
#include <stdlib.h>
#include <termios.h>
#include <unistd.h>

#include "base/assert.h"

// Signals that end the process: the terminal is put back first.
static const int g_fatal[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGHUP, SIGQUIT};

// A signal handler has no other way to know them; written only here.
static struct termios g_saved;
static volatile sig_atomic_t g_raw_fd = -1;
static struct sigaction g_before[EW_COUNT_OF(g_fatal)];

static const char g_paste_on[] = "\x1b[?2004h", g_paste_off[] = "\x1b[?2004l"; // xterm's bracketed paste

static void put_back(void)
{
    int fd = g_raw_fd;

    if (fd < 0)
        return;
    g_raw_fd = -1;
    if (write(fd, g_paste_off, sizeof(g_paste_off) - 1) < 0)
        (void)fd; // the terminal has gone; there is nothing to put back
    tcsetattr(fd, TCSADRAIN, &g_saved);
}

static void on_fatal(int signal_number)
{
    put_back();
    signal(signal_number, SIG_DFL);
    raise(signal_number);
}

static void put_back_at_exit(void)
{
    put_back();
}

bool ew__raw_enter(int fd)
{
    static bool is_registered;
    struct sigaction action = {.sa_handler = on_fatal};
    struct termios raw;

    if (tcgetattr(fd, &g_saved) != 0)
        return false;
    if (!is_registered)
        is_registered = atexit(put_back_at_exit) == 0;
    raw = g_saved;
    raw.c_iflag &= (tcflag_t)~(BRKINT | ICRNL | INPCK | ISTRIP | IXON);
    raw.c_lflag &= (tcflag_t)~(ECHO | ICANON | IEXTEN | ISIG);
    raw.c_cc[VMIN] = 1;
    raw.c_cc[VTIME] = 0;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < EW_COUNT_OF(g_fatal); i++)
        sigaction(g_fatal[i], &action, &g_before[i]);
    g_raw_fd = fd;
    if (tcsetattr(fd, TCSADRAIN, &raw) != 0) {
        ew__raw_leave();
        return false;
    }
    return write(fd, g_paste_on, sizeof(g_paste_on) - 1) > 0;
}

void ew__raw_leave(void)
{
    if (g_raw_fd < 0)
        return;
    put_back();
    for (size_t i = 0; i < EW_COUNT_OF(g_fatal); i++)
        sigaction(g_fatal[i], &g_before[i], NULL);
}
