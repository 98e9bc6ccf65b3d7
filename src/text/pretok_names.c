// The pre-tokenisers that GGUF files name in tokenizer.ggml.pre. The expressions are facts of the models' own tokenizer
// files (the names and their mapping are those of the GGUF converters); where a model's expression would be slow on
// long runs of one class of character, an equivalent stands here, and the reason beside it.

#include "text/pretok.h"

#include "base/assert.h"

#define EXPRESSIONS_MAX 6

#define CONTRACTION "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define NEWLINES_SPACES "|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define WORD "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define SYMBOLS "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
#define SYMBOLS_SLASH "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*"
#define UPPER_LOWER "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
#define UPPERS "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
#define CASED UPPER_LOWER CONTRACTION "?|" UPPERS CONTRACTION "?"
#define ASCII_WORD \
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+" \
    "|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+"
#define CJK "[\\x{4e00}-\\x{9fa5}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}]+"

// Kimi writes its classes as intersections with [^\p{Han}]; as complements they need no look-ahead, hence no stack.
#define NOT_HAN_UPPER "[^\\p{Ll}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{Han}]"
#define NOT_HAN_LOWER "[^\\p{Lu}\\p{Lt}\\p{N}\\p{P}\\p{S}\\p{Z}\\p{C}\\p{Han}]"
#define KIMI "[\\p{Han}]+" \
    "|[^\\r\\n\\p{L}\\p{N}]?" NOT_HAN_UPPER "*" NOT_HAN_LOWER "+" CONTRACTION "?" \
    "|[^\\r\\n\\p{L}\\p{N}]?" NOT_HAN_UPPER "+" NOT_HAN_LOWER "*" CONTRACTION "?|\\p{N}{1,3}" SYMBOLS NEWLINES_SPACES

// The letters that DeepSeek LLM lists one range after the other.
#define DEEPSEEK_LETTERS "A-Za-z" \
    "\\x{b5}\\x{c0}-\\x{d6}\\x{d8}-\\x{f6}\\x{f8}-\\x{1ba}\\x{1bc}-\\x{1bf}\\x{1c4}-\\x{293}\\x{295}-\\x{2af}" \
    "\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37b}-\\x{37d}\\x{37f}\\x{386}\\x{388}-\\x{38a}\\x{38c}\\x{38e}-\\x{3a1}" \
    "\\x{3a3}-\\x{3f5}\\x{3f7}-\\x{481}\\x{48a}-\\x{52f}\\x{531}-\\x{556}\\x{10a0}-\\x{10c5}\\x{13a0}-\\x{13f5}" \
    "\\x{13f8}-\\x{13fd}\\x{1c90}-\\x{1cba}\\x{1cbd}-\\x{1cbf}\\x{1d00}-\\x{1d2b}\\x{1d6b}-\\x{1d77}" \
    "\\x{1d79}-\\x{1d9a}\\x{1e00}-\\x{1f15}\\x{1f18}-\\x{1f1d}\\x{1f20}-\\x{1f45}\\x{1f48}-\\x{1f4d}" \
    "\\x{1f50}-\\x{1f57}\\x{1f59}\\x{1f5b}\\x{1f5d}\\x{1f5f}-\\x{1f7d}\\x{1f80}-\\x{1fb4}\\x{1fb6}-\\x{1fbc}\\x{1fbe}" \
    "\\x{1fc2}-\\x{1fc4}\\x{1fc6}-\\x{1fcc}\\x{1fd0}-\\x{1fd3}\\x{1fd6}-\\x{1fdb}\\x{1fe0}-\\x{1fec}" \
    "\\x{1ff2}-\\x{1ff4}\\x{1ff6}-\\x{1ffc}\\x{2102}\\x{2107}\\x{210a}-\\x{2113}\\x{2115}\\x{2119}-\\x{211d}\\x{2124}" \
    "\\x{2126}\\x{2128}\\x{212a}-\\x{212d}\\x{212f}-\\x{2134}\\x{2139}\\x{213c}-\\x{213f}\\x{2145}-\\x{2149}\\x{214e}" \
    "\\x{2183}\\x{2184}\\x{2c00}-\\x{2c7b}\\x{2c7e}-\\x{2ce4}\\x{2ceb}-\\x{2cee}\\x{2cf2}\\x{2cf3}\\x{a640}-\\x{a66d}" \
    "\\x{a680}-\\x{a69b}\\x{a722}-\\x{a76f}\\x{a771}-\\x{a787}\\x{a78b}-\\x{a78e}\\x{ab70}-\\x{abbf}" \
    "\\x{fb00}-\\x{fb06}\\x{fb13}-\\x{fb17}\\x{ff21}-\\x{ff3a}\\x{ff41}-\\x{ff5a}\\x{10400}-\\x{1044f}" \
    "\\x{104b0}-\\x{104d3}\\x{104d8}-\\x{104fb}\\x{10c80}-\\x{10cb2}\\x{10cc0}-\\x{10cf2}\\x{118a0}-\\x{118df}" \
    "\\x{1e900}-\\x{1e943}"

