#!/usr/bin/env python3
"""Makes tests/fixtures/tokenizers: small tokenizers of each kind, trained on the corpus of test_tokenizer.py, and the ids that the
reference implementation gives for its nasty texts. Run it from tests/py after changing either; the results are committed.
"""
import json

from support import ROOT
from test_tokenizer import (BYTE_LEVEL, CORPUS, NASTY, SPECIAL, Tokenizer, decoders, llama_like, models, normalizers, pre_tokenizers, processors,
                            train_bpe, trainers)

PLACE = ROOT / "tests/fixtures/tokenizers"


def byte_level():
    tok = train_bpe(BYTE_LEVEL["qwen2"], vocab_size=420)
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tok.add_tokens(["<tool>"])
    return tok


def unigram():
    tok = Tokenizer(models.Unigram())
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Nmt()])
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    tok.decoder = decoders.Metaspace()
    tok.train_from_iterator(CORPUS, trainers.UnigramTrainer(vocab_size=260, unk_token="<unk>", special_tokens=SPECIAL, show_progress=False))
    return tok


def wordpiece():
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer()
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tok.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tok.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special, show_progress=False))
    tok.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tok


def main():
    PLACE.mkdir(exist_ok=True)
    for name, tok in (("byte_level", byte_level()), ("llama", llama_like()), ("unigram", unigram()), ("wordpiece", wordpiece())):
        cases = [{"text": text, "ids": tok.encode(text).ids, "decoded": tok.decode(tok.encode(text).ids, skip_special_tokens=True)} for text in NASTY]
        (PLACE / f"{name}.json").write_text(json.dumps(json.loads(tok.to_str()), ensure_ascii=True, separators=(",", ":")) + "\n")
        (PLACE / f"{name}.cases.json").write_text(json.dumps(cases, ensure_ascii=True, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
