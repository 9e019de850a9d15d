"""Texts that tokenizers and chat templates get wrong, and what transformers makes of them."""

import hashlib
import struct

# Name: a text and how often it stands there in a row.
TEXTS = {
    "empty": ("", 1),
    "plain": ("The quick brown fox jumps over the lazy dog.", 1),
    "space-first": (" a leading space and a trailing one ", 1),
    "contractions": ("I'm, you're, he'd, we'll, they've; O'Neill's 'quoted' it’s", 1),
    "numbers": ("0 1 12 123 1234567890 3.14159e-10 ½ ² Ⅻ ٣٤٥ 1,000,000", 1),
    "emoji": ("😀 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷🇩🇪 ❤️ ☎︎ #️⃣", 1),
    "arabic": ("السَّلَامُ عَلَيْكُمْ، كيف حالك؟ \u200fمرحبا\u200e ١٢٣", 1),
    "hebrew": ("שָׁלוֹם עֲלֵיכֶם", 1),
    "chinese": ("今天天气怎么样？我想去北京大学图书馆，「你好」。", 1),
    "japanese": ("吾輩は猫である。名前はまだ無い。ｶﾀｶﾅ", 1),
    "korean": ("안녕하세요 \u1112\u1161\u11ab\u1100\u1173\u11af", 1),
    "thai": ("สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง", 1),
    "hindi": ("नमस्ते दुनिया क्षत्रिय", 1),
    "decomposed": ("cafe\u0301 A\u030angstro\u0308m nai\u0308ve vs café Ångström naïve", 1),
    "zalgo": ("Z\u0351\u036b\u0343\u036aA\u0334\u0335\u035cL\u0321\u034aG\u0321\u0343O\u0310", 1),
    "python": ("def f(x):\n\tif x > 0:\n        return {'a': [1, 2]}  # ok\n\n\nclass A: ...\n", 1),
    "rust": ("fn main() -> Result<(), Box<dyn Error>> {\r\n    let x = &mut v[..];\r\n}\r\n", 1),
    "json": ('{"a":[null,true,-1.5e3],"b\\n":"\\u0000 \\\\ \\""}', 1),
    "html": ("<div class=\"x\">&nbsp;<!-- c --></div><script>1<2&&3>2</script>", 1),
    "url": ("https://example.org/a%20b?q=1&r=%F0%9F%98%80#frag", 1),
    "spaces": ("a  b   c    d        e\u00a0f\u3000g\u2003h\u200bi", 1),
    "lines": ("\n\n\n\na\n \n\t\n\r\n\rb\n", 1),
    "tabs": ("\t\ta\t \tb", 1),
    "nul": ("a\0b\0\0c", 1),
    "controls": ("".join(map(chr, range(32))) + "\x7f\x80\x9f", 1),
    "replacement": ("\ufffd \ufeff \ufffe \uffff \ue000 \U0010ffff \U0001fffe", 1),
    "smollm2-special": ("<|im_start|>user\nhi<|im_end|>\n<|endoftext|> < |im_start|>", 1),
    "gemma-special": ("<bos><start_of_turn>user\nhi<end_of_turn>\n<eos><unk><pad>[multimodal]", 1),
    "spiece": ("▁a▁▁b ▁ c", 1),
    "bytes": ("<0x41><0x00> <0xFF>", 1),
    "long-letter": ("a", 100_000),
    "long-words": ("word ", 20_000),
    "long-spaces": (" ", 100_000),
    "long-lines": ("\n", 100_000),
    "long-digits": ("7", 100_000),
    "long-chinese": ("你好", 17_000),
    "long-emoji": ("😀", 25_000),
    "long-nul": ("\0", 20_000),
    "long-code": ("x[i]+=(y<<2)^0x1f;", 5_600),
}
# Ids and texts up to this length stand in the golden themselves, for the reader.
SHORT = 80

# Python's text can hold half a character, JSON can write one. Neither becomes tokens.
LONE_SURROGATES = ["\ud83d", "a\udc00b", "\ude00\ud83d"]


def golden(tokenizer):
    for text in LONE_SURROGATES:
        try:
            tokenizer.encode(text)
        except (TypeError, UnicodeEncodeError):
            continue
        raise SystemExit("transformers takes lone surrogates now: decide anew what we do")
    return {
        "texts": [encoded(tokenizer, name, *text) for name, text in TEXTS.items()],
        "chats": [chat(tokenizer, name, *text) for name, text in TEXTS.items()],
    }


def encoded(tokenizer, name, unit, count):
    text = unit * count
    ids = tokenizer.encode(text, add_special_tokens=False)
    whole = tokenizer.encode(text, add_special_tokens=True)
    decoded = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    visible = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    result = {
        "name": name,
        "unit": unit,
        "count": count,
        "num_ids": len(ids),
        "ids_sha256": ids_digest(ids),
        "whole_sha256": ids_digest(whole),
        "decoded_sha256": text_digest(decoded),
        "visible_sha256": text_digest(visible),
    }
    if len(ids) <= SHORT:
        result |= {"ids": ids, "decoded": decoded}
    return result


def chat(tokenizer, name, unit, count):
    text = unit * count
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": text},
        {"role": "assistant", "content": "Yes." + text},
        {"role": "user", "content": text + "?"},
    ]
    prompts = [
        tokenizer.apply_chat_template(part, tokenize=False, add_generation_prompt=more)
        for part, more in ((messages, True), (messages[:3], False), (messages[1:2], True))
    ]
    return {"name": name, "sha256": [text_digest(prompt) for prompt in prompts]}


def ids_digest(ids):
    return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()


def text_digest(text):
    return hashlib.sha256(text.encode()).hexdigest()