#define DEEPSEEK_SYMBOLS \
    "\\s?[!-/:-~\\x{ff01}-\\x{ff0f}\\x{ff1a}-\\x{ff5e}\\x{2018}-\\x{201f}\\x{3000}-\\x{3002}]+"
#define DEEPSEEK_CJK "[\\x{4e00}-\\x{9fa5}\\x{800}-\\x{4e00}\\x{ac00}-\\x{d7ff}]+"
#define AFMOE_SCRIPTS \
    "[\\x{4e00}-\\x{9fff}\\x{3400}-\\x{4dbf}\\x{f900}-\\x{faff}\\x{3040}-\\x{309f}\\x{30a0}-\\x{30ff}" \
    "\\x{ff65}-\\x{ff9f}\\x{2f00}-\\x{2fdf}\\x{e40}-\\x{e7f}\\x{e80}-\\x{eff}\\x{1780}-\\x{17ff}\\x{1000}-\\x{109f}" \
    "\\x{aa60}-\\x{aa7f}\\x{a9e0}-\\x{a9ff}\\x{ac00}-\\x{d7af}\\x{1100}-\\x{11ff}]+"
#define YOUTU \
    "[\\x{ac00}-\\x{d7a3}\\x{3131}-\\x{318e}]+" \
    "|[\\x{ff01}\\x{2026}\\x{201c}\\x{201d}\\x{2018}\\x{2019}\\x{2014}\\x{ff1a}\\x{ff1b}\\x{ff0c}\\x{3001}-\\x{303f}" \
    "\\x{fe30}-\\x{fe4f}]+|[\\x{3105}-\\x{312f}]+|" CJK

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3 CONTRACTION "|" WORD "|\\p{N}{1,3}" SYMBOLS NEWLINES_SPACES
#define QWEN2 CONTRACTION "|" WORD "|\\p{N}" SYMBOLS NEWLINES_SPACES
#define QWEN35 \
    CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*" NEWLINES_SPACES
#define GPT4O CASED "|\\p{N}{1,3}" SYMBOLS_SLASH NEWLINES_SPACES
#define TEKKEN UPPER_LOWER "|" UPPERS "|\\p{N}" SYMBOLS_SLASH NEWLINES_SPACES
#define DEEPSEEK3 ASCII_WORD "[\\r\\n]*" NEWLINES_SPACES
#define BLOOM " ?[^(\\s|.,!?\\x{2026}\\x{3002}\\x{ff0c}\\x{3001}\\x{964}\\x{6d4}\\x{60c})]+"
// "\s*[\r\n]+" would walk the rest of a long run of spaces again for each piece of it; behind a space it cannot match.
#define JAIS2 CONTRACTION "|" WORD "|\\p{N}{1,3}" SYMBOLS \
    "|(?<![^\\S\\r\\n])\\s*[\\r\\n]+|\\s{512}(?!\\S)|\\s{256}(?!\\S)|\\s{128}(?!\\S)" \
    "|\\s{64}(?!\\S)|\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|\\s{4}(?!\\S)|\\s{1,2}(?!\\S)|\\s{1}"
