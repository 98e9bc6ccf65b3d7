#include "cli/lineedit.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <utf8proc.h>

#include "base/alloc.h"
#include "base/assert.h"
#include "base/utf8.h"
#include "cli/cli.h"
#include "cli/lineedit_raw.h"

#define LINE_BYTES_MAX ((size_t)64 << 20) // a paste may be a whole book; more is a mistake
#define ESCAPE_WAIT_MS 50                 // a key's escape sequence arrives at once, the Escape key alone
#define SIGNAL_WAIT_MS 200                // a signal is noticed at the latest after this time
#define COLUMNS_DEFAULT 80
#define CONTROL(letter) ((letter) & 0x1F)

// The line being edited.
struct line {
    struct ew_lineedit *edit;
    const char *prompt;
    struct ew_buf *text;
    size_t cursor;         // in bytes, between characters
    uint32_t row;          // where the screen's cursor is, counted from the prompt's row
    uint32_t history_at;   // n_history: the line that is being entered
    char *entered;         // it, while an older one is shown
    enum ew_line result;
    bool is_done;
};

// Input.

// Another thread may be the one that a signal interrupts, so the flag is looked at from time to time.
static bool wait_for_input(const struct ew_lineedit *edit)
{
    struct pollfd wait = {.fd = edit->in, .events = POLLIN};

    while (!ew_interrupted())
        if (poll(&wait, 1, SIGNAL_WAIT_MS) > 0)
            return true;
    return false;
}

// The next byte, or a negative ew_line: -EW_LINE_EOF, ...
static int next_byte(struct ew_lineedit *edit)
{
    if (edit->input_at == edit->input_len) {
        ssize_t len;

        if (!wait_for_input(edit))
            return -EW_LINE_SIGNAL;
        len = read(edit->in, edit->input, sizeof(edit->input));

        if (len <= 0)
            return len == 0         ? -EW_LINE_EOF
                   : errno == EINTR ? -EW_LINE_SIGNAL
                   : errno == EIO   ? -EW_LINE_EOF
                                    : -EW_LINE_ERROR;
        edit->input_at = 0;
        edit->input_len = (size_t)len;
    }
    return (unsigned char)edit->input[edit->input_at++];
}

static bool has_byte_soon(const struct ew_lineedit *edit)
{
    struct pollfd wait = {.fd = edit->in, .events = POLLIN};

    return edit->input_at < edit->input_len || poll(&wait, 1, ESCAPE_WAIT_MS) > 0;
}

// Keys: characters are themselves, the others have numbers of their own.
enum key {
    KEY_NONE = 0x200000,
    KEY_LEFT,
    KEY_RIGHT,
    KEY_UP,
    KEY_DOWN,
    KEY_HOME,
    KEY_END,
    KEY_DELETE,
    KEY_WORD_LEFT,
    KEY_WORD_RIGHT,
    KEY_PASTE
};

static const struct {
    const char *sequence; // behind the escape character
    enum key key;
} g_sequences[] = {
    {"[A", KEY_UP},      {"[B", KEY_DOWN},  {"[C", KEY_RIGHT},    {"[D", KEY_LEFT},         {"[H", KEY_HOME},
    {"[F", KEY_END},     {"OA", KEY_UP},    {"OB", KEY_DOWN},     {"OC", KEY_RIGHT},        {"OD", KEY_LEFT},
    {"OH", KEY_HOME},    {"OF", KEY_END},   {"[1~", KEY_HOME},    {"[7~", KEY_HOME},        {"[4~", KEY_END},
    {"[8~", KEY_END},    {"[3~", KEY_DELETE}, {"[200~", KEY_PASTE}, {"[1;5C", KEY_WORD_RIGHT}, {"[1;5D", KEY_WORD_LEFT},
    {"b", KEY_WORD_LEFT}, {"f", KEY_WORD_RIGHT},
};

