// The JSON tree in a form that test_json.py can compare: reads documents (4 bytes of length, little endian, and
// the bytes) from standard input, and writes for each one line: "error: MESSAGE", or its nodes in order, strings
// in hexadecimal.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/json.h"

#define TREE_BYTES_MAX ((size_t)1 << 30)

static void print_text(char mark, struct ew_str text)
{
    putchar(mark);
    for (size_t i = 0; i < text.len; i++)
        printf("%02x", (unsigned char)text.ptr[i]);
    putchar(' ');
}

static void print_number(const struct ew_json *node)
{
    uint64_t bits;

    memcpy(&bits, &node->number, sizeof(bits));
    if (node->type == EW_JSON_T_INT)
        printf("i%lld ", (long long)node->integer);
    else if (isnan(node->number))
        fputs("nan ", stdout);
    else if (strpbrk(node->text.ptr, ".eEI"))
        printf("d%016llx ", (unsigned long long)bits);
    else
        printf("i%s ", node->text.ptr); // past 64 bits
}

// Recursion is as deep as the reader allows.
static void print_node(const struct ew_json *node)
{
    bool object = node->type == EW_JSON_T_OBJECT;

    switch (node->type) {
    case EW_JSON_T_NULL: fputs("null ", stdout); break;
    case EW_JSON_T_BOOL: fputs(node->boolean ? "true " : "false ", stdout); break;
    case EW_JSON_T_STRING: print_text('s', node->text); break;
    case EW_JSON_T_INT:
    case EW_JSON_T_DOUBLE: print_number(node); break;
    default:
        fputs(object ? "{ " : "[ ", stdout);
        for (const struct ew_json *child = node->child; child; child = child->next) {
            if (object)
                print_text('k', child->key);
            print_node(child);
        }
        fputs(object ? "} " : "] ", stdout);
    }
}

static bool dump_next(void)
{
    const struct ew_json *root;
    struct ew_arena arena;
    struct ew_error err;
    uint32_t len;
    char *text;

    if (fread(&len, sizeof(len), 1, stdin) != 1)
        return false;
    text = malloc((size_t)len + 1);
    if (!text || fread(text, 1, len, stdin) != len)
        exit(1);
    ew_arena_init(&arena, TREE_BYTES_MAX);
    if (ew_json_parse(&arena, (struct ew_str){text, len}, &root, &err) == EW_OK)
        print_node(root);
    else
        printf("error: %s", err.message);
    putchar('\n');
    ew_arena_fini(&arena);
    free(text);
    return true;
}

int main(void)
{
    while (dump_next())
        ;
    return 0;
}