// The model's own form nests repetitions; flat and possessive it needs no stack.
#define EXAONE_MOE CONTRACTION \
    "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}\\p{M}*+(?: ?\\p{L}\\p{M}*+)*+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?" \
    "|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"
// Without the look-behind, every position of a run of spaces would be tried to its end.
#define TRAILING_SPACE "(?<!\\s)\\s+$"

// Stand-ins for expressions that are not matched by PCRE2 but counted, see enum ew_digit_groups.
static const char g_digits_numeric[] = "groups of three \\p{N}";
static const char g_digits_word[] = "\\d{1,3}(?=(?:\\d{3})*\\b)";
static const char g_digits_look[] = "(?=(\\d{3})+(?!\\d))";

enum expression_set {
    SET_GPT2, SET_DEFAULT, SET_LLAMA3, SET_JAIS2, SET_DEEPSEEK_LLM, SET_DEEPSEEK_CODER, SET_DEEPSEEK3, SET_SPARK,
    SET_YOUTU, SET_FALCON, SET_STARCODER, SET_QWEN2, SET_QWEN35, SET_BLOOM, SET_VIKING, SET_TEKKEN, SET_CHAMELEON,
    SET_GPT4O, SET_TINY_AYA, SET_KIMI, SET_SUPERBPE, SET_BAILING, SET_SEED, SET_UFAKZEKA, SET_AFMOE, SET_LAGUNA,
    SET_EXAONE_MOE, SET_LINES, SET_MINICPM5, SET_COUNT,
};

static const char *const g_sets[SET_COUNT][EXPRESSIONS_MAX] = {
    [SET_GPT2] = {GPT2},
    [SET_DEFAULT] = {"[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"},
    [SET_LLAMA3] = {LLAMA3},
    [SET_JAIS2] = {JAIS2},
    [SET_DEEPSEEK_LLM] = {"[\\r\\n]", "\\s?[" DEEPSEEK_LETTERS "]+", DEEPSEEK_SYMBOLS, TRAILING_SPACE, DEEPSEEK_CJK,
                          "\\p{N}+"},
    [SET_DEEPSEEK_CODER] = {"[\\r\\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", DEEPSEEK_CJK, "\\p{N}"},
    [SET_DEEPSEEK3] = {"\\p{N}{1,3}", CJK, DEEPSEEK3},
    [SET_SPARK] = {"\\p{N}{1,3}", CJK, ASCII_WORD "|[\\r\\n]|\\s+(?!\\S)|\\s+", "\\p{N}"},
    [SET_YOUTU] = {YOUTU, CASED "|\\p{N}" SYMBOLS_SLASH NEWLINES_SPACES},
    [SET_FALCON] = {"[\\p{P}\\$\\+<=>\\^~\\|`]+", GPT2, "[0-9][0-9][0-9]"},
    [SET_STARCODER] = {"\\p{N}", GPT2},
    [SET_QWEN2] = {QWEN2},
    [SET_QWEN35] = {QWEN35},
    [SET_BLOOM] = {BLOOM},
    [SET_VIKING] = {BLOOM, "\\p{N}"},
    [SET_TEKKEN] = {TEKKEN},
    [SET_CHAMELEON] = {"<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z", "([\\t\\n]|    |  )", "\\p{N}",
                       "[\\p{P}!-/:-@\\[-`{-~]", GPT2},
    [SET_GPT4O] = {GPT4O},
    [SET_TINY_AYA] = {g_digits_word, GPT4O},
    [SET_KIMI] = {KIMI},
    [SET_SUPERBPE] = {"\\p{N}+", g_digits_look},
    [SET_BAILING] = {"'(?i:[sdmt]|ll|ve|re)|[^\\r\\n\\p{L}\\p{N}]?+\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]++[\\r\\n]*"
                     "|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+"},
    [SET_SEED] = {CONTRACTION "|" WORD "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+" NEWLINES_SPACES},
    [SET_UFAKZEKA] = {WORD "|\\p{N}" SYMBOLS NEWLINES_SPACES},
    [SET_AFMOE] = {g_digits_numeric, AFMOE_SCRIPTS, DEEPSEEK3},
    [SET_LAGUNA] = {"[^\\n]+|[\\n]+", QWEN2},
    [SET_EXAONE_MOE] = {EXAONE_MOE},
    [SET_LINES] = {"[^\\n]+|[\\n]+"},
    [SET_MINICPM5] = {"\\p{N}{1,3}", CONTRACTION "|" WORD "|\\p{N}+" SYMBOLS NEWLINES_SPACES},
};