// What follows an escape character. Sequences end with a letter or a tilde.
static int read_escape(struct ew_lineedit *edit)
{
    char sequence[16];
    size_t n = 0;

    while (n + 1 < sizeof(sequence) && has_byte_soon(edit)) {
        int byte = next_byte(edit);

        if (byte < 0)
            return byte;
        sequence[n++] = (char)byte;
        if (n > 1 || (byte != '[' && byte != 'O'))
            if ((byte >= 'A' && byte <= 'Z') || (byte >= 'a' && byte <= 'z') || byte == '~')
                break;
    }
    sequence[n] = '\0';
    for (size_t i = 0; i < EW_COUNT_OF(g_sequences); i++)
        if (strcmp(sequence, g_sequences[i].sequence) == 0)
            return g_sequences[i].key;
    return KEY_NONE;
}

// The rest of a UTF-8 character whose first byte is given; ill-formed ones give U+FFFD.
static int read_character(struct ew_lineedit *edit, int first)
{
    char bytes[4] = {(char)first};
    size_t n = 1, len = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : first >= 0xC0 ? 2 : 1;
    uint32_t c;

    for (; n < len; n++) {
        int byte = next_byte(edit);

        if (byte < 0)
            return byte;
        bytes[n] = (char)byte;
    }
    return ew_utf8_decode(bytes, n, &c) == n ? (int)c : 0xFFFD;
}

static int read_key(struct ew_lineedit *edit)
{
    int byte = next_byte(edit);

    if (byte == 0x1B)
        return read_escape(edit);
    return byte >= 0x80 ? read_character(edit, byte) : byte;
}

// The screen.

struct place {
    uint32_t row, column;
};

static uint32_t columns_of(const struct ew_lineedit *edit)
{
    struct winsize size;

    return ioctl(edit->out, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : COLUMNS_DEFAULT;
}

// Where the screen's cursor is after text that begins at `from`. Control characters are shown as ^X.
static struct place place_after(struct place from, struct ew_str text, uint32_t columns)
{
    size_t len;

    for (size_t at = 0; at < text.len; at += len) {
        uint32_t c = 0xFFFD, width = 1;

        len = ew_utf8_decode(text.ptr + at, text.len - at, &c);
        if (len == 0)
            len = 1;
        if (c == '\n') {
            from = (struct place){from.row + 1, 0};
            continue;
        }
        if (c < 0x20 || c == 0x7F)
            width = 2;
        else if (c >= 0x80)
            width = (uint32_t)utf8proc_charwidth((utf8proc_int32_t)c);
        if (from.column + width > columns)
            from = (struct place){from.row + 1, 0};
        from.column += width;
    }
    if (from.column >= columns) // the cursor waits at the margin; the editor moves it on
        from = (struct place){from.row + 1, 0};
    return from;
}

static void append_visible(struct ew_buf *out, struct ew_str text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];

        if (c == '\n')
            ew_buf_append_str(out, EW_STR("\r\n"));
        else if (c < 0x20 || c == 0x7F)
            ew_buf_printf(out, "^%c", c ^ 0x40);
        else
            ew_buf_append_char(out, (char)c);
    }
}

static void write_all(int fd, const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t written = write(fd, bytes, len);

        if (written < 0 && errno != EINTR)
            return;
        bytes += written > 0 ? written : 0;
        len -= written > 0 ? (size_t)written : 0;
    }
}

