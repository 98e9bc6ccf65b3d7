#include "bench/load_words.h"

#include <math.h>

#include "base/assert.h"
#include "base/rng.h"

// Common English words: vocabularies of every size tend to have them whole.
static const char *const g_words[EW_LOAD_WORDS] = {
    "the",       "of",      "and",      "to",     "in",        "is",      "that",      "for",       "it",
    "was",       "on",      "are",      "as",     "with",      "his",     "they",      "at",        "be",
    "this",      "from",    "have",     "or",     "by",        "one",     "had",       "not",       "but",
    "what",      "all",     "were",     "when",   "we",        "there",   "can",       "an",        "your",
    "which",     "their",   "said",     "if",     "do",        "will",    "each",      "about",     "how",
    "up",        "out",     "them",     "then",   "she",       "many",    "some",      "so",        "these",
    "would",     "other",   "into",     "has",    "more",      "her",     "two",       "like",      "him",
    "see",       "time",    "could",    "no",     "make",      "than",    "first",     "been",      "its",
    "who",       "now",     "people",   "my",     "made",      "over",    "did",       "down",      "only",
    "way",       "find",    "use",      "may",    "water",     "long",    "little",    "very",      "after",
    "words",     "called",  "just",     "where",  "most",      "know",    "get",       "through",   "back",
    "much",      "before",  "go",       "good",   "new",       "write",   "our",       "used",      "me",
    "man",       "too",     "any",      "day",    "same",      "right",   "look",      "think",     "also",
    "around",    "another", "came",     "come",   "work",      "three",   "word",      "must",      "because",
    "does",      "part",    "even",     "place",  "well",      "such",    "here",      "take",      "why",
    "things",    "help",    "put",      "years",  "different", "away",    "again",     "off",       "went",
    "old",       "number",  "great",    "tell",   "men",       "say",     "small",     "every",     "found",
    "still",     "between", "name",     "should", "home",      "big",     "give",      "air",       "line",
    "set",       "own",     "under",    "read",   "last",      "never",   "us",        "left",      "end",
    "along",     "while",   "might",    "next",   "sound",     "below",   "saw",       "something", "thought",
    "both",      "few",     "those",    "always", "looked",    "show",    "large",     "often",     "together",
    "asked",     "house",   "world",    "going",  "want",      "school",  "important", "until",     "form",
    "food",      "keep",    "children", "feet",   "land",      "side",    "without",   "boy",       "once",
    "animals",   "life",    "enough",   "took",   "sometimes", "four",    "head",      "above",     "kind",
    "began",     "almost",  "live",     "page",   "got",       "earth",   "need",      "far",       "hand",
    "high",      "year",    "mother",   "light",  "parts",     "country", "father",    "let",       "night",
    "following", "picture", "being",    "study",  "second",    "eyes",    "soon",      "times",     "story",
    "boys",      "since",   "white",    "days",   "ever",      "paper",   "hard",      "near",      "sentence",
    "better",    "best",    "river",    "walk",
};

void ew_load_words_init(struct ew_load_words *words)
{
    *words = (struct ew_load_words){.n_usable = EW_LOAD_WORDS, .tokens_per_word = 1};
    for (uint32_t i = 0; i < EW_LOAD_WORDS; i++)
        words->usable[i] = (uint16_t)i;
}

struct ew_str ew_load_word(uint32_t index)
{
    EW_ASSERT(index < EW_LOAD_WORDS);
    return ew_str_of(g_words[index]);
}

uint32_t ew_load_words_for(const struct ew_load_words *words, double n_tokens)
{
    double n = round(n_tokens / words->tokens_per_word);

    return n < 1 ? 1 : n > 1e8 ? 100000000 : (uint32_t)n;
}

void ew_load_words_append(const struct ew_load_words *words, uint64_t seed, uint64_t key, uint32_t n, bool first,
                          struct ew_buf *out)
{
    struct ew_rng rng = ew_rng_at(seed, key);

    for (uint32_t i = 0; i < n && ew_buf_ok(out); i++) {
        if (i || !first)
            ew_buf_append_char(out, ' ');
        ew_buf_append_str(out, ew_load_word(words->usable[ew_rng_below(&rng, words->n_usable)]));
    }
}