static const struct {
    const char *name;
    enum expression_set set;
    unsigned flags;
} g_names[] = {
    {"a.x-4.0", SET_GPT2, 0},
    {"afmoe", SET_AFMOE, 0},
    {"bailingmoe", SET_BAILING, 0},
    {"bailingmoe2", SET_BAILING, 0},
    {"bloom", SET_BLOOM, 0},
    {"chameleon", SET_CHAMELEON, EW_PRE_ADD_BOS},
    {"chatglm-bpe", SET_LLAMA3, 0},
    {"codeshell", SET_STARCODER, 0},
    {"cohere2moe", SET_TINY_AYA, 0},
    {"command-r", SET_STARCODER, 0},
    {"dbrx", SET_LLAMA3, 0},
    {"deepseek-coder", SET_DEEPSEEK_CODER, 0},
    {"deepseek-llm", SET_DEEPSEEK_LLM, 0},
    {"deepseek-r1-qwen", SET_QWEN2, 0},
    {"deepseek-v3", SET_DEEPSEEK3, 0},
    {"default", SET_DEFAULT, 0},
    {"exaone", SET_STARCODER, 0},
    {"exaone-moe", SET_EXAONE_MOE, 0},
    {"exaone4", SET_GPT2, 0},
    {"f2llmv2", SET_QWEN2, 0},
    {"falcon", SET_FALCON, 0},
    {"falcon-h1", SET_LLAMA3, EW_PRE_IGNORE_MERGES | EW_PRE_ADD_BOS},
    {"falcon3", SET_LLAMA3, EW_PRE_IGNORE_MERGES | EW_PRE_ADD_BOS},
    {"gemma-4", SET_LINES, EW_PRE_METASPACE | EW_PRE_NEWLINES | EW_PRE_FORCE_BOS},
    {"gemma4", SET_LINES, EW_PRE_METASPACE | EW_PRE_NEWLINES | EW_PRE_FORCE_BOS},
    {"gigachat", SET_GPT2, 0},
    {"glm4", SET_LLAMA3, 0},
    {"gpt-2", SET_GPT2, 0},
    {"gpt-4o", SET_GPT4O, 0},
    {"gpt2", SET_GPT2, 0},
    {"gpt3-finnish", SET_BLOOM, 0},
    {"granite-docling", SET_GPT2, 0},
    {"granite-embed-multi-311m", SET_LINES, EW_PRE_METASPACE | EW_PRE_NEWLINES | EW_PRE_FORCE_BOS},
    {"granite-embed-multi-97m", SET_GPT4O, EW_PRE_IGNORE_MERGES},
    {"grok-2", SET_QWEN2, 0},
    {"hunyuan", SET_QWEN2, 0},
    {"hunyuan-dense", SET_DEEPSEEK3, 0},
    {"hy_v4", SET_DEEPSEEK3, 0},
    {"jais", SET_GPT2, 0},
    {"jais-2", SET_JAIS2, 0},
    {"jina-de", SET_GPT2, 0},
    {"jina-es", SET_GPT2, 0},
    {"jina-v1-en", SET_GPT2, EW_PRE_ADD_SEP},
    {"jina-v2-code", SET_GPT2, EW_PRE_ADD_SEP | EW_PRE_MASK_LSTRIP},
    {"jina-v2-de", SET_GPT2, EW_PRE_MASK_LSTRIP},
    {"jina-v2-es", SET_GPT2, EW_PRE_MASK_LSTRIP},
    {"jina-v5-nano", SET_LLAMA3, EW_PRE_IGNORE_MERGES | EW_PRE_ADD_BOS},
    {"joyai-llm", SET_DEEPSEEK3, 0},
    {"kanana2", SET_GPT4O, 0},
    {"kimi-k2", SET_KIMI, 0},
    {"kormo", SET_QWEN2, 0},
    {"laguna", SET_LAGUNA, 0},
    {"lfm2", SET_LLAMA3, EW_PRE_IGNORE_MERGES | EW_PRE_ADD_BOS},
    {"llada-moe", SET_BAILING, 0},
    {"llama-bpe", SET_LLAMA3, EW_PRE_IGNORE_MERGES | EW_PRE_ADD_BOS},
    {"llama-v3", SET_LLAMA3, EW_PRE_IGNORE_MERGES | EW_PRE_ADD_BOS},
    {"llama3", SET_LLAMA3, EW_PRE_IGNORE_MERGES | EW_PRE_ADD_BOS},
    {"llama4", SET_GPT4O, 0},
    {"megrez", SET_QWEN2, 0},
    {"mellum", SET_GPT2, 0},
    {"mellum2", SET_STARCODER, 0},
    {"midm-2.0", SET_LLAMA3, EW_PRE_IGNORE_MERGES | EW_PRE_ADD_BOS},
    {"minerva-7b", SET_STARCODER, 0},
    {"minicpm5", SET_MINICPM5, EW_PRE_IGNORE_MERGES},
    {"minimax-m2", SET_GPT4O, 0},
    {"modern-bert", SET_GPT2, EW_PRE_MASK_LSTRIP},
    {"mpt", SET_GPT2, 0},
    {"o200k", SET_GPT4O, 0},
    {"olmo", SET_GPT2, 0},
    {"phi-2", SET_GPT2, 0},
    {"pixtral", SET_LLAMA3, EW_PRE_IGNORE_MERGES | EW_PRE_ADD_BOS},
    {"poro-chat", SET_BLOOM, 0},
    {"qwen2", SET_QWEN2, 0},
    {"qwen35", SET_QWEN35, 0},
    {"refact", SET_STARCODER, 0},
    {"roberta-bpe", SET_GPT2, EW_PRE_ADD_SEP},
    {"sarvam-moe", SET_LINES, EW_PRE_METASPACE},
    {"seed-coder", SET_SEED, 0},
    {"smaug-bpe", SET_LLAMA3, 0},
    {"smollm", SET_STARCODER, 0},
    {"solar-open", SET_QWEN2, 0},
    {"spark2_5", SET_SPARK, 0},
    {"stablelm2", SET_QWEN2, 0},
    {"starcoder", SET_STARCODER, 0},
    {"superbpe", SET_SUPERBPE, 0},
    {"talkie", SET_GPT4O, 0},
    {"tekken", SET_TEKKEN, EW_PRE_IGNORE_MERGES | EW_PRE_ADD_BOS},
    {"tiny_aya", SET_TINY_AYA, 0},
    {"trillion", SET_GPT2, 0},
    {"ufakzeka", SET_UFAKZEKA, 0},
    {"viking", SET_VIKING, 0},
    {"whisper", SET_GPT2, 0},
    {"youtu", SET_YOUTU, EW_PRE_IGNORE_MERGES},
};