// Draws the whole line anew: simple, and right whatever was there.
static void redraw(struct line *line)
{
    uint32_t columns = columns_of(line->edit);
    struct ew_str text = ew_buf_str(line->text), before = {text.ptr, line->cursor};
    struct place start = place_after((struct place){0}, ew_str_of(line->prompt), columns);
    struct place cursor = place_after(start, before, columns), end = place_after(start, text, columns);
    struct ew_buf out;

    ew_buf_init(&out, 4 * LINE_BYTES_MAX);
    if (line->row)
        ew_buf_printf(&out, "\x1b[%uA", line->row);
    ew_buf_append_str(&out, EW_STR("\r\x1b[J"));
    ew_buf_append_str(&out, ew_str_of(line->prompt));
    append_visible(&out, text);
    if (end.column == 0 && end.row > 0 && (text.len == 0 || text.ptr[text.len - 1] != '\n'))
        ew_buf_append_str(&out, EW_STR("\r\n"));
    if (end.row > cursor.row)
        ew_buf_printf(&out, "\x1b[%uA", end.row - cursor.row);
    ew_buf_append_char(&out, '\r');
    if (cursor.column)
        ew_buf_printf(&out, "\x1b[%uC", cursor.column);
    if (ew_buf_ok(&out))
        write_all(line->edit->out, out.ptr, out.len);
    ew_buf_fini(&out);
    line->row = cursor.row;
}

// Editing. All positions are bytes between characters.

static size_t step_left(const struct line *line, size_t at)
{
    if (at > 0)
        at--;
    while (at > 0 && ((unsigned char)line->text->ptr[at] & 0xC0) == 0x80)
        at--;
    return at;
}

static size_t step_right(const struct line *line, size_t at)
{
    if (at < line->text->len)
        at++;
    while (at < line->text->len && ((unsigned char)line->text->ptr[at] & 0xC0) == 0x80)
        at++;
    return at;
}

static size_t word_left(const struct line *line)
{
    size_t at = line->cursor;

    while (at > 0 && line->text->ptr[at - 1] == ' ')
        at--;
    while (at > 0 && line->text->ptr[at - 1] != ' ')
        at--;
    return at;
}

static size_t word_right(const struct line *line)
{
    size_t at = line->cursor;

    while (at < line->text->len && line->text->ptr[at] == ' ')
        at++;
    while (at < line->text->len && line->text->ptr[at] != ' ')
        at++;
    return at;
}

static void erase(struct line *line, size_t from, size_t to)
{
    struct ew_buf *text = line->text;

    if (from >= to)
        return;
    memmove(text->ptr + from, text->ptr + to, text->len - to);
    text->len -= to - from;
    text->ptr[text->len] = '\0';
    line->cursor = from;
}

static void insert(struct line *line, const char *bytes, size_t len)
{
    struct ew_buf *text = line->text;

    if (!ew_buf_reserve(text, len)) {
        ew_buf_reset(text);
        line->cursor = 0;
        line->result = EW_LINE_ERROR;
        line->is_done = true;
        return;
    }
    memmove(text->ptr + line->cursor + len, text->ptr + line->cursor, text->len - line->cursor);
    memcpy(text->ptr + line->cursor, bytes, len);
    text->len += len;
    text->ptr[text->len] = '\0';
    line->cursor += len;
}

static void insert_character(struct line *line, uint32_t c)
{
    char bytes[4];

    insert(line, bytes, ew_utf8_encode(c, bytes));
}

static void finish(struct line *line, enum ew_line result)
{
    line->result = result;
    line->is_done = true;
}

// A paste ends with its own escape sequence, whatever else is in it; a terminal's carriage returns are newlines.
static void paste(struct line *line)
{
    static const char end[] = "\x1b[201~";
    size_t begin = line->cursor;

    while (!line->is_done) {
        int byte = next_byte(line->edit);
        char c = (char)byte;

        if (byte < 0) {
            finish(line, (enum ew_line)-byte);
            return;
        }
        if (c == '\r')
            c = '\n';
        if (c != '\0')
            insert(line, &c, 1);
        if (line->cursor - begin >= sizeof(end) - 1 &&
            memcmp(line->text->ptr + line->cursor - (sizeof(end) - 1), end, sizeof(end) - 1) == 0) {
            erase(line, line->cursor - (sizeof(end) - 1), line->cursor);
            return;
        }
    }
}

