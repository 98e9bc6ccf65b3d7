// The lines entered before, in memory and in a file that only its owner can read. One entry is one line of the file;
// newlines and backslashes in it are escaped.

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/lineedit.h"
#include "cli/lineedit_raw.h"
#include "format/mapfile.h"

#define ENTRY_BYTES_MAX ((size_t)1 << 20)
#define FILE_BYTES_MAX ((size_t)16 << 20)

static char *unescape(const char *text, size_t len)
{
    char *entry = ew_alloc(len + 1), *to = entry;

    for (size_t i = 0; entry && i < len; i++) {
        if (text[i] == '\\' && i + 1 < len)
            *to++ = text[++i] == 'n' ? '\n' : text[i];
        else
            *to++ = text[i];
    }
    return entry;
}

static void append_escaped(struct ew_buf *buf, const char *entry)
{
    for (; *entry; entry++)
        if (*entry == '\n' || *entry == '\\')
            ew_buf_printf(buf, "\\%c", *entry == '\n' ? 'n' : '\\');
        else
            ew_buf_append_char(buf, *entry);
    ew_buf_append_char(buf, '\n');
}

// Takes the entry. The oldest makes room where there is none.
static void add(struct ew_lineedit *edit, char *entry)
{
    if (!edit->history)
        edit->history = ew_alloc_array(EW_HISTORY_MAX, sizeof(*edit->history));
    if (!edit->history || !entry) {
        ew_free(entry);
        return;
    }
    if (edit->n_history == EW_HISTORY_MAX) {
        ew_free(edit->history[0]);
        edit->n_history--;
        memmove(edit->history, edit->history + 1, edit->n_history * sizeof(*edit->history));
    }
    edit->history[edit->n_history++] = entry;
}

static void write_file(const char *path, int flags, const struct ew_buf *text)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW | flags, S_IRUSR | S_IWUSR);

    if (fd < 0)
        return;
    for (size_t at = 0; at < text->len;) {
        ssize_t written = write(fd, text->ptr + at, text->len - at);

        if (written < 0 && errno != EINTR)
            break;
        at += written > 0 ? (size_t)written : 0;
    }
    close(fd);
}

// Keeps the file at the entries that are kept in memory.
static void rewrite(struct ew_lineedit *edit)
{
    struct ew_buf text;

    ew_buf_init(&text, FILE_BYTES_MAX);
    for (uint32_t i = 0; i < edit->n_history; i++)
        append_escaped(&text, edit->history[i]);
    if (ew_buf_ok(&text))
        write_file(edit->history_path, O_TRUNC, &text);
    ew_buf_fini(&text);
}

void ew__history_load(struct ew_lineedit *edit)
{
    char *text, *line, *end;
    size_t len, n_lines = 0;

    if (!edit->history_path || ew_file_read(edit->history_path, FILE_BYTES_MAX, &text, &len, NULL) != EW_OK)
        return;
    for (line = text; (end = memchr(line, '\n', len - (size_t)(line - text))) != NULL; line = end + 1, n_lines++)
        add(edit, unescape(line, (size_t)(end - line)));
    ew_free(text);
    if (n_lines > EW_HISTORY_MAX)
        rewrite(edit);
}

void ew_lineedit_remember(struct ew_lineedit *edit, struct ew_str text)
{
    struct ew_buf line;
    char *entry;

    if (text.len == 0 || text.len > ENTRY_BYTES_MAX || memchr(text.ptr, '\0', text.len))
        return;
    if (edit->n_history && ew_str_is(text, edit->history[edit->n_history - 1]))
        return;
    entry = ew_alloc(text.len + 1);
    if (!entry)
        return;
    memcpy(entry, text.ptr, text.len);
    ew_buf_init(&line, 2 * ENTRY_BYTES_MAX + 2);
    append_escaped(&line, entry);
    add(edit, entry);
    if (edit->history_path && ew_buf_ok(&line))
        write_file(edit->history_path, O_APPEND, &line);
    ew_buf_fini(&line);
}

char *ew_state_path(const char *name)
{
    const char *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    struct ew_buf path;

    ew_buf_init(&path, 4096);
    if (state && state[0] == '/')
        ew_buf_printf(&path, "%s/edgewise/", state);
    else if (home && home[0] == '/')
        ew_buf_printf(&path, "%s/.local/state/edgewise/", home);
    for (size_t i = 1; ew_buf_ok(&path) && i < path.len; i++)
        if (path.ptr[i] == '/') {
            path.ptr[i] = '\0';
            (void)mkdir(path.ptr, S_IRWXU); // where it fails, opening the file will, too
            path.ptr[i] = '/';
        }
    if (path.len)
        ew_buf_append_str(&path, ew_str_of(name));
    if (path.len == 0 || !ew_buf_ok(&path)) {
        ew_buf_fini(&path);
        return NULL;
    }
    return ew_buf_take(&path);
}
