#pragma once
// Template source to tokens. The rules are those of Jinja2 3.1 with trim_blocks and lstrip_blocks on, so a tag's
// surroundings are already trimmed in the DATA tokens. All memory comes from the caller's arena and lives as long
// as it does.

#include <stdbool.h>
#include <stdint.h>

#include "base/alloc.h"
#include "base/error.h"
#include "base/str.h"

enum ew_jj_token_kind {
    EW_JJ_TOK_EOF,
    EW_JJ_TOK_DATA, // text: what is to be printed as it stands
    EW_JJ_TOK_VARIABLE_BEGIN,
    EW_JJ_TOK_VARIABLE_END,
    EW_JJ_TOK_BLOCK_BEGIN,
    EW_JJ_TOK_BLOCK_END,
    EW_JJ_TOK_NAME,
    EW_JJ_TOK_STRING,  // text: with escapes resolved
    EW_JJ_TOK_INTEGER, // text: decimal digits; also past 64 bits
    EW_JJ_TOK_FLOAT,   // text: digits that strtod reads
    EW_JJ_TOK_ADD,
    EW_JJ_TOK_SUB,
    EW_JJ_TOK_MUL,
    EW_JJ_TOK_DIV,
    EW_JJ_TOK_FLOORDIV,
    EW_JJ_TOK_MOD,
    EW_JJ_TOK_POW,
    EW_JJ_TOK_TILDE,
    EW_JJ_TOK_LBRACKET,
    EW_JJ_TOK_RBRACKET,
    EW_JJ_TOK_LPAREN,
    EW_JJ_TOK_RPAREN,
    EW_JJ_TOK_LBRACE,
    EW_JJ_TOK_RBRACE,
    EW_JJ_TOK_EQ,
    EW_JJ_TOK_NE,
    EW_JJ_TOK_GT,
    EW_JJ_TOK_GE,
    EW_JJ_TOK_LT,
    EW_JJ_TOK_LE,
    EW_JJ_TOK_ASSIGN,
    EW_JJ_TOK_DOT,
    EW_JJ_TOK_COLON,
    EW_JJ_TOK_PIPE,
    EW_JJ_TOK_COMMA,
    EW_JJ_TOK_SEMICOLON,
};

struct ew_jj_token {
    enum ew_jj_token_kind kind;
    uint32_t line;
    struct ew_str text;
};

struct ew_jj_tokens {
    struct ew_jj_token *tokens; // the last one is EOF
    uint32_t count, cap;
};

int ew_jj_lex(struct ew_arena *arena, struct ew_str source, struct ew_jj_tokens *out,
              struct ew_error *err) EW_MUST_CHECK;