static void show_history(struct line *line, uint32_t at)
{
    struct ew_lineedit *edit = line->edit;
    const char *shown;

    if (line->history_at == edit->n_history) {
        ew_free(line->entered);
        line->entered = ew_strdup(line->text->ptr ? line->text->ptr : "");
    }
    shown = at == edit->n_history ? line->entered : edit->history[at];
    line->history_at = at;
    ew_buf_reset(line->text);
    ew_buf_append_str(line->text, ew_str_of(shown ? shown : ""));
    line->cursor = line->text->len;
}

static void move_in_history(struct line *line, bool older)
{
    if (older && line->history_at > 0)
        show_history(line, line->history_at - 1);
    else if (!older && line->history_at < line->edit->n_history)
        show_history(line, line->history_at + 1);
}

static void end_of_input(struct line *line)
{
    if (line->text->len == 0)
        finish(line, EW_LINE_EOF);
    else
        erase(line, line->cursor, step_right(line, line->cursor));
}

static void clear_screen(struct line *line)
{
    write_all(line->edit->out, "\x1b[H\x1b[2J", 7);
    line->row = 0;
}

static void edit_key(struct line *line, int key)
{
    switch (key) {
    case '\r':
    case '\n': finish(line, EW_LINE_TEXT); break;
    case CONTROL('C'): finish(line, EW_LINE_CTRL_C); break;
    case CONTROL('D'): end_of_input(line); break;
    case CONTROL('A'):
    case KEY_HOME: line->cursor = 0; break;
    case CONTROL('E'):
    case KEY_END: line->cursor = line->text->len; break;
    case CONTROL('B'):
    case KEY_LEFT: line->cursor = step_left(line, line->cursor); break;
    case CONTROL('F'):
    case KEY_RIGHT: line->cursor = step_right(line, line->cursor); break;
    case KEY_WORD_LEFT: line->cursor = word_left(line); break;
    case KEY_WORD_RIGHT: line->cursor = word_right(line); break;
    case CONTROL('P'):
    case KEY_UP: move_in_history(line, true); break;
    case CONTROL('N'):
    case KEY_DOWN: move_in_history(line, false); break;
    case CONTROL('K'): erase(line, line->cursor, line->text->len); break;
    case CONTROL('U'): erase(line, 0, line->cursor); break;
    case CONTROL('W'): erase(line, word_left(line), line->cursor); break;
    case CONTROL('L'): clear_screen(line); break;
    case CONTROL('H'):
    case 0x7F: erase(line, step_left(line, line->cursor), line->cursor); break;
    case KEY_DELETE: erase(line, line->cursor, step_right(line, line->cursor)); break;
    case KEY_PASTE: paste(line); break;
    default:
        if ((key >= 0x20 && key < 0x80) || (key >= 0xA0 && key < KEY_NONE) || key == '\t')
            insert_character(line, (uint32_t)key);
        break;
    }
}

static enum ew_line edit_line(struct ew_lineedit *edit, const char *prompt, struct ew_buf *text)
{
    struct line line = {.edit = edit, .prompt = prompt, .text = text, .history_at = edit->n_history};

    redraw(&line);
    while (!line.is_done) {
        int key = read_key(edit);

        if (key < 0)
            finish(&line, (enum ew_line)-key);
        else
            edit_key(&line, key);
        if (edit->input_at == edit->input_len || line.is_done) // what is typed ahead is drawn at once
            redraw(&line);
    }
    line.cursor = text->len;
    redraw(&line);
    write_all(edit->out, "\r\n", 2);
    ew_free(line.entered);
    return line.result;
}

static enum ew_line read_plain(struct ew_lineedit *edit, struct ew_buf *text)
{
    int byte;

    while ((byte = next_byte(edit)) >= 0 && byte != '\n')
        ew_buf_append_char(text, (char)byte);
    if (!ew_buf_ok(text))
        return EW_LINE_ERROR;
    if (byte < 0 && (byte != -EW_LINE_EOF || text->len == 0))
        return (enum ew_line)-byte;
    if (text->len && text->ptr[text->len - 1] == '\r')
        text->ptr[--text->len] = '\0';
    return EW_LINE_TEXT;
}