// Expressions of tokenizer.json files, as written there, and what runs in their place.
#define HAN_FREE(inner) "[" inner "&&[^\\p{Han}]]"
#define KIMI_UPPER HAN_FREE("\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}")
#define KIMI_LOWER HAN_FREE("\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}")

static const struct {
    const char *source, *instead;
} g_equivalents[] = {
    {"\\s+$", TRAILING_SPACE},
    {"[\\p{Han}]+|[^\\r\\n\\p{L}\\p{N}]?" KIMI_UPPER "*" KIMI_LOWER "+" CONTRACTION
     "?|[^\\r\\n\\p{L}\\p{N}]?" KIMI_UPPER "+" KIMI_LOWER "*" CONTRACTION "?|\\p{N}{1,3}" SYMBOLS NEWLINES_SPACES,
     KIMI},
    {CONTRACTION "|" WORD "|\\p{N}{1,3}" SYMBOLS "|\\s*[\\r\\n]+|\\s{512}(?!\\S)|\\s{256}(?!\\S)|\\s{128}(?!\\S)"
                 "|\\s{64}(?!\\S)|\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|\\s{4}(?!\\S)|\\s{1,2}(?!\\S)|\\s{1}",
     JAIS2},
    {CONTRACTION "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?"
                 "|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+",
     EXAONE_MOE},
};

