#pragma once
// Reading lines from people: an editor on a terminal, plain lines from anything else.
//
// The terminal is in raw mode only while a line is being edited, and is put back before ew_lineedit_read returns,
// when the process exits, and when a fatal signal ends it. One editor at a time; not thread safe.

#include <stdbool.h>

#include "base/buf.h"
#include "base/error.h"

#define EW_HISTORY_MAX 1000 // entries kept in memory and in the file

struct ew_lineedit {
    int in, out;
    bool is_terminal;    // both ends are one, and it understands escape codes
    char *history_path;  // NULL: kept in memory only
    char **history;      // oldest first
    uint32_t n_history;
    char input[4096];    // read and not yet used
    size_t input_at, input_len;
};

enum ew_line {
    EW_LINE_TEXT,
    EW_LINE_EOF,       // the input ended, or Ctrl-D on an empty line
    EW_LINE_CTRL_C,    // typed while editing
    EW_LINE_SIGNAL,    // ew_interrupted() is true
    EW_LINE_ERROR,     // the input cannot be read, or memory is short
};

// history_path may be NULL. A history that cannot be read or written is done without.
void ew_lineedit_open(struct ew_lineedit *edit, int in, int out, const char *history_path);
void ew_lineedit_close(struct ew_lineedit *edit);
// Replaces what line holds by the next line, without its newline. The prompt is shown only on a terminal.
enum ew_line ew_lineedit_read(struct ew_lineedit *edit, const char *prompt, struct ew_buf *line);
// The same, but several lines where the first ends in a backslash, or begins with """ (then up to a line that ends so).
enum ew_line ew_lineedit_read_block(struct ew_lineedit *edit, const char *prompt, struct ew_buf *text);
void ew_lineedit_remember(struct ew_lineedit *edit, struct ew_str text); // adds to the history
// $XDG_STATE_HOME/edgewise/NAME or ~/.local/state/edgewise/NAME, its directory made; NULL where there is no home.
// The caller frees.
char *ew_state_path(const char *name);
