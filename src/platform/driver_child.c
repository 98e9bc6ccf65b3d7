#include "platform/driver_child.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"

void ew_say_number(FILE *to, const char *key, double value)
{
    fprintf(to, "%s=n:%.17g\n", key, value);
}

void ew_say_text(FILE *to, const char *key, const char *value)
{
    fprintf(to, "%s=s:%s\n", key, value);
}

static _Noreturn void child(int fd, void (*say)(FILE *to))
{
    FILE *to = fdopen(fd, "w");

    if (to) {
        setvbuf(to, NULL, _IOLBF, 0); // a line said before a hang still arrives
        say(to);
        fclose(to);
    }
    _exit(0); // a forked child must not run the parent's exit handlers
}

// Reads until the child closes the pipe or the time is over; true where it finished in time.
static bool read_report(int fd, double limit_s, char *text, size_t size)
{
    double end_s = ew_clock_s() + limit_s;
    size_t len = 0;
    bool finished = false;

    while (!finished && len + 1 < size && ew_clock_s() < end_s) {
        struct pollfd wait = {.fd = fd, .events = POLLIN};
        ssize_t got;

        if (poll(&wait, 1, 50) <= 0)
            continue;
        got = read(fd, text + len, size - 1 - len);
        finished = got == 0 || (got < 0 && errno != EINTR);
        len += got > 0 ? (size_t)got : 0;
    }
    text[len] = '\0';
    return finished;
}

bool ew_driver_ask(void (*say)(FILE *to), double limit_s, char *text, size_t size)
{
    int fds[2];
    bool finished;
    pid_t pid;

    text[0] = '\0';
    if (pipe(fds) != 0)
        return true;
    fflush(NULL); // or the child would write our buffered output again
    pid = fork();
    if (pid == 0) {
        close(fds[0]);
        child(fds[1], say);
    }
    close(fds[1]);
    finished = pid < 0 || read_report(fds[0], limit_s, text, size);
    close(fds[0]);
    if (pid > 0) {
        kill(pid, SIGKILL); // a child in an uninterruptible call dies later; it is not waited for
        waitpid(pid, NULL, finished ? 0 : WNOHANG);
    }
    return finished;
}