enum ew_line ew_lineedit_read(struct ew_lineedit *edit, const char *prompt, struct ew_buf *line)
{
    enum ew_line result;

    ew_buf_reset(line);
    ew_buf_append(line, "", 0); // so that there is a text to point into
    if (!ew_buf_ok(line))
        return EW_LINE_ERROR;
    if (!edit->is_terminal)
        return read_plain(edit, line);
    if (!ew__raw_enter(edit->in)) {
        edit->is_terminal = false;
        return read_plain(edit, line);
    }
    result = edit_line(edit, prompt, line);
    ew__raw_leave();
    return result;
}

// Reads on until a line ends in the mark, joining with newlines. The mark is taken off.
static enum ew_line read_until(struct ew_lineedit *edit, struct ew_buf *text, const char *mark)
{
    enum ew_line result = EW_LINE_TEXT;
    struct ew_buf line;

    ew_buf_init(&line, LINE_BYTES_MAX);
    while (result == EW_LINE_TEXT && !ew_str_ends(ew_buf_str(text), mark)) {
        result = ew_lineedit_read(edit, "... ", &line);
        if (result == EW_LINE_TEXT) {
            ew_buf_append_char(text, '\n');
            ew_buf_append_str(text, ew_buf_str(&line));
        }
    }
    if (result == EW_LINE_TEXT)
        text->len -= strlen(mark);
    ew_buf_fini(&line);
    return result == EW_LINE_EOF ? EW_LINE_TEXT : result; // an end in the middle ends the text, too
}

static enum ew_line read_continued(struct ew_lineedit *edit, struct ew_buf *text)
{
    enum ew_line result = EW_LINE_TEXT;
    struct ew_buf line;

    ew_buf_init(&line, LINE_BYTES_MAX);
    while (result == EW_LINE_TEXT && ew_str_ends(ew_buf_str(text), "\\")) {
        text->ptr[text->len - 1] = '\n';
        result = ew_lineedit_read(edit, "... ", &line);
        if (result == EW_LINE_TEXT)
            ew_buf_append_str(text, ew_buf_str(&line));
    }
    ew_buf_fini(&line);
    return result == EW_LINE_EOF ? EW_LINE_TEXT : result;
}

enum ew_line ew_lineedit_read_block(struct ew_lineedit *edit, const char *prompt, struct ew_buf *text)
{
    static const char quotes[] = "\"\"\"";
    enum ew_line result = ew_lineedit_read(edit, prompt, text);

    if (result != EW_LINE_TEXT)
        return result;
    if (ew_str_starts(ew_buf_str(text), quotes)) {
        memmove(text->ptr, text->ptr + 3, text->len - 3);
        text->len -= 3;
        result = read_until(edit, text, quotes);
    } else {
        result = read_continued(edit, text);
    }
    return ew_buf_ok(text) ? result : EW_LINE_ERROR;
}

void ew_lineedit_open(struct ew_lineedit *edit, int in, int out, const char *history_path)
{
    const char *terminal = getenv("TERM");

    *edit = (struct ew_lineedit){.in = in, .out = out};
    edit->is_terminal = isatty(in) && isatty(out) && terminal && terminal[0] && strcmp(terminal, "dumb") != 0;
    if (!edit->is_terminal)
        return;
    edit->history_path = history_path ? ew_strdup(history_path) : NULL;
    ew__history_load(edit);
}

void ew_lineedit_close(struct ew_lineedit *edit)
{
    for (uint32_t i = 0; i < edit->n_history; i++)
        ew_free(edit->history[i]);
    ew_free(edit->history);
    ew_free(edit->history_path);
    *edit = (struct ew_lineedit){0};
}