static bool digit_groups(struct ew_str source, enum ew_digit_groups *out)
{
    if (source.ptr == g_digits_numeric)
        *out = EW_DIGITS_NUMERIC;
    else if (ew_str_is(source, g_digits_word))
        *out = EW_DIGITS_WORD;
    else if (ew_str_is(source, g_digits_look))
        *out = EW_DIGITS_LOOK;
    else
        return false;
    return true;
}

int ew_pretok_add_pattern(struct ew_pretok *pretok, struct ew_str source, enum ew_split split, bool invert,
                          struct ew_error *err)
{
    struct ew_pretok_step step = {.kind = EW_PRETOK_DIGITS, .split = split, .invert = invert};
    int code;

    if (digit_groups(source, &step.digits))
        return ew_pretok_add(pretok, step, err);
    step.kind = EW_PRETOK_PATTERN;
    for (size_t i = 0; i < EW_COUNT_OF(g_equivalents); i++)
        if (ew_str_is(source, g_equivalents[i].source))
            source = ew_str_of(g_equivalents[i].instead);
    code = ew_pattern_compile(source, &step.pattern, err);
    return code == EW_OK ? ew_pretok_add(pretok, step, err) : code;
}

int ew_pretok_add_gpt2(struct ew_pretok *pretok, struct ew_error *err)
{
    return ew_pretok_add_pattern(pretok, EW_STR(GPT2), EW_SPLIT_ISOLATED, false, err);
}

int ew_pretok_by_name(struct ew_str name, struct ew_pretok *pretok, unsigned *flags, struct ew_error *err)
{
    int code = EW_OK;
    size_t at = 0;

    while (at < EW_COUNT_OF(g_names) && !ew_str_is(name, g_names[at].name))
        at++;
    if (at == EW_COUNT_OF(g_names)) {
        ew_fail(err, EW_ERR_UNSUPPORTED, "the vocabulary's pre-tokeniser \"" EW_STR_FMT "\" is unknown",
                EW_STR_ARG(name));
        return ew_remedy(err, EW_ERR_UNSUPPORTED,
                         "Use the model's Hugging Face directory, whose tokenizer.json describes it");
    }
    pretok->name = g_names[at].name;
    *flags = g_names[at].flags;
    for (int i = 0; i < EXPRESSIONS_MAX && g_sets[g_names[at].set][i] && code == EW_OK; i++)
        code = ew_pretok_add_pattern(pretok, ew_str_of(g_sets[g_names[at].set][i]), EW_SPLIT_ISOLATED, false, err);
    if (code == EW_OK && !(*flags & EW_PRE_METASPACE))
        code = ew_pretok_add(pretok, (struct ew_pretok_step){.kind = EW_PRETOK_BYTES}, err);
    return code;
}
